package main

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// How much of a flood is enough for a small crowd.
const (
	smallCrowd = 300
	smallFlood = 20000 // packets that are made
)

// A flooded is a small crowd in a mode, with services of both families and one of UDP.
type flooded struct {
	*rig
	mode     forwardMode
	crowd    *crowd
	services []netip.AddrPort
}

// floodedClient is where the crowd comes from, and some of the flood.
var floodedClient = []netip.Prefix{prefix("192.0.2.200/24"), prefix("2001:db8::200/64")}

func newFlooded(t *testing.T, m forwardMode) *flooded {
	t.Helper()
	spec := withAddresses(testenv.Default(3), "client", floodedClient...)
	spec.IPv6 = true
	for i := 1; i <= 3; i++ {
		withAddresses(spec, fmt.Sprintf("b%d", i), netip.PrefixFrom(serverAddress(i), 24), netip.PrefixFrom(serverAddress6(i), 64))
	}
	f := &flooded{
		rig: newModeRig(t, m, spec), mode: m,
		services: []netip.AddrPort{netip.AddrPortFrom(m.vip, 80), netip.AddrPortFrom(m.v6, 80)},
	}
	pools := "pools:\n"
	for name, server := range map[string]func(int) netip.Addr{"web": serverAddress, "web6": serverAddress6} {
		pools += fmt.Sprintf("  - {name: %s, %s, servers: [{address: %q}, {address: %q}, {address: %q}]}\n",
			name, patientProbes, server(1), server(2), server(3))
	}
	pools += fmt.Sprintf("  - {name: dns, servers: [{address: %q}, {address: %q}]}\n", serverAddress(1), serverAddress(2))
	dns := fmt.Sprintf("{name: dns, address: %q, protocol: udp, forward: %s, pool: dns", f.services[0], m.name)
	if m.name != "nat" {
		dns += ", affinity: flow"
	}
	for i := 1; i <= 3; i++ {
		f.startEcho(fmt.Sprintf("b%d", i))
	}
	f.start("lb1", f.file("sluice.yaml", crowdRoster, pools,
		services(m.service("web", m.vip, "web"), m.service("web6", m.v6, "web6"), dns+"}"), vrrps(pair)))
	f.waitReady("lb1")
	f.crowd = f.rig.crowd("client", floodedClient...)
	f.crowd.mustOpen(f.services, smallCrowd)
	return f
}

func serverAddress6(n int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("2001:db8::1%d", n)) }

// change is an operator's, about the same server of both pools.
func (f *flooded) change(action string, server int, more ...string) {
	f.Helper()
	for pool, address := range map[string]netip.Addr{"web": serverAddress(server), "web6": serverAddress6(server)} {
		f.wantRun(0, "lb1", append([]string{"backend", action, pool, address.String()}, more...)...)
	}
}

// Floods of every kind, one after another, while a backend drains and weights change in
// one window: connections from before and from within it stay where they are and are
// served, whatever is claimed in their own clients' names.
func TestEveryFloodLeavesConnectionsAlone(t *testing.T) {
	for _, m := range forwardModes {
		t.Run(m.name, func(t *testing.T) {
			f := newFlooded(t, m)
			fresh := prefix("203.0.113.0/24")
			client := f.host("client")
			for _, flood := range []struct {
				name   string
				cfg    testenv.FloodConfig
				change func()
				// Whether nat sends all of it on: it has no flow for an ACK or RST of
				// a stranger, and the kernel answers.
				opens bool
			}{
				{"SYNs and ACKs of IPv6", testenv.FloodConfig{Target: f.services[1], Sources: prefix("2001:db8:1::/120")},
					func() { f.change("drain", 1) }, true},
				{"datagrams", testenv.FloodConfig{Target: f.services[0], Sources: fresh, UDP: true},
					func() { f.change("weight", 2, "3") }, true},
				// In the clients' own names, from their ports among others.
				{"resets", testenv.FloodConfig{
					Target: f.services[0], Sources: prefix("192.0.2.200/32"), Flags: [2]testenv.TCPFlags{testenv.RST, testenv.RST | testenv.ACK},
					SrcMAC: client.MAC("eth0"),
				}, func() { f.change("weight", 3, "2") }, false},
				{"resets of IPv6", testenv.FloodConfig{
					Target: f.services[1], Sources: prefix("2001:db8::200/128"), Flags: [2]testenv.TCPFlags{testenv.RST, testenv.RST | testenv.ACK},
					SrcMAC: client.MAC("eth0"),
				}, func() { f.change("enable", 1) }, false},
			} {
				flood.cfg.Rate = 2 * smallFlood
				running, err := f.host("lb1").StartFlood(flood.cfg)
				if err != nil {
					t.Fatal(err)
				}
				flood.change()
				f.crowd.talk("under a flood of " + flood.name)
				opened, err := f.crowd.open(f.services, 40)
				if err != nil {
					t.Logf("new connections under a flood of %s: %v", flood.name, err)
				}
				for {
					f.crowd.talk("under a flood of " + flood.name)
					r, err := running.Result()
					if err != nil {
						t.Fatal(err)
					}
					if r.Sent >= smallFlood { // what arrives is the crowd's as well
						break
					}
				}
				r, err := running.Stop()
				if err != nil {
					t.Fatal(err)
				}
				f.crowd.talk("after a flood of " + flood.name)
				t.Logf("%s: %d in %v, %d were sent on; %d of 40 new connections", flood.name, r.Sent, r.Length, r.Passed, len(opened))
				least := uint64(smallFlood / 8) // of nat half are, and a full queue loses some
				if m.name == "nat" && !flood.opens {
					least = 1
				}
				if r.Passed < least {
					t.Errorf("%d packets of a flood of %s were sent on to backends, want %d or more", r.Passed, flood.name, least)
				}
			}
			if n := backends(f.crowd.members)["b1"]; n < smallCrowd/5 {
				t.Errorf("%d connections are with the backend that was drained, want a third of %d", n, smallCrowd)
			}
		})
	}
}
