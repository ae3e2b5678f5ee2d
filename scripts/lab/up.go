package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// labPrefix names the lab that stays up: there is one on a machine.
const labPrefix = "sluice-lab"

// A startedProcess is one that `up` leaves running.
type startedProcess struct {
	Host string `json:"host"`
	Name string `json:"name"`
	testenv.ProcessID
}

func statePath() string { return filepath.Join(testenv.Root, labPrefix, "state.json") }

// up builds the lab, starts sluice on both nodes and leaves all that running.
func up(ctx context.Context, sluice string) (err error) {
	p, err := newPair(ctx, labPrefix, sluice, testenv.NginxConfig{DownloadSize: 64 << 20, DownloadRate: 2 << 20})
	if errors.Is(err, testenv.ErrExists) {
		return fmt.Errorf("%w; remove it with: go run ./scripts/lab down", err)
	}
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			p.printLogs(os.Stderr)
			err = errors.Join(err, p.lab.Close())
		}
	}()
	for _, node := range nodes {
		if err := p.startDaemon(node); err != nil {
			return err
		}
	}
	if err := p.waitForVIP(ctx, "lb1", vipWait); err != nil {
		return err
	}
	if err := p.waitForServing(ctx, slices.Sorted(maps.Keys(weights)), healthWait); err != nil {
		return err
	}
	if err := p.writeState(); err != nil {
		return err
	}
	printHowTo(p)
	p.lab.Release()
	return nil
}

func (p *pair) writeState() error {
	var started []startedProcess
	for host, n := range p.servers {
		started = append(started, startedProcess{host, n.Name, n.ID()})
	}
	for host, d := range p.daemons {
		started = append(started, startedProcess{host, d.Name, d.ID()})
	}
	text, err := json.MarshalIndent(started, "", "\t")
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	if err := os.WriteFile(statePath(), append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	return nil
}

func printHowTo(p *pair) {
	fmt.Printf("The lab is up. VIP %v; %v is dsr, %v is nat.\n\n", testenv.VIP, dsrService, natService)
	for _, h := range p.lab.Hosts() {
		fmt.Printf("  %-7s %-12v go run ./scripts/lab shell %s\n", h.Name, h.Address(), h.Name)
	}
	fmt.Printf(`
On a node, "sluice status" shows its state; on the client, "curl %v" asks a backend.
Without sluice's directories: ip netns exec %s-lb1 ip addr
Configuration: %s
Logs: %s
Remove it: go run ./scripts/lab down
`, testenv.VIP, labPrefix, p.config, filepath.Join(p.lab.Dir(), "*", "log"))
}

// down ends what up has left running, the daemons as systemd would, and removes
// the lab. A lab that is not up, or only in part, is no error.
func down() error {
	text, err := os.ReadFile(statePath())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read state: %w", err)
	}
	var started []startedProcess
	if err == nil {
		if err := json.Unmarshal(text, &started); err != nil {
			return fmt.Errorf("read state %s: %w", statePath(), err)
		}
	}
	var errs []error
	// The last started first: the nodes go before the backends.
	for _, s := range slices.Backward(started) {
		if err := s.End(testenv.StopGrace); err != nil {
			errs = append(errs, fmt.Errorf("end %s on %s: %w", s.Name, s.Host, err))
		}
	}
	errs = append(errs, testenv.Remove(labPrefix))
	if left := testenv.Leftovers(labPrefix); len(left) > 0 {
		errs = append(errs, fmt.Errorf("left behind: %s", strings.Join(left, ", ")))
	}
	return errors.Join(errs...)
}

// shell becomes an interactive shell on a host of the lab. On a node, sluice's
// commands find the daemon of that node.
func shell(name, sluice string) error {
	lab, err := testenv.Open(labPrefix, testenv.Default(len(weights)))
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("no lab is up; start it with: go run ./scripts/lab up: %w", err)
	}
	if err != nil {
		return err
	}
	defer lab.Release()
	host := lab.Host(name)
	if host == nil {
		var names []string
		for _, h := range lab.Hosts() {
			names = append(names, h.Name)
		}
		return fmt.Errorf("open shell: no host %q; there are %s", name, strings.Join(names, ", "))
	}
	env := slices.DeleteFunc(host.Env(), func(v string) bool {
		return strings.HasPrefix(v, "PS1=") || strings.HasPrefix(v, "PATH=")
	})
	env = append(env, "PS1="+name+"# ", "PATH="+filepath.Dir(sluice)+":"+os.Getenv("PATH")+":/usr/sbin:/sbin")
	// Without its start-up files bash keeps this prompt.
	argv := []string{"bash", "--noprofile", "--norc"}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		path, argv = "/bin/sh", []string{"sh"}
	}
	return host.Do(func() error {
		if err := syscall.Exec(path, argv, env); err != nil {
			return fmt.Errorf("run %s: %w", path, err)
		}
		return nil
	})
}
