package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// actAsSluice in the environment makes this test binary be the program. So what
// is tested is what is compiled here, with the race detector where that is on.
const actAsSluice = "TEST_BINARY_IS_SLUICE"

func TestMain(m *testing.M) {
	if os.Getenv(actAsSluice) != "" {
		main() // exits
	}
	if name := os.Getenv(actAsEcho); name != "" {
		os.Exit(echo(name))
	}
	// Parallel tests are those that wait for the clock, not for a processor.
	flag.Parse()
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	testenv.Main(m)
}

const (
	// soon bounds waits for what takes a second or less on a machine at rest.
	soon = 15 * time.Second
	// atOnce is how long something that takes no time at all may take here.
	atOnce = 5 * time.Second
)

// A rig is a lab with sluice in it.
type rig struct {
	*testing.T
	lab *testenv.Lab
}

func newRig(t *testing.T, spec testenv.Spec) *rig {
	t.Helper()
	r := &rig{T: t, lab: testenv.New(t, spec)}
	t.Cleanup(r.checkLogs)
	return r
}

// checkLogs looks for what no daemon may ever say, whatever became of it.
func (r *rig) checkLogs() {
	logs, err := filepath.Glob(filepath.Join(r.lab.Dir(), "*", "log", "sluice.log"))
	if err != nil {
		r.Error(err)
	}
	for _, file := range logs {
		text, err := os.ReadFile(file)
		if err != nil {
			r.Error(err)
		}
		for _, sign := range []string{"panic:", "DATA RACE", "fatal error:"} {
			if i := bytes.Index(text, []byte(sign)); i >= 0 {
				r.Errorf("%s says:\n%s", file, text[i:min(len(text), i+4000)])
			}
		}
	}
}

func (r *rig) host(name string) *testenv.Host {
	r.Helper()
	h := r.lab.Host(name)
	if h == nil {
		r.Fatalf("the lab has no host %s", name)
	}
	return h
}

// file writes a configuration file of several sections and returns its path.
func (r *rig) file(name string, sections ...string) string {
	r.Helper()
	path := filepath.Join(r.lab.Dir(), name)
	if err := os.WriteFile(path, []byte(strings.Join(sections, "\n")), 0o644); err != nil {
		r.Fatal(err)
	}
	return path
}

// sluice is the command line of sluice on a node, with its own directories.
func sluice(h *testenv.Host, args ...string) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	cmd := exec.Command(self, append([]string{"--run-dir", h.RunDir, "--pin-dir", h.PinDir, "--state-dir", filepath.Join(h.RunDir, "state")}, args...)...)
	// The race detector would wait a second at each exit.
	cmd.Env = append(h.Env(), actAsSluice+"=1", "GORACE=atexit_sleep_ms=10")
	return cmd
}

// A result is what a command that has ended leaves.
type result struct {
	code           int
	stdout, stderr string
}

// runSluice runs a command of sluice on a node to its end.
func (r *rig) runSluice(on string, args ...string) result {
	r.Helper()
	h := r.host(on)
	cmd := sluice(h, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// The child starts in the host's namespace; nothing of it needs this thread later.
	if err := h.Do(cmd.Start); err != nil {
		r.Fatal(err)
	}
	kill := time.AfterFunc(soon, func() { _ = cmd.Process.Kill() }) // it may have ended
	defer kill.Stop()
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		r.Fatalf("run sluice %v on %s: %v", args, on, err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// wantRun runs a command that must end with a code.
func (r *rig) wantRun(code int, on string, args ...string) result {
	r.Helper()
	got := r.runSluice(on, args...)
	if got.code != code {
		r.Fatalf("sluice %v on %s ended with %d, want %d\nstdout: %s\nstderr: %s", args, on, got.code, code, got.stdout, got.stderr)
	}
	return got
}

// start starts the daemon on a node.
func (r *rig) start(on, file string) *testenv.Process {
	r.Helper()
	p, err := r.host(on).Start("sluice", sluice(r.host(on), "run", "-c", file, "--node", on))
	if err != nil {
		r.Fatal(err)
	}
	return p
}

// stop ends a daemon as systemd would; it must not fail.
func (r *rig) stop(p *testenv.Process) {
	r.Helper()
	if err := p.Stop(); err != nil {
		r.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		r.Fatalf("sluice ended with %v, want exit code 0:\n%s", err, p.Tail(10))
	}
}

// kill ends a daemon with SIGKILL.
func (r *rig) kill(p *testenv.Process) {
	r.Helper()
	if err := p.Kill(); err != nil {
		r.Fatal(err)
	}
}

// eventually waits for a condition.
func (r *rig) eventually(within time.Duration, what string, f func() (bool, error)) {
	r.Helper()
	testenv.Eventually(r, within, what, f)
}

// status asks the daemon on a node.
func (r *rig) status(on string) (control.Status, error) {
	ctx, cancel := context.WithTimeout(r.Context(), atOnce)
	defer cancel()
	return control.Ask(ctx, filepath.Join(r.host(on).RunDir, "sluice.sock"))
}

func (r *rig) mustStatus(on string) control.Status {
	r.Helper()
	s, err := r.status(on)
	if err != nil {
		r.Fatal(err)
	}
	return s
}

// waitStatus waits until the status of a node meets a condition, which says what
// it misses as an error.
func (r *rig) waitStatus(on string, within time.Duration, what string, f func(control.Status) error) control.Status {
	r.Helper()
	var s control.Status
	r.eventually(within, what+" on "+on, func() (bool, error) {
		var err error
		if s, err = r.status(on); err != nil {
			return false, err
		}
		if err = f(s); err != nil {
			return false, err
		}
		return true, nil
	})
	return s
}

// waitServers waits until the servers of a service are in the given states, in
// the order of the configuration.
func (r *rig) waitServers(on, service string, within time.Duration, want ...control.ServerState) {
	r.Helper()
	r.waitStatus(on, within, fmt.Sprintf("service %s with servers %v", service, want), func(s control.Status) error {
		v, err := serviceOf(s, service)
		if err != nil {
			return err
		}
		for i, b := range v.Backends {
			if i >= len(want) || b.State != want[i] {
				return fmt.Errorf("server %v is %s: %s", b.Address, b.State, b.Why)
			}
		}
		return nil
	})
}

func serviceOf(s control.Status, name string) (control.ServiceStatus, error) {
	for _, v := range s.Services {
		if v.Name == name {
			return v, nil
		}
	}
	return control.ServiceStatus{}, fmt.Errorf("status has no service %s", name)
}

func instanceOf(s control.Status, name string) (control.Instance, error) {
	for _, v := range s.VRRP {
		if v.Name == name {
			return v, nil
		}
	}
	return control.Instance{}, fmt.Errorf("status has no vrrp instance %s", name)
}

// has tells whether a node has an address.
func (r *rig) has(node string, a netip.Addr) bool {
	r.Helper()
	yes, err := r.host(node).AddrOn(a)
	if err != nil {
		r.Fatal(err)
	}
	return yes
}

// waitVIP waits until an address is on one node of several, and nowhere else.
func (r *rig) waitVIP(within time.Duration, a netip.Addr, on string, elsewhere ...string) {
	r.Helper()
	r.eventually(within, fmt.Sprintf("%v on %s alone", a, on), func() (bool, error) {
		for _, other := range elsewhere {
			if r.has(other, a) {
				return false, fmt.Errorf("%v is on %s", a, other)
			}
		}
		return r.has(on, a), nil
	})
}

// xdpProgram is the id of the XDP program on a node's interface; 0: none.
func (r *rig) xdpProgram(node, iface string) uint32 {
	r.Helper()
	link, err := r.host(node).Netlink().LinkByName(iface)
	if err != nil {
		r.Fatal(err)
	}
	if x := link.Attrs().Xdp; x != nil && x.Attached {
		return x.ProgId
	}
	return 0
}

// pins are the names of what is pinned on a node.
func (r *rig) pins(node string) []string {
	r.Helper()
	entries, err := os.ReadDir(r.host(node).PinDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		r.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// wantNothing fails unless a node has neither program, nor pins, nor VIPs.
func (r *rig) wantNothing(node string) {
	r.Helper()
	if id := r.xdpProgram(node, "eth0"); id != 0 {
		r.Errorf("%s has XDP program %d on eth0, want none", node, id)
	}
	if pins := r.pins(node); len(pins) > 0 {
		r.Errorf("%s has pins %v, want none", node, pins)
	}
	for _, a := range []netip.Addr{vip, natVIP} {
		if r.has(node, a) {
			r.Errorf("%s has %v, want it gone", node, a)
		}
	}
}
