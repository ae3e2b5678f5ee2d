package dns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/lb"
)

// patience bounds waits for what takes no time on a machine at rest.
const patience = 15 * time.Second

// listening is a responder with a configuration that listens on free ports of an address.
func listening(t *testing.T, s *states, c lb.DNS, on ...string) (*Responder, lb.DNS) {
	t.Helper()
	for range 20 {
		r := newResponder(t, s)
		c.Listen = nil
		for _, a := range on {
			probe, err := net.ListenPacket("udp", net.JoinHostPort(a, "0"))
			if err != nil {
				t.Fatal(err)
			}
			c.Listen = append(c.Listen, netip.AddrPortFrom(netip.MustParseAddr(a), addressOf(probe.LocalAddr()).Port()))
			probe.Close()
		}
		if err := r.Apply(c); err == nil {
			return r, c
		} else if !strings.Contains(err.Error(), "another program listens there") {
			t.Fatal(err)
		}
	}
	t.Fatal("no port is free")
	return nil, c
}

// dial connects to a listener.
func dial(t *testing.T, network string, to netip.AddrPort) net.Conn {
	t.Helper()
	c, err := net.Dial(network, to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c
}

// exchange asks over a connection.
func exchange(c net.Conn, name string, of uint16) (*dns.Msg, error) {
	m := &dns.Msg{}
	m.SetQuestion(name, of)
	conn := &dns.Conn{Conn: c}
	if err := conn.WriteMsg(m); err != nil {
		return nil, err
	}
	reply, err := conn.ReadMsg()
	if err == nil && reply.Id != m.Id {
		err = fmt.Errorf("answer %d to %d", reply.Id, m.Id)
	}
	return reply, err
}

func TestTransports(t *testing.T) {
	r, c := listening(t, &states{}, example(), "127.0.0.1", "0.0.0.0", "::1")
	want := []string{"192.0.2.11", "192.0.2.12"}
	for _, tt := range []struct{ name, network, to string }{
		{"UDP", "udp", c.Listen[0].String()},
		{"TCP", "tcp", c.Listen[0].String()},
		// The answer comes from the address that was asked: the socket is connected to it.
		{"UDP, all addresses", "udp", fmt.Sprintf("127.0.0.9:%d", c.Listen[1].Port())},
		{"TCP, all addresses", "tcp", fmt.Sprintf("127.0.0.9:%d", c.Listen[1].Port())},
		{"UDP, IPv6", "udp", c.Listen[2].String()},
		{"TCP, IPv6", "tcp", c.Listen[2].String()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, err := exchange(dial(t, tt.network, netip.MustParseAddrPort(tt.to)), "www.example.com.", dns.TypeA)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, given(m)); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
		})
	}
	for _, l := range r.Status().Listeners {
		if l.UDP != 1 || l.TCP != 1 || l.Accepted != 1 {
			t.Errorf("listener %+v", l)
		}
	}
}

// A listener has an address before the host has.
func TestListenBeforeTheAddressIsThere(t *testing.T) {
	r := newResponder(t, &states{})
	c := example()
	c.Listen = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.100:5353"), netip.MustParseAddrPort("[2001:db8::100]:5353")}
	apply(t, r, c)
}

// An address of its own and all addresses may have one port, whichever is bound first.
func TestOneAddressBesideAll(t *testing.T) {
	try := func() error {
		r, c := listening(t, &states{}, example(), "127.0.0.1")
		r.Close()
		one := c.Listen[0]
		all := netip.AddrPortFrom(netip.IPv4Unspecified(), one.Port())
		for _, order := range [][]netip.AddrPort{{one, all}, {all, one}} {
			r := newResponder(t, &states{})
			c.Listen = order
			if err := r.Apply(c); err != nil {
				return err
			}
			r.Close()
		}
		return nil
	}
	var err error
	for range 5 { // somebody else may have the port on another address
		if err = try(); err == nil {
			return
		}
	}
	t.Error(err)
}

// Queries that come one after the other without waiting are answered in their order, also
// when a piece of one comes late.
func TestPipelining(t *testing.T) {
	_, c := listening(t, &states{}, example(), "127.0.0.1")
	conn := dial(t, "tcp", c.Listen[0])
	const n = 200
	var all []byte
	for i := range n {
		q := query(t, "www.example.com.", dns.TypeA, func(m *dns.Msg) { m.Id = uint16(i) })
		all = append(binary.BigEndian.AppendUint16(all, uint16(len(q))), q...)
	}
	if _, err := conn.Write(all[:len(all)-5]); err != nil {
		t.Fatal(err)
	}
	d := &dns.Conn{Conn: conn}
	for i := range n {
		if i == n-1 {
			if _, err := conn.Write(all[len(all)-5:]); err != nil {
				t.Fatal(err)
			}
		}
		m, err := d.ReadMsg()
		if err != nil || m.Id != uint16(i) || len(m.Answer) != 2 {
			t.Fatalf("answer %d: %v, %v", i, m, err)
		}
	}
}

// wantClosed waits until the other side has closed a connection.
func wantClosed(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, c); err != nil {
		var late net.Error
		if errors.As(err, &late) && late.Timeout() {
			t.Fatal("it stays open")
		}
	}
}

func TestConnectionsEnd(t *testing.T) {
	t.Run("idle", func(t *testing.T) {
		c := example()
		c.TCP.IdleTimeout = 100 * time.Millisecond
		_, c = listening(t, &states{}, c, "127.0.0.1")
		wantClosed(t, dial(t, "tcp", c.Listen[0]))
		half := dial(t, "tcp", c.Listen[0])
		if _, err := half.Write([]byte{0}); err != nil {
			t.Fatal(err)
		}
		wantClosed(t, half)
	})
	t.Run("with what is no query", func(t *testing.T) {
		r, c := listening(t, &states{}, example(), "127.0.0.1")
		for _, text := range [][]byte{{0, 3, 1, 2, 3}, {0xff, 0xff, 0}, append([]byte{0, 12, 0, 0, 0x80}, make([]byte, 9)...)} {
			conn := dial(t, "tcp", c.Listen[0])
			if _, err := conn.Write(text); err != nil {
				t.Fatal(err)
			}
			wantClosed(t, conn)
		}
		if d := r.Status().Dropped; d["malformed"] != 2 || d["response"] != 1 {
			t.Errorf("dropped %v", d)
		}
	})
	t.Run("too many", func(t *testing.T) {
		c := example()
		c.TCP.MaxConnections = 3
		r, c := listening(t, &states{}, c, "127.0.0.1")
		var all []net.Conn
		for i := range 4 {
			conn := dial(t, "tcp", c.Listen[0])
			if _, err := exchange(conn, "www.example.com.", dns.TypeA); err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
			all = append(all, conn)
			if i == 2 { // the first is not the one that is idle for longest any more
				if _, err := exchange(all[0], "www.example.com.", dns.TypeA); err != nil {
					t.Fatal(err)
				}
			}
		}
		wantClosed(t, all[1])
		for _, i := range []int{0, 2, 3} {
			if _, err := exchange(all[i], "www.example.com.", dns.TypeA); err != nil {
				t.Errorf("connection %d: %v", i, err)
			}
		}
		if s := r.Status(); s.Connections != 3 || s.Evicted != 1 {
			t.Errorf("%d connections, %d evicted", s.Connections, s.Evicted)
		}
	})
	t.Run("one that comes while the listener goes", func(t *testing.T) {
		r := newResponder(t, &states{})
		apply(t, r, example())
		ours, theirs := net.Pipe()
		defer theirs.Close()
		l := &listener{responder: r}
		now := time.Now()
		l.closing.Store(&now)
		ended := make(chan struct{})
		go func() { l.answerStream(&conn{Conn: ours, listener: l}); close(ended) }()
		select {
		case <-ended:
		case <-time.After(patience): // the idle timeout is longer
			t.Error("it is waited for")
			ours.Close()
			<-ended
		}
	})
	t.Run("the listener goes", func(t *testing.T) {
		r, c := listening(t, &states{}, example(), "127.0.0.1", "127.0.0.1")
		conn, other := dial(t, "tcp", c.Listen[0]), dial(t, "tcp", c.Listen[1])
		for _, each := range []net.Conn{conn, other} {
			if _, err := exchange(each, "www.example.com.", dns.TypeA); err != nil {
				t.Fatal(err)
			}
		}
		gone := c.Listen[0]
		c.Listen = c.Listen[1:]
		apply(t, r, c)
		wantClosed(t, conn)
		if _, err := exchange(other, "www.example.com.", dns.TypeA); err != nil {
			t.Errorf("that of the other listener: %v", err)
		}
		if d, err := net.Dial("tcp", gone.String()); err == nil {
			d.Close()
			t.Error("somebody listens still")
		}
		r.Close()
		wantClosed(t, other)
		if err := r.Apply(c); !errors.Is(err, errClosed) {
			t.Errorf("apply after close: %v", err)
		}
	})
}

// A client that does not read its answer does not hold up who closes its listener for as
// long as a connection may be idle.
func TestListenerGoesWithoutItsSlowReaders(t *testing.T) {
	r, c := listening(t, &states{}, example(), "127.0.0.1")
	l := r.now.Load().listeners[c.Listen[0]]
	ours, theirs := net.Pipe() // has no buffer: what is not read is not sent
	defer theirs.Close()
	n := &conn{Conn: ours, listener: l}
	r.conns.add(n, 10)
	l.goroutines.Go(func() { l.answerStream(n) })
	q := query(t, "www.example.com.", dns.TypeA)
	if _, err := theirs.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...)); err != nil {
		t.Fatal(err)
	}
	if _, err := theirs.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	c.Listen = nil
	closed := make(chan error, 1)
	go func() { closed <- r.Apply(c) }()
	select {
	case err := <-closed:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(patience): // the idle timeout is longer
		t.Error("it is waited for")
		ours.Close()
		<-closed
	}
}

// Two programs that share a port have each a part of the queries: so nobody shares one
// with a listener, whoever is first, and not those that were opened beside others either.
func TestPortIsSharedWithNobody(t *testing.T) {
	sharing := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		controlErr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
		return errors.Join(err, controlErr)
	}}
	t.Run("another program is first", func(t *testing.T) {
		u, err := sharing.ListenPacket(t.Context(), "udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		c := example()
		c.Listen = []netip.AddrPort{addressOf(u.LocalAddr())}
		err = newResponder(t, &states{}).Apply(c)
		if err == nil || !strings.Contains(err.Error(), "another program listens there: `ss -lunp sport = :") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("another program is second", func(t *testing.T) {
		r, c := listening(t, &states{}, example(), "127.0.0.1")
		one := c.Listen[0]
		all := netip.AddrPortFrom(netip.IPv4Unspecified(), one.Port())
		for _, listen := range [][]netip.AddrPort{{one}, {one, all}, {all}, {one}} {
			c.Listen = listen
			if err := r.Apply(c); err != nil {
				if strings.Contains(err.Error(), "another program listens there") {
					t.Skip(err) // on another address
				}
				t.Fatal(err)
			}
			if u, err := sharing.ListenPacket(t.Context(), "udp4", one.String()); !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("with listeners on %v another program's UDP socket: %v", listen, err)
				if err == nil {
					u.Close()
				}
			}
			if m, err := exchange(dial(t, "udp", one), "www.example.com.", dns.TypeA); err != nil || len(m.Answer) != 2 {
				t.Errorf("with listeners on %v: %v, %v", listen, m, err)
			}
			if m, err := exchange(dial(t, "tcp", one), "www.example.com.", dns.TypeA); err != nil || len(m.Answer) != 2 {
				t.Errorf("with listeners on %v, over TCP: %v, %v", listen, m, err)
			}
		}
	})
}

// An address that cannot be had leaves everything as it is.
func TestBadReload(t *testing.T) {
	r, c := listening(t, &states{}, example(), "127.0.0.1")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	bad := c
	bad.Records = bad.Records[1:]
	bad.Listen = []netip.AddrPort{c.Listen[0], addressOf(taken.Addr())}
	err = r.Apply(bad)
	if err == nil || !strings.Contains(err.Error(), "another program listens there: `ss -ltnp sport = :") {
		t.Errorf("error %v", err)
	}
	m, err := exchange(dial(t, "udp", c.Listen[0]), "www.example.com.", dns.TypeA)
	if err != nil || len(m.Answer) != 2 {
		t.Errorf("afterwards: %v, %v", m, err)
	}
	// Nobody has kept the UDP socket of the address that could not be had.
	free, err := net.ListenPacket("udp", taken.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
}

// Many clients at once, over both transports, while the configuration changes and servers
// come and go: each query gets its answer, of one configuration or the other, and never a
// server that is down.
func TestNoQueryIsLost(t *testing.T) {
	s := &states{}
	s.set("192.0.2.12", StateDown)
	r, c := listening(t, s, example(), "127.0.0.1")
	const clients, each = 16, 200
	var answered atomic.Int64
	var asking sync.WaitGroup
	for i := range clients {
		network := "udp"
		if i%4 == 0 {
			network = "tcp"
		}
		conn := dial(t, network, c.Listen[0])
		asking.Go(func() {
			for range each {
				m, err := exchange(conn, "www.example.com.", dns.TypeA)
				if err != nil {
					t.Errorf("%s: %v", network, err)
					return
				}
				if got := given(m); len(got) != 1 || got[0] != "192.0.2.11" {
					t.Errorf("answer %v", got)
				}
				answered.Add(1)
			}
		})
	}
	done := make(chan struct{})
	go func() { asking.Wait(); close(done) }()
	reloads := 0
	for changing := true; changing; reloads++ {
		next := c
		next.Records = slices.Clone(c.Records)
		next.Records[0].TTL = time.Duration(1+reloads%9) * time.Second
		apply(t, r, next)
		r.Refresh()
		select {
		case <-done:
			changing = false
		default:
		}
	}
	if got := answered.Load(); got != clients*each {
		t.Errorf("%d answers, want %d", got, clients*each)
	}
	if l := r.Status().Listeners[0]; l.UDP+l.TCP != clients*each {
		t.Errorf("listener %+v after %d reloads: it has begun anew", l, reloads)
	}
}
