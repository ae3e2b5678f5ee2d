package dns

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A network gets as many answers of a kind as it may, and of the others every second one
// cut short; clients over TCP, other networks and other names are not concerned.
func TestRateLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := example()
		c.RateLimit = &lb.DNSRateLimit{Rate: 10, Burst: 4, Slip: 2, Exempt: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}}
		r := newResponder(t, &states{})
		apply(t, r, c)
		at := func(address string) client { return client{address: netip.MustParseAddr(address)} }
		// count asks n times at once, and tells how many got an answer, were sent to TCP,
		// and got nothing.
		count := func(n int, from client, name string, of uint16) string {
			t.Helper()
			var full, slipped, none int
			for range n {
				packet := r.respond(query(t, name, of, withEDNS(1232)), from)
				if packet == nil {
					none++
					continue
				}
				m := &dns.Msg{}
				if err := m.Unpack(packet); err != nil {
					t.Fatal(err)
				}
				if !m.Truncated {
					full++
					continue
				}
				slipped++
				if len(m.Answer)+len(m.Ns) > 0 || len(m.Question) != 1 || m.IsEdns0() == nil {
					t.Errorf("an answer that was cut short: %v", m)
				}
			}
			return fmt.Sprintf("%d %d %d", full, slipped, none)
		}
		tests := []struct {
			name string
			wait time.Duration // before
			n    int
			from client
			ask  string
			of   uint16
			want string
		}{
			{"a burst", 0, 11, at("198.51.100.7"), "www.example.com.", dns.TypeA, "5 3 3"},
			{"another client of the network", 0, 2, at("198.51.100.200"), "www.example.com.", dns.TypeA, "0 1 1"},
			{"another type", 0, 5, at("198.51.100.7"), "www.example.com.", dns.TypeAAAA, "5 0 0"},
			{"another network", 0, 5, at("198.51.101.7"), "www.example.com.", dns.TypeA, "5 0 0"},
			{"an exempt one", 0, 50, at("203.0.113.7"), "www.example.com.", dns.TypeA, "50 0 0"},
			{"over TCP", 0, 50, client{address: netip.MustParseAddr("198.51.100.7"), tcp: true}, "www.example.com.", dns.TypeA, "50 0 0"},
			{"names that are not there", 0, 7, at("198.51.100.7"), "n%d.example.com.", dns.TypeA, "5 1 1"},
			{"types that are not there", 0, 7, at("198.51.100.7"), "a.b.example.com.", dns.TypeMX, "5 1 1"},
			{"others of them count together", 0, 2, at("198.51.100.7"), "a.b.example.com.", dns.TypeTXT, "0 1 1"},
			{"names behind a wildcard", 0, 7, at("198.51.100.7"), "n%d.wild.example.com.", dns.TypeA, "5 1 1"},
			{"names of others", 0, 7, at("198.51.100.7"), "n%d.example.org.", dns.TypeA, "5 1 1"},
			{"IPv6", 0, 7, at("2001:db8:0:1200::1"), "www.example.com.", dns.TypeA, "5 1 1"},
			{"IPv6, of the same /56", 0, 2, at("2001:db8:0:12ff::1"), "www.example.com.", dns.TypeA, "0 1 1"},
			{"IPv6, another /56", 0, 2, at("2001:db8:0:1300::1"), "www.example.com.", dns.TypeA, "2 0 0"},
			{"a tenth of a second later", 100 * time.Millisecond, 3, at("198.51.100.7"), "www.example.com.", dns.TypeA, "1 1 1"},
			{"a second later", time.Second, 7, at("198.51.100.7"), "www.example.com.", dns.TypeA, "5 1 1"},
		}
		for _, tt := range tests {
			time.Sleep(tt.wait) // virtual
			name := tt.ask
			if name[0] == 'n' {
				name = fmt.Sprintf(tt.ask, 1)
			}
			if got := count(tt.n, tt.from, name, tt.of); got != tt.want {
				t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
			}
			if name != tt.ask { // another name is no way round
				if got := count(2, tt.from, fmt.Sprintf(tt.ask, 2), tt.of); got != "0 1 1" {
					t.Errorf("%s, another name: %s, want 0 1 1", tt.name, got)
				}
			}
		}
		// Errors without a question count, too.
		var got []int
		for range 7 {
			got = append(got, len(r.respond(make([]byte, headerSize), at("198.51.100.7"))))
		}
		if diff := cmp.Diff([]int{12, 12, 12, 12, 12, 0, 12}, got); diff != "" {
			t.Errorf("lengths of errors (-want +got):\n%s", diff)
		}
		if s := r.Status(); s.Slipped == 0 || s.Dropped["rate_limited"] == 0 {
			t.Errorf("nothing was counted: %+v", s)
		}
	})
}

// The same limit goes on over a reload; another one begins anew.
func TestRateLimitOverReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := example()
		c.RateLimit = &lb.DNSRateLimit{Rate: 1, Slip: 0}
		r := newResponder(t, &states{})
		apply(t, r, c)
		answered := func() bool { return r.respond(query(t, "www.example.com.", dns.TypeA), stranger) != nil }
		if !answered() || answered() {
			t.Error("want one answer, and no other")
		}
		same := example()
		same.RateLimit = &lb.DNSRateLimit{Rate: 1, Slip: 0}
		apply(t, r, same)
		if answered() {
			t.Error("the same limit has begun anew")
		}
		same.RateLimit = &lb.DNSRateLimit{Rate: 2, Slip: 0}
		apply(t, r, same)
		if !answered() {
			t.Error("another limit goes on with what was counted by the old one")
		}
		same.RateLimit = nil
		apply(t, r, same)
		for range 10 {
			if !answered() {
				t.Fatal("no limit, and no answer")
			}
		}
	})
}

// A flood from made-up networks does not fill the memory, and a network that is over its
// limit stays so meanwhile.
func TestRateLimitUnderFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(&lb.DNSRateLimit{Rate: 1, Slip: 0})
		l.most = 1000
		victim := netip.MustParseAddr("198.51.100.7")
		if l.judge(victim, answerKind{}, time.Now()) != passes {
			t.Fatal("the first one is dropped")
		}
		for i := range 20_000 {
			l.judge(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}), answerKind{}, time.Now())
			if n := len(l.young) + len(l.older); n > 2*l.most+1 {
				t.Fatalf("%d keys after %d", n, i)
			}
			if i%500 == 0 && l.judge(victim, answerKind{}, time.Now()) != isDropped {
				t.Fatalf("forgotten after %d", i)
			}
		}
	})
}
