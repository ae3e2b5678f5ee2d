// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/vrrp"
)

// dscpCS6 is the IP header's TOS byte for network control traffic.
const dscpCS6 = 0xc0

// A socket is UDP between this node and one address of another one. Reading and
// writing make system calls directly, so that neither allocates.
type socket struct {
	vrrp.Inbox
	file *os.File // owns the socket; gives it the runtime's poller
	raw  syscall.RawConn

	// For the two functions, which are made once. Reading has one caller, writing
	// one at a time.
	readBuf  []byte
	readN    int
	readErr  error
	readFn   func(uintptr) bool
	writeBuf []byte
	writeErr error
	writeFn  func(uintptr)
}

// dial opens a socket between a port of this node and the same port of a peer. The
// kernel chooses the source address as for anything that goes there; local, if it
// is valid, must be that.
func dial(local, peer netip.Addr, port uint16) (*socket, error) {
	family, bind, to := unix.AF_INET, sockaddr(netip.IPv4Unspecified(), port), sockaddr(peer, port)
	if peer.Is6() {
		family, bind = unix.AF_INET6, sockaddr(netip.IPv6Unspecified(), port)
	}
	if local.IsValid() {
		bind = sockaddr(local, port)
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open socket to %v: %w", peer, err)
	}
	fail := func(what string, err error) (*socket, error) {
		unix.Close(fd)
		return nil, fmt.Errorf("open socket to %v: %s: %w", peer, what, err)
	}
	// Several peers, one port: the kernel finds the socket by the peer's address. With
	// SO_REUSEADDR any user's program could share it, and take what comes.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return fail("share the port", err)
	}
	if peer.Is6() {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return fail("set family", err)
		}
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, dscpCS6)
	} else {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TOS, dscpCS6)
	}
	if err != nil {
		return fail("set dscp", err)
	}
	if err := unix.Bind(fd, bind); err != nil {
		return fail("bind", err)
	}
	if err := unix.Connect(fd, to); err != nil {
		return fail("connect", err)
	}
	s := &socket{file: os.NewFile(uintptr(fd), "heartbeats of "+peer.String())}
	if s.raw, err = s.file.SyscallConn(); err != nil {
		s.file.Close()
		return nil, fmt.Errorf("open socket to %v: %w", peer, err)
	}
	s.Open(s.raw)
	s.readFn = func(fd uintptr) bool {
		s.Reads(false)
		for {
			s.readN, s.readErr = unix.Read(int(fd), s.readBuf)
			if s.readErr != unix.EINTR && !hearsay(s.readErr) {
				s.Reads(s.readErr == unix.EAGAIN)
				return s.readErr != unix.EAGAIN
			}
		}
	}
	s.writeFn = func(fd uintptr) {
		if _, s.writeErr = unix.Write(int(fd), s.writeBuf); hearsay(s.writeErr) {
			_, s.writeErr = unix.Write(int(fd), s.writeBuf)
		}
	}
	return s, nil
}

// hearsay tells whether an error may be what a message of ICMP has told. A connected
// socket has it once, in the place of what was asked of it. It is true at times: nobody
// listens there now. But anybody can send one, and heartbeats tell what is true.
func hearsay(err error) bool {
	switch err {
	case unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EHOSTDOWN, unix.ENONET, unix.ENOPROTOOPT,
		unix.EOPNOTSUPP, unix.EPROTO, unix.EACCES, unix.EMSGSIZE:
		return true
	}
	return false
}

func sockaddr(a netip.Addr, port uint16) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4(), Port: int(port)}
	}
	return &unix.SockaddrInet6{Addr: a.As16(), Port: int(port)}
}

// read waits for a message. What is longer than b is cut.
func (s *socket) read(b []byte) (int, error) {
	s.readBuf = b
	if err := s.raw.Read(s.readFn); err != nil {
		return 0, err
	}
	return s.readN, s.readErr
}

// write sends a message, or drops it: whatever is lost is said again.
func (s *socket) write(b []byte) error {
	s.writeBuf = b
	if err := s.raw.Control(s.writeFn); err != nil {
		return err
	}
	return s.writeErr
}

func (s *socket) close() { s.file.Close() }
