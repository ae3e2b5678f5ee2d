// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// Bounds of connections to a shared port that have said nothing yet.
const (
	maxSilent   = 32 // of all addresses that are not known, together
	maxSilentOf = 4  // of one address
	silentTime  = 2 * time.Second
)

// A Port is one TCP port for sync and something else, heartbeats. A connection is
// for sync if its first byte begins TLS. The other protocol's messages must begin with
// another byte, and both ends that connect speak first.
//
// It is open as long as one of both listeners is.
type Port struct {
	Address string // as net.Listen takes it
	// Known reports whether an address is a peer's: strangers take none of its places.
	Known func(netip.Addr) bool

	mu      sync.Mutex
	open    *openPort // nil: nobody listens
	silent  map[netip.Addr]int
	unknown int // of these, from addresses that are not known
}

// An openPort is a listener and what is served from it.
type openPort struct {
	listener   net.Listener
	tls, other *branch // nil: closed, or not asked for
	failed     chan struct{}
	err        error                 // set before failed is closed
	silent     map[net.Conn]struct{} // that have said nothing yet
	waiting    sync.WaitGroup        // for these
}

// A branch is one of the listeners of a Port.
type branch struct {
	port   *Port
	of     *openPort
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

// Sync opens the listener of connections that begin with TLS.
func (p *Port) Sync(ctx context.Context) (net.Listener, error) {
	return p.branch(ctx, func(o *openPort) **branch { return &o.tls })
}

// Other opens the listener of all others.
func (p *Port) Other(ctx context.Context) (net.Listener, error) {
	return p.branch(ctx, func(o *openPort) **branch { return &o.other })
}

func (p *Port) branch(ctx context.Context, which func(*openPort) **branch) (net.Listener, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open == nil {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", p.Address)
		if err != nil {
			return nil, err
		}
		p.open = &openPort{listener: l, failed: make(chan struct{}), silent: map[net.Conn]struct{}{}}
		go p.accept(p.open)
	}
	b := which(p.open)
	if *b != nil {
		return nil, &net.OpError{Op: "listen", Net: "tcp", Addr: p.open.listener.Addr(), Err: syscall.EADDRINUSE}
	}
	*b = &branch{port: p, of: p.open, conns: make(chan net.Conn), closed: make(chan struct{})}
	return *b, nil
}

// accept takes connections until the listener fails, or both branches are closed.
func (p *Port) accept(o *openPort) {
	for {
		conn, err := o.listener.Accept()
		if err != nil {
			p.mu.Lock()
			if p.open == o {
				p.open = nil
			}
			for c := range o.silent {
				c.Close()
			}
			p.mu.Unlock()
			o.listener.Close()
			o.err = err
			close(o.failed)
			return
		}
		from := addressOf(conn)
		if !p.admit(o, conn, from) {
			conn.Close()
			continue
		}
		o.waiting.Go(func() {
			first, err := peek(conn)
			p.release(o, conn, from)
			if err != nil {
				conn.Close()
				return
			}
			p.hand(o, conn, first)
		})
	}
}

func (p *Port) admit(o *openPort, conn net.Conn, from netip.Addr) bool {
	known := p.Known != nil && p.Known(from)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.silent == nil {
		p.silent = map[netip.Addr]int{}
	}
	if p.silent[from] >= maxSilentOf || !known && p.unknown >= maxSilent {
		return false
	}
	p.silent[from]++
	if !known {
		p.unknown++
	}
	o.silent[conn] = struct{}{}
	return true
}

func (p *Port) release(o *openPort, conn net.Conn, from netip.Addr) {
	known := p.Known != nil && p.Known(from)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.silent[from]--; p.silent[from] == 0 {
		delete(p.silent, from)
	}
	if !known {
		p.unknown--
	}
	delete(o.silent, conn)
}

// peek returns the first byte that comes, and leaves it there.
func peek(conn net.Conn) (first byte, err error) {
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return 0, err
	}
	if err := conn.SetReadDeadline(time.Now().Add(silentTime)); err != nil {
		return 0, err
	}
	var b [1]byte
	var n int
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		n, _, failed = syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK)
		return failed != syscall.EAGAIN && failed != syscall.EINTR
	})
	switch {
	case err != nil:
		return 0, err
	case failed != nil:
		return 0, failed
	case n == 0:
		return 0, net.ErrClosed
	}
	return b[0], conn.SetReadDeadline(time.Time{})
}

// hand gives a connection to whom it is for.
func (p *Port) hand(o *openPort, conn net.Conn, first byte) {
	const tlsHandshake = 22 // RFC 8446, section 5.1
	p.mu.Lock()
	b := o.other
	if first == tlsHandshake {
		b = o.tls
	}
	p.mu.Unlock()
	if b == nil {
		conn.Close()
		return
	}
	patience := time.NewTimer(silentTime)
	defer patience.Stop()
	select {
	case b.conns <- conn:
	case <-b.closed:
		conn.Close()
	case <-o.failed:
		conn.Close()
	case <-patience.C:
		conn.Close()
	}
}

// Accept implements net.Listener.
func (b *branch) Accept() (net.Conn, error) {
	select {
	case c := <-b.conns:
		return c, nil
	case <-b.closed:
		return nil, net.ErrClosed
	case <-b.of.failed:
		return nil, b.of.err
	}
}

// Close implements net.Listener.
func (b *branch) Close() error {
	b.once.Do(func() {
		close(b.closed)
		p, o := b.port, b.of
		p.mu.Lock()
		if o.tls == b {
			o.tls = nil
		} else if o.other == b {
			o.other = nil
		}
		last := o.tls == nil && o.other == nil
		if last && p.open == o {
			p.open = nil
		}
		p.mu.Unlock()
		if last {
			o.listener.Close()
			<-o.failed // the port is free
			o.waiting.Wait()
		}
	})
	return nil
}

// Addr implements net.Listener.
func (b *branch) Addr() net.Addr { return b.of.listener.Addr() }
