package loader

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// A connection's life as a script, a step a line:
//
//	> FLAGS [data] [=> OUTCOME]  a packet of the client; "sent" is expected
//	< FLAGS [data] [=> OUTCOME]  one of the backend
//	> wrong ACK                  with an acknowledgement of something else
//	state NAME                   of the flow
//	port new|same                as the last packet left, against the first
//	wait DURATION                nothing comes for so long
//	fail                         the backend fails and comes back
var lives = []struct{ name, script string }{
	{"from the handshake to the end", `
		> SYN
		state SYN_SENT
		< SYN|ACK
		state SYN_RECEIVED
		> ACK
		state ESTABLISHED
		> ACK data
		< ACK data
		> FIN|ACK
		state CLOSING
		< ACK data
		state CLOSING
		< FIN|ACK
		state CLOSED
		> ACK
		port same`},
	{"the backend closes first", `
		> SYN, < SYN|ACK, > ACK, > ACK data
		< FIN|ACK data
		state CLOSING
		> ACK data
		> FIN|ACK
		state CLOSED
		< ACK`},
	{"retransmitted FINs", `
		> SYN, < SYN|ACK, > ACK
		> FIN|ACK, > FIN|ACK
		state CLOSING
		< FIN|ACK, < FIN|ACK, > ACK
		state CLOSED`},
	{"stragglers are served after the end", `
		> SYN, < SYN|ACK, > ACK, > FIN|ACK, < FIN|ACK
		< ACK data, > ACK data
		state CLOSED
		wait 50s
		< FIN|ACK, > ACK
		wait 50s
		> ACK
		wait 61s
		> ACK => no_flow
		< FIN|ACK => no_service`},
	{"a SYN retransmitted keeps its port", `
		> SYN, wait 1s, > SYN, wait 2s, > SYN, wait 4s, > SYN
		port same
		< SYN|ACK, < SYN|ACK, > ACK
		state ESTABLISHED`},
	{"a SYN after the handshake has expired gets another port", `
		> SYN
		wait 6s
		< SYN|ACK => no_service
		> SYN
		port new`},
	{"a SYN on a closed connection gets another port", `
		> SYN, < SYN|ACK, > ACK, > FIN|ACK, < FIN|ACK, > ACK
		> SYN
		port new
		state SYN_SENT
		< SYN|ACK, > ACK
		state ESTABLISHED`},
	{"a SYN on a refused connection gets another port", `
		> SYN
		< RST|ACK
		state CLOSED
		> SYN
		port new`},
	{"a blind RST breaks nothing", `
		> SYN, < SYN|ACK, > ACK
		> RST
		state CLOSED
		> ACK data
		state ESTABLISHED
		> RST
		< ACK data
		state ESTABLISHED
		port same`},
	{"a blind RST and a blind SYN break nothing", `
		> SYN, < SYN|ACK, > ACK, > ACK data
		> RST, > SYN
		port same
		< ACK
		> ACK data
		state ESTABLISHED
		port same`},
	{"a blind SYN breaks nothing", `
		> SYN, < SYN|ACK, > ACK, > SYN, < ACK
		state ESTABLISHED
		port same`},
	{"a blind FIN breaks nothing", `
		> SYN, < SYN|ACK, > ACK
		> FIN|ACK
		state CLOSING
		> ACK data
		state ESTABLISHED
		wait 10m
		< ACK data, > ACK data`},
	{"a blind FIN while the backend sends", `
		> SYN, < SYN|ACK, > ACK, > FIN
		< ACK data
		state CLOSING
		wait 3m
		< ACK data
		wait 3m
		> ACK data
		state ESTABLISHED`},
	{"an RST in the handshake breaks nothing", `
		> SYN, < SYN|ACK
		> RST
		state CLOSED
		> ACK
		state ESTABLISHED
		port same`},
	{"a client that reuses its port after an RST", `
		> SYN, < SYN|ACK, > ACK, > ACK data
		> RST
		> SYN, < SYN|ACK, > ACK
		state ESTABLISHED
		wait 10m
		> ACK data`},
	{"data does not restore what both have closed", `
		> SYN, < SYN|ACK, > ACK, > FIN|ACK, < FIN|ACK
		> ACK data, < ACK data, > ACK
		state CLOSED`},
	{"half of it closed when an RST comes and data follows", `
		> SYN, < SYN|ACK, > ACK, > FIN|ACK
		> RST
		state CLOSED
		< ACK data
		state CLOSING
		< FIN|ACK
		state CLOSED`},
	{"nothing but the backend's number opens it", `
		> SYN
		> ACK, > ACK data, > wrong ACK, > RST|ACK
		> ACK data
		state CLOSED
		> SYN
		port new
		< SYN|ACK
		> wrong ACK
		> wrong ACK data
		state SYN_RECEIVED
		> ACK data
		state ESTABLISHED`},
	{"acknowledgement, data and FIN in one", `
		> SYN, < SYN|ACK
		> FIN|ACK data
		state CLOSING
		wait 1m
		< ACK data, < FIN|ACK
		state CLOSED`},
	{"the backend speaks first", `
		> SYN, < SYN|ACK
		< ACK data
		state SYN_RECEIVED
		> ACK
		state ESTABLISHED`},
	{"idle times", `
		> SYN
		wait 4s
		< SYN|ACK
		wait 4s
		> ACK
		wait 120m
		> ACK
		wait 120m
		< ACK data
		wait 125m
		> ACK => no_flow
		< ACK => no_service`},
	{"idle while half closed", `
		> SYN, < SYN|ACK, > ACK, > FIN|ACK
		wait 3m
		> ACK
		wait 5m
		> ACK => no_flow`},
	{"idle in the handshake", `
		> SYN, < SYN|ACK
		wait 6s
		> ACK => no_flow`},
	{"a failed backend's connection gets an answer", `
		> SYN, < SYN|ACK, > ACK
		fail
		> ACK data => no_flow
		< ACK data => no_service
		> SYN
		port new`},
	{"a failed backend's replies find no way", `
		> SYN, < SYN|ACK, > ACK
		fail
		< ACK data => no_service
		> FIN|ACK => no_flow`},
	{"a closed connection of a failed backend", `
		> SYN, < SYN|ACK, > ACK, > FIN|ACK, < FIN|ACK
		fail
		> ACK => no_flow
		> SYN
		port new`},
}

func TestNATLives(t *testing.T) {
	d := newDatapath(t, service("web", lb.NAT, 80, backends(1, 80)))
	view := viewPair(t, d, 1)
	for i, life := range lives {
		t.Run(life.name, func(t *testing.T) {
			c := newConn(d, netip.AddrPortFrom(clientIP, uint16(20000+i)))
			runLife(t, c, view, life.script)
		})
	}
}

func runLife(t *testing.T, c *conn, view pairView, script string) {
	t.Helper()
	first := uint16(0)
	for _, step := range strings.FieldsFunc(script, func(r rune) bool { return r == '\n' || r == ',' }) {
		step = strings.TrimSpace(step)
		words := strings.Fields(step)
		if len(words) == 0 {
			continue
		}
		switch words[0] {
		case ">", "<":
			playPacket(t, c, step, words)
			if first == 0 {
				first = c.source.Port()
			}
		case "state":
			if got, want := lbNatState(view.flow(c.source.Port()).State), states[words[1]]; got != want {
				t.Fatalf("%s: it is %d", step, got)
			}
		case "port":
			if (c.source.Port() == first) != (words[1] == "same") {
				t.Fatalf("%s: the first was %d, this one is %d", step, first, c.source.Port())
			}
			first = c.source.Port()
		case "wait":
			d, err := time.ParseDuration(words[1])
			if err != nil {
				t.Fatal(err)
			}
			view.age(c.source.Port(), d)
		case "fail":
			bs := backends(1, 80)
			bs[0].Failed = true
			apply(t, c.d, service("web", lb.NAT, 80, bs))
			apply(t, c.d, service("web", lb.NAT, 80, backends(1, 80)))
		default:
			t.Fatalf("unknown step %q", step)
		}
	}
}

var states = map[string]lbNatState{
	"SYN_SENT": lbNatStateNAT_SYN_SENT, "SYN_RECEIVED": lbNatStateNAT_SYN_RECEIVED,
	"ESTABLISHED": lbNatStateNAT_ESTABLISHED, "CLOSING": lbNatStateNAT_CLOSING, "CLOSED": lbNatStateNAT_CLOSED,
}

var flagNames = map[string]testenv.TCPFlags{
	"FIN": testenv.FIN, "SYN": testenv.SYN, "RST": testenv.RST, "ACK": testenv.ACK,
}

// playPacket runs a step of a script that is a packet.
func playPacket(t *testing.T, c *conn, step string, words []string) {
	t.Helper()
	text, want, ok := strings.Cut(step, "=>")
	want = strings.TrimSpace(want)
	if !ok {
		want = "sent"
	}
	var flags testenv.TCPFlags
	var data string
	c.changes = nil
	for _, w := range strings.Fields(text)[1:] {
		switch w {
		case "data":
			data = "data"
		case "wrong":
			c.changes = []change{func(f *testenv.Frame) { f.Ack++ }}
		default:
			for name := range strings.SplitSeq(w, "|") {
				if flagNames[name] == 0 {
					t.Fatalf("unknown flag in %q", step)
				}
				flags |= flagNames[name]
			}
		}
	}
	var got result
	if words[0] == ">" {
		got = c.forward(t, flags, data)
	} else {
		got = c.reply(t, flags, data)
	}
	if got.Outcome != want {
		t.Fatalf("%s: %s, want %s", step, got.Outcome, want)
	}
}
