// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/key"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// freePort is an address of loopback whose port nobody has.
func freePort(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func listenOn(t *testing.T, open func(context.Context) (net.Listener, error)) net.Listener {
	t.Helper()
	l, err := open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// say connects and sends something.
func say(t *testing.T, to netip.AddrPort, what string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := io.WriteString(conn, what); err != nil {
		t.Fatal(err)
	}
	return conn
}

// hears accepts a connection and demands what was sent by it, from its first byte.
func hears(t *testing.T, l net.Listener, want string) {
	t.Helper()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		t.Errorf("got %q, error %v, want %q", got, err, want)
	}
}

// ends demands that the other end closes a connection.
func ends(t *testing.T, conn net.Conn) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(soon))
	if _, err := conn.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("the connection is kept: error %v", err)
	}
}

func TestOnePortForTwo(t *testing.T) {
	at := freePort(t)
	p := &Port{Address: at.String()}
	tls, other := listenOn(t, p.Sync), listenOn(t, p.Other)
	say(t, at, "\x16\x03\x01")
	say(t, at, "\x00\x40slhb")
	hears(t, other, "\x00\x40slhb")
	hears(t, tls, "\x16\x03\x01")
	if _, err := p.Sync(t.Context()); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a second listener for sync: error %v", err)
	}
	// With one of them closed the other goes on, and nobody waits for the first.
	tls.Close()
	if _, err := tls.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("error %v", err)
	}
	ends(t, say(t, at, "\x16\x03\x01"))
	say(t, at, "\x00")
	hears(t, other, "\x00")
	tls = listenOn(t, p.Sync)
	say(t, at, "\x16")
	hears(t, tls, "\x16")
	// With both closed the port is free, and who has said nothing is gone.
	idle := say(t, at, "")
	testenv.Eventually(t, soon, "a connection without a word", func() (bool, error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.silent) > 0, nil
	})
	tls.Close()
	other.Close()
	ends(t, idle)
	l, err := net.Listen("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Sync(t.Context()); err == nil {
		t.Error("it listens where somebody else does")
	}
	l.Close()
	tls = listenOn(t, p.Sync)
	say(t, at, "\x16again")
	hears(t, tls, "\x16again")
}

// A listener that fails fails for both, and can be opened again.
func TestAPortThatFails(t *testing.T) {
	p := &Port{Address: freePort(t).String()}
	tls, other := listenOn(t, p.Sync), listenOn(t, p.Other)
	p.open.listener.Close()
	for _, l := range []net.Listener{tls, other} {
		if _, err := l.Accept(); err == nil {
			t.Error("it goes on")
		}
		l.Close()
	}
	tls = listenOn(t, p.Sync)
	say(t, netip.MustParseAddrPort(p.Address), "\x16")
	hears(t, tls, "\x16")
}

// Who connects and says nothing is closed in time, and keeps out nobody whose address
// is known.
func TestSilenceOnAPort(t *testing.T) {
	known := netip.MustParseAddr("127.0.0.2")
	at := netip.AddrPortFrom(netip.IPv4Unspecified(), freePort(t).Port())
	p := &Port{Address: at.String(), Known: func(a netip.Addr) bool { return a == known }}
	tls := listenOn(t, p.Sync)
	listenOn(t, p.Other)
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), at.Port())
	var silent []net.Conn
	for i := range 2*maxSilent + 2*maxSilentOf {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 1, byte(i / 8)}), 0))}
		conn, err := d.Dial("tcp", to.String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		silent = append(silent, conn)
		p.mu.Lock()
		if p.unknown > maxSilent || len(p.silent) > maxSilent {
			t.Errorf("%d connections are waited for", p.unknown)
		}
		p.mu.Unlock()
	}
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(known, 0))}
	conn, err := d.Dial("tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "\x16peer"); err != nil {
		t.Fatal(err)
	}
	hears(t, tls, "\x16peer")
	for _, c := range silent {
		ends(t, c)
	}
	testenv.Eventually(t, soon, "all places to be free", func() (bool, error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		return is(p.unknown == 0 && len(p.silent) == 0, "%d, %v", p.unknown, p.silent)
	})
}

// Nodes that share their port with something else connect as all do.
func TestNodesOnASharedPort(t *testing.T) {
	atA, atB, k := freePort(t), freePort(t), []key.Key{key.New()}
	portA, portB := &Port{Address: atA.String()}, &Port{Address: atB.String()}
	other := listenOn(t, portA.Other)
	a, b := newPlane(manyFlows(1000)...), newPlane(pinned6)
	one := start(t, Config{Name: "lb1", Keys: k, Peers: []Peer{{"lb2", atB}}, Open: portA.Sync}, a, nil)
	two := start(t, Config{Name: "lb2", Keys: k, Peers: []Peer{{"lb1", atA}}, Open: portB.Sync}, b, nil)
	waitSynced(t, one, two)
	mustHave(t, b, "lb1", a)
	say(t, atA, "\x00\x40slhb")
	hears(t, other, "\x00\x40slhb")
	one.stop()
	two.stop()
}
