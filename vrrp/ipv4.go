// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// groupIPv4 is VRRP's multicast group (RFC 9568, 5.1.1.2).
var groupIPv4 = netip.AddrFrom4([4]byte{224, 0, 0, 18})

// dscpCS6 is the IP header's TOS byte for network control traffic.
const dscpCS6 = 0xc0

// A multicastIPv4 is a Transport over IPv4 multicast. Sending and receiving
// make system calls directly on one raw socket, so that neither allocates.
type multicastIPv4 struct {
	file *os.File // owns the socket; gives it the runtime's poller
	raw  syscall.RawConn
	to   unix.SockaddrInet4

	// For the two functions, which are made once: a closure per call would be
	// garbage. Send has one caller, Receive has one.
	sendMsg []byte
	sendErr error
	sendFn  func(uintptr)
	recvBuf []byte
	recvN   int
	recvErr error
	recvFn  func(uintptr) bool
}

// listenMulticastIPv4 opens a Transport on link, sending from link.Source.
func listenMulticastIPv4(link Link) (*multicastIPv4, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, Protocol)
	if err != nil {
		return nil, fmt.Errorf("open vrrp socket: %w (this needs root or CAP_NET_RAW)", err)
	}
	if err := setupIPv4(fd, link); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open vrrp socket on %s: %w", link.Name, err)
	}
	t := &multicastIPv4{file: os.NewFile(uintptr(fd), "vrrp on "+link.Name), to: unix.SockaddrInet4{Addr: groupIPv4.As4()}}
	if t.raw, err = t.file.SyscallConn(); err != nil {
		t.file.Close()
		return nil, fmt.Errorf("open vrrp socket on %s: %w", link.Name, err)
	}
	t.sendFn = func(fd uintptr) {
		t.sendErr = unix.Sendto(int(fd), t.sendMsg, unix.MSG_DONTWAIT, &t.to)
	}
	t.recvFn = func(fd uintptr) bool {
		for {
			t.recvN, t.recvErr = unix.Read(int(fd), t.recvBuf)
			if t.recvErr != unix.EINTR {
				return t.recvErr != unix.EAGAIN
			}
		}
	}
	return t, nil
}

func setupIPv4(fd int, link Link) error {
	group := &unix.IPMreqn{Multiaddr: groupIPv4.As4(), Ifindex: int32(link.Index)}
	out := &unix.IPMreqn{Address: link.Source.As4(), Ifindex: int32(link.Index)}
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"bind to device", func() error { return unix.BindToDevice(fd, link.Name) }},
		{"set ttl", func() error { return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_TTL, ttl) }},
		{"set dscp", func() error { return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TOS, dscpCS6) }},
		{"set multicast loop", func() error { return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP, 0) }},
		// Otherwise the socket also gets groups that others on this host joined.
		{"set multicast filter", func() error { return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_ALL, 0) }},
		{"set path mtu discovery", func() error {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
		}},
		// This chooses the source address too: the socket itself is bound to the
		// group, as one that is bound to a unicast address hears no multicast.
		{"set multicast interface", func() error { return unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, out) }},
		{"bind to group", func() error { return unix.Bind(fd, &unix.SockaddrInet4{Addr: groupIPv4.As4()}) }},
		{"join group", func() error { return unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, group) }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return nil
}

// Send sends one message. A full queue is an error, not a wait.
func (t *multicastIPv4) Send(msg []byte) error {
	t.sendMsg = msg
	err := t.raw.Control(t.sendFn)
	if err == nil {
		err = t.sendErr
	}
	if err != nil {
		return fmt.Errorf("send advertisement: %w", err)
	}
	return nil
}

// Receive waits for one packet.
func (t *multicastIPv4) Receive(b []byte) (Packet, error) {
	t.recvBuf = b
	err := t.raw.Read(t.recvFn)
	if err == nil {
		err = t.recvErr
	}
	if err != nil {
		return Packet{}, fmt.Errorf("receive advertisement: %w", err)
	}
	return parseIPv4(b[:t.recvN])
}

func (t *multicastIPv4) Destination() netip.Addr { return groupIPv4 }

func (t *multicastIPv4) Close() error { return t.file.Close() }
