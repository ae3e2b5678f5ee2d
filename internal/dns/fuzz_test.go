package dns

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/miekg/dns"

	"github.com/sluice-lb/sluice/internal/lb"
)

// Whatever comes, the answer is one to it: nothing to an answer, never longer than the
// client can take, and a message that can be read.
func FuzzQueries(f *testing.F) {
	for _, q := range [][]byte{
		query(f, "www.example.com.", dns.TypeA), query(f, "wWw.example.com.", dns.TypeAAAA, withEDNS(512)), query(f, "example.com.", dns.TypeNS),
		query(f, "none.example.com.", dns.TypeANY, withEDNS(4096)), query(f, ".", dns.TypeSOA), query(f, "q.wild.example.com.", dns.TypeA),
		query(f, "many.example.com.", dns.TypeA),
		query(f, "www.example.com.", dns.TypeA, withEDNS(1232), func(m *dns.Msg) { m.IsEdns0().SetVersion(3) }),
	} {
		f.Add(q, false)
		f.Add(q, true)
		f.Add(q[:len(q)-2], false)
	}
	c := example()
	var many []string
	for i := range 50 {
		many = append(many, fmt.Sprintf("203.0.113.%d", i+1))
	}
	c.Records = append(c.Records, named("many.example.com.", lb.DNSRoundRobin, "many", servers(many...)))
	r := newResponder(f, &states{})
	apply(f, r, c)
	f.Fuzz(func(t *testing.T, q []byte, tcp bool) {
		if len(q) > maxQuery {
			return
		}
		before := bytes.Clone(q)
		reply := r.respond(q, client{address: stranger.address, tcp: tcp})
		if !bytes.Equal(before, q) {
			t.Fatal("the query is changed")
		}
		if len(q) < headerSize || q[2]&0x80 != 0 {
			if reply != nil {
				t.Fatalf("an answer to what is no query: %x", reply)
			}
			return
		}
		if reply == nil {
			t.Fatal("no answer")
		}
		most := 65535
		asked := &dns.Msg{}
		readable := asked.Unpack(q) == nil
		if !tcp {
			most = 512
			if readable && asked.IsEdns0() != nil {
				most = min(1232, max(most, int(asked.IsEdns0().UDPSize())))
			}
		}
		if len(reply) > most {
			t.Fatalf("%d bytes, want %d at most", len(reply), most)
		}
		m := &dns.Msg{}
		if err := m.Unpack(reply); err != nil {
			t.Fatalf("the answer cannot be read: %v: %x", err, reply)
		}
		if !m.Response || m.RecursionAvailable || reply[0] != q[0] || reply[1] != q[1] || (reply[2]^q[2])&0x78 != 0 {
			t.Fatalf("header %x to %x", reply[:4], q[:4])
		}
		switch m.Rcode {
		case dns.RcodeSuccess, dns.RcodeNameError:
			if !m.Authoritative || len(m.Question) != 1 || m.Question[0] != asked.Question[0] {
				t.Fatalf("answer %v to %v", m, asked)
			}
			if !m.Truncated && len(m.Answer)+len(m.Ns) == 0 {
				t.Fatalf("nothing in %v", m)
			}
		case dns.RcodeFormatError, dns.RcodeNotImplemented, dns.RcodeRefused, dns.RcodeBadVers:
			if m.Authoritative || len(m.Answer)+len(m.Ns) > 0 {
				t.Fatalf("records in an error: %v", m)
			}
		default:
			t.Fatalf("rcode %d", m.Rcode)
		}
		if r.respond(reply, client{address: stranger.address, tcp: tcp}) != nil {
			t.Fatal("an answer to an answer")
		}
	})
}
