// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// groupIPv4 is VRRP's multicast group (RFC 9568, 5.1.1.2).
var groupIPv4 = netip.AddrFrom4([4]byte{224, 0, 0, 18})

// dscpCS6 is the IP header's TOS byte for network control traffic.
const dscpCS6 = 0xc0

// An ipv4Transport is a Transport over IPv4. Sending and receiving make system
// calls directly on one raw socket, so that neither allocates.
type ipv4Transport struct {
	Inbox
	file         *os.File // owns the socket; gives it the runtime's poller
	destinations []netip.Addr
	virtual      *virtualSender // nil: nothing is sent from a virtual MAC address

	// For the two functions, which are made once: a closure per call would be
	// garbage. Send has one caller, Receive has one.
	sendTo  unix.SockaddrInet4
	sendMsg []byte
	sendErr error
	sendFn  func(uintptr)
	recvBuf []byte
	recvN   int
	recvErr error
	recvFn  func(uintptr) bool
}

// listenIPv4 opens a Transport on link, sending from link.Source to the peers, or
// to the group if there are none.
func listenIPv4(link Link, peers []netip.Addr) (*ipv4Transport, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, Protocol)
	if err != nil {
		return nil, fmt.Errorf("open vrrp socket: %w (this needs root or CAP_NET_RAW)", err)
	}
	if err := setupIPv4(fd, link, len(peers) == 0); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open vrrp socket on %s: %w", link.Name, err)
	}
	t := &ipv4Transport{file: os.NewFile(uintptr(fd), "vrrp on "+link.Name), destinations: peers}
	if len(peers) == 0 {
		t.destinations = []netip.Addr{groupIPv4}
	}
	raw, err := t.file.SyscallConn()
	if err != nil {
		t.file.Close()
		return nil, fmt.Errorf("open vrrp socket on %s: %w", link.Name, err)
	}
	if link.Virtual != (MAC{}) && len(peers) == 0 {
		if t.virtual, err = openVirtual(link); err != nil {
			t.file.Close()
			return nil, err
		}
	}
	t.Open(raw)
	t.sendFn = func(fd uintptr) {
		t.sendErr = unix.Sendto(int(fd), t.sendMsg, unix.MSG_DONTWAIT, &t.sendTo)
	}
	t.recvFn = func(fd uintptr) bool {
		t.Reads(false)
		for {
			t.recvN, t.recvErr = unix.Read(int(fd), t.recvBuf)
			if t.recvErr != unix.EINTR {
				t.Reads(t.recvErr == unix.EAGAIN)
				return t.recvErr != unix.EAGAIN
			}
		}
	}
	return t, nil
}

// A step of a socket's set-up.
type step struct {
	what string
	do   func() error
}

func perform(steps []step) error {
	for _, s := range steps {
		if err := s.do(); err != nil {
			return fmt.Errorf("%s: %w", s.what, err)
		}
	}
	return nil
}

func setupIPv4(fd int, link Link, multicast bool) error {
	group := &unix.IPMreqn{Multiaddr: groupIPv4.As4(), Ifindex: int32(link.Index)}
	out := &unix.IPMreqn{Address: link.Source.As4(), Ifindex: int32(link.Index)}
	steps := []step{
		{"bind to device", func() error { return unix.BindToDevice(fd, link.Name) }},
		{"set dscp", func() error { return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TOS, dscpCS6) }},
		// Otherwise the socket also gets groups that others on this host joined.
		{"set multicast filter", func() error { return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_ALL, 0) }},
		{"set path mtu discovery", func() error {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
		}},
	}
	if !multicast {
		// Bound, the socket gets only what is sent to that address, and sends from it.
		return perform(append(steps,
			step{"set ttl", func() error { return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, ttl) }},
			step{"bind to source", func() error { return unix.Bind(fd, &unix.SockaddrInet4{Addr: link.Source.As4()}) }}))
	}
	return perform(append(steps,
		step{"set ttl", func() error { return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_TTL, ttl) }},
		step{"set multicast loop", func() error { return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP, 0) }},
		// This chooses the source address too: the socket itself is bound to the
		// group, as one that is bound to a unicast address hears no multicast.
		step{"set multicast interface", func() error { return unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, out) }},
		step{"bind to group", func() error { return unix.Bind(fd, &unix.SockaddrInet4{Addr: groupIPv4.As4()}) }},
		step{"join group", func() error { return unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, group) }}))
}

func (t *ipv4Transport) Destinations() []netip.Addr { return t.destinations }

// Send sends one message. A full queue is an error, not a wait.
func (t *ipv4Transport) Send(msg []byte, to netip.Addr) error {
	t.sendMsg, t.sendTo.Addr = msg, to.As4()
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
func (t *ipv4Transport) Receive(b []byte) (Packet, error) {
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

// sendVirtual is Send from the virtual MAC address. Unicast peers are behind their own.
func (t *ipv4Transport) sendVirtual(msg []byte, to netip.Addr) error {
	if t.virtual == nil {
		return t.Send(msg, to)
	}
	return t.virtual.send(msg)
}

func (t *ipv4Transport) Close() error { return errors.Join(t.file.Close(), t.virtual.close()) }
