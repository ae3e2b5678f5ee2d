// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/key"
)

// A network connects members without the kernel, so that time may be virtual.
type network struct {
	mu        sync.Mutex
	listeners map[netip.AddrPort]*fakeListener
	links     []*fakeConn
	cut       atomic.Bool // what is sent is lost, and nobody can connect
	dials     int
}

type fakeListener struct {
	network *network
	at      netip.AddrPort
	conns   chan net.Conn
	closed  chan struct{}
	once    sync.Once
}

// A fakeConn is one end of a connection.
type fakeConn struct {
	net.Conn
	network *network
	remote  netip.AddrPort
	lost    atomic.Bool // what is written to it is
}

func newNetwork() *network { return &network{listeners: map[netip.AddrPort]*fakeListener{}} }

// config is that of a member among others.
func config(name string, peers ...string) Config {
	cfg := Config{Name: name, Keys: []key.Key{aKey}}
	for _, p := range peers {
		cfg.Peers = append(cfg.Peers, Peer{p, places3[p]})
	}
	return cfg
}

func (l *fakeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *fakeListener) Close() error {
	l.once.Do(func() {
		l.network.mu.Lock()
		defer l.network.mu.Unlock()
		delete(l.network.listeners, l.at)
		close(l.closed)
	})
	return nil
}

func (l *fakeListener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.at) }

func (c *fakeConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

func (c *fakeConn) Write(b []byte) (int, error) {
	if c.network.cut.Load() || c.lost.Load() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// Close is lost as well.
func (c *fakeConn) Close() error {
	if c.network.cut.Load() || c.lost.Load() {
		return c.SetDeadline(time.Unix(1, 0))
	}
	return c.Conn.Close()
}

// join gives a Node its place in the network.
func (w *network) join(at netip.AddrPort) func(*Node) {
	return func(n *Node) {
		n.open = func(context.Context) (net.Listener, error) { return w.listen(at) }
		n.dial = func(ctx context.Context, to netip.AddrPort) (net.Conn, error) { return w.dial(ctx, at, to) }
	}
}

func (w *network) listen(at netip.AddrPort) (net.Listener, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.listeners[at] != nil {
		return nil, errors.New("address already in use")
	}
	l := &fakeListener{network: w, at: at, conns: make(chan net.Conn), closed: make(chan struct{})}
	w.listeners[at] = l
	return l, nil
}

func (w *network) dial(ctx context.Context, from, to netip.AddrPort) (net.Conn, error) {
	w.mu.Lock()
	w.dials++
	l := w.listeners[to]
	w.mu.Unlock()
	if w.cut.Load() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if l == nil {
		return nil, errors.New("connection refused")
	}
	a, b := net.Pipe()
	near, far := &fakeConn{Conn: a, network: w, remote: to}, &fakeConn{Conn: b, network: w, remote: from}
	select {
	case l.conns <- far:
	case <-l.closed:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	w.mu.Lock()
	w.links = append(w.links, near)
	w.mu.Unlock()
	return near, nil
}

// member starts one at its place.
func (w *network) member(t testing.TB, p *plane, cfg Config, prepare ...func(*Node)) *member {
	t.Helper()
	return start(t, cfg, p, func(n *Node) {
		w.join(places3[cfg.Name])(n)
		for _, f := range prepare {
			f(n)
		}
	})
}
