// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// VirtualMAC is the MAC address of a virtual router (RFC 9568, 7.3).
func VirtualMAC(vrid uint8, v6 bool) MAC {
	if v6 {
		return MAC{0, 0, 0x5e, 0, 2, vrid}
	}
	return MAC{0, 0, 0x5e, 0, 1, vrid}
}

// A MACStore has interfaces take frames to virtual MAC addresses. MACFilters is the
// real one.
type MACStore interface {
	// Add lets an address through an interface's filter, also beyond this process.
	Add(iface string, mac MAC) error
}

// announced is the MAC address that VIPs on the link are at.
func (l Link) announced() MAC {
	if l.Virtual != (MAC{}) {
		return l.Virtual
	}
	return l.MAC
}

// virtualSending is a Transport that can send from the link's virtual MAC address.
type virtualSending interface {
	sendVirtual(msg []byte, to netip.Addr) error
}

// sendTo sends one advertisement. It comes from the virtual MAC address only as long
// as the VIPs are this node's: what a switch hears from there it takes for the way to
// them. A goodbye that comes after them is the node's own.
func (r *Router) sendTo(msg []byte, to netip.Addr, priority uint8) error {
	t, ok := r.transport.Transport.(virtualSending)
	if ok && r.link.Virtual != (MAC{}) && (priority != PriorityRelease || r.holds) {
		return t.sendVirtual(msg, to)
	}
	return r.transport.Send(msg, to)
}

// A virtualSender sends messages to VRRP's multicast group as whole frames, since the
// source of those can be chosen. It does not allocate.
type virtualSender struct {
	file   *os.File // owns the socket, which is bound to the interface
	raw    syscall.RawConn
	frame  []byte // the last one; its headers are there from the start
	header int    // their length

	// For the function, which is made once: a closure per call would be garbage.
	err    error
	sendFn func(uintptr)
}

func openVirtual(link Link) (*virtualSender, error) {
	file, raw, err := framesOf(link, "advertisements")
	if err != nil {
		return nil, err
	}
	s := &virtualSender{file: file, raw: raw, frame: make([]byte, 0, etherLen+ipv6Len+maxPacket)}
	if link.Source.Is4() {
		s.frame = appendHeaders4(s.frame, link)
	} else {
		s.frame = appendHeaders6(s.frame, link)
	}
	s.header = len(s.frame)
	s.sendFn = func(fd uintptr) { _, s.err = unix.Write(int(fd), s.frame) }
	return s, nil
}

func appendHeaders4(b []byte, link Link) []byte {
	b = append(b, 1, 0, 0x5e, 0, 0, 18)
	b = append(b, link.Virtual[:]...)
	b = append(b, 8, 0)
	// It is never in fragments, so its identification means nothing (RFC 6864).
	b = append(b, 0x45, dscpCS6, 0, 0, 0, 0, 0x40, 0, ttl, Protocol, 0, 0)
	b = append(b, link.Source.AsSlice()...)
	return append(b, groupIPv4.AsSlice()...)
}

func appendHeaders6(b []byte, link Link) []byte {
	b = append(b, 0x33, 0x33, 0, 0, 0, 0x12)
	b = append(b, link.Virtual[:]...)
	b = append(b, 0x86, 0xdd)
	b = append(b, 6<<4|dscpCS6>>4, dscpCS6&15<<4, 0, 0, 0, 0, Protocol, ttl)
	b = append(b, link.Source.AsSlice()...)
	return append(b, groupIPv6.AsSlice()...)
}

// build makes the frame of a message.
func (s *virtualSender) build(msg []byte) []byte {
	s.frame = append(s.frame[:s.header], msg...)
	ip := s.frame[etherLen:]
	if ip[0]>>4 == 6 {
		binary.BigEndian.PutUint16(ip[4:], uint16(len(msg)))
		return s.frame
	}
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	binary.BigEndian.PutUint16(ip[10:], 0)
	binary.BigEndian.PutUint16(ip[10:], checksum(0, ip[:20]))
	return s.frame
}

// send sends one message. A full queue is an error, not a wait.
func (s *virtualSender) send(msg []byte) error {
	s.build(msg)
	err := s.raw.Control(s.sendFn)
	if err == nil {
		err = s.err
	}
	if err != nil {
		return fmt.Errorf("send advertisement: %w", err)
	}
	return nil
}

// parcel is a message as somebody else may send it on the socket.
func (s *virtualSender) parcel(msg []byte) Parcel { return Parcel{Payload: slices.Clone(s.build(msg))} }

func (s *virtualSender) close() error {
	if s == nil {
		return nil
	}
	return s.file.Close()
}

// framesOf opens a packet socket on a link, which sends whole frames and receives none.
func framesOf(link Link, what string) (*os.File, syscall.RawConn, error) {
	fail := func(err error) (*os.File, syscall.RawConn, error) {
		return nil, nil, fmt.Errorf("open packet socket on %s: %w", link.Name, err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0) // no protocol: it only sends
	if err != nil {
		return fail(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: link.Index}); err != nil {
		unix.Close(fd)
		return fail(err)
	}
	file := os.NewFile(uintptr(fd), what+" on "+link.Name)
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return fail(err)
	}
	return file, raw, nil
}
