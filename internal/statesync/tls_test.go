// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"io"
	"math/big"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/key"
	"github.com/sluice-lb/sluice/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// onLoopback gives a Node a port of the kernel's choosing on loopback, and returns
// where it listens.
func onLoopback(t testing.TB) (netip.AddrPort, func(*Node)) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().(*net.TCPAddr).AddrPort()
	return at, func(n *Node) {
		n.open = func(ctx context.Context) (net.Listener, error) {
			if l != nil {
				first := l
				l = nil
				return first, nil
			}
			return (&net.ListenConfig{}).Listen(ctx, "tcp", at.String())
		}
	}
}

// aPair starts two members over TCP on loopback.
func aPair(t testing.TB, keysA, keysB []key.Key, a, b *plane) (one, two *member) {
	t.Helper()
	atA, placeA := onLoopback(t)
	atB, placeB := onLoopback(t)
	one = start(t, Config{Name: "lb1", Keys: keysA, Peers: []Peer{{"lb2", atB}}}, a, placeA)
	two = start(t, Config{Name: "lb2", Keys: keysB, Peers: []Peer{{"lb1", atA}}}, b, placeB)
	return one, two
}

// waitSynced waits until each of two members has the other's state.
func waitSynced(t testing.TB, one, two *member) {
	t.Helper()
	for _, k := range []struct {
		m    *member
		peer string
	}{{one, "lb2"}, {two, "lb1"}} {
		testenv.Eventually(t, soon, "all of the state of "+k.peer, func() (bool, error) {
			s := k.m.peerStatus(k.peer)
			return is(k.m.Synced(k.peer) && s.Out.InSync && s.Problem == "", "%+v\n%v", s, k.m.log)
		})
	}
}

// Nodes that have one key in common connect, whoever dials, and whichever is each
// one's first.
func TestNodesWithOneKeyInCommonConnect(t *testing.T) {
	older, newer := key.New(), key.New()
	sets := map[string][]key.Key{"new, old": {newer, older}, "old, new": {older, newer}, "old": {older}, "new": {newer}}
	for nameA, a := range sets {
		for nameB, b := range sets {
			shared := len(a)+len(b) > 2 || a[0] == b[0]
			t.Run("["+nameA+"] and ["+nameB+"]", func(t *testing.T) {
				one, two := aPair(t, a, b, newPlane(natFlow), newPlane(pinned6))
				if !shared {
					for _, k := range []struct {
						m    *member
						peer string
					}{{one, "lb2"}, {two, "lb1"}} {
						testenv.Eventually(t, soon, "a refusal for the key", func() (bool, error) {
							s := k.m.Status()
							p := k.m.peerStatus(k.peer)
							return is(p.Out.LastReason == ReasonWrongKey && s.Refused[ReasonWrongKey] > 0 && p.Problem != "", "%+v", s)
						})
						if p := k.m.peerStatus(k.peer); p.Out.Connected || p.In.Connected || !strings.Contains(p.Problem, "give all nodes the same sync key_file") {
							t.Errorf("got %+v", p)
						}
					}
					return
				}
				waitSynced(t, one, two)
				if err := two.plane.has("lb1", one.plane); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// A key that is taken back ends the connections that have it, and another one that
// both have goes on.
func TestKeysChangeWhileNodesRun(t *testing.T) {
	older, newer := key.New(), key.New()
	one, two := aPair(t, []key.Key{older}, []key.Key{older}, newPlane(natFlow), newPlane())
	waitSynced(t, one, two)
	for _, step := range []struct {
		m    *member
		keys []key.Key
	}{{one, []key.Key{newer, older}}, {two, []key.Key{newer, older}}, {one, []key.Key{newer}}, {two, []key.Key{newer}}} {
		if err := step.m.Reconfigure(twoServices, step.keys); err != nil {
			t.Fatal(err)
		}
		waitSynced(t, one, two)
	}
	for _, m := range []*member{one, two} {
		testenv.Eventually(t, soon, "connections with the new key alone", func() (bool, error) {
			m.mu.Lock()
			defer m.mu.Unlock()
			p := m.peers[0]
			return p.sending != nil && p.sending.identity.key == newer && p.receiving != nil && p.receiving.identity.key == newer, nil
		})
	}
	waitSynced(t, one, two)
	if err := one.Reconfigure(twoServices, nil); err == nil {
		t.Error("no key at all is accepted")
	}
}

// foreignCertificate is one of somebody who knows the name of the key, but not it.
func foreignCertificate(t *testing.T) tls.Certificate {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}
}

// record is what a peer sends when it connects: all bytes of the beginning of a
// session, as somebody on the way sees them.
func record(t *testing.T, k key.Key, at netip.AddrPort) []byte {
	t.Helper()
	i, err := newIdentity(k)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	tap := &tappedConn{Conn: raw}
	conn := tls.Client(tap, i.client)
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(greeting("lb2", 1, 1)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := newMessageReader(conn).read(); err != nil {
		t.Fatal(err)
	}
	return tap.sent
}

type tappedConn struct {
	net.Conn
	sent []byte
}

func (c *tappedConn) Write(b []byte) (int, error) {
	c.sent = append(c.sent, b...)
	return c.Conn.Write(b)
}

// greeting is a hello.
func greeting(name string, oldest, newest uint8) []byte {
	h := hello{oldest: oldest, newest: newest, run: runID{9}, name: name}
	return endMessage(h.append(beginMessage(nil, kindHello, 1)), 0)
}

// Whoever is no peer is refused, counted, and named; and a peer gets through all the
// same.
func TestStrangersAreRefused(t *testing.T) {
	k := key.New()
	// The peer lb2 has another address, so that those of the test are strangers'.
	atOne, placeOne := onLoopback(t)
	atTwo, placeTwo := onLoopback(t)
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), atTwo.Port())
	one := start(t, Config{Name: "lb1", Keys: []key.Key{k}, Peers: []Peer{{"lb2", at}}}, newPlane(), func(n *Node) {
		placeOne(n)
		n.tuning.shake, n.tuning.pause = 2*time.Second, 0
	})
	replayed := record(t, k, atOne)
	own, err := newIdentity(k)
	if err != nil {
		t.Fatal(err)
	}
	other, err := newIdentity(key.New())
	if err != nil {
		t.Fatal(err)
	}
	over := func(config *tls.Config, send []byte) func(net.Conn) error {
		return func(raw net.Conn) error {
			conn := tls.Client(raw, config)
			if err := conn.Handshake(); err != nil {
				return nil
			}
			_, err := conn.Write(send)
			return err
		}
	}
	plain := func(b []byte) func(net.Conn) error {
		return func(raw net.Conn) error { _, err := raw.Write(b); return err }
	}
	forged := own.client.Clone()
	forged.Certificates, forged.VerifyConnection = []tls.Certificate{foreignCertificate(t)}, nil
	bare := own.client.Clone()
	bare.Certificates, bare.VerifyConnection = nil, nil
	ancient := own.client.Clone()
	ancient.MinVersion, ancient.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	for _, tc := range []struct {
		name string
		do   func(net.Conn) error
		want Reason
	}{
		{"text", plain([]byte("GET / HTTP/1.0\r\n\r\n")), ReasonNoTLS},
		{"garbage", plain(bytes.Repeat([]byte{0xa5}, 4096)), ReasonNoTLS},
		{"a record that is too long", plain([]byte{22, 3, 1, 0xff, 0xff, 1}), ReasonOversized},
		{"half a handshake, then nothing", plain(replayed[:100]), ReasonUnfinished},
		{"nothing at all", plain(nil), ReasonUnfinished},
		{"what a peer has sent before", plain(replayed), ReasonHandshake},
		{"TLS that asks for something else", over(&tls.Config{ServerName: "example.com", InsecureSkipVerify: true}, nil), ReasonForeign},
		{"another key", over(other.client, nil), ReasonWrongKey},
		{"the name of the key, and another one", over(forged, nil), ReasonWrongKey},
		{"the name of the key, and none", over(bare, nil), ReasonHandshake},
		{"TLS 1.2", over(ancient, nil), ReasonHandshake},
		{"another message first", over(own.client, endMessage(beginMessage(nil, kindPing, 1), 0)), ReasonMalformed},
		{"a name that is no peer's", over(own.client, greeting("lb9", 1, 1)), ReasonUnknown},
		{"this node's own name", over(own.client, greeting("lb1", 1, 1)), ReasonItself},
		{"versions that are all later", over(own.client, greeting("lb2", 2, 3)), ReasonVersions},
		{"a message that is too long", over(own.client, binary.BigEndian.AppendUint32(nil, 1<<30)), ReasonUnfinished},
		{"a message that is too long, with its header", over(own.client, append(binary.BigEndian.AppendUint32(nil, 1<<30), make([]byte, headerLen)...)), ReasonOversized},
	} {
		t.Run(tc.name, func(t *testing.T) {
			testenv.Eventually(t, soon, "the one before to be gone", func() (bool, error) {
				one.mu.Lock()
				defer one.mu.Unlock()
				return is(len(one.accepting) == 0, "%v", one.accepting)
			})
			before := one.Status().Refused[tc.want]
			conn, err := net.Dial("tcp", atOne.String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := tc.do(conn); err != nil {
				t.Fatal(err)
			}
			_ = conn.SetReadDeadline(time.Now().Add(soon))
			if _, err := io.Copy(io.Discard, conn); isTimeout(err) {
				t.Error("the connection is kept")
			}
			testenv.Eventually(t, soon, "it to be counted", func() (bool, error) {
				s := one.Status()
				return is(s.Refused[tc.want] == before+1, "%v", s.Refused)
			})
			s := one.Status().Strangers
			if len(s) != 1 || s[0].Address != netip.MustParseAddr("127.0.0.1") || s[0].Why != tc.want || s[0].Error == "" {
				t.Errorf("strangers are %+v", s)
			}
		})
	}
	if n := strings.Count(one.log.String(), "a connection was refused"); n > 10 {
		t.Errorf("%d lines were logged, more than one for each reason", n)
	}
	// Their places taken, a peer gets through.
	for range 2 * acceptStrangers {
		conn, err := net.Dial("tcp", atOne.String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	testenv.Eventually(t, soon, "too many strangers", func() (bool, error) {
		s := one.Status()
		return is(s.Refused[ReasonTooMany] > 0, "%v", s.Refused)
	})
	one.mu.Lock()
	if n := len(one.accepting); n > 1 || one.accepting[netip.MustParseAddr("127.0.0.1")] > acceptStranger {
		t.Errorf("places are taken by %v", one.accepting)
	}
	one.mu.Unlock()
	start(t, Config{Name: "lb2", Keys: []key.Key{k}, Peers: []Peer{{"lb1", atOne}}, Listen: at}, newPlane(), func(n *Node) {
		_ = placeTwo // its listener is at the other address
		n.open = n.listenTCP
	})
	testenv.Eventually(t, soon, "the peer", func() (bool, error) {
		s := one.peerStatus("lb2")
		return is(s.In.Synced && s.Out.InSync && s.In.From == at.Addr(), "%+v", s)
	})
}

// However many strangers there are, they take no more memory than a few.
func TestStrangersTakeNoMemory(t *testing.T) {
	at, place := onLoopback(t)
	one := start(t, Config{Name: "lb1", Keys: []key.Key{key.New()}}, newPlane(), place)
	other, err := newIdentity(key.New())
	if err != nil {
		t.Fatal(err)
	}
	knock := func(times int) {
		for i := range times {
			conn, err := net.Dial("tcp", at.String())
			if err != nil {
				t.Fatal(err)
			}
			if i%2 == 0 {
				_ = tls.Client(conn, other.client).Handshake()
			} else {
				_, _ = conn.Write(bytes.Repeat([]byte{'x'}, 1000))
				_, _ = io.Copy(io.Discard, conn)
			}
			conn.Close()
		}
	}
	used := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	knock(50)
	before := used()
	knock(500)
	testenv.Eventually(t, soon, "all to be counted", func() (bool, error) {
		s := one.Status()
		n := uint64(0)
		for _, k := range s.Refused {
			n += k
		}
		return is(n == 550, "%v", s.Refused)
	})
	if after := used(); after > before+1<<20 {
		t.Errorf("the heap has grown from %d to %d bytes", before, after)
	}
	var s strangers
	for i := range 100 {
		s.add(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), ReasonNoTLS, errForeign, time.Unix(int64(i), 0))
	}
	if len(s.all) != maxStrangers || s.counts[ReasonNoTLS] != 100 {
		t.Errorf("%d strangers are remembered, %d counted", len(s.all), s.counts[ReasonNoTLS])
	}
}
