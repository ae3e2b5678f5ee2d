package main

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/sluice-lb/sluice/internal/testenv"
	"github.com/sluice-lb/sluice/loader"
)

// A real server behind every mix of families answers, in native and in generic
// mode, and without sluice it does not.
func TestDecapServes(t *testing.T) {
	for _, mode := range []loader.Mode{loader.Native, loader.Generic} {
		t.Run(string(mode), func(t *testing.T) {
			r := newDecapRig(t)
			// The only packet that is ever sent without sluice: the server's silence.
			if ok, err := r.answered(tunnel4, decapVIP4, 300*time.Millisecond); ok || err != nil {
				t.Fatalf("answered without sluice: %v, %v", ok, err)
			}
			p := r.decap("--mode", string(mode))
			for _, tunnel := range []testenv.Tunnel{tunnel4, tunnel6} {
				for _, vip := range []netip.Addr{decapVIP4, decapVIP6} {
					r.waitAnswer(tunnel, vip, true)
				}
			}
			s := r.status()
			if diff := cmp.Diff([]decapInterface{{Name: "eth0", Mode: mode}}, s.Interfaces); diff != "" {
				t.Errorf("interfaces (-want +got):\n%s", diff)
			}
			if s.count("decapsulated") < 4 {
				t.Errorf("outcomes %+v, want 4 decapsulated or more", s.Outcomes)
			}
			text := r.wantRun(0, "b1", "decap", "--status").stdout
			if want := "interface eth0: XDP " + string(mode) + "\ndecapsulated: "; !strings.HasPrefix(text, want) {
				t.Errorf("status is\n%s\nwant one that starts with\n%s", text, want)
			}
			r.stop(p)
			if tail := p.Tail(20); !strings.Contains(tail, "decapsulated: ") {
				t.Errorf("it printed no counters at its end:\n%s", tail)
			}
			if id := r.xdpProgram("b1", "eth0"); id != 0 {
				t.Errorf("program %d is still on eth0", id)
			}
			if pins := r.decapPins(); len(pins) > 0 {
				t.Errorf("pins %v are left", pins)
			}
		})
	}
}

// VIPs on lo and addresses of the interface are followed.
func TestDecapFollowsAddresses(t *testing.T) {
	r := newDecapRig(t)
	r.decap()
	r.waitAnswer(tunnel4, decapVIP4, true)
	for _, tc := range []struct {
		on, address string
		tunnel      testenv.Tunnel
		vip         netip.Addr
	}{
		{"lo", "192.0.2.101/32", tunnel4, netip.MustParseAddr("192.0.2.101")},
		{"lo", "2001:db8::101/128", tunnel6, netip.MustParseAddr("2001:db8::101")},
		{"eth0", "192.0.2.21/24", testenv.Tunnel{Src: decapNode4, Dst: netip.MustParseAddr("192.0.2.21")}, decapVIP6},
		{"eth0", "2001:db8::21/64", testenv.Tunnel{Src: decapNode6, Dst: netip.MustParseAddr("2001:db8::21")}, decapVIP4},
	} {
		p := netip.MustParsePrefix(tc.address)
		r.waitAnswer(tc.tunnel, tc.vip, false)
		if err := r.backend.AddAddress(tc.on, p); err != nil {
			t.Fatal(err)
		}
		r.waitAnswer(tc.tunnel, tc.vip, true)
		r.removeAddress(tc.on, p)
		r.waitAnswer(tc.tunnel, tc.vip, false)
	}
	s := r.status()
	if s.count("not_vip") == 0 || s.count("not_host") == 0 {
		t.Errorf("outcomes %+v, want some not_vip and not_host", s.Outcomes)
	}
}

// With --vip only those are decapsulated.
func TestDecapGivenVIPs(t *testing.T) {
	r := newDecapRig(t)
	const nowhere = "192.0.2.77"
	p := r.decap("--vip", decapVIP4.String(), "--vip", nowhere)
	r.waitAnswer(tunnel4, decapVIP4, true)
	r.waitAnswer(tunnel4, decapVIP6, false)
	if tail := p.Tail(20); !strings.Contains(tail, "ip address add 192.0.2.77/32 dev lo") {
		t.Errorf("no warning of a VIP that no interface has:\n%s", tail)
	}
}

// A process that is killed leaves everything going on, the next one replaces it
// without a lost packet and counts on, and --detach removes it.
func TestDecapSurvives(t *testing.T) {
	r := newDecapRig(t)
	p := r.decap()
	r.waitAnswer(tunnel4, decapVIP4, true)
	program := r.xdpProgram("b1", "eth0")
	if got := r.wantRun(exitFailed, "b1", "decap", "--interface", "eth0"); !strings.Contains(got.stderr, "stop it first") {
		t.Errorf("a second one says %q", got.stderr)
	}
	if got := r.wantRun(exitFailed, "b1", "decap", "--detach"); !strings.Contains(got.stderr, "stop it first") {
		t.Errorf("--detach says %q", got.stderr)
	}
	r.kill(p)
	r.waitAnswer(tunnel6, decapVIP6, true)
	before := r.status()
	if before.Running || before.count("decapsulated") < 2 {
		t.Errorf("status of what was killed: %+v", before)
	}
	if got := r.runSluice("b1", "decap", "--status").stdout; !strings.HasPrefix(got, "problem: sluice decap is not running") {
		t.Errorf("status of what was killed:\n%s", got)
	}

	// SYNs flow all the time that another one starts.
	quit, lost := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			ok, err := r.answered(tunnel4, decapVIP4, atOnce)
			if !ok && err == nil {
				err = errors.New("a SYN was not answered")
			}
			if err != nil {
				lost <- err
				return
			}
			select {
			case <-quit:
				lost <- nil
				return
			default:
			}
		}
	}()
	p = r.decap()
	close(quit)
	if err := <-lost; err != nil {
		t.Error(err)
	}
	if now := r.xdpProgram("b1", "eth0"); now == 0 || now == program {
		t.Errorf("program %d is on eth0, want another than %d", now, program)
	}
	if after := r.status(); after.count("decapsulated") <= before.count("decapsulated") {
		t.Errorf("%d decapsulated, after %d", after.count("decapsulated"), before.count("decapsulated"))
	}
	r.kill(p)
	if got := r.wantRun(0, "b1", "decap", "--detach").stdout; got != "detached from eth0\n" {
		t.Errorf("--detach says %q", got)
	}
	if id, pins := r.xdpProgram("b1", "eth0"), r.decapPins(); id != 0 || len(pins) > 0 {
		t.Errorf("program %d and pins %v are left", id, pins)
	}
	if got := r.wantRun(0, "b1", "decap", "--detach").stdout; got != "nothing was attached\n" {
		t.Errorf("--detach of nothing says %q", got)
	}
	if got := r.wantRun(exitFailed, "b1", "decap", "--status"); !strings.Contains(got.stderr, "start it with") {
		t.Errorf("--status of nothing says %q", got.stderr)
	}
}

// An interface that is deleted and made anew is attached again; one on a VLAN has
// a dot in its name, and its pin is found.
func TestDecapInterfaces(t *testing.T) {
	r := newDecapRig(t)
	nl := r.backend.Netlink()
	parent, err := nl.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	const upper = "eth0.100"
	add := func() {
		t.Helper()
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.ParentIndex = upper, parent.Attrs().Index
		if err := nl.LinkAdd(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}); err != nil {
			t.Fatal(err)
		}
	}
	add()
	p, err := r.backend.Start("sluice", sluice(r.backend, "decap", "--interface", upper))
	if err != nil {
		t.Fatal(err)
	}
	attached := func() (bool, error) { return r.xdpProgram("b1", upper) != 0, nil }
	r.eventually(soon, "the program on "+upper, attached)
	link, err := nl.LinkByName(upper)
	if err == nil {
		err = nl.LinkDel(link)
	}
	if err != nil {
		t.Fatal(err)
	}
	r.eventually(soon, "a warning", func() (bool, error) {
		return strings.Contains(p.Tail(5), "there is no such interface"), nil
	})
	add()
	r.eventually(soon, "the program on the new "+upper, attached)
	if got := r.status().Interfaces; len(got) != 1 || got[0].Name != upper || got[0].Mode != loader.Generic || got[0].Warning != "" {
		t.Errorf("interfaces %+v", got)
	}
	// Another set of interfaces frees what is not in it; a name that is wrong does not.
	r.kill(p)
	r.wantRun(exitFailed, "b1", "decap", "--interface", "eth9")
	if r.xdpProgram("b1", upper) == 0 {
		t.Errorf("a start that failed took the program off %s", upper)
	}
	p = r.decap()
	r.eventually(soon, "the program to be gone from "+upper, func() (bool, error) {
		return r.xdpProgram("b1", upper) == 0, nil
	})
	// Another mode attaches anew.
	r.kill(p)
	r.decap("--mode", "generic")
	if diff := cmp.Diff([]decapInterface{{Name: "eth0", Mode: loader.Generic}}, r.status().Interfaces); diff != "" {
		t.Errorf("interfaces (-want +got):\n%s", diff)
	}
	r.waitAnswer(tunnel4, decapVIP4, true)
}

func TestDecapRefuses(t *testing.T) {
	r := newDecapRig(t)
	tests := []struct {
		name string
		args []string
		code int
		want string
	}{
		{"no interface", nil, exitUsage, "--interface is missing"},
		{"twice the same", []string{"--interface", "eth0", "--interface", "eth0"}, exitUsage, "given twice"},
		{"no address", []string{"--interface", "eth0", "--vip", "web"}, exitUsage, `--vip "web": want an IPv4 or IPv6 address`},
		{"a prefix", []string{"--interface", "eth0", "--vip", "192.0.2.0/24"}, exitUsage, "without a prefix length"},
		{"loopback", []string{"--interface", "eth0", "--vip", "127.0.0.1"}, exitUsage, "no address that a VIP can have"},
		{"mode", []string{"--interface", "eth0", "--mode", "fast"}, exitUsage, "want auto, native or generic"},
		{"log level", []string{"--interface", "eth0", "--log-level", "loud"}, exitUsage, "want debug"},
		{"json alone", []string{"--interface", "eth0", "--json"}, exitUsage, "--json is for --status"},
		{"two commands", []string{"--status", "--detach"}, exitUsage, "exclude each other"},
		{"status of an interface", []string{"--status", "--interface", "eth0"}, exitUsage, "--interface is of no use"},
		{"an argument", []string{"eth0"}, exitUsage, `unexpected "eth0"`},
		{"an unknown interface", []string{"--interface", "eth9"}, exitFailed, "attach to eth9: Link not found: ip link shows what there is"},
		{"an interface without Ethernet", []string{"--interface", "eth0", "--interface", "lo"}, exitFailed, "attach to lo: it has no Ethernet address"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			got := r.runSluice("b1", append([]string{"decap"}, tc.args...)...)
			if got.code != tc.code || !strings.Contains(got.stderr, tc.want) {
				t.Errorf("exit code %d, want %d; stderr %q, want it to have %q", got.code, tc.code, got.stderr, tc.want)
			}
			if id, pins := r.xdpProgram("b1", "eth0"), r.decapPins(); id != 0 || len(pins) > 0 {
				t.Errorf("program %d and pins %v are left", id, pins)
			}
		})
	}
}
