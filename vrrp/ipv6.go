// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// groupIPv6 is VRRP's multicast group (RFC 9568, 5.1.2.2).
var groupIPv6 = netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 15: 0x12})

// An ipv6Transport is a Transport over IPv6. A raw socket of IPv6 gives no
// header: the hop limit and the destination come as control messages, and the
// source with the packet. Neither way allocates: what the kernel reads and
// writes is part of the transport.
type ipv6Transport struct {
	Inbox
	file         *os.File // owns the socket; gives it the runtime's poller
	index        uint32
	destinations []netip.Addr
	virtual      *virtualSender // nil: nothing is sent from a virtual MAC address
	control      int            // length of what is sent with each message

	// For the two functions, which are made once: a closure per call would be
	// garbage. Send has one caller, Receive has one.
	send, recv       socketMessage
	sendErr, recvErr error
	recvN            int
	sendFn           func(uintptr)
	recvFn           func(uintptr) bool
}

// A socketMessage is what sendmsg and recvmsg take, in one piece.
type socketMessage struct {
	header  unix.Msghdr
	payload unix.Iovec
	control [128]byte // room for the two control messages that are asked for; aligned for their headers
	address unix.RawSockaddrInet6
}

// prepare points the header at a payload. Control is how much of the control
// buffer there is to read or to fill.
func (m *socketMessage) prepare(b []byte, control int) {
	m.payload.Base = unsafe.SliceData(b)
	m.payload.SetLen(len(b))
	m.header = unix.Msghdr{
		Name: (*byte)(unsafe.Pointer(&m.address)), Namelen: unix.SizeofSockaddrInet6,
		Iov: &m.payload, Control: &m.control[0],
	}
	m.header.SetIovlen(1)
	m.header.SetControllen(control)
}

// call makes one of the two system calls.
func (m *socketMessage) call(trap, fd uintptr, flags int) (int, error) {
	n, _, errno := unix.Syscall(trap, fd, uintptr(unsafe.Pointer(&m.header)), uintptr(flags))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// listenIPv6 opens a Transport on link, sending from link.Source to the peers, or
// to the group if there are none.
func listenIPv6(link Link, peers []netip.Addr) (*ipv6Transport, error) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, Protocol)
	if err != nil {
		return nil, fmt.Errorf("open vrrp socket: %w (this needs root or CAP_NET_RAW)", err)
	}
	if err := setupIPv6(fd, link, len(peers) == 0); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open vrrp socket on %s: %w", link.Name, err)
	}
	t := &ipv6Transport{
		file: os.NewFile(uintptr(fd), "vrrp on "+link.Name), index: uint32(link.Index), destinations: peers,
	}
	if len(peers) == 0 {
		t.destinations = []netip.Addr{groupIPv6}
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
	t.control = t.send.putSource(link)
	t.sendFn = func(fd uintptr) {
		t.send.header.SetControllen(t.control)
		_, t.sendErr = t.send.call(unix.SYS_SENDMSG, fd, unix.MSG_DONTWAIT)
	}
	t.recvFn = func(fd uintptr) bool {
		t.Reads(false)
		for {
			t.recv.header.SetControllen(len(t.recv.control)) // the last call has shortened it
			t.recvN, t.recvErr = t.recv.call(unix.SYS_RECVMSG, fd, unix.MSG_DONTWAIT)
			if t.recvErr != unix.EINTR {
				t.Reads(t.recvErr == unix.EAGAIN)
				return t.recvErr != unix.EAGAIN
			}
		}
	}
	return t, nil
}

// putSource writes the control message that chooses the source of what is sent:
// a socket that is bound to the group has no address of its own. It returns the
// length of all control messages.
func (m *socketMessage) putSource(link Link) int {
	header := (*unix.Cmsghdr)(unsafe.Pointer(&m.control[0]))
	header.Level, header.Type = unix.IPPROTO_IPV6, unix.IPV6_PKTINFO
	header.SetLen(unix.CmsgLen(unix.SizeofInet6Pktinfo))
	data := m.control[unix.CmsgLen(0):]
	source := link.Source.As16()
	copy(data, source[:])
	binary.NativeEndian.PutUint32(data[16:], uint32(link.Index))
	return unix.CmsgSpace(unix.SizeofInet6Pktinfo)
}

func setupIPv6(fd int, link Link, multicast bool) error {
	option := func(what string, name, value int) step {
		return step{what, func() error { return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, name, value) }}
	}
	steps := []step{
		{"bind to device", func() error { return unix.BindToDevice(fd, link.Name) }},
		option("set traffic class", unix.IPV6_TCLASS, dscpCS6),
		option("set multicast filter", unix.IPV6_MULTICAST_ALL, 0),
		option("set path mtu discovery", unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT),
		option("ask for the hop limit", unix.IPV6_RECVHOPLIMIT, 1),
		option("ask for the destination", unix.IPV6_RECVPKTINFO, 1),
	}
	bind := func(a netip.Addr) func() error {
		return func() error { return unix.Bind(fd, &unix.SockaddrInet6{Addr: a.As16(), ZoneId: zone(a, link.Index)}) }
	}
	if !multicast {
		return perform(append(steps,
			option("set hop limit", unix.IPV6_UNICAST_HOPS, ttl),
			step{"bind to source", bind(link.Source)}))
	}
	group := &unix.IPv6Mreq{Multiaddr: groupIPv6.As16(), Interface: uint32(link.Index)}
	return perform(append(steps,
		option("set hop limit", unix.IPV6_MULTICAST_HOPS, ttl),
		option("set multicast loop", unix.IPV6_MULTICAST_LOOP, 0),
		option("set multicast interface", unix.IPV6_MULTICAST_IF, link.Index),
		step{"bind to group", bind(groupIPv6)},
		step{"join group", func() error {
			return unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, group)
		}}))
}

// zone is the interface that an address of one link is on, for a socket address.
func zone(a netip.Addr, index int) uint32 {
	if a.IsLinkLocalUnicast() || a.IsLinkLocalMulticast() {
		return uint32(index)
	}
	return 0
}

func (t *ipv6Transport) Destinations() []netip.Addr { return t.destinations }

// Send sends one message. A full queue is an error, not a wait.
func (t *ipv6Transport) Send(msg []byte, to netip.Addr) error {
	t.send.address = unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: to.As16(), Scope_id: zone(to, int(t.index))}
	t.send.prepare(msg, 0)
	err := t.raw.Control(t.sendFn)
	if err == nil {
		err = t.sendErr
	}
	if err != nil {
		return fmt.Errorf("send advertisement: %w", err)
	}
	return nil
}

// Receive waits for one packet. B gets the VRRP message alone.
func (t *ipv6Transport) Receive(b []byte) (Packet, error) {
	t.recv.prepare(b, len(t.recv.control))
	err := t.raw.Read(t.recvFn)
	if err == nil {
		err = t.recvErr
	}
	if err != nil {
		return Packet{}, fmt.Errorf("receive advertisement: %w", err)
	}
	p := Packet{Source: netip.AddrFrom16(t.recv.address.Addr), Payload: b[:t.recvN]}
	return p, p.readControl(t.recv.control[:t.recv.header.Controllen])
}

// readControl sets the hop limit and the destination from control messages.
func (p *Packet) readControl(b []byte) error {
	hops := false
	for len(b) >= unix.SizeofCmsghdr {
		header := (*unix.Cmsghdr)(unsafe.Pointer(unsafe.SliceData(b)))
		start, end := unix.CmsgLen(0), int(header.Len)
		if end < start || end > len(b) {
			return ReasonHeader
		}
		data := b[start:end]
		switch {
		case header.Level != unix.IPPROTO_IPV6:
		case header.Type == unix.IPV6_HOPLIMIT && len(data) >= 4:
			p.TTL, hops = uint8(binary.NativeEndian.Uint32(data)), true
		case header.Type == unix.IPV6_PKTINFO && len(data) >= 16:
			p.Destination = netip.AddrFrom16([16]byte(data))
		}
		b = b[min(len(b), unix.CmsgSpace(len(data))):]
	}
	if !hops || !p.Destination.IsValid() {
		return ReasonHeader
	}
	return nil
}

// sendVirtual is Send from the virtual MAC address. Unicast peers are behind their own.
func (t *ipv6Transport) sendVirtual(msg []byte, to netip.Addr) error {
	if t.virtual == nil {
		return t.Send(msg, to)
	}
	return t.virtual.send(msg)
}

// Close makes Receive return.
func (t *ipv6Transport) Close() error { return errors.Join(t.file.Close(), t.virtual.close()) }
