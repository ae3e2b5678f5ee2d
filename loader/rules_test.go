package loader

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

func allow(prefix string) lb.Rule { return lb.Rule{Prefix: netip.MustParsePrefix(prefix), Allow: true} }
func deny(prefix string) lb.Rule  { return lb.Rule{Prefix: netip.MustParsePrefix(prefix)} }

func TestRules(t *testing.T) {
	tests := []struct {
		name      string
		rules     []lb.Rule
		allowOnly bool
		client    string
		denied    bool
	}{
		{"no rules", nil, false, "198.51.100.7", false},
		{"denied", []lb.Rule{deny("198.51.100.0/24")}, false, "198.51.100.7", true},
		{"beside what is denied", []lb.Rule{deny("198.51.100.0/24")}, false, "198.51.101.7", false},
		{"denied, one address", []lb.Rule{deny("198.51.100.7/32")}, false, "198.51.100.7", true},
		{"beside one address", []lb.Rule{deny("198.51.100.7/32")}, false, "198.51.100.6", false},
		{"allowed", []lb.Rule{allow("198.51.100.0/24")}, true, "198.51.100.7", false},
		{"not among the allowed", []lb.Rule{allow("198.51.100.0/24")}, true, "198.51.101.7", true},
		{"allow only, and nobody", nil, true, "198.51.100.7", true},
		{"the longest prefix counts, allow", []lb.Rule{deny("198.51.0.0/16"), allow("198.51.100.0/24")}, false, "198.51.100.7", false},
		{"the longest prefix counts, deny", []lb.Rule{allow("198.51.0.0/16"), deny("198.51.100.0/24")}, true, "198.51.100.7", true},
		{"everybody", []lb.Rule{deny("0.0.0.0/0")}, false, "198.51.100.7", true},
		{"every IPv6 client is not an IPv4 one", []lb.Rule{deny("::/0")}, false, "198.51.100.7", false},
		{"every IPv4 client is not an IPv6 one", []lb.Rule{deny("0.0.0.0/0")}, false, "2001:db8:1::7", false},
		{"denied, IPv6", []lb.Rule{deny("2001:db8:1::/48")}, false, "2001:db8:1::7", true},
		{"allowed, IPv6", []lb.Rule{allow("2001:db8:1::/64")}, true, "2001:db8:1::7", false},
		{"beside, IPv6", []lb.Rule{allow("2001:db8:1::/64")}, true, "2001:db8:1:1::7", true},
		{"one address, IPv6", []lb.Rule{deny("2001:db8:1::7/128")}, false, "2001:db8:1::8", false},
	}
	for _, forward := range []lb.Forward{lb.DSR, lb.NAT} {
		d := newDatapath(t)
		for _, tc := range tests {
			client := netip.AddrPortFrom(netip.MustParseAddr(tc.client), 40000)
			if forward == lb.NAT && client.Addr().Is6() {
				continue
			}
			t.Run(forward.String()+" "+tc.name, func(t *testing.T) {
				// Another service's rules are nobody else's.
				other := service("other", lb.DSR, 81, backends(1, 81))
				other.Rules = []lb.Rule{deny("0.0.0.0/0"), deny("::/0")}
				s := service("web", forward, 80, backends(1, 80))
				if forward == lb.DSR {
					s.Addresses = append(s.Addresses, lb.FrontendOf(v6VIP))
				}
				s.Rules, s.AllowOnly = tc.rules, tc.allowOnly
				apply(t, d, other, s)
				got, err := d.tables.readState()
				if err != nil {
					t.Fatal(err)
				}
				if diff := diffStates(d.state, got); diff != "" {
					t.Errorf("state (-planned +read):\n%s", diff)
				}
				want := "sent"
				if tc.denied {
					want = "denied"
				}
				frame := toVIP(flags(testenv.SYN), func(f *testenv.Frame) {
					f.Src = client
					if client.Addr().Is6() {
						f.Dst = v6VIP
					}
				})
				if got := try(t, d, frame.Bytes()); got.Outcome != want {
					t.Errorf("outcome %s, want %s", got.Outcome, want)
				}
			})
		}
		apply(t, d)
		if n := len(d.state.Rules); n != 0 {
			t.Errorf("%d rules are left", n)
		}
	}
}

// While rules change, a client that both the old and the new ones treat alike is
// never treated otherwise.
func TestRulesChangeWithoutAHole(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	random := func() []lb.Rule {
		var rules []lb.Rule
		seen := map[netip.Prefix]bool{}
		for range r.IntN(6) {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, byte(r.IntN(4) << 6), byte(r.IntN(4) << 6)}), 14+r.IntN(13)).Masked()
			if !seen[p] {
				seen[p] = true
				rules = append(rules, lb.Rule{Prefix: p, Allow: r.IntN(2) == 0})
			}
		}
		return rules
	}
	verdict := func(rules map[ruleID]bool, flags lbServiceFlags, a netip.Addr) bool {
		best, result := -1, flags&lbServiceFlagsSERVICE_ALLOW_ONLY == 0
		for id, allow := range rules {
			if id.Prefix.Contains(a) && id.Prefix.Bits() > best {
				best, result = id.Prefix.Bits(), allow
			}
		}
		return result || flags&(lbServiceFlagsSERVICE_RULES|lbServiceFlagsSERVICE_ALLOW_ONLY) == 0
	}
	have, sim := newState(), newSim()
	for range 300 {
		s := service("web", lb.DSR, 80, backends(1, 80))
		s.TableSize, s.Rules, s.AllowOnly = 7, random(), r.IntN(2) == 0
		steps, next, err := plan(have, lb.Snapshot{Services: []lb.ServiceState{s}}, testLimits, testTable)
		if err != nil {
			t.Fatal(err)
		}
		for _, st := range steps {
			sim.apply(t, st)
			if len(have.Services) == 0 || len(sim.Services) == 0 {
				continue
			}
			for range 20 {
				a := netip.AddrFrom4([4]byte{198, 51, byte(r.IntN(256)), byte(r.IntN(256))})
				before := verdict(have.Rules, have.Services[1].Flags, a)
				after := verdict(next.Rules, next.Services[1].Flags, a)
				if now := verdict(sim.Rules, sim.Services[1].Flags, a); before == after && now != before {
					t.Fatalf("after %v: %v is treated otherwise than before and after", st, a)
				}
			}
		}
		have = next
	}
}

func TestSourceLimit(t *testing.T) {
	s := service("web", lb.DSR, 80, backends(1, 80))
	s.Addresses = append(s.Addresses, lb.FrontendOf(v6VIP))
	s.SourceLimit = lb.SourceLimit{Rate: 1, Burst: 5}
	d := newDatapath(t, s)
	syn := func(client netip.AddrPort) string {
		return try(t, d, toVIP(flags(testenv.SYN), func(f *testenv.Frame) {
			f.Src = client
			if client.Addr().Is6() {
				f.Dst = v6VIP
			}
		}).Bytes()).Outcome
	}
	count := func(client func(i int) netip.AddrPort) int {
		n := 0
		for i := range 30 {
			if syn(client(i)) == "sent" {
				n++
			}
		}
		return n
	}
	one := func(a string) func(int) netip.AddrPort {
		return func(i int) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(a), uint16(1000+i)) }
	}
	// A machine that stands still for a second may let one more through.
	if n := count(one("198.51.100.7")); n < 5 || n > 6 {
		t.Errorf("a client opened %d connections at once, want 5", n)
	}
	if n := count(one("198.51.100.8")); n < 5 || n > 6 {
		t.Errorf("another client opened %d connections, want 5", n)
	}
	if n := count(func(i int) netip.AddrPort {
		a := netip.MustParseAddr("2001:db8:1::").As16()
		a[15] = byte(i)
		return netip.AddrPortFrom(netip.AddrFrom16(a), 1000)
	}); n < 5 || n > 6 {
		t.Errorf("a /64 opened %d connections, want 5", n)
	}
	if n := count(func(i int) netip.AddrPort { return clientAddr(i) }); n != 30 {
		t.Errorf("%d of 30 clients opened a connection", n)
	}
	// What is open goes on.
	if got := try(t, d, toVIP().Bytes()).Outcome; got != "sent" {
		t.Errorf("data of a client over its limit: %s", got)
	}
	if got := outcomes(t, d)["source_limit"]; got < 70 {
		t.Errorf("%d SYNs are counted as over the limit", got)
	}
}
