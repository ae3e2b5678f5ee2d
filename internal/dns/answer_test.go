package dns

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/sluice-lb/sluice/internal/lb"
)

// An outcome is what a test compares of an answer.
type outcome struct {
	Rcode                         string
	AA                            bool
	Answer, Authority, Additional []string
}

func outcomeOf(m *dns.Msg) outcome {
	rcode := dns.RcodeToString[m.Rcode]
	return outcome{rcode, m.Authoritative, texts(m.Answer), texts(m.Ns), texts(m.Extra)}
}

func TestAnswers(t *testing.T) {
	soa := func(ttl int, zone string) []string {
		return []string{fmt.Sprintf("%s %d IN SOA ns1.example.com. hostmaster.%s 7 3600 600 86400 30", zone, ttl, strings.ToLower(zone))}
	}
	tests := []struct {
		name string
		of   uint16
		want outcome
	}{
		{"www.example.com.", dns.TypeA, outcome{Rcode: "NOERROR", AA: true, Answer: []string{"www.example.com. 5 IN A 192.0.2.11", "www.example.com. 5 IN A 192.0.2.12"}}},
		{"www.example.com.", dns.TypeAAAA, outcome{Rcode: "NOERROR", AA: true, Answer: []string{"www.example.com. 5 IN AAAA 2001:db8::11"}}},
		// The case stays as the client has it, in all names.
		{"wWw.ExAmPlE.cOm.", dns.TypeAAAA, outcome{Rcode: "NOERROR", AA: true, Answer: []string{"wWw.ExAmPlE.cOm. 5 IN AAAA 2001:db8::11"}}},
		{"nOnE.ExAmPlE.cOm.", dns.TypeA, outcome{Rcode: "NXDOMAIN", AA: true, Authority: soa(30, "ExAmPlE.cOm.")}},
		// A name, and nothing of this type: for as long as the record says, which is shorter.
		{"www.example.com.", dns.TypeTXT, outcome{Rcode: "NOERROR", AA: true, Authority: soa(5, "example.com.")}},
		{"a.b.example.com.", dns.TypeAAAA, outcome{Rcode: "NOERROR", AA: true, Authority: soa(5, "example.com.")}},
		{"www.example.com.", dns.TypeSOA, outcome{Rcode: "NOERROR", AA: true, Authority: soa(5, "example.com.")}},
		// On the way to a name: it exists.
		{"b.example.com.", dns.TypeA, outcome{Rcode: "NOERROR", AA: true, Authority: soa(30, "example.com.")}},
		{"x.example.com.", dns.TypeA, outcome{Rcode: "NOERROR", AA: true, Authority: soa(30, "example.com.")}},
		{"c.b.example.com.", dns.TypeA, outcome{Rcode: "NXDOMAIN", AA: true, Authority: soa(30, "example.com.")}},
		{"x.www.example.com.", dns.TypeA, outcome{Rcode: "NXDOMAIN", AA: true, Authority: soa(30, "example.com.")}},
		// Wildcards (RFC 4592).
		{"q.wild.example.com.", dns.TypeA, outcome{Rcode: "NOERROR", AA: true, Answer: []string{"q.wild.example.com. 5 IN A 192.0.2.14"}}},
		{"p.q.wild.example.com.", dns.TypeA, outcome{Rcode: "NOERROR", AA: true, Answer: []string{"p.q.wild.example.com. 5 IN A 192.0.2.14"}}},
		{"*.wild.example.com.", dns.TypeA, outcome{Rcode: "NOERROR", AA: true, Answer: []string{"*.wild.example.com. 5 IN A 192.0.2.14"}}},
		{"q.wild.example.com.", dns.TypeTXT, outcome{Rcode: "NOERROR", AA: true, Authority: soa(5, "example.com.")}},
		{"wild.example.com.", dns.TypeA, outcome{Rcode: "NOERROR", AA: true, Authority: soa(30, "example.com.")}},
		// The apex.
		{"example.com.", dns.TypeA, outcome{Rcode: "NOERROR", AA: true, Answer: []string{"example.com. 5 IN A 192.0.2.14"}}},
		{"example.com.", dns.TypeSOA, outcome{Rcode: "NOERROR", AA: true, Answer: soa(3600, "example.com.")}},
		{"Example.com.", dns.TypeNS, outcome{
			Rcode: "NOERROR", AA: true, Answer: []string{"Example.com. 3600 IN NS ns1.example.com.", "Example.com. 3600 IN NS ns2.example.net."},
			Additional: []string{"ns1.example.com. 3600 IN A 192.0.2.100", "ns1.example.com. 3600 IN AAAA 2001:db8::100"},
		}},
		{"ns1.example.com.", dns.TypeA, outcome{Rcode: "NOERROR", AA: true, Answer: []string{"ns1.example.com. 3600 IN A 192.0.2.100"}}},
		{"ns1.example.com.", dns.TypeAAAA, outcome{Rcode: "NOERROR", AA: true, Answer: []string{"ns1.example.com. 3600 IN AAAA 2001:db8::100"}}},
		// A zone in a zone.
		{"sub.x.example.com.", dns.TypeA, outcome{Rcode: "NOERROR", AA: true, Answer: []string{"sub.x.example.com. 5 IN A 192.0.2.14"}}},
		{"no.sub.x.example.com.", dns.TypeA, outcome{Rcode: "NXDOMAIN", AA: true, Authority: soa(30, "sub.x.example.com.")}},
		{"sub.x.example.com.", dns.TypeDS, outcome{Rcode: "NOERROR", AA: true, Authority: soa(30, "example.com.")}},
		{"example.com.", dns.TypeDS, outcome{Rcode: "NOERROR", AA: true, Authority: soa(5, "example.com.")}},
		// RFC 8482.
		{"www.example.com.", dns.TypeANY, outcome{Rcode: "NOERROR", AA: true, Answer: []string{`www.example.com. 5 IN HINFO "RFC8482" ""`}}},
		{"example.com.", dns.TypeANY, outcome{Rcode: "NOERROR", AA: true, Answer: []string{`example.com. 5 IN HINFO "RFC8482" ""`}}},
		{"b.example.com.", dns.TypeANY, outcome{Rcode: "NOERROR", AA: true, Authority: soa(30, "example.com.")}},
		{"none.example.com.", dns.TypeANY, outcome{Rcode: "NXDOMAIN", AA: true, Authority: soa(30, "example.com.")}},
		// Not ours.
		{"example.org.", dns.TypeA, outcome{Rcode: "REFUSED"}},
		{"com.", dns.TypeNS, outcome{Rcode: "REFUSED"}},
		{".", dns.TypeNS, outcome{Rcode: "REFUSED"}},
		{"xexample.com.", dns.TypeA, outcome{Rcode: "REFUSED"}},
		{`www\.example.com.`, dns.TypeA, outcome{Rcode: "REFUSED"}},
		{"example.com.", dns.TypeAXFR, outcome{Rcode: "REFUSED"}},
		{"example.com.", dns.TypeIXFR, outcome{Rcode: "REFUSED"}},
		{"example.com.", dns.TypeOPT, outcome{Rcode: "FORMERR"}},
	}
	r := newResponder(t, &states{})
	apply(t, r, example())
	for _, tt := range tests {
		t.Run(tt.name+" "+dns.TypeToString[tt.of], func(t *testing.T) {
			m := ask(t, r, stranger, tt.name, tt.of)
			if diff := cmp.Diff(tt.want, outcomeOf(m)); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
			if m.Id != 4242 || !m.Response || m.RecursionAvailable || !m.RecursionDesired || m.Truncated {
				t.Errorf("header %+v", m.MsgHdr)
			}
			if len(m.Question) != 1 || m.Question[0].Name != tt.name {
				t.Errorf("question %v", m.Question)
			}
		})
	}
}

// Messages that are no good question get an error as short as can be, or nothing.
func TestMessages(t *testing.T) {
	good := query(t, "www.example.com.", dns.TypeA)
	edit := func(f func([]byte)) []byte {
		b := append([]byte(nil), good...)
		f(b)
		return b
	}
	bare := func(flags byte, rcode byte) []byte {
		return []byte{4242 >> 8, 4242 & 0xff, flags, rcode, 0, 0, 0, 0, 0, 0, 0, 0}
	}
	const rd = 0x01
	tests := []struct {
		name  string
		query []byte
		want  []byte // nil: no answer
		drop  string
	}{
		{"nothing", nil, nil, "malformed"},
		{"half a header", good[:11], nil, "malformed"},
		{"an answer", edit(func(b []byte) { b[2] |= 0x80 }), nil, "response"},
		{"an answer of another opcode", edit(func(b []byte) { b[2] = 0xa8 }), nil, "response"},
		{"a header alone", good[:12], bare(0x80|rd, dns.RcodeFormatError), ""},
		{"half a question", good[:len(good)-3], bare(0x80|rd, dns.RcodeFormatError), ""},
		{"no question", edit(func(b []byte) { b[5] = 0 }), bare(0x80|rd, dns.RcodeFormatError), ""},
		{"two questions", edit(func(b []byte) { b[5] = 2 }), bare(0x80|rd, dns.RcodeFormatError), ""},
		{"an answer in a query", edit(func(b []byte) { b[7] = 1 }), bare(0x80|rd, dns.RcodeFormatError), ""},
		{"a name that points to itself", edit(func(b []byte) { b[12], b[13] = 0xc0, 12 }), bare(0x80|rd, dns.RcodeFormatError), ""},
		{"NOTIFY", edit(func(b []byte) { b[2] = 4<<3 | 4 }), bare(0x80|4<<3, dns.RcodeNotImplemented), ""},
		{"UPDATE", edit(func(b []byte) { b[2] = 5 << 3 }), bare(0x80|5<<3, dns.RcodeNotImplemented), ""},
		{"STATUS", edit(func(b []byte) { b[2] = 2<<3 | rd }), bare(0x80|2<<3|rd, dns.RcodeNotImplemented), ""},
		{"an opcode that nobody has", edit(func(b []byte) { b[2] = 15 << 3 }), bare(0x80|15<<3, dns.RcodeNotImplemented), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newResponder(t, &states{})
			apply(t, r, example())
			if diff := cmp.Diff(tt.want, r.respond(tt.query, stranger)); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
			for reason, n := range r.Status().Dropped {
				if want := reason == tt.drop; want != (n == 1) {
					t.Errorf("%d dropped as %s", n, reason)
				}
			}
		})
	}
	t.Run("another class", func(t *testing.T) {
		r := newResponder(t, &states{})
		apply(t, r, example())
		for _, class := range []uint16{dns.ClassCHAOS, dns.ClassHESIOD, dns.ClassANY, dns.ClassNONE} {
			m := ask(t, r, stranger, "version.bind.", dns.TypeTXT, func(m *dns.Msg) { m.Question[0].Qclass = class })
			if diff := cmp.Diff(outcome{Rcode: "REFUSED"}, outcomeOf(m)); diff != "" {
				t.Errorf("class %d (-want +got):\n%s", class, diff)
			}
			if m = ask(t, r, stranger, "www.example.com.", dns.TypeA, func(m *dns.Msg) { m.Question[0].Qclass = class }); m.Rcode != dns.RcodeRefused {
				t.Errorf("class %d of a name that is there: %v", class, m)
			}
		}
	})
}

func TestEDNS(t *testing.T) {
	r := newResponder(t, &states{})
	apply(t, r, example())
	opt := func(m *dns.Msg) string {
		o := m.IsEdns0()
		if o == nil {
			return "none"
		}
		return fmt.Sprintf("version %d size %d do %v options %d", o.Version(), o.UDPSize(), o.Do(), len(o.Option))
	}
	tests := []struct {
		name  string
		edit  func(*dns.Msg)
		rcode int
		want  string
	}{
		{"none", func(*dns.Msg) {}, dns.RcodeSuccess, "none"},
		{"plain", withEDNS(1232), dns.RcodeSuccess, "version 0 size 1232 do false options 0"},
		{"DO comes back", func(m *dns.Msg) { m.SetEdns0(4096, true) }, dns.RcodeSuccess, "version 0 size 1232 do true options 0"},
		{"options do not", func(m *dns.Msg) {
			m.SetEdns0(4096, false)
			o := m.IsEdns0()
			o.Option = append(o.Option, &dns.EDNS0_NSID{Code: dns.EDNS0NSID}, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"})
		}, dns.RcodeSuccess, "version 0 size 1232 do false options 0"},
		{"another version", func(m *dns.Msg) { m.SetEdns0(4096, false); m.IsEdns0().SetVersion(1) }, dns.RcodeBadVers, "version 0 size 1232 do false options 0"},
		{"two of them", func(m *dns.Msg) { m.SetEdns0(4096, false); m.Extra = append(m.Extra, dns.Copy(m.Extra[0])) }, dns.RcodeFormatError, "none"},
		{"not of the root", func(m *dns.Msg) { m.SetEdns0(4096, false); m.Extra[0].Header().Name = "a." }, dns.RcodeFormatError, "none"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := ask(t, r, stranger, "www.example.com.", dns.TypeA, tt.edit)
			if got := opt(m); m.Rcode != tt.rcode || got != tt.want {
				t.Errorf("rcode %d, EDNS %s; want %d, %s", m.Rcode, got, tt.rcode, tt.want)
			}
			if (m.Rcode == dns.RcodeSuccess) != (len(m.Answer) == 2) {
				t.Errorf("answer %v", m.Answer)
			}
		})
	}
}

// What does not fit is cut at a record, and says so; over TCP it fits.
func TestTruncation(t *testing.T) {
	var many []string
	for i := range 200 {
		many = append(many, fmt.Sprintf("203.0.113.%d", i+1))
	}
	c := example()
	c.Records = append(c.Records, named("many.example.com.", lb.DNSAll, "many", servers(many...)))
	r := newResponder(t, &states{})
	apply(t, r, c)
	tests := []struct {
		name    string
		tcp     bool
		edit    func(*dns.Msg)
		most    int // bytes
		records int
	}{
		// 34 bytes of header and question, 16 for each record, 11 for EDNS.
		{"without EDNS", false, func(*dns.Msg) {}, 512, 29},
		{"a size that is too small counts as 512", false, withEDNS(100), 512, 29},
		{"of the client's size", false, withEDNS(1000), 1000, 59},
		{"of our size", false, withEDNS(4096), 1232, 74},
		{"over TCP", true, withEDNS(512), 34 + 200*16 + 11, 200},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			packet := r.respond(query(t, "many.example.com.", dns.TypeA, tt.edit), client{address: stranger.address, tcp: tt.tcp})
			m := &dns.Msg{}
			if err := m.Unpack(packet); err != nil {
				t.Fatal(err)
			}
			if len(packet) > tt.most || len(m.Answer) != tt.records || m.Truncated == tt.tcp {
				t.Errorf("%d bytes, %d records, TC %v; want %d, %d, %v", len(packet), len(m.Answer), m.Truncated, tt.most, tt.records, !tt.tcp)
			}
		})
	}
	if s := r.Status(); s.Truncated != 4 {
		t.Errorf("%d truncated, want 4", s.Truncated)
	}
}
