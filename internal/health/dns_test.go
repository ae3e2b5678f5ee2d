package health

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/sluice-lb/sluice/internal/lb"
)

// answerer makes the answer to a query in the way of a name server with one A record
// for what it is asked, changed by change.
func answerer(t *testing.T, changes ...func(*dnsmessage.Message)) func([]byte) [][]byte {
	return func(packet []byte) (all [][]byte) {
		var m dnsmessage.Message
		if err := m.Unpack(packet); err != nil {
			t.Errorf("the query cannot be read: %v", err)
			return nil
		}
		for _, change := range changes {
			answer := dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true}, Questions: append([]dnsmessage.Question(nil), m.Questions...)}
			answer.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 5},
				Body:   &dnsmessage.AResource{A: [4]byte{192, 0, 2, 80}},
			}}
			change(&answer)
			packed, err := answer.Pack()
			if err != nil {
				t.Errorf("pack the answer: %v", err)
				return nil
			}
			all = append(all, packed)
		}
		return all
	}
}

func TestRunDNS(t *testing.T) {
	good := func(*dnsmessage.Message) {}
	code := func(c dnsmessage.RCode) func(*dnsmessage.Message) {
		return func(m *dnsmessage.Message) { m.RCode, m.Answers = c, nil }
	}
	otherID := func(m *dnsmessage.Message) { m.ID++ }
	otherName := func(m *dnsmessage.Message) { m.Questions[0].Name = dnsmessage.MustNewName("mail.example.com.") }
	otherType := func(m *dnsmessage.Message) { m.Questions[0].Type = dnsmessage.TypeAAAA }
	query := func(m *dnsmessage.Message) { m.Response = false }
	for _, tt := range []struct {
		name    string
		serve   func([]byte) [][]byte
		timeout time.Duration
		answer  string
		want    string
	}{
		{"a record", answerer(t, good), long, "NOERROR, 1 record", ""},
		{"several", answerer(t, func(m *dnsmessage.Message) { m.Answers = append(m.Answers, m.Answers[0]) }), long, "NOERROR, 2 records", ""},
		{"the name in other letters", answerer(t, func(m *dnsmessage.Message) {
			m.Questions[0].Name = dnsmessage.MustNewName("WWW.Example.com.")
		}), long, "NOERROR, 1 record", ""},
		{"none", answerer(t, func(m *dnsmessage.Message) { m.Answers = nil }), long, "NOERROR, 0 records", "answer has no record"},
		{"cut short", answerer(t, func(m *dnsmessage.Message) { m.Answers, m.Truncated = nil, true }), long,
			"NOERROR, 0 records", "answer is cut short, and without a record"},
		{"NXDOMAIN", answerer(t, code(dnsmessage.RCodeNameError)), long, "NXDOMAIN", "answer is NXDOMAIN"},
		{"SERVFAIL", answerer(t, code(dnsmessage.RCodeServerFailure)), long, "SERVFAIL", "answer is SERVFAIL"},
		{"an error with a record", answerer(t, func(m *dnsmessage.Message) { m.RCode = dnsmessage.RCodeServerFailure }), long, "SERVFAIL", "answer is SERVFAIL"},
		{"REFUSED, without the question", answerer(t, func(m *dnsmessage.Message) {
			m.RCode, m.Answers, m.Questions = dnsmessage.RCodeRefused, nil, nil
		}), long, "REFUSED", "answer is REFUSED"},
		{"a code without a name", answerer(t, code(9)), long, "RCODE 9", "answer is RCODE 9"},
		{"strays before it", answerer(t, otherID, otherName, otherType, query, good), long, "NOERROR, 1 record", ""},
		{"another id", answerer(t, otherID), short, "", "no answer within 500ms (what came: no answer to this query: it has another id)"},
		{"another name", answerer(t, otherName), short, "", "no answer within 500ms (what came: no answer to this query: it has another question)"},
		{"another type", answerer(t, otherType), short, "", "no answer within 500ms (what came: no answer to this query: it has another question)"},
		{"no question", answerer(t, func(m *dnsmessage.Message) { m.Questions = nil }), short, "",
			"no answer within 500ms (what came: no answer to this query: it has another question)"},
		{"the query itself", func(packet []byte) [][]byte { return [][]byte{packet} }, short, "",
			"no answer within 500ms (what came: no answer to this query: it is a query)"},
		{"garbage", func([]byte) [][]byte { return [][]byte{[]byte("pong")} }, short, "",
			"no answer within 500ms (what came: no answer to this query: it is no DNS)"},
		{"a question that ends early", func(packet []byte) [][]byte {
			packet[2] |= 0x80
			return [][]byte{packet[:20]}
		}, short, "", "no answer within 500ms (what came: no answer to this query: its question cannot be read)"},
		{"a record that ends early", func(packet []byte) [][]byte {
			whole := answerer(t, good)(packet)[0]
			return [][]byte{whole[:len(whole)-2]}
		}, long, "NOERROR, 0 records", "answer cannot be read: skipping: Answer: insufficient data for resource body length"},
		{"silence", silent, short, "", "no answer within 500ms"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			target := Target{Address: serveUDP(t, "127.0.0.1:0", tt.serve), Probe: lb.Probe{
				Type: lb.ProbeDNS, Timeout: tt.timeout, Query: lb.Query{Name: "www.example.com.", Type: lb.QueryA},
			}}
			ctx, cancel := context.WithTimeout(t.Context(), tt.timeout)
			defer cancel()
			answer, err := prober{}.ask(ctx, target)
			if diff := cmp.Diff([]string{tt.answer, tt.want}, []string{answer, text(err)}); diff != "" {
				t.Errorf("answer and result (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("nobody", func(t *testing.T) {
		target := Target{Address: closedUDP(t, "127.0.0.1"), Probe: lb.Probe{Type: lb.ProbeDNS, Timeout: long, Query: lb.Query{Name: ".", Type: lb.QuerySOA}}}
		if got := text(Run(t.Context(), target)); got != "read: connection refused" {
			t.Errorf("got %q", got)
		}
	})
}

// The query is one question for what is configured, with recursion desired: a
// resolver is probed as well.
func TestRunDNSQuery(t *testing.T) {
	for _, tt := range []struct {
		name  string
		query lb.Query
		want  string
	}{
		{"A", lb.Query{Name: "www.example.com.", Type: lb.QueryA}, "www.example.com. 1 1 true"},
		{"the root", lb.Query{Name: ".", Type: lb.QuerySOA}, ". 6 1 true"},
		{"a type of late", lb.Query{Name: "_x.example.com.", Type: lb.QueryHTTPS}, "_x.example.com. 65 1 true"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := make(chan dnsmessage.Message, 1)
			address := serveUDP(t, "127.0.0.1:0", func(packet []byte) [][]byte {
				var m dnsmessage.Message
				if err := m.Unpack(packet); err != nil {
					t.Errorf("the query cannot be read: %v", err)
				}
				got <- m
				return answerer(t, func(*dnsmessage.Message) {})(packet)
			})
			if err := Run(t.Context(), Target{Address: address, Probe: lb.Probe{Type: lb.ProbeDNS, Timeout: long, Query: tt.query}}); err != nil {
				t.Fatal(err)
			}
			m := <-got
			var texts []string
			for _, q := range m.Questions {
				texts = append(texts, fmt.Sprintf("%v %d %d %v", q.Name, q.Type, q.Class, m.RecursionDesired))
			}
			if diff := cmp.Diff([]string{tt.want}, texts); diff != "" {
				t.Errorf("questions (-want +got):\n%s", diff)
			}
		})
	}
}

// A name that no query can hold is an error, not a crash.
func TestRunDNSName(t *testing.T) {
	for _, name := range []string{"", "www.example.com", "a..b.", strings.Repeat("a", 64) + ".", strings.Repeat("a.", 200)} {
		target := Target{Address: addrPort(t, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 53}), Probe: lb.Probe{
			Type: lb.ProbeDNS, Timeout: long, Query: lb.Query{Name: name, Type: lb.QueryA},
		}}
		if got := text(Run(t.Context(), target)); !strings.HasPrefix(got, "ask for ") {
			t.Errorf("%q: got %q", name, got)
		}
	}
}
