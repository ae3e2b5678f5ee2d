package dns

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/sluice-lb/sluice/internal/lb"
)

// Who is given, as servers fail and operators take them out.
func TestWhoIsGiven(t *testing.T) {
	const a, b, c, v6, backup, backup6 = "192.0.2.11", "192.0.2.12", "192.0.2.13", "2001:db8::11", "192.0.2.21", "2001:db8::21"
	tests := []struct {
		name    string
		servers []lb.Server
		states  map[string]State
		want    []string // of both families
		healthy bool
	}{
		{"all are up", servers(a, b, v6), nil, []string{a, b, v6}, true},
		{"one is down", servers(a, b, v6), map[string]State{b: StateDown}, []string{a, v6}, true},
		{"none is up", servers(a, b, v6), map[string]State{a: StateDown, b: StateDown, v6: StateDown}, []string{a, b, v6}, false},
		{"none is up, but drained ones stay out", servers(a, b, c), map[string]State{a: StateDown, b: StateDrained, c: StateDisabled}, []string{a}, false},
		{"none of one family is up", servers(a, b, v6), map[string]State{v6: StateDown}, []string{a, b}, true},
		{"nothing is known yet", servers(a, b), map[string]State{a: StateUnknown, b: StateUnknown}, []string{a, b}, true},
		{"one is known to be up", servers(a, b, c), map[string]State{a: StateUnknown, c: StateUnknown}, []string{b}, true},
		{"one is known to be down", servers(a, b), map[string]State{a: StateUnknown, b: StateDown}, []string{a}, true},
		{"a drained one", servers(a, b), map[string]State{a: StateDrained}, []string{b}, true},
		{"a disabled one", servers(a, b), map[string]State{a: StateDisabled}, []string{b}, true},
		{"all are drained", servers(a, b), map[string]State{a: StateDrained, b: StateDisabled}, nil, false},
		{"weight 0", servers(a+"*0", b), nil, []string{b}, true},
		{"weight 0, and the other one is down", servers(a+"*0", b), map[string]State{b: StateDown}, []string{b}, false},
		{"a backup is not needed", servers(a, b, backup+"!"), map[string]State{b: StateDown}, []string{a}, true},
		{"a backup is needed", servers(a, b, backup+"!"), map[string]State{a: StateDown, b: StateDown}, []string{backup}, true},
		{"a backup of another family is not needed", servers(a, v6, backup6+"!"), map[string]State{v6: StateDown}, []string{a}, true},
		{"not before it is known that the others fail", servers(a, backup+"!"), map[string]State{a: StateUnknown}, []string{a}, true},
		{"backups fail, too", servers(a, backup+"!"), map[string]State{a: StateDown, backup: StateDown}, []string{a, backup}, false},
		{"of a drained server a backup takes the place", servers(a, backup+"!"), map[string]State{a: StateDrained}, []string{backup}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := &states{}
			for address, state := range tt.states {
				s.set(address, state)
			}
			r := newResponder(t, s)
			config := example()
			config.Records = []lb.DNSRecord{named("www.example.com.", lb.DNSAll, "web", tt.servers)}
			apply(t, r, config)
			var got []string
			for _, of := range []uint16{dns.TypeA, dns.TypeAAAA} {
				m := ask(t, r, stranger, "www.example.com.", of)
				got = append(got, given(m)...)
				if len(m.Answer) == 0 && len(m.Ns) != 1 {
					t.Errorf("nothing, and no SOA: %v", m)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("given (-want +got):\n%s", diff)
			}
			if p := r.Status().Pools[0]; p.Healthy != tt.healthy {
				t.Errorf("healthy %v, want %v: %+v", p.Healthy, tt.healthy, p)
			}
		})
	}
}

// An address that two servers share by their ports is given once, as long as one of them
// is up.
func TestPortsOfOneAddress(t *testing.T) {
	both := servers("192.0.2.11*2", "192.0.2.11*3", "192.0.2.12")
	both[0].Port, both[1].Port = 80, 81
	down := uint16(0)
	r := New(Options{Health: func(_ *lb.DNSRecord, s lb.Server) Standing {
		if s.Port == down {
			return Standing{State: StateDown, Weight: s.Weight}
		}
		return Standing{State: StateUp, Weight: s.Weight}
	}})
	defer r.Close()
	config := example()
	config.Records = []lb.DNSRecord{named("www.example.com.", lb.DNSAll, "web", both)}
	both[2].Port = 82
	apply(t, r, config)
	for _, tt := range []struct {
		down uint16
		want []string
	}{
		{0, []string{"192.0.2.11", "192.0.2.12"}}, {80, []string{"192.0.2.11", "192.0.2.12"}}, {82, []string{"192.0.2.11"}},
	} {
		down = tt.down
		r.Refresh()
		if diff := cmp.Diff(tt.want, given(ask(t, r, stranger, "www.example.com.", dns.TypeA))); diff != "" {
			t.Errorf("without port %d (-want +got):\n%s", tt.down, diff)
		}
	}
	// Its weight is that of both.
	down, config.Records[0].Policy, config.Records[0].Answers = 0, lb.DNSWeighted, 1
	apply(t, r, config)
	got := map[string]int{}
	for range 12 {
		got[given(ask(t, r, stranger, "www.example.com.", dns.TypeA))[0]]++
	}
	if diff := cmp.Diff(map[string]int{"192.0.2.11": 10, "192.0.2.12": 2}, got); diff != "" {
		t.Errorf("by weight (-want +got):\n%s", diff)
	}
}

func TestRoundRobin(t *testing.T) {
	s := &states{}
	r := newResponder(t, s)
	config := example()
	config.Records = []lb.DNSRecord{named("www.example.com.", lb.DNSRoundRobin, "web", servers("192.0.2.11*5", "192.0.2.12", "2001:db8::11", "192.0.2.13"))}
	apply(t, r, config)
	want := [][]string{
		{"192.0.2.11", "192.0.2.12", "192.0.2.13"}, {"192.0.2.12", "192.0.2.13", "192.0.2.11"}, {"192.0.2.13", "192.0.2.11", "192.0.2.12"},
		{"192.0.2.11", "192.0.2.12", "192.0.2.13"},
	}
	for i := range want {
		if diff := cmp.Diff(want[i], given(ask(t, r, stranger, "www.example.com.", dns.TypeA))); diff != "" {
			t.Errorf("answer %d (-want +got):\n%s", i, diff)
		}
		ask(t, r, stranger, "www.example.com.", dns.TypeAAAA) // the other family has turns of its own
		r.Refresh()                                           // nothing begins anew where nothing has changed
	}
	s.set("192.0.2.12", StateDown)
	r.Refresh()
	if got := given(ask(t, r, stranger, "www.example.com.", dns.TypeA)); !slices.Equal(got, []string{"192.0.2.11", "192.0.2.13"}) {
		t.Errorf("without one: %v", got)
	}
	config.Records[0].Answers = 1
	apply(t, r, config)
	got := map[string]int{}
	for range 10 {
		m := ask(t, r, stranger, "www.example.com.", dns.TypeA)
		if len(m.Answer) != 1 {
			t.Fatalf("%d addresses, want 1", len(m.Answer))
		}
		got[given(m)[0]]++
	}
	if diff := cmp.Diff(map[string]int{"192.0.2.11": 5, "192.0.2.13": 5}, got); diff != "" {
		t.Errorf("one each (-want +got):\n%s", diff)
	}
}

func TestWeighted(t *testing.T) {
	s := &states{}
	r := newResponder(t, s)
	config := example()
	config.Records = []lb.DNSRecord{named("www.example.com.", lb.DNSWeighted, "web", servers("192.0.2.11", "192.0.2.12*2", "192.0.2.13*3", "192.0.2.14*0"))}
	apply(t, r, config)
	count := func(n int) map[string]int {
		got := map[string]int{}
		for range n {
			got[fmt.Sprint(given(ask(t, r, stranger, "www.example.com.", dns.TypeA)))]++
		}
		return got
	}
	if diff := cmp.Diff(map[string]int{"[192.0.2.11]": 10, "[192.0.2.12]": 20, "[192.0.2.13]": 30}, count(60)); diff != "" {
		t.Errorf("answers (-want +got):\n%s", diff)
	}
	s.set("192.0.2.13", StateDown)
	r.Refresh()
	if diff := cmp.Diff(map[string]int{"[192.0.2.11]": 20, "[192.0.2.12]": 40}, count(60)); diff != "" {
		t.Errorf("answers without one (-want +got):\n%s", diff)
	}
	config.Records[0].Answers = 2
	apply(t, r, config)
	for got := range count(12) {
		if got != "[192.0.2.11 192.0.2.12]" && got != "[192.0.2.12 192.0.2.11]" {
			t.Errorf("two of two: %s", got)
		}
	}
}

func TestSourceHash(t *testing.T) {
	s := &states{}
	r := newResponder(t, s)
	all := servers("192.0.2.11", "192.0.2.12*2", "192.0.2.13*3")
	config := example()
	config.Records = []lb.DNSRecord{named("www.example.com.", lb.DNSSourceHash, "web", all)}
	apply(t, r, config)
	const networks = 6000
	of := func(i int, host byte) client {
		return client{address: netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), host})}
	}
	choices := func() (all []string) {
		for i := range networks {
			all = append(all, given(ask(t, r, of(i, 1), "www.example.com.", dns.TypeA))[0])
		}
		return all
	}
	before := choices()
	share := map[string]int{}
	for i, address := range before {
		share[address]++
		if i%100 != 0 {
			continue
		}
		if got := given(ask(t, r, of(i, 254), "www.example.com.", dns.TypeA)); len(got) != 1 || got[0] != address {
			t.Errorf("two clients of one network get %v and %v", address, got)
		}
	}
	for _, k := range all {
		want := float64(networks) * float64(k.Weight) / 6
		if got := float64(share[k.Address.String()]); math.Abs(got-want) > 0.1*want {
			t.Errorf("%v is that of %v networks, want about %v", k.Address, got, want)
		}
	}
	// Only who had a server that goes gets another one.
	s.set("192.0.2.12", StateDown)
	r.Refresh()
	for i, address := range choices() {
		if (address != before[i]) != (before[i] == "192.0.2.12") {
			t.Fatalf("network %d had %s and has %s", i, before[i], address)
		}
	}
	// IPv6: /56.
	a := client{address: netip.MustParseAddr("2001:db8:0:1200::1")}
	b := client{address: netip.MustParseAddr("2001:db8:0:12ff::9")}
	if x, y := given(ask(t, r, a, "www.example.com.", dns.TypeA)), given(ask(t, r, b, "www.example.com.", dns.TypeA)); !slices.Equal(x, y) {
		t.Errorf("two clients of one /56 get %v and %v", x, y)
	}
}

// What changes is told once, and a start that finds all well is no event.
func TestEvents(t *testing.T) {
	var got []Event
	s := &states{}
	s.set("192.0.2.12", StateUnknown)
	s.set("192.0.2.11", StateUnknown)
	r := New(Options{Health: s.health, Event: func(e Event) { got = append(got, e) }})
	defer r.Close()
	config := example()
	config.Records = []lb.DNSRecord{
		named("www.example.com.", lb.DNSAll, "web", servers("192.0.2.11", "192.0.2.12")),
		named("a.example.com.", lb.DNSAll, "web", servers("192.0.2.11", "192.0.2.12")),
	}
	config.Records[0].Port, config.Records[1].Port = 80, 80
	apply(t, r, config)
	s.set("192.0.2.11", StateUp)
	s.set("192.0.2.12", StateDown)
	r.Refresh()
	s.set("192.0.2.12", StateUp)
	r.Refresh()
	apply(t, r, config) // knows what was known
	want := []Event{
		{"web", "192.0.2.12:80", StateUnknown, StateDown, "as the test says"},
		{"web", "192.0.2.12:80", StateDown, StateUp, "as the test says"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

// Serials that are not configured grow with each change, and with nothing else.
func TestSerials(t *testing.T) {
	base := func() (lb.DNS, []*record) {
		c := example()
		c.Zones[0].Serial = 0
		var records []*record
		for i := range c.Records {
			records = append(records, &record{config: &c.Records[i]})
		}
		return c, records
	}
	at := time.Unix(1_800_000_000, 0)
	c, records := base()
	first := newZones(&c, &lb.DNS{}, nil, records, at)
	if got := first["example.com."].serial; got != 1_800_000_000 {
		t.Errorf("the first one is %d", got)
	}
	if got := first["sub.x.example.com."].serial; got != 7 {
		t.Errorf("a configured one is %d", got)
	}
	later := at.Add(time.Hour)
	for _, tt := range []struct {
		name string
		now  time.Time
		edit func(*lb.DNS)
		want uint32
	}{
		{"nothing", later, func(*lb.DNS) {}, 1_800_000_000},
		{"how servers are probed", later, func(c *lb.DNS) { c.Records[0].Pool.Probe = &lb.Probe{Type: lb.ProbeTCP} }, 1_800_000_000},
		{"a ttl", later, func(c *lb.DNS) { c.Records[0].TTL = time.Minute }, 1_800_003_600},
		{"a server", later, func(c *lb.DNS) { c.Records[0].Pool.Servers = servers("192.0.2.11") }, 1_800_003_600},
		{"the mailbox", later, func(c *lb.DNS) { c.Zones[0].Mailbox = "x." }, 1_800_003_600},
		{"with a clock that went back", at.Add(-time.Hour), func(c *lb.DNS) { c.Records[0].TTL = time.Minute }, 1_800_000_001},
	} {
		t.Run(tt.name, func(t *testing.T) {
			next, records := base()
			tt.edit(&next)
			if got := newZones(&next, &c, first, records, tt.now)["example.com."].serial; got != tt.want {
				t.Errorf("serial %d, want %d", got, tt.want)
			}
		})
	}
}
