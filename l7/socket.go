package l7

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pires/go-proxyproto"
	"golang.org/x/sys/unix"
)

// bind opens a listening socket. A Backup has it open before it has the address; and an
// address of its own goes before all addresses, in whatever order they are bound.
func bind(at netip.AddrPort) (net.Listener, error) {
	network := "tcp4"
	if at.Addr().Is6() {
		network = "tcp6"
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var optErr error
		err := c.Control(func(fd uintptr) {
			set := func(level, option int) { optErr = errors.Join(optErr, unix.SetsockoptInt(int(fd), level, option, 1)) }
			set(unix.SOL_SOCKET, unix.SO_REUSEPORT)
			if at.Addr().Is6() {
				set(unix.SOL_IPV6, unix.IPV6_V6ONLY)
				set(unix.SOL_IPV6, unix.IPV6_FREEBIND)
				return
			}
			set(unix.SOL_IP, unix.IP_FREEBIND)
		})
		return errors.Join(err, optErr)
	}}
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), network, at.String())
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("listen on %v: another program listens there: `ss -ltnp sport = :%d` says which", at, at.Port())
	case err != nil:
		return nil, fmt.Errorf("listen on %v: %w", at, err)
	}
	return l, nil
}

// A socket is a connection of a client, with the addresses that count.
type socket struct {
	net.Conn
	reader      *bufio.Reader // what was read beyond a PROXY header; nil: nothing
	peer, local netip.AddrPort
	// quietSince is since when it counts as idle, in ns since the epoch, which may be in
	// the future; 0: it does not.
	quietSince atomic.Int64
	room       *room // that it has a place in; nil: none
	once       sync.Once
}

func newSocket(c net.Conn) *socket {
	s := &socket{Conn: c, peer: addrPort(c.RemoteAddr()), local: addrPort(c.LocalAddr())}
	s.quietSince.Store(time.Now().Add(quietAtFirst).UnixNano())
	return s
}

// Close closes the connection, which others may have the place of then.
func (s *socket) Close() error {
	err := s.Conn.Close()
	s.once.Do(func() {
		if s.room != nil {
			s.room.leave(s)
		}
	})
	return err
}

// rest tells that the connection is idle from now on.
func (s *socket) rest() {
	s.quietSince.Store(time.Now().UnixNano())
	if s.room != nil && s.room.full() {
		s.room.wake()
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
	}
	return netip.AddrPort{}
}

func (s *socket) Read(p []byte) (int, error) {
	if s.reader == nil {
		return s.Conn.Read(p)
	}
	if s.reader.Buffered() > 0 {
		return s.reader.Read(p)
	}
	s.reader = nil
	return s.Conn.Read(p)
}

func (s *socket) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(s.peer) }

// CloseWrite ends the direction to the client.
func (s *socket) CloseWrite() error {
	if w, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}

// readProxyHeader reads the PROXY protocol's header, which must be there, and takes the
// client's addresses from it. A proxy that speaks for itself has none.
func (s *socket) readProxyHeader(patience time.Duration) error {
	if err := s.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	r := bufio.NewReaderSize(s.Conn, 1024)
	h, err := proxyproto.Read(r)
	if err != nil {
		return fmt.Errorf("the PROXY protocol of %v: %w", s.peer, err)
	}
	s.reader = r
	if h.Command.IsProxy() {
		if source, destination, ok := h.TCPAddrs(); ok {
			s.peer, s.local = addrPort(source), addrPort(destination)
		}
	}
	return s.SetReadDeadline(time.Time{})
}

// missingFamily tells whether all of IPv6 is not there to listen on.
func missingFamily(at netip.AddrPort, err error) bool {
	return at.Addr() == netip.IPv6Unspecified() && (errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL))
}
