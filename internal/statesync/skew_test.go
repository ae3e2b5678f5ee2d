// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"bytes"
	"crypto/tls"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/key"
	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// A laterNode is one end of a connection as the next version of sluice may have it: every
// body and record has something at its end, and there are messages that nobody has heard
// of.
type laterNode struct {
	t        *testing.T
	conn     *tls.Conn
	reader   *messageReader
	sequence uint64
}

const laterKind kind = 200

func (l *laterNode) say(k kind, body []byte) {
	l.t.Helper()
	for _, m := range []struct {
		k    kind
		body []byte
	}{{k, body}, {laterKind, bytes.Repeat([]byte{7}, 1000)}} {
		l.sequence++
		b := append(beginMessage(nil, m.k, l.sequence), m.body...)
		if _, err := l.conn.Write(endMessage(b, 0)); err != nil {
			l.t.Fatal(err)
		}
	}
}

// hear reads until a message of a kind is there.
func (l *laterNode) hear(want kind, meets func([]byte) bool) {
	l.t.Helper()
	_ = l.conn.SetReadDeadline(time.Now().Add(soon))
	for {
		k, body, err := l.reader.read()
		if err != nil {
			l.t.Fatalf("waiting for %v: %v", want, err)
		}
		if k == kindBye {
			l.t.Fatal(byeError(body))
		}
		if k == want && (meets == nil || meets(body)) {
			return
		}
	}
}

func (l *laterNode) greet() {
	h := hello{oldest: newestVersion, newest: newestVersion + 1, run: runID{5}, name: "lb2", tail: []byte("later")}
	l.sequence = 1
	if _, err := l.conn.Write(endMessage(h.append(beginMessage(nil, kindHello, 1)), 0)); err != nil {
		l.t.Fatal(err)
	}
}

func (l *laterNode) tellServices() {
	var all []byte
	for _, s := range twoServices {
		all = appendRecord(all, func(b []byte) []byte {
			return append(append(b, appendServices(nil, []ServiceDigest{s})[1:]...), "later"...)
		})
	}
	l.say(kindServices, append([]byte{0}, all...))
}

func TestALaterVersionConnects(t *testing.T) {
	k := key.New()
	i, err := newIdentity(k)
	if err != nil {
		t.Fatal(err)
	}
	at, place := onLoopback(t)
	one := start(t, Config{Name: "lb1", Keys: []key.Key{k}, Peers: []Peer{{"lb2", at}}}, newPlane(), place)
	raw, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	conn := tls.Client(raw, i.client)
	l := &laterNode{t: t, conn: conn, reader: newMessageReader(conn)}
	l.greet()
	l.hear(kindHello, nil)
	l.tellServices()
	l.say(kindSnapshotBegin, append(appendOwned(nil, []netip.Addr{natFlow.VIP.Addr()}), "later"...))
	var codec flowCodec
	codec.reset()
	flows := codec.append(nil, &natFlow, bytes.Repeat([]byte{1}, 150))
	flows = codec.append(flows, &pinned6, []byte("later"))
	l.say(kindFlows, flows)
	l.say(kindSnapshotEnd, []byte("later"))
	table := tableOf("web", 2, 251)
	l.say(kindTable, append(append([]byte{0}, appendTable(nil, &table)...), "later"...))
	override := appendOverrides(nil, []Override{{"x", Stamp{1, "lb2"}, []byte("drain")}})
	override[0] += 5
	l.say(kindOverrides, append(append([]byte{0}, override...), "later"...))
	l.hear(kindAck, func(body []byte) bool {
		a, err := readAck(body)
		return err == nil && a.sequence == l.sequence
	})
	of := newPlane(natFlow, pinned6)
	if err := one.plane.has("lb2", of); err != nil {
		t.Error(err)
	}
	if s := one.peerStatus("lb2"); !s.In.Synced || s.In.Version != newestVersion || s.In.Unknown == 0 || len(s.Differs) > 0 {
		t.Errorf("got %+v", s)
	}
	one.plane.do(func() {
		if one.plane.theirs["lb2 web"].Epoch != table.Epoch || string(one.plane.overrides["x"].Value) != "drain" {
			t.Errorf("got tables %v, overrides %v", one.plane.theirs, one.plane.overrides)
		}
	})
}

func TestALaterVersionIsConnectedTo(t *testing.T) {
	k := key.New()
	i, err := newIdentity(k)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, place := onLoopback(t)
	at := listener.Addr().(*net.TCPAddr).AddrPort()
	one := start(t, Config{Name: "lb1", Keys: []key.Key{k}, Peers: []Peer{{"lb2", at}}}, newPlane(natFlow), place)
	raw, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	conn := tls.Server(raw, i.server)
	l := &laterNode{t: t, conn: conn, reader: newMessageReader(conn)}
	l.hear(kindHello, nil)
	l.greet()
	l.tellServices()
	l.hear(kindFlows, func(body []byte) bool {
		var codec flowCodec
		got, err := codec.decode(body, []lb.FlowState(nil))
		return err == nil && len(got) == 1 && got[0] == natFlow
	})
	l.hear(kindSnapshotEnd, nil)
	a := ack{sequence: l.reader.last, tail: []byte("later")}
	l.say(kindAck, a.append(nil))
	testenv.Eventually(t, soon, "the state to be there", func() (bool, error) {
		s := one.peerStatus("lb2")
		return is(s.Out.InSync && s.Out.Unknown > 0 && s.Out.Version == newestVersion, "%+v", s)
	})
}

// What no node sends ends the connection of who has the key, and says what is wrong.
func TestBreachesEndAConnection(t *testing.T) {
	k := key.New()
	i, err := newIdentity(k)
	if err != nil {
		t.Fatal(err)
	}
	at, place := onLoopback(t)
	one := start(t, Config{Name: "lb1", Keys: []key.Key{k}, Peers: []Peer{{"lb2", at}}}, newPlane(), place)
	frame := func(k kind, sequence uint64, body []byte) []byte {
		return endMessage(append(beginMessage(nil, k, sequence), body...), 0)
	}
	for _, tc := range []struct {
		name, want string
		why        Reason
		send       []byte
	}{
		{"flows cut short", "flow 1: malformed message: flow: ", ReasonMalformed, frame(kindFlows, 2, encodeFlows(t, natFlow)[:10])},
		{"a table that is none", "table of", ReasonMalformed, frame(kindTable, 2, []byte{0, 3, 'w', 'e', 'b'})},
		{"a mark of parts", "part with mark 2", ReasonMalformed, frame(kindTable, 2, []byte{2})},
		{"services", "service's digest", ReasonMalformed, frame(kindServices, 2, []byte{0, 2, 1, 'x'})},
		{"an override of nobody", "no override", ReasonMalformed, frame(kindOverrides, 2, append([]byte{0}, appendOverrides(nil, []Override{{Key: "x"}})...))},
		{"digests", "2^40 buckets", ReasonMalformed, frame(kindDigests, 2, append(make([]byte, 8), 40))},
		{"a mend", "chosen buckets", ReasonMalformed, frame(kindMendBegin, 2, append(make([]byte, 8), 10))},
		{"a listener's message", "ack is not a dialler's", ReasonMalformed, frame(kindAck, 2, nil)},
		{"a second hello", "hello is not a dialler's, or comes twice", ReasonMalformed, frame(kindHello, 2, nil)},
		{"a message that comes again", "sequence 1, behind 1", ReasonMalformed, frame(kindPing, 1, nil)},
		{"a message that is missing", "sequence 3, behind 1", ReasonMalformed, frame(kindPing, 3, nil)},
		{"a message that is too long", "flows of 262145 bytes, 262144 is the most", ReasonOversized, frame(kindFlows, 2, make([]byte, maxMessage-headerLen+1))},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := one.Status().Refused[tc.why]
			raw, err := net.Dial("tcp", at.String())
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			conn := tls.Client(raw, i.client)
			l := &laterNode{t: t, conn: conn, reader: newMessageReader(conn)}
			l.greet()
			l.hear(kindHello, nil)
			if _, err := conn.Write(tc.send); err != nil {
				t.Fatal(err)
			}
			_ = conn.SetReadDeadline(time.Now().Add(soon))
			said := ""
			for said == "" {
				k, body, err := l.reader.read()
				if err != nil {
					t.Fatalf("it ends without a word: %v", err)
				}
				if k == kindBye {
					said = byeError(body).Error()
				}
			}
			if !strings.Contains(said, tc.want) {
				t.Errorf("it says %q, want one of %q", said, tc.want)
			}
			raw.Close()
			testenv.Eventually(t, soon, "the end to be counted", func() (bool, error) {
				s := one.Status()
				in := s.Peers[0].In
				return is(s.Refused[tc.why] == before+1 && !in.Connected && in.LastReason == tc.why && strings.Contains(in.LastError, tc.want), "%+v", s)
			})
		})
	}
}
