package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// receiveBuffer is how many bytes of queries may wait for an answer.
const receiveBuffer = 4 << 20

// control prepares a socket. A Backup has it open before it has the address. Of a
// datagram the address that it came to is told, so that the answer comes from there.
func control(network string, c syscall.RawConn, shared bool) error {
	var errs error
	set := func(fd uintptr, level, option, value int) {
		errs = errors.Join(errs, unix.SetsockoptInt(int(fd), level, option, value))
	}
	err := c.Control(func(fd uintptr) {
		if shared {
			set(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		}
		switch network {
		case "tcp6", "udp6":
			set(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 1)
			set(fd, unix.SOL_IPV6, unix.IPV6_FREEBIND, 1)
		default:
			set(fd, unix.SOL_IP, unix.IP_FREEBIND, 1)
		}
		switch network {
		case "udp6":
			set(fd, unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1)
		case "udp4":
			set(fd, unix.SOL_IP, unix.IP_PKTINFO, 1)
		default:
			return
		}
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil { // not root
			set(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
		}
	})
	return errors.Join(err, errs)
}

// bind opens the sockets of an address. Listeners of beside may be in its way: an address
// of its own goes before all addresses, in whatever order they are bound.
func bind(at netip.AddrPort, beside []*listener) (*net.UDPConn, *net.TCPListener, error) {
	var own []syscall.Conn
	for _, l := range beside {
		if overlap(at, l.at) {
			own = append(own, l.datagrams, l.streams)
		}
	}
	if len(own) == 0 {
		return openSockets(at, false)
	}
	// The port is shared for no longer than this takes: whoever else shares it would get
	// a part of the queries, and nobody would be told.
	if err := share(own, true); err != nil {
		return nil, nil, fmt.Errorf("listen on %v: %w", at, err)
	}
	datagrams, streams, err := openSockets(at, true)
	if err == nil {
		own = append(own, datagrams, streams)
	}
	return datagrams, streams, errors.Join(err, share(own, false)) // which does not fail: it has been done before
}

// openSockets opens the sockets of an address. Shared ones stand others beside them that
// are shared, too.
func openSockets(at netip.AddrPort, shared bool) (*net.UDPConn, *net.TCPListener, error) {
	family := "4"
	if at.Addr().Is6() {
		family = "6"
	}
	lc := net.ListenConfig{Control: func(network, _ string, c syscall.RawConn) error { return control(network, c, shared) }}
	lc.SetMultipathTCP(false)
	datagrams, err := lc.ListenPacket(context.Background(), "udp"+family, at.String())
	if err != nil {
		return nil, nil, explain(at, "u", err)
	}
	streams, err := lc.Listen(context.Background(), "tcp"+family, at.String())
	if err != nil {
		datagrams.Close()
		return nil, nil, explain(at, "t", err)
	}
	return datagrams.(*net.UDPConn), streams.(*net.TCPListener), nil
}

// overlap tells whether one of two addresses is all addresses of a family, and the other
// one of them.
func overlap(a, b netip.AddrPort) bool {
	return a.Port() == b.Port() && a.Addr().Is4() == b.Addr().Is4() && a.Addr().IsUnspecified() != b.Addr().IsUnspecified()
}

// share has other sockets of this user bind the port of these, too, or not any more.
func share(sockets []syscall.Conn, may bool) (err error) {
	value := 0
	if may {
		value = 1
	}
	for _, s := range sockets {
		raw, e := s.SyscallConn()
		if e == nil {
			var optErr error
			e = raw.Control(func(fd uintptr) { optErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, value) })
			e = errors.Join(e, optErr)
		}
		err = errors.Join(err, e)
	}
	return err
}

func explain(at netip.AddrPort, protocol string, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("listen on %v: another program listens there: `ss -l%snp sport = :%d` says which", at, protocol, at.Port())
	}
	return fmt.Errorf("listen on %v: %w", at, err)
}

// missingFamily tells whether all of IPv6 is not there to listen on.
func missingFamily(at netip.AddrPort, err error) bool {
	return at.Addr() == netip.IPv6Unspecified() && (errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL))
}
