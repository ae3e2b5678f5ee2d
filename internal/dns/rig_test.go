package dns

import (
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A world that a test has in its hands: what is known of servers, by their addresses.
type states struct {
	mu  sync.Mutex
	all map[string]Standing
}

func (s *states) set(address string, state State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[string]Standing{}
	}
	s.all[address] = Standing{State: state, Why: "as the test says"}
}

// health is a Health: servers are up where the test says nothing, with the weight of the
// configuration.
func (s *states) health(_ *lb.DNSRecord, server lb.Server) Standing {
	s.mu.Lock()
	defer s.mu.Unlock()
	known, ok := s.all[server.Address.String()]
	if !ok {
		known.State = StateUp
	}
	known.Weight = server.Weight
	return known
}

func newResponder(t testing.TB, s *states) *Responder {
	t.Helper()
	r := New(Options{Log: slog.New(slog.DiscardHandler), Health: s.health})
	t.Cleanup(r.Close)
	return r
}

func apply(t testing.TB, r *Responder, c lb.DNS) {
	t.Helper()
	if err := r.Apply(c); err != nil {
		t.Fatal(err)
	}
}

// servers are those of a pool: "192.0.2.11", "192.0.2.11*2" of weight 2, "192.0.2.11!" a
// backup.
func servers(texts ...string) (all []lb.Server) {
	for _, text := range texts {
		s := lb.Server{Weight: 1}
		if text, s.Backup = strings.CutSuffix(text, "!"); s.Backup {
			s.Weight = 1
		}
		address, weight, has := strings.Cut(text, "*")
		if has {
			s.Weight = 0
			for _, digit := range weight {
				s.Weight = 10*s.Weight + int(digit-'0')
			}
		}
		s.Address = netip.MustParseAddr(address)
		all = append(all, s)
	}
	return all
}

func named(name string, policy lb.DNSPolicy, pool string, all []lb.Server) lb.DNSRecord {
	r := lb.DNSRecord{Name: name, TTL: 5 * time.Second, Policy: policy, Pool: lb.Pool{Name: pool, Servers: all}}
	if policy == lb.DNSWeighted || policy == lb.DNSSourceHash {
		r.Answers = 1
	}
	return r
}

func zoneNamed(name string, nameServers ...lb.DNSNameServer) lb.DNSZone {
	return lb.DNSZone{
		Name: name, NameServers: nameServers, Mailbox: "hostmaster." + name, Serial: 7, Refresh: time.Hour, Retry: 10 * time.Minute,
		Expire: 24 * time.Hour, TTL: time.Hour, NegativeTTL: 30 * time.Second,
	}
}

// example is a configuration with a bit of everything.
func example() lb.DNS {
	ns := lb.DNSNameServer{Name: "ns1.example.com.", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.100"), netip.MustParseAddr("2001:db8::100")}}
	web := servers("192.0.2.11", "192.0.2.12", "2001:db8::11")
	return lb.DNS{
		Zones: []lb.DNSZone{
			zoneNamed("example.com.", ns, lb.DNSNameServer{Name: "ns2.example.net."}),
			zoneNamed("sub.x.example.com.", ns),
		},
		Records: []lb.DNSRecord{
			named("www.example.com.", lb.DNSAll, "web", web),
			named("a.b.example.com.", lb.DNSAll, "four", servers("192.0.2.14")),
			named("*.wild.example.com.", lb.DNSAll, "four", servers("192.0.2.14")),
			named("sub.x.example.com.", lb.DNSAll, "four", servers("192.0.2.14")),
			named("example.com.", lb.DNSAll, "four", servers("192.0.2.14")),
		},
		TCP: lb.DNSTCP{MaxConnections: 10, IdleTimeout: time.Minute},
	}
}

// query packs a question, changed by edits.
func query(t testing.TB, name string, of uint16, edits ...func(*dns.Msg)) []byte {
	t.Helper()
	m := &dns.Msg{}
	m.SetQuestion(name, of)
	m.Id = 4242
	for _, edit := range edits {
		edit(m)
	}
	packet, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return packet
}

func withEDNS(size uint16) func(*dns.Msg) { return func(m *dns.Msg) { m.SetEdns0(size, false) } }

var stranger = client{address: netip.MustParseAddr("198.51.100.7")}

// ask has a query answered; there must be an answer.
func ask(t testing.TB, r *Responder, from client, name string, of uint16, edits ...func(*dns.Msg)) *dns.Msg {
	t.Helper()
	reply := r.respond(query(t, name, of, edits...), from)
	if reply == nil {
		t.Fatalf("no answer to %s %s", name, dns.TypeToString[of])
	}
	m := &dns.Msg{}
	if err := m.Unpack(reply); err != nil {
		t.Fatalf("answer to %s: %v", name, err)
	}
	return m
}

// texts writes records with single spaces.
func texts(rrs []dns.RR) (all []string) {
	for _, rr := range rrs {
		all = append(all, strings.Join(strings.Fields(rr.String()), " "))
	}
	return all
}

// given are the addresses of an answer.
func given(m *dns.Msg) (all []string) {
	for _, rr := range m.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			all = append(all, rr.A.String())
		case *dns.AAAA:
			all = append(all, rr.AAAA.String())
		}
	}
	return all
}
