package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"github.com/sluice-lb/sluice/internal/key"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// The addresses of the two services, by the way they forward.
var (
	dsrService = netip.AddrPortFrom(testenv.VIP, 80)
	natService = netip.AddrPortFrom(testenv.VIP, 8080)
)

// natSource is what backends see as the client of the nat service. It moves
// with the VIP, but cannot be the VIP: DSR backends have that on lo and drop
// what seems to come from themselves.
var natSource = testenv.VIP.Next()

// The nodes, and the backends with their weights.
var (
	nodes   = []string{"lb1", "lb2"}
	weights = map[string]int{"b1": 1, "b2": 2, "b3": 1}
)

// configTemplate is one file for both nodes.
var configTemplate = template.Must(template.New("sluice.yaml").Parse(`# One file serves both nodes: each finds itself by --node.
nodes:
  - {name: lb1, address: 192.0.2.1, priority: 100}
  - {name: lb2, address: 192.0.2.2, priority: 99}

datapath:
  interfaces: [eth0]

pools:
  - name: web
    health: {type: http, path: /healthz, interval: 200ms, timeout: 150ms, rise: 2, fall: 2}
    servers:
{{- range .Backends}}
      - {address: "{{.Address}}:80", weight: {{.Weight}}}
{{- end}}

services:
  - {name: web, address: "{{.DSR}}", forward: dsr, pool: web, track_window: 1s}
  # The same backends have the VIP on lo, for dsr: nat needs another source.
  - {name: web-nat, address: "{{.NAT}}", forward: nat, source_addresses: [{{.NATSource}}], pool: web}

vrrp:
  - name: VI_1
    interface: eth0
    virtual_router_id: 51
    version: 3
    advertisement_interval: 100ms
    addresses: [{{.VIP}}/24, {{.NATSource}}/24]

# Connections outlive their node: the nodes share their state.
sync: {key_file: sync.key}
`))

// A pair is the lab with two sluice nodes in it.
type pair struct {
	lab     *testenv.Lab
	sluice  string // the program
	config  string // its configuration file
	nginx   testenv.NginxConfig
	servers map[string]*testenv.Nginx   // by backend
	daemons map[string]*testenv.Process // by node
}

// newPair builds the network and starts nginx on the backends, but no sluice.
func newPair(ctx context.Context, prefix, sluice string, nginx testenv.NginxConfig) (_ *pair, err error) {
	if _, err := os.Stat(sluice); err != nil {
		return nil, fmt.Errorf("find the sluice program (make build makes it; --sluice names another): %w", err)
	}
	if err := testenv.Sweep(); err != nil {
		// What an earlier run has left is a nuisance, but not in this one's way.
		fmt.Fprintf(os.Stderr, "lab: sweep up after earlier runs: %v\n", err)
	}
	lab, err := testenv.Build(prefix, testenv.Default(len(weights)))
	if err != nil {
		return nil, err
	}
	p := &pair{
		lab: lab, sluice: sluice, nginx: nginx,
		servers: make(map[string]*testenv.Nginx), daemons: make(map[string]*testenv.Process),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lab.Close())
		}
	}()
	if err := p.writeConfig(); err != nil {
		return nil, err
	}
	for name := range weights {
		// A DSR backend takes packets to the VIP, and answers them itself.
		if err := lab.Host(name).AddVIPOnLoopback(testenv.VIP); err != nil {
			return nil, err
		}
		if err := p.startServer(ctx, name); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *pair) writeConfig() error {
	type backend struct {
		Address netip.Addr
		Weight  int
	}
	data := struct {
		Backends       []backend
		DSR, NAT       netip.AddrPort
		VIP, NATSource netip.Addr
	}{DSR: dsrService, NAT: natService, VIP: testenv.VIP, NATSource: natSource}
	for _, h := range p.lab.Hosts() {
		if weight, ok := weights[h.Name]; ok {
			data.Backends = append(data.Backends, backend{h.Address(), weight})
		}
	}
	var text strings.Builder
	if err := configTemplate.Execute(&text, data); err != nil {
		return fmt.Errorf("fill in configuration: %w", err)
	}
	if err := key.Write(filepath.Join(p.lab.Dir(), "sync.key"), key.New()); err != nil {
		return fmt.Errorf("make the nodes' key: %w", err)
	}
	p.config = filepath.Join(p.lab.Dir(), "sluice.yaml")
	if err := os.WriteFile(p.config, []byte(text.String()), 0o644); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	return nil
}

// startServer starts the nginx of a backend.
func (p *pair) startServer(ctx context.Context, backend string) (err error) {
	p.servers[backend], err = testenv.StartNginx(ctx, p.lab.Host(backend), p.nginx)
	return err
}

// startDaemon starts sluice on a node.
func (p *pair) startDaemon(node string) (err error) {
	h := p.lab.Host(node)
	p.daemons[node], err = h.Start("sluice", exec.Command(p.sluice,
		"--run-dir", h.RunDir, "--pin-dir", h.PinDir, "--state-dir", filepath.Join(h.RunDir, "state"), "run", "-c", p.config, "--node", node))
	return err
}

// waitForVIP waits until the VIP is on this node, by its addresses, and nowhere
// else.
func (p *pair) waitForVIP(ctx context.Context, on string, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	return testenv.WaitFor(ctx, fmt.Sprintf("the VIP on %s alone", on), func() (bool, error) {
		if err := p.alive(on); err != nil {
			return false, err
		}
		for _, node := range nodes {
			has, err := p.lab.Host(node).AddrOn(testenv.VIP)
			if err != nil {
				return false, err
			}
			// A node whose link is cut and whose daemon is dead keeps it: the
			// network knows nothing of that.
			if cutOff := node != on && p.daemons[node] == nil; has != (node == on) && !cutOff {
				return false, fmt.Errorf("the VIP on %s: %v", node, has)
			}
		}
		return true, nil
	})
}

// alive returns an error that ends a wait when the node's daemon has ended.
func (p *pair) alive(node string) error {
	select {
	case <-p.daemons[node].Done():
		return fmt.Errorf("%w: sluice on %s has ended: %v", testenv.ErrGiveUp, node, p.daemons[node].Wait())
	default:
		return nil
	}
}

// cutOff kills the daemon of a node and cuts its link: to the others the
// machine is gone.
func (p *pair) cutOff(node string) error {
	daemon := p.daemons[node]
	delete(p.daemons, node)
	return errors.Join(p.lab.Host(node).LinkDown(), daemon.Kill())
}

// bringBack undoes cutOff.
func (p *pair) bringBack(node string) error {
	if err := p.lab.Host(node).LinkUp(); err != nil {
		return err
	}
	return p.startDaemon(node)
}

// stopDaemons ends sluice on the nodes as systemd would, the Backup first.
func (p *pair) stopDaemons() error {
	var errs []error
	for i := len(nodes) - 1; i >= 0; i-- {
		d := p.daemons[nodes[i]]
		if err := d.Stop(); err != nil {
			errs = append(errs, err)
		} else if err := d.Wait(); err != nil {
			errs = append(errs, fmt.Errorf("sluice on %s ended with: %w", nodes[i], err))
		}
	}
	return errors.Join(errs...)
}

// printLogs shows the end of every process's output.
func (p *pair) printLogs(w io.Writer) {
	for name, text := range p.lab.Logs(40) {
		if text != "" {
			fmt.Fprintf(w, "--- log of %s (last lines)\n%s\n", name, text)
		}
	}
}
