package loader

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// A script is bytes that steer a twin: which frames come, how they are spoilt,
// and what changes between them. Every script means something, so that a fuzzer
// finds its way; one that has ended goes on with zeros.
type script struct{ rest []byte }

func (s *script) next() int {
	if len(s.rest) == 0 {
		return 0
	}
	b := s.rest[0]
	s.rest = s.rest[1:]
	return int(b)
}

// pick returns one of n numbers.
func (s *script) pick(n int) int { return s.next() % n }

func oneOf[T any](s *script, all ...T) T { return all[s.pick(len(all))] }

// The longest script, in steps.
const maxSteps = 48

// play runs a script from a fresh world, and then a raw frame.
func (w *twin) play(steps, raw []byte) error {
	if err := w.reset(); err != nil {
		return err
	}
	s := &script{steps}
	for n := 0; len(s.rest) > 0 && n < maxSteps; n++ {
		if err := w.act(s); err != nil {
			return err
		}
	}
	if err := w.feed(raw); err != nil {
		return err
	}
	return w.finish()
}

// act takes a step of a script.
func (w *twin) act(s *script) error {
	switch n := s.pick(34); {
	case n < 15:
		return w.feed(w.compose(s))
	case n < 18:
		return w.dnat(s)
	case n < 20:
		return w.burst(s)
	case n < 22:
		return w.fragments(s)
	case n < 24:
		return w.natFragments(s)
	case n < 26:
		return w.handshake(s)
	case n < 28:
		return w.feed(spoil(s, w.long(s)))
	case n == 28:
		return w.age(oneOf(s, time.Second, 10*time.Second, 40*time.Second, 120*time.Second, 310*time.Second))
	case n == 29:
		return w.changeBackend(s)
	case n < 32:
		return w.changeSlots(s)
	case n == 32:
		w.changeFence(s)
	}
	return w.ask(s)
}

// changeSlots gives a service other owners.
func (w *twin) changeSlots(s *script) error {
	port := oneOf(s, uint16(portTracked), portTracked, portMixed, portSticky, portDNAT, portNodes)
	service := w.m.state.service(w.m.state.VIPs[oneOf(s, vipIP, v6VIP.Addr())].Tables[tcpTable], port)
	numbers := append([]uint32{0}, w.backendsOf(service)...)
	owner, previous := oneOf(s, numbers...), oneOf(s, numbers...)
	state := oneOf(s, lbSlotStateSLOT_TRACKED, lbSlotStateSLOT_TRACKED, lbSlotStateSLOT_SETTLING, lbSlotStateSLOT_CLEAN)
	if state != lbSlotStateSLOT_TRACKED {
		previous = 0
	}
	w.note("the slots of port %d are %d's, before %d's, in state %d", port, owner, previous, state)
	return w.setSlots(service, makeSlot(owner, previous, state))
}

func (w *twin) backendsOf(service uint16) []uint32 {
	var numbers []uint32
	for _, n := range slices.Sorted(maps.Keys(w.base.Backends)) {
		if w.base.Backends[n].Service == service {
			numbers = append(numbers, n)
		}
	}
	return numbers
}

// changeBackend changes where a backend is, or ends what it had.
func (w *twin) changeBackend(s *script) error {
	numbers := slices.Sorted(maps.Keys(w.base.Backends))
	n := oneOf(s, numbers...)
	what := s.pick(6)
	// A new nat flow says its port only in a frame that leaves.
	known := w.base.Services[w.base.Backends[n].Service].Forward == lb.NAT
	w.note("change %d of backend %d", what, n)
	return w.setBackend(n, func(e *backendEntry) {
		switch what {
		case 0:
			e.Generation += 1000
		case 1:
			e.NextHop.Tags = s.pick(3)
			e.NextHop.VLANs = [2]uint16{uint16(s.next()), uint16(s.next())<<4 | 1}
		case 2:
			e.NextHop.MTU = oneOf(s, 0, 1500, 1400, 1280, 600, 100)
		case 3:
			e.NextHop.Interface = oneOf(s, nicIndex, 7)
		case 4:
			if !known {
				e.NextHop = lb.NextHop{}
			}
		case 5:
			e.Alive = false
		}
	})
}

// handshake opens a connection, of nat, or of a service with slots that change; an
// error about it may follow.
func (w *twin) handshake(s *script) error {
	f := w.toService(s)
	f.Protocol = testenv.ProtocolTCP
	f.Dst = netip.AddrPortFrom(f.Dst.Addr(), oneOf(s, uint16(portNAT), portSpread, portTracked, portMixed, portSticky, portDNAT, portPorts, portPortsEnd, portNodes))
	if err := w.open(f); err != nil || s.pick(4) < 3 {
		return err
	}
	return w.feed(quote(answerTo(f.Src, f.Dst, f.Protocol), 1000).Bytes())
}

// open is the handshake of a client and, where its packets come by here, of the
// backend.
func (w *twin) open(f testenv.Frame) error {
	f.Flags, f.Seq, f.Payload = testenv.SYN, clientISN, nil
	if err := w.feed(f.Bytes()); err != nil {
		return err
	}
	flow := w.m.flows[flowName{f.Src, f.Dst, lb.TCP}]
	if flow != nil {
		back := f
		back.Src, back.Dst, back.SrcMAC = flow.backend, flow.source, hardware(backendMAC(1))
		back.Flags, back.Seq, back.Ack = testenv.SYN|testenv.ACK, backendISN, clientISN+1
		if err := w.feed(back.Bytes()); err != nil {
			return err
		}
	}
	f.Flags, f.Seq, f.Ack = testenv.ACK, clientISN+1, backendISN+1
	return w.feed(f.Bytes())
}

// burst is some packets of a client, with or without time between them, and an
// error about the last one.
func (w *twin) burst(s *script) error {
	f := w.toService(s)
	how := s.next()
	if how&1 != 0 {
		f.Protocol, f.Dst = testenv.ProtocolUDP, netip.AddrPortFrom(f.Dst.Addr(), oneOf(s, uint16(portFlows), portTunnelU))
	} else {
		f.Protocol, f.Flags, f.Dst = testenv.ProtocolTCP, testenv.SYN, netip.AddrPortFrom(f.Dst.Addr(), oneOf(s, uint16(portLimited), portTracked))
	}
	for range how >> 1 & 7 {
		if err := w.feed(f.Bytes()); err != nil {
			return err
		}
		if how>>6 == 3 {
			if err := w.age(time.Second); err != nil {
				return err
			}
		}
	}
	return w.feed(quote(answerTo(f.Src, f.Dst, f.Protocol), 1000).Bytes())
}

// long is a packet that is near what fits a tunnel, or beyond it.
func (w *twin) long(s *script) testenv.Frame {
	f := w.toService(s)
	f.Dst = netip.AddrPortFrom(f.Dst.Addr(), oneOf(s, uint16(portNarrow4), portNarrow6))
	f.Payload = zeros(oneOf(s, 1200, 1320, 1340, 1360, 1400, 1440, 2000, 8000) + s.pick(64))
	f.DontFragment = s.pick(4) != 3
	return f
}

// compose returns a frame: one for a service, a reply, an error, or another.
func (w *twin) compose(s *script) []byte {
	switch n := s.pick(16); {
	case n < 9:
		return spoil(s, w.toService(s))
	case n < 11:
		return spoil(s, w.reply(s))
	case n < 14:
		return spoil(s, w.icmpError(s))
	}
	return spoil(s, other(s))
}

var (
	scriptClients = []netip.Addr{
		clientIP, deniedIP, netip.MustParseAddr("198.51.100.9"), netip.MustParseAddr("198.51.100.5"), netip.MustParseAddr("203.0.113.77"),
	}
	scriptClients6 = []netip.Addr{
		v6Client.Addr(), deniedIP6, netip.MustParseAddr("2001:db8:1::8"), netip.MustParseAddr("2001:db8:2::1"),
		netip.MustParseAddr("::ffff:198.51.100.7"),
	}
	scriptPorts = []uint16{
		portDSR, portTracked, portTracked, portTunnel4, portNAT, portNAT, portSpread, portFlows, portMixed, portDNS, portTunnelU,
		portTagged, portDouble, portAway, portLost, portEmpty, portRules, portAllowed, portLimited, portSticky, portTunnel6,
		portNarrow4, portNarrow6, portRange, portRangeEnd, portRangeEnd + 1, portDNAT, portKept, portKeptEnd, portPorts, portPortsEnd,
		portHere, portNode, portNodeTag, portNodes, portNodes, portNoNode, 0, 65535, 22,
	}
	scriptFlags = []testenv.TCPFlags{
		testenv.SYN, testenv.ACK, testenv.ACK | testenv.PSH, testenv.FIN | testenv.ACK, testenv.RST, testenv.SYN | testenv.ACK,
		testenv.SYN | testenv.FIN, testenv.SYN | testenv.RST, 0, 0x3f,
	}
)

// toService is a packet of a client.
func (w *twin) toService(s *script) testenv.Frame {
	how := s.next()
	v6 := how&1 != 0
	f := toVIP()
	f.Protocol = testenv.ProtocolTCP
	if how&6 == 6 {
		f.Protocol = testenv.ProtocolUDP
	}
	clients, vips := scriptClients, []netip.Addr{vipIP, plainVIP, secondSource}
	if v6 {
		clients, vips = scriptClients6, []netip.Addr{v6VIP.Addr(), plainVIP6, secondSource6}
	}
	vip := vips[0]
	if how>>5 == 7 {
		vip = oneOf(s, vips...)
	}
	f.Src = netip.AddrPortFrom(clients[s.pick(8)%len(clients)], uint16(40000+s.pick(3)))
	f.Dst = netip.AddrPortFrom(vip, oneOf(s, scriptPorts...))
	f.Flags = oneOf(s, scriptFlags...)
	f.Seq = oneOf(s, uint32(clientISN), clientISN+1, clientISN+1, clientISN+2, clientISN+70000, clientISN-1, clientISN+1<<20, clientISN+1<<20+1)
	f.Ack = oneOf(s, uint32(backendISN)+1, backendISN+1, backendISN+7)
	f.Payload = zeros(oneOf(s, 5, 0, 1, 100))
	if f.Flags == testenv.SYN && s.pick(4) != 3 {
		f.Seq, f.Payload = clientISN, nil
	}
	if s.pick(3) == 2 && w.last.client.IsValid() {
		f.Src, f.Dst, f.Protocol = w.last.client, w.last.vip, uint8(w.last.protocol)
	}
	if p := f.Dst.Port(); p >= portHere && p <= portNoNode && s.pick(4) == 3 {
		f.SrcMAC = hardware(nodeMAC(1 + s.pick(4)))
	}
	w.last = flowName{f.Src, f.Dst, lb.Protocol(f.Protocol)}
	return f
}

// reply is a packet of a backend to a client of nat, or to nobody.
func (w *twin) reply(s *script) testenv.Frame {
	f := toVIP()
	f.SrcMAC = hardware(backendMAC(1))
	f.Src, f.Dst = netip.AddrPortFrom(backendAddr(1), portNAT+8000), netip.AddrPortFrom(vipIP, worldShare.First+uint16(s.pick(8)))
	if flow := w.pickFlow(s); flow != nil {
		f.Src, f.Dst, f.Protocol = flow.backend, flow.source, uint8(flow.name.protocol)
	}
	f.Flags = oneOf(s, testenv.SYN|testenv.ACK, testenv.SYN|testenv.ACK, testenv.ACK, testenv.FIN|testenv.ACK, testenv.RST, testenv.SYN, 0)
	f.Seq, f.Ack = backendISN+1, clientISN+1
	if f.Flags&testenv.SYN != 0 {
		f.Seq = backendISN
	}
	f.Payload = zeros(oneOf(s, 0, 5, 1))
	return f
}

// pickFlow returns a nat flow, or nil.
func (w *twin) pickFlow(s *script) *translated {
	if len(w.opened) == 0 {
		return nil
	}
	return w.opened[len(w.opened)-1-s.pick(len(w.opened))]
}

// icmpError is an error about a packet of a flow, or of none.
func (w *twin) icmpError(s *script) testenv.Frame {
	client := w.toService(s)
	about := answerTo(client.Src, client.Dst, client.Protocol)
	if flow := w.pickFlow(s); flow != nil && s.pick(2) == 0 {
		about = answerTo(flow.name.client, flow.name.vip, uint8(flow.name.protocol))
		if s.pick(2) == 0 {
			about = answerTo(flow.backend, flow.source, uint8(flow.name.protocol))
		}
	}
	about.ID = uint16(s.next())
	header := 20
	if about.Src.Addr().Is6() {
		header = 40
	} else if s.pick(4) == 3 {
		about.IPOptions = zeros(4 * s.pick(11))
	}
	switch s.pick(16) {
	case 1:
		about.Protocol = testenv.ProtocolICMP
	case 2:
		about.FragOffset = 8
	case 3:
		about.Version = 5
	case 4:
		about.IHL = uint8(1 + s.pick(15))
	case 5:
		about.Dst = client.Dst
	}
	size := header + len(about.IPOptions) + oneOf(s, 8, 1000, 7, 12, 17, 18, 19, 20, 21, 0, -20, 600)
	f := quote(about, max(size, 0))
	if about.Dst != client.Dst {
		f.Dst = netip.AddrPortFrom(about.Src.Addr(), 0)
	}
	f.Payload[0] = oneOf(s, f.Payload[0], f.Payload[0], 1, 2, 3, 4, 5, 8, 11, 12, 128, 135)
	f.Payload[1] = byte(s.pick(16))
	if f.Src.Addr().Is6() == f.Dst.Addr().Is6() {
		checksummed(f.Payload, f.Src.Addr(), f.Dst.Addr())
	}
	return f
}

// other is a frame that is for no service.
func other(s *script) testenv.Frame {
	f := toVIP()
	if s.pick(2) == 1 {
		from6(&f)
	}
	switch s.pick(4) {
	case 0:
		f.Protocol = uint8(s.next())
		f.Payload = []byte{8, 0, 0, 0, 0, 1, 0, 1, 'p', 'i', 'n', 'g'}
	case 1:
		f.Dst = netip.MustParseAddrPort(oneOf(s, "192.0.2.1:80", "[2001:db8::1]:80", "[fe80::100]:80", "[::ffff:192.0.2.100]:80", "224.0.0.18:80"))
		f.Src = clientPort
		if f.Dst.Addr().Is6() {
			f.EtherType, f.Src = testenv.EtherTypeIPv6, v6Client
		}
	case 2:
		f.Src, f.Dst = netip.AddrPort{}, netip.AddrPort{}
		f.EtherType, f.Payload = oneOf(s, uint16(testenv.EtherTypeARP), 0x88cc, 0x8847, 40), zeros(s.next())
	case 3:
		f.Protocol, f.Payload = 59, nil
	}
	return f
}

// describe is a script for people.
func describe(steps, raw []byte) string {
	return fmt.Sprintf("steps %x, raw %x", steps, raw)
}

// spoil makes a frame of its description, and changes some things about it, or
// nothing.
func spoil(s *script, f testenv.Frame) []byte {
	n := s.pick(8) - 4
	var after []func([]byte) []byte
	for range n {
		if change := changeFrame(s, &f); change != nil {
			after = append(after, change)
		}
	}
	b := f.Bytes()
	for _, change := range after {
		b = change(b)
	}
	return b
}

// changeFrame changes a frame's description; what cannot be described it returns.
func changeFrame(s *script, f *testenv.Frame) func([]byte) []byte {
	v6 := f.Dst.Addr().Is6()
	l3 := func(b []byte) int { return min(14+4*len(f.VLANs), len(b)) }
	put16 := func(at int, v uint16) func([]byte) []byte {
		return func(b []byte) []byte {
			if i := l3(b) + at; i+2 <= len(b) {
				binary.BigEndian.PutUint16(b[i:], v)
			}
			return b
		}
	}
	switch s.pick(24) {
	case 0:
		f.VLANs = nil
		for range s.pick(4) {
			f.VLANs = append(f.VLANs, uint16(s.next())<<8|uint16(s.next()))
		}
	case 1:
		n := 4 * s.pick(11)
		if !v6 {
			f.IPOptions = zeros(n)
		} else {
			return extend(s, f)
		}
	case 2:
		f.TTL = oneOf(s, uint8(1), 2, 3, 255)
	case 3:
		return put16(map[bool]int{false: 8, true: 6}[v6], uint16(s.next())<<8|uint16(s.next()))
	case 4:
		f.TOS = uint8(s.next())
	case 5:
		f.DontFragment = true
	case 6:
		f.MoreFragments, f.ID = true, uint16(s.pick(3))
	case 7:
		f.FragOffset, f.ID = 8*uint16(s.pick(4)), uint16(s.pick(3))
	case 8:
		f.DataOffset = uint8(1 + s.pick(15))
	case 9:
		f.TotalLength = uint16(max(1, len(f.Bytes())-14-4*len(f.VLANs)+s.pick(64)-48))
	case 10:
		f.IHL = uint8(1 + s.pick(15))
	case 11:
		f.Version = uint8(1 + s.pick(15))
	case 12:
		f.PadTo = len(f.Bytes()) + s.pick(64)
	case 13:
		n := s.next()<<8 | s.next()
		return func(b []byte) []byte { return b[:max(14, len(b)-n%len(b))] }
	case 14:
		toMAC(oneOf(s, "02:00:00:00:00:02", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:12", "03:00:00:00:00:01", "00:00:5e:00:02:33", "00:00:5e:00:02:33", "00:00:5e:00:01:34"))(f)
	case 15:
		f.Payload = zeros(oneOf(s, 1440, 1441, 1460, 1472, 3000, 8900, 500, 460, 1350, 1349))
	case 16:
		f.TCPOptions = zeros(4 * s.pick(11))
	case 17: // the length or the checksum of UDP
		return put16(map[bool]int{false: 20, true: 40}[v6]+oneOf(s, 4, 6), uint16(s.pick(32)))
	case 18:
		return put16(map[bool]int{false: 20, true: 40}[v6]+oneOf(s, 0, 2), 0)
	case 19, 20:
		at, bit := s.next(), s.pick(8)
		return func(b []byte) []byte {
			b[at%len(b)] ^= 1 << bit
			return b
		}
	case 21:
		at, v := s.next(), byte(s.next())
		return func(b []byte) []byte {
			b[at%len(b)] = v
			return b
		}
	case 22:
		types := s.next()
		return func(b []byte) []byte {
			for i := range f.VLANs {
				if 14+4*i < len(b) {
					binary.BigEndian.PutUint16(b[12+4*i:], []uint16{testenv.EtherTypeVLAN, testenv.EtherTypeQinQ, 0x9100}[types>>i%3])
				}
			}
			return b
		}
	case 23:
		return extend(s, f)
	}
	return nil
}

// extend puts extension headers of IPv6 before the transport header.
func extend(s *script, f *testenv.Frame) func([]byte) []byte {
	if !f.Dst.Addr().Is6() {
		return nil
	}
	for range 1 + s.pick(10) {
		kind := oneOf(s, uint8(0), 60, 43, 51, 135, testenv.ProtocolFragment, 60, 140)
		words := s.pick(4)
		if s.pick(16) == 15 {
			words = 20 + s.pick(40)
		}
		h := make([]byte, 8+8*words)
		h[1] = byte(words)
		switch kind {
		case 51:
			h = h[:8+4*words]
		case testenv.ProtocolFragment: // an atomic one, mostly
			h = h[:8]
			h[1] = 0
			if s.pick(4) == 3 {
				h[3] = byte(s.next())
			}
		}
		f.Extensions, f.NextHeaders = append(f.Extensions, h), append(f.NextHeaders, kind)
	}
	return nil
}
