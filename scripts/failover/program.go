package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// echoPort is where datagrams are echoed.
const echoPort = 7

// The VIPs. Clients reach the echo at both; where sluice forwards, to the backend
// by dsr at one and by nat at the other.
var (
	dsrVIP = testenv.VIP
	natVIP = testenv.VIP.Next()
	vips   = []netip.Addr{dsrVIP, natVIP}
)

// The nodes: the first has the higher priority.
const (
	first  = "lb1"
	second = "lb2"
)

var priorities = map[string]int{first: 100, second: 99}

// A program moves VIPs between the nodes of a lab.
type program interface {
	name() string
	// prepare writes its files, and starts what echoes datagrams to the VIPs.
	prepare(lab *testenv.Lab) error
	// command is the daemon of a node.
	command(h *testenv.Host) (*exec.Cmd, error)
	// ready returns an error unless the daemons of both nodes have come to rest, the
	// first one Active.
	ready(ctx context.Context, lab *testenv.Lab) error
	// clear removes what a daemon that was killed has left on its node, as a boot
	// does.
	clear(ctx context.Context, h *testenv.Host) error
	// modes are how the datagrams to each of the VIPs are forwarded.
	modes() []string
}

// sluice forwards to a backend.
type sluice struct {
	path string
	keys string // of the instance
	key  bool   // the nodes need one
	file string
	// crowd has services beside the two that are measured: see crowd.
	crowd bool
}

func (*sluice) name() string    { return "sluice" }
func (*sluice) modes() []string { return []string{"dsr", "nat"} }

// The backend has dsr's VIP on lo, so nat's source address is another one.
var sluiceTemplate = template.Must(template.New("sluice.yaml").Parse(`
nodes:
  - {name: lb1, address: 192.0.2.1, priority: 100}
  - {name: lb2, address: 192.0.2.2, priority: 99}
datapath: {interfaces: [eth0], max_flows: 20000}
pools:
  - name: echo
    health: {type: tcp}
    servers: [{address: 192.0.2.11}]
services:
  - {name: dsr, address: "{{.DSR}}:{{.Port}}", protocol: udp, forward: dsr, pool: echo}
  - {name: nat, address: "{{.NAT}}:{{.Port}}", protocol: udp, forward: nat, pool: echo}
vrrp:
  - {name: VI_1, interface: eth0, virtual_router_id: 51, addresses: [{{.DSR}}/24, {{.NAT}}/24], {{.Keys}}}
{{- with .KeyFile}}
sync: {key_file: {{.}}}
{{- end}}
{{- with .Include}}
include: [{{.}}]
{{- end}}
`))

// keyFile is the key of the nodes, beside their configuration.
const keyFile = "sync.key"

// text is the configuration file of both nodes.
func (s *sluice) text() (string, error) {
	data := map[string]any{"DSR": dsrVIP, "NAT": natVIP, "Port": echoPort, "Keys": s.keys}
	if s.key {
		data["KeyFile"] = keyFile
	}
	if s.crowd {
		data["Include"] = crowdFile
	}
	var text strings.Builder
	if err := sluiceTemplate.Execute(&text, data); err != nil {
		return "", fmt.Errorf("fill in configuration: %w", err)
	}
	return text.String(), nil
}

// write writes the configuration of both nodes, and their key.
func (s *sluice) write(dir string) error {
	text, err := s.text()
	if err != nil {
		return err
	}
	s.file = filepath.Join(dir, "sluice.yaml")
	if err := os.WriteFile(s.file, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	if s.crowd {
		if err := writeCrowd(dir, 0); err != nil {
			return err
		}
	}
	if !s.key {
		return nil
	}
	if out, err := exec.Command(s.path, "keygen", filepath.Join(dir, keyFile)).CombinedOutput(); err != nil {
		return fmt.Errorf("make a key: %w: %s", err, out)
	}
	return nil
}

func (s *sluice) prepare(lab *testenv.Lab) error {
	if err := s.write(lab.Dir()); err != nil {
		return err
	}
	backend := lab.Host("b1")
	if err := backend.AddVIPOnLoopback(dsrVIP); err != nil {
		return err
	}
	if s.crowd {
		for i := range crowdServers {
			if err := backend.AddAddress(testenv.DefaultInterface, netip.PrefixFrom(crowdServer(i), 24)); err != nil {
				return err
			}
		}
	}
	// For the probes of its health.
	if _, err := backend.StartTCP(netip.AddrPortFrom(netip.IPv4Unspecified(), echoPort), testenv.Echo); err != nil {
		return err
	}
	_, err := backend.StartUDPEcho(echoPort)
	return err
}

// run is a command line of sluice on a node, with the node's own directories.
func (s *sluice) run(h *testenv.Host, args ...string) []string {
	return append([]string{s.path, "--run-dir", h.RunDir, "--pin-dir", h.PinDir, "--state-dir", filepath.Join(h.RunDir, "state")}, args...)
}

func (s *sluice) command(h *testenv.Host) (*exec.Cmd, error) {
	args := s.run(h, "run", "-c", s.file, "--node", h.Name)
	cmd := exec.Command(args[0], args[1:]...)
	if s.crowd {
		cmd.Env = append(h.Env(), collects)
	}
	return cmd, nil
}

func (s *sluice) ready(ctx context.Context, lab *testenv.Lab) error {
	for node, want := range map[string]string{first: "active", second: "backup"} {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		status, err := control.Ask(ctx, adminSocket(lab.Host(node)))
		cancel()
		if err != nil {
			return err
		}
		if err := wantStatus(status, want); err != nil {
			return fmt.Errorf("sluice on %s: %w", node, err)
		}
	}
	return nil
}

// adminSocket is where a node's daemon answers.
func adminSocket(h *testenv.Host) string { return filepath.Join(h.RunDir, "sluice.sock") }

// wantStatus returns an error unless an instance is in a state, with a peer where
// it is Backup, and every service has a server.
func wantStatus(s control.Status, state string) error {
	if len(s.VRRP) != 1 || len(s.Services) < len(vips) {
		return fmt.Errorf("%d instances and %d services", len(s.VRRP), len(s.Services))
	}
	switch i := s.VRRP[0]; {
	case i.State != state:
		return fmt.Errorf("the instance is %s: %s", i.State, i.Reason)
	case len(i.Alarms) > 0:
		return fmt.Errorf("alarms: %v", i.Alarms)
	case state == "backup" && i.Peer == nil:
		return fmt.Errorf("the instance has heard no peer")
	}
	for _, v := range s.Services {
		if v.State != control.ServiceUp {
			return fmt.Errorf("service %s is %s", v.Name, v.State)
		}
	}
	return nil
}

func (s *sluice) clear(ctx context.Context, h *testenv.Host) error {
	args := s.run(h, "detach", "--force")
	_, err := h.Run(ctx, args[0], args[1:]...)
	return err
}

// keepalived has no data plane: its nodes echo datagrams themselves, as an nginx
// beside it answers requests itself.
type keepalived struct{ dialect dialect }

func (*keepalived) name() string    { return "keepalived" }
func (*keepalived) modes() []string { return []string{"", ""} }

var keepalivedTemplate = template.Must(template.New("keepalived.conf").Parse(`global_defs {
    router_id NGINX_DEVEL
    {{.Global}}
}
vrrp_instance VI_1 {
    state {{.State}}
    interface eth0
    virtual_router_id 51
    priority {{.Priority}}
    {{.Instance}}
    virtual_ipaddress {
        {{.DSR}}/24
        {{.NAT}}/24
    }
}
`))

// text is the configuration file of a node.
func (k *keepalived) text(node string) (string, error) {
	state := "BACKUP"
	if node == first {
		state = "MASTER"
	}
	var text strings.Builder
	err := keepalivedTemplate.Execute(&text, map[string]any{
		"Global": k.dialect.global, "Instance": k.dialect.instance,
		"State": state, "Priority": priorities[node], "DSR": dsrVIP, "NAT": natVIP,
	})
	if err != nil {
		return "", fmt.Errorf("fill in configuration: %w", err)
	}
	return text.String(), nil
}

func keepalivedFile(h *testenv.Host) string { return filepath.Join(h.Dir(), "keepalived.conf") }

func (k *keepalived) prepare(lab *testenv.Lab) error {
	for _, node := range []string{first, second} {
		text, err := k.text(node)
		if err != nil {
			return err
		}
		h := lab.Host(node)
		if err := os.WriteFile(keepalivedFile(h), []byte(text), 0o600); err != nil {
			return fmt.Errorf("write configuration: %w", err)
		}
		if _, err := h.StartUDPEcho(echoPort); err != nil {
			return err
		}
	}
	return nil
}

func (k *keepalived) command(h *testenv.Host) (*exec.Cmd, error) {
	path, err := testenv.FindProgram("keepalived")
	if err != nil {
		return nil, fmt.Errorf("find keepalived (scripts/setup bench installs it): %w", err)
	}
	// The child of one that was killed counts as running until init has reaped it.
	parent, child := filepath.Join(h.Dir(), "keepalived.pid"), filepath.Join(h.Dir(), "vrrp.pid")
	for _, file := range []string{parent, child} {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("remove pid file: %w", err)
		}
	}
	return exec.Command(path, "-n", "-l", "-D", "-P", "-f", keepalivedFile(h), "-p", parent, "-r", child), nil
}

// ready reads the log: what the nodes have said last is what they are.
func (k *keepalived) ready(_ context.Context, lab *testenv.Lab) error {
	for node, want := range map[string]string{first: "MASTER", second: "BACKUP"} {
		log, err := os.ReadFile(filepath.Join(lab.Host(node).Dir(), "log", daemonName+".log"))
		if err != nil {
			return fmt.Errorf("read keepalived's log: %w", err)
		}
		const entering = "(VI_1) Entering "
		_, state, _ := strings.Cut(string(log[max(strings.LastIndex(string(log), entering), 0):]), entering)
		if !strings.HasPrefix(state, want+" STATE") {
			state, _, _ = strings.Cut(state, "\n")
			return fmt.Errorf("keepalived on %s has said last that it is %q, want %s", node, state, want)
		}
	}
	return nil
}

// clear has nothing to do: a VIP is all that keepalived leaves.
func (*keepalived) clear(context.Context, *testenv.Host) error { return nil }
