// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// The body of a flows message is one record behind the other, each behind its
// length. Most flows of a message have few VIPs, backends, source addresses and last
// hops between them, so the first record that has one spells it out, and later ones
// name it by its place: flows of IPv4 take 20 bytes in nat, and 11 pinned.
//
//	kind, bits 0 to 2; phase, 3 to 5; UDP, 6; client and VIP are of IPv6, 7
//	opened, bit 0; the client's FIN, 1; the backend's, 2       nat, not over
//	client: address, port
//	VIP, backend: endpoint
//	source: host; its port where there is one                  nat
//	idle, tenths of a second                                   not over
//	sequence, 4 bytes                                          nat, TCP, not over
//	last hop: hop                                              nat, not over
//
// An endpoint, a host or a hop is a byte: 0 for none; the place of one that was
// spelled out before, from 1; the next place, behind which it is spelled out; or,
// with all places taken, literal, and it is spelled out for this record alone.
const (
	places  = 254
	literal = 255

	idleUnit   = 100 * time.Millisecond
	maxIdle    = 1 << 24 // of these
	maxIfname  = 15      // bytes of an interface's name
	maxTags    = len(lb.LastHop{}.VLANs)
	phaseShift = 3
	flagUDP    = 1 << 6
	flagIPv6   = 1 << 7
	flagOpened = 1 << 0
	flagClient = 1 << 1
	flagServer = 1 << 2
	flagsKnown = flagOpened | flagClient | flagServer
)

// checkFlow tells why a state cannot be told to a peer.
func checkFlow(s *lb.FlowState) error {
	client, vip := s.Client.Addr(), s.VIP.Addr()
	switch {
	case s.Kind < lb.FlowTranslated || s.Kind > lb.FlowDatagrams:
		return fmt.Errorf("flow of kind %d", s.Kind)
	case s.Phase > lb.FlowClosed:
		return fmt.Errorf("flow in phase %d", s.Phase)
	case s.Protocol != lb.TCP && s.Protocol != lb.UDP:
		return fmt.Errorf("flow of %v", s.Protocol)
	case !client.IsValid() || !vip.IsValid() || client.Is4() != vip.Is4():
		return fmt.Errorf("flow from %v to %v", s.Client, s.VIP)
	case s.LastHop.Tags < 0 || s.LastHop.Tags > maxTags || len(s.LastHop.Interface) > maxIfname:
		return fmt.Errorf("last hop %+v", s.LastHop)
	}
	for i := s.LastHop.Tags; i < maxTags; i++ {
		if s.LastHop.VLANs[i] != 0 {
			return fmt.Errorf("last hop %+v", s.LastHop)
		}
	}
	for _, a := range [...]netip.AddrPort{s.Client, s.VIP, s.Backend, s.Source} {
		if a.Addr().Zone() != "" || !a.Addr().IsValid() && a.Port() != 0 {
			return fmt.Errorf("address %v of a flow", a)
		}
	}
	return nil
}

func appendAddr(b []byte, a netip.Addr) []byte {
	if a.Is4() {
		v := a.As4()
		return append(b, v[:]...)
	}
	v := a.As16()
	return append(b, v[:]...)
}

// appendHost appends an address behind its family.
func appendHost(b []byte, a netip.Addr) []byte {
	family := byte(6)
	if a.Is4() {
		family = 4
	}
	return appendAddr(append(b, family), a)
}

func appendEndpoint(b []byte, a netip.AddrPort) []byte {
	return binary.BigEndian.AppendUint16(appendHost(b, a.Addr()), a.Port())
}

func appendHop(b []byte, h lb.LastHop) []byte {
	b = appendText(b, h.Interface)
	b = append(b, h.MAC[:]...)
	b = append(b, byte(h.Tags))
	for _, v := range h.VLANs[:h.Tags] {
		b = binary.BigEndian.AppendUint16(b, v)
	}
	return b
}

func (c *cursor) addr(v4 bool, what string) (a netip.Addr) {
	if v4 {
		if b := c.take(4, what); b != nil {
			a = netip.AddrFrom4([4]byte(b))
		}
		return a
	}
	if b := c.take(16, what); b != nil {
		a = netip.AddrFrom16([16]byte(b))
	}
	return a
}

func (c *cursor) host(what string) netip.Addr {
	family := c.u8(what)
	if family != 4 && family != 6 {
		c.fail("%s: family %d", what, family)
	}
	return c.addr(family == 4, what)
}

func (c *cursor) endpoint(what string) netip.AddrPort {
	a := c.host(what)
	return netip.AddrPortFrom(a, c.u16(what))
}

func (c *cursor) hop(what string) (h lb.LastHop) {
	h.Interface = c.text(what)
	copy(h.MAC[:], c.take(len(h.MAC), what))
	h.Tags = int(c.u8(what))
	if h.Tags > maxTags || len(h.Interface) > maxIfname {
		c.fail("%s: %d VLAN tags on %q", what, h.Tags, h.Interface)
		return lb.LastHop{}
	}
	for i := range h.Tags {
		h.VLANs[i] = c.u16(what)
	}
	return h
}

// A dictionary is what the records of one message have spelled out.
type dictionary[T comparable] struct {
	place map[T]uint8
	all   []T // by place, less 1
}

func (d *dictionary[T]) reset() {
	if d.place == nil {
		d.place = map[T]uint8{}
	}
	clear(d.place)
	d.all = d.all[:0]
}

func (d *dictionary[T]) add(v T) {
	d.all = append(d.all, v)
	d.place[v] = uint8(len(d.all))
}

func (d *dictionary[T]) append(b []byte, v T, spell func([]byte, T) []byte) []byte {
	var none T
	if v == none {
		return append(b, 0)
	}
	if at, ok := d.place[v]; ok {
		return append(b, at)
	}
	if len(d.all) == places {
		return spell(append(b, literal), v)
	}
	d.add(v)
	return spell(append(b, uint8(len(d.all))), v)
}

// read reads what append appends, and nothing else.
func (d *dictionary[T]) read(c *cursor, what string, spelled func(*cursor, string) T) (v T) {
	at := int(c.u8(what))
	switch {
	case at == 0:
		return v
	case at <= len(d.all):
		return d.all[at-1]
	case at == literal && len(d.all) < places:
		c.fail("%s: spelled out for one record, and there are places left", what)
		return v
	case at != literal && at != len(d.all)+1:
		c.fail("%s: place %d of %d", what, at, len(d.all))
		return v
	}
	var none T
	v = spelled(c, what)
	if c.err != nil {
		return none
	}
	if _, known := d.place[v]; known || v == none {
		c.fail("%s: %v need not be spelled out", what, v)
		return none
	}
	if at != literal {
		d.add(v)
	}
	return v
}

// A flowCodec encodes or decodes the flows of one message after the other. The zero
// value is ready.
type flowCodec struct {
	endpoints dictionary[netip.AddrPort]
	hosts     dictionary[netip.Addr]
	hops      dictionary[lb.LastHop]
	record    cursor // the one in hand: one for all, since it would escape
}

// reset begins another message.
func (f *flowCodec) reset() {
	f.endpoints.reset()
	f.hosts.reset()
	f.hops.reset()
}

// append appends the record of a state that checkFlow has nothing against, and at its
// end what a later version knows of it.
func (f *flowCodec) append(b []byte, s *lb.FlowState, tail []byte) []byte {
	start := len(b)
	nat, over, udp := s.Kind == lb.FlowTranslated, s.Phase == lb.FlowOver, s.Protocol == lb.UDP
	first := byte(s.Kind) | byte(s.Phase)<<phaseShift
	if udp {
		first |= flagUDP
	}
	if !s.Client.Addr().Is4() {
		first |= flagIPv6
	}
	b = append(b, 0, first)
	if nat && !over {
		b = append(b, flowFlags(s))
	}
	b = binary.BigEndian.AppendUint16(appendAddr(b, s.Client.Addr()), s.Client.Port())
	b = f.endpoints.append(b, s.VIP, appendEndpoint)
	b = f.endpoints.append(b, s.Backend, appendEndpoint)
	if nat {
		b = f.hosts.append(b, s.Source.Addr(), appendHost)
		if s.Source.Addr().IsValid() {
			b = binary.BigEndian.AppendUint16(b, s.Source.Port())
		}
	}
	if !over {
		b = binary.AppendUvarint(b, uint64(min(max(s.Idle/idleUnit, 0), maxIdle)))
	}
	if nat && !over {
		if !udp {
			b = binary.BigEndian.AppendUint32(b, s.Sequence)
		}
		b = f.hops.append(b, s.LastHop, appendHop)
	}
	return closeRecord(append(b, tail...), start)
}

func flowFlags(s *lb.FlowState) (flags byte) {
	if s.Opened {
		flags |= flagOpened
	}
	if s.ClientFIN {
		flags |= flagClient
	}
	if s.BackendFIN {
		flags |= flagServer
	}
	return flags
}

// read reads one record, and returns what of it is of a later version.
func (f *flowCodec) read(c *cursor) (s lb.FlowState, tail []byte, err error) {
	f.record = c.record("flow")
	r := &f.record
	first := r.u8("kind of a flow")
	s.Kind, s.Phase = lb.FlowKind(first&7), lb.FlowPhase(first>>phaseShift&7)
	if r.err == nil && (s.Kind < lb.FlowTranslated || s.Kind > lb.FlowDatagrams || s.Phase > lb.FlowClosed) {
		r.fail("flow of kind %d in phase %d", s.Kind, s.Phase)
	}
	s.Protocol = lb.TCP
	if first&flagUDP != 0 {
		s.Protocol = lb.UDP
	}
	nat, over := s.Kind == lb.FlowTranslated, s.Phase == lb.FlowOver
	if nat && !over {
		flags := r.u8("flags of a flow")
		if flags&^flagsKnown != 0 {
			r.fail("flags %#x of a flow", flags)
		}
		s.Opened, s.ClientFIN, s.BackendFIN = flags&flagOpened != 0, flags&flagClient != 0, flags&flagServer != 0
	}
	client := r.addr(first&flagIPv6 == 0, "client")
	s.Client = netip.AddrPortFrom(client, r.u16("client's port"))
	s.VIP = f.endpoints.read(r, "vip", (*cursor).endpoint)
	s.Backend = f.endpoints.read(r, "backend", (*cursor).endpoint)
	if nat {
		if a := f.hosts.read(r, "source", (*cursor).host); a.IsValid() {
			s.Source = netip.AddrPortFrom(a, r.u16("source port"))
		}
	}
	if !over {
		s.Idle = time.Duration(r.uvarint(maxIdle, "idle")) * idleUnit
	}
	if nat && !over {
		if s.Protocol == lb.TCP {
			s.Sequence = r.u32("sequence")
		}
		s.LastHop = f.hops.read(r, "last hop", (*cursor).hop)
	}
	if r.err == nil {
		if err := checkFlow(&s); err != nil {
			r.fail("%v", err)
		}
	}
	if r.err != nil {
		c.err = r.err
		return lb.FlowState{}, nil, r.err
	}
	return s, r.b, nil
}

// decode appends the flows of a message to into.
func (f *flowCodec) decode(body []byte, into []lb.FlowState) ([]lb.FlowState, error) {
	f.reset()
	c := cursor{b: body}
	for len(c.b) > 0 {
		s, _, err := f.read(&c)
		if err != nil {
			return into, fmt.Errorf("flow %d: %w", len(into)+1, err)
		}
		into = append(into, s)
	}
	return into, nil
}

// A flowBatch is a flows message in the making.
type flowBatch struct {
	codec   flowCodec
	body    []byte
	records int
}

var errNoFlow = errors.New("cannot be told to a peer")

// add adds a state, or says why it cannot.
func (f *flowBatch) add(s *lb.FlowState) error {
	if err := checkFlow(s); err != nil {
		return fmt.Errorf("%w: %w", errNoFlow, err)
	}
	if f.records == 0 {
		f.codec.reset()
		f.body = f.body[:0]
	}
	f.body = f.codec.append(f.body, s, nil)
	f.records++
	return nil
}

// full reports whether it is time to send it: as one record of TLS.
func (f *flowBatch) full() bool { return len(f.body) >= batchBytes }
