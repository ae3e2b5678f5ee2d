// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/pace"
)

// Most parallel tests wait for the clock, not for a processor.
func TestMain(m *testing.M) {
	if os.Getenv(actAsEngine) != "" {
		if err := pace.Main(); err != nil {
			panic(err)
		}
		os.Exit(0)
	}
	flag.Parse()
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

const keepalivedPath = "/usr/sbin/keepalived"

// A keepalived is a running one.
type keepalived struct {
	t    testing.TB
	cmd  *exec.Cmd
	done chan struct{}
	once sync.Once

	mu     sync.Mutex
	output bytes.Buffer
}

// Write takes what it says.
func (k *keepalived) Write(b []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.output.Write(b)
}

// said reports whether it has said something.
func (k *keepalived) said(text string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return bytes.Contains(k.output.Bytes(), []byte(text))
}

// becameBackup waits until it takes part as Backup.
func (k *keepalived) becameBackup() {
	k.t.Helper()
	eventually(k.t, "keepalived is Backup", func() bool { return k.said("(VI_1) Entering BACKUP STATE") })
}

// keepalived starts one in the namespace, in the foreground.
func (ns *namespace) keepalived(config string) *keepalived {
	ns.t.Helper()
	dir := ns.t.TempDir()
	file := filepath.Join(dir, "keepalived.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		ns.t.Fatal(err)
	}
	cmd := exec.Command(keepalivedPath, "-n", "-l", "-D", "-P", "-f", file,
		"-p", filepath.Join(dir, "keepalived.pid"), "-r", filepath.Join(dir, "vrrp.pid"))
	k := &keepalived{t: ns.t, cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = k, k
	// A group of its own, so that its child can be ended with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	ns.do(cmd.Start)
	go func() {
		defer close(k.done)
		_ = cmd.Wait() // that it was ended by a signal is no news
	}()
	ns.t.Cleanup(func() {
		k.stop()
		if ns.t.Failed() {
			ns.t.Logf("keepalived said:\n%s", &k.output)
		}
	})
	return k
}

// stop ends it as an operator would, and by force if that does not help.
func (k *keepalived) stop() {
	k.once.Do(func() {
		if err := k.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			k.t.Logf("stop keepalived: %v", err)
		}
		select {
		case <-k.done:
		case <-time.After(patience):
			k.t.Errorf("keepalived did not stop within %v", patience)
			if err := syscall.Kill(-k.cmd.Process.Pid, syscall.SIGKILL); err != nil {
				k.t.Errorf("kill keepalived: %v", err)
			}
			<-k.done
		}
	})
}

// protocol is a way of speaking VRRP that both sides are configured for.
type protocol struct {
	name   string
	sluice Config
	global string // keepalived's lines
	lines  string
	peer   string // whom sluice hears; "": the link-local address of keepalived's node
}

// config is keepalived's configuration.
func (p *protocol) config(state string, priority uint8) string {
	vips := ""
	for _, vip := range p.sluice.Addresses {
		vips += vip.String() + "\n"
	}
	return fmt.Sprintf("global_defs {\n router_id interop\n %s}\n"+
		"vrrp_instance VI_1 {\n state %s\n interface eth0\n virtual_router_id %d\n priority %d\n %s"+
		" virtual_ipaddress {\n %s }\n}\n", p.global, state, p.sluice.VRID, priority, p.lines, vips)
}

// v2protocol has the seed's settings.
func v2protocol() protocol {
	return protocol{
		name: "v2 with password",
		sluice: Config{Name: "VI_1", Interface: "eth0", VRID: 51, Version: V2, Interval: time.Second, Password: "1111",
			Addresses: prefixes("192.0.2.100/32"), Preempt: true},
		lines: "advert_int 1\n authentication {\n auth_type PASS\n auth_pass 1111\n }\n",
		peer:  "192.0.2.2",
	}
}

// v3protocol is version 3 at 200 ms.
func v3protocol(name, lines, peer string, vips ...string) protocol {
	return protocol{
		name: name,
		sluice: Config{Name: "VI_1", Interface: "eth0", VRID: 51, Version: V3, Interval: 200 * time.Millisecond,
			Addresses: prefixes(vips...), Preempt: true},
		global: "vrrp_version 3\n",
		lines:  "advert_int 0.2\n" + lines,
		peer:   peer,
	}
}

// unicast makes both sides send to each other's address alone.
func (p protocol) unicast(local string) protocol {
	p.sluice.Source, p.sluice.Peers = addr(local), []netip.Addr{addr(p.peer)}
	p.lines += " unicast_src_ip " + p.peer + "\n unicast_peer {\n " + local + "\n }\n"
	return p
}

func needKeepalived(t *testing.T) {
	t.Helper()
	needRoot(t)
	if _, err := os.Stat(keepalivedPath); err != nil {
		t.Skipf("needs %s: install keepalived", keepalivedPath)
	}
}

// One of them stands in each role, starts first or second, and stops first.
func TestInteropKeepalived(t *testing.T) {
	needKeepalived(t)
	unicast2 := v2protocol().unicast("192.0.2.1")
	unicast2.name = "v2 unicast"
	for _, p := range []protocol{
		v2protocol(),
		unicast2,
		v3protocol("v3", "", "192.0.2.2", "192.0.2.100/32"),
		v3protocol("v3 unicast", "", "192.0.2.2", "192.0.2.100/32").unicast("192.0.2.1"),
		v3protocol("v3 ipv6", "", "", "fe80::100/64", "2001:db8::100/64"),
		v3protocol("v3 ipv6 without a link-local vip", "", "", "2001:db8::100/128"),
		v3protocol("v3 ipv6 unicast", "", "2001:db8::2", "2001:db8::100/128").unicast("2001:db8::1"),
	} {
		for _, ours := range []uint8{100, 99} {
			for _, first := range []string{"sluice", "keepalived"} {
				name := fmt.Sprintf("%s, sluice has priority %d, %s starts first", p.name, ours, first)
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					interop(t, p, ours, first == "sluice")
				})
			}
		}
	}
}

// interopNodes are two nodes whose IPv6 addresses can be used: a keepalived
// that starts before that does not take part.
func interopNodes(t *testing.T) (a, b *namespace, peer netip.Addr) {
	t.Helper()
	a, b = cable6(t)
	for _, ns := range []*namespace{a, b} {
		host := ns.host()
		peer = ns.ownLinkLocal(host)
		ns.linkBy(host, func(a netip.Addr) bool { return a.Is6() && !a.IsLinkLocalUnicast() })
	}
	return a, b, peer
}

func interop(t *testing.T, p protocol, ours uint8, sluiceFirst bool) {
	a, b, sender := interopNodes(t)
	if p.peer != "" {
		sender = addr(p.peer)
	}
	theirs, state := 199-ours, "BACKUP"
	if theirs > ours {
		state = "MASTER"
	}
	config := p.config(state, theirs)
	vips := p.sluice.Addresses
	// All of them, or none.
	on := func(ns *namespace, want bool) bool {
		for _, vip := range vips {
			if ns.has(vip.String()) != want {
				return false
			}
		}
		return true
	}
	onA := func() bool { return on(a, true) && on(b, false) }
	onB := func() bool { return on(b, true) && on(a, false) }
	cfg := p.sluice
	cfg.Priority = ours
	var router *Router
	var peer *keepalived
	start := map[bool]func(){
		true:  func() { router, _ = a.start(cfg, t.TempDir()) },
		false: func() { peer = b.keepalived(config) },
	}

	start[sluiceFirst]()
	if sluiceFirst {
		eventually(t, "the vip is on sluice, which is alone", onA)
	} else {
		eventually(t, "the vip is on keepalived, which is alone", onB)
	}
	start[!sluiceFirst]()
	// The one with the higher priority has it, whoever came first.
	holder, name := onA, "the vip is on sluice"
	if theirs > ours {
		holder, name = onB, "the vip is on keepalived"
	}
	if sluiceFirst && ours > theirs {
		// The second starts as Backup and understands sluice at once: in version 3
		// the form of the checksum decides about that.
		always(t, name, 6*cfg.Interval, holder)
	}
	eventually(t, name, holder)
	wait := 5 * cfg.Interval
	always(t, name, wait, holder)

	if ours > theirs {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		h, err := router.Release(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if !h.TookOver() || h.Peer != sender {
			t.Errorf("got handover %+v, want that keepalived took over", h)
		}
		eventually(t, "the vip is on keepalived after sluice was released", onB)
		always(t, "the vip is on keepalived", wait, onB)
		if !peer.said("Backup received priority 0 advertisement") {
			t.Error("keepalived has not understood that sluice was released")
		}
		return
	}
	peer.stop()
	eventually(t, "the vip is on sluice after keepalived was stopped", onA)
	always(t, "the vip is on sluice", wait, onA)
	status := router.Status()
	if want := sender.String() + " gave up"; status.Reason != want {
		t.Errorf("sluice is active because %q, want %q", status.Reason, want)
	}
	for reason, n := range status.Dropped {
		t.Errorf("%d advertisements of keepalived were dropped: %v", n, reason)
	}
	if status.Peer.Address != sender || len(status.Alarms) > 0 {
		t.Errorf("heard %v, want %v; alarms %v, want none", status.Peer.Address, sender, status.Alarms)
	}
}

// Each mistake is staged with a real keepalived beside a sluice node, and named;
// where that keepalived has gone, it is over.
func TestInteropMistakes(t *testing.T) {
	needKeepalived(t)
	v6 := v3protocol("", "", "", "2001:db8::100/128")
	elsewhere := v2protocol().unicast("192.0.2.1")
	elsewhere.sluice.Peers = []netip.Addr{addr("192.0.2.9")}
	for _, tt := range []struct {
		name     string
		protocol protocol
		mistake  func(*protocol)
		priority uint8 // keepalived's
		kind     AlarmKind
		want     string // behind the peer's address
	}{
		{"another virtual router id", v2protocol(), func(p *protocol) { p.sluice.VRID = 61 }, 99, AlarmVRID,
			" advertises 192.0.2.100 as virtual router 61, this node as 51: set one virtual_router_id on all nodes"},
		{"another virtual router id, ipv6", v6, func(p *protocol) { p.sluice.VRID = 61 }, 99, AlarmVRID,
			" advertises 2001:db8::100 as virtual router 61, this node as 51: set one virtual_router_id on all nodes"},
		{"another password", v2protocol(), func(p *protocol) { p.lines = strings.Replace(p.lines, "1111", "2222", 1) }, 99, AlarmPassword,
			" has another password: set one password on all nodes"},
		{"no password", v2protocol(), func(p *protocol) { p.lines = "advert_int 1\n" }, 99, AlarmAuthType,
			" sends no password, this node a password: set one password on all nodes, or none"},
		{"another interval in version 2", v2protocol(), func(p *protocol) {
			p.lines = strings.Replace(p.lines, "advert_int 1", "advert_int 2", 1)
		}, 99, AlarmInterval, " advertises every 2s, this node every 1s: set one advertisement_interval on all nodes"},
		{"another interval in version 3", v6, func(p *protocol) { p.lines = "advert_int 0.1\n" }, 101, AlarmInterval,
			" advertises every 100ms, this node every 200ms: set one advertisement_interval on all nodes"},
		{"another version", v2protocol(), func(p *protocol) { p.global, p.lines = "vrrp_version 3\n", "advert_int 1\n" }, 99, AlarmVersion,
			" sends version 3 for virtual router 51, this node 2: set one version on all nodes"},
		{"another list", v2protocol(), func(p *protocol) { p.sluice.Addresses = prefixes("192.0.2.100/32", "192.0.2.101/32") }, 99, AlarmAddresses,
			" advertises another list of addresses (with 192.0.2.101): set the same addresses on all nodes"},
		{"a stranger", v2protocol(), func(p *protocol) { p.sluice.Addresses = prefixes("192.0.2.77/32") }, 99, AlarmStranger,
			" uses virtual router 51 for other addresses (192.0.2.77): give one of the two another virtual_router_id"},
		{"another peer", elsewhere, func(*protocol) {}, 99, AlarmPeer,
			" advertises 192.0.2.100 as virtual router 51, too, and is none of this node's unicast peers: give each node all the others as peers"},
		{"equal priorities", v2protocol(), func(*protocol) {}, 100, AlarmPriority,
			" has priority 100, as this node has, and only the addresses decide between them: give each node a priority of its own"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a, b, sender := interopNodes(t)
			if !tt.protocol.sluice.v6() {
				sender = addr("192.0.2.2")
			}
			cfg := tt.protocol.sluice
			cfg.Priority = 100
			theirs := tt.protocol
			tt.mistake(&theirs)
			var keepalived *keepalived
			startKeepalived := func() { keepalived = b.keepalived(theirs.config("MASTER", tt.priority)) }
			if tt.kind == AlarmPriority {
				// It is the one that is not Active that hears of it.
				startKeepalived()
				eventually(t, "keepalived is active", func() bool { return b.has("192.0.2.100/32") })
			}
			router, _ := a.start(cfg, t.TempDir())
			if keepalived == nil {
				eventually(t, "sluice is active", func() bool { return router.Status().State == Active })
				startKeepalived()
			}
			want := sender.String() + tt.want
			eventually(t, "the alarm", func() bool {
				alarms := router.Status().Alarms
				return len(alarms) == 1 && alarms[0].Kind == tt.kind && alarms[0].Text == want && alarms[0].Peer == sender
			})
			if tt.priority < cfg.Priority && tt.kind != AlarmStranger {
				// It has the VIP, too.
				vip := cfg.Addresses[0].Addr()
				eventually(t, "the alarm that it answers", func() bool {
					return slices.ContainsFunc(router.Status().Alarms, func(a Alarm) bool { return a.Kind == AlarmAnswered && a.Peer == vip })
				})
			}
			keepalived.stop()
			eventually(t, "its end", func() bool { return len(router.Status().Alarms) == 0 })
		})
	}
}
