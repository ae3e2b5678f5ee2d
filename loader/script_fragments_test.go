package loader

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// fragments sends a packet in two, in either order.
func (w *twin) fragments(s *script) error {
	f := w.toService(s)
	f.ID = oneOf(s, uint16(1), 2, 0xffff)
	first, later := f, f
	first.MoreFragments = true
	later.FragOffset, later.Payload = oneOf(s, uint16(8), 16, 24, 1400), zeros(s.next())
	later.MoreFragments = s.pick(2) == 1
	both := [][]byte{first.Bytes(), later.Bytes()}
	if s.pick(4) == 3 {
		slices.Reverse(both)
	}
	if s.pick(4) == 3 {
		both[1] = spoil(s, later)
	}
	if f.Dst.Addr().Is6() && s.pick(4) > 1 {
		more := later.MoreFragments
		later.MoreFragments, later.FragOffset, later.Protocol = false, 0, oneOf(s, uint8(60), 60, 60, 43, 0, testenv.ProtocolUDP, testenv.ProtocolICMPv6)
		both = [][]byte{with(f, headersInside(f.ID)).Bytes(), with(later, fragmentHeader(f.ID, 8*uint16(s.pick(8)), more)).Bytes()}
	}
	return w.feedAll(both...)
}

// fragmentHeader puts one before what follows, which is as it is described.
func fragmentHeader(id, offset uint16, more bool) change {
	h := []byte{0, 0, byte(offset >> 8), byte(offset), 0, 0, byte(id >> 8), byte(id)}
	if more {
		h[3] |= 1
	}
	return func(f *testenv.Frame) {
		f.Extensions, f.NextHeaders = [][]byte{h}, []uint8{testenv.ProtocolFragment}
	}
}

// headersInside makes the first fragment of a packet whose fragmented part begins
// with options.
func headersInside(id uint16) change {
	return func(f *testenv.Frame) {
		fragmentHeader(id, 0, true)(f)
		f.Extensions = append(f.Extensions, []byte{0, 0, 1, 4, 0, 0, 0, 0})
		f.NextHeaders = append(f.NextHeaders, testenv.ProtocolDestination)
	}
}

func (w *twin) feedAll(frames ...[]byte) error {
	for _, frame := range frames {
		if err := w.feed(frame); err != nil {
			return err
		}
	}
	return nil
}

// natFragments sends the fragments of a packet of a nat flow, of either side: in
// any order, some of them twice, and with time and changes between them.
func (w *twin) natFragments(s *script) error {
	flow, err := w.natFlow(s)
	if flow == nil || err != nil {
		return err
	}
	f := ofFlow(flow, s.pick(2) == 1)
	f.ID = uint16(1 + s.pick(3))
	f.Flags = oneOf(s, testenv.ACK, testenv.ACK, testenv.ACK|testenv.PSH, testenv.FIN|testenv.ACK, testenv.SYN|testenv.ACK)
	f.Payload = zeros(40 + s.pick(200))
	pieces := f.Fragments(24 + 8*s.pick(8))
	steps, next := 2+s.pick(6), 0
	for range steps {
		switch n := s.pick(16); {
		case n < 9:
			err = w.feed(pieces[next%len(pieces)])
			next++
		case n < 11:
			err = w.feed(pieces[s.pick(len(pieces))])
		case n == 11:
			f.FragOffset, f.MoreFragments = uint16(8*s.pick(16)), s.pick(2) == 1
			err = w.feed(spoil(s, f))
		case n == 12:
			err = w.age(oneOf(s, time.Second, 10*time.Second, 40*time.Second))
		case n == 13:
			err = w.changeBackend(s)
		case n == 14:
			err = w.setBackend(flow.number, func(e *backendEntry) { e.Generation += 1000 })
		case n == 15:
			err = w.endAndOpen(flow)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// natFlow returns a nat flow, a new one if there is none, or nil.
func (w *twin) natFlow(s *script) (*translated, error) {
	if flow := w.pickFlow(s); flow != nil && s.pick(4) > 0 {
		return flow, nil
	}
	f := w.toService(s)
	f.Dst = netip.AddrPortFrom(f.Dst.Addr(), oneOf(s, uint16(portNAT), portSpread, portPorts))
	var err error
	if f.Protocol == testenv.ProtocolTCP {
		err = w.open(f)
	} else {
		err = w.feed(f.Bytes())
	}
	return w.m.flows[flowName{f.Src, f.Dst, lb.Protocol(f.Protocol)}], err
}

// ofFlow is a packet of one side of a nat flow.
func ofFlow(flow *translated, backend bool) testenv.Frame {
	f := toVIP()
	f.Src, f.Dst, f.Protocol = flow.name.client, flow.name.vip, uint8(flow.name.protocol)
	f.Seq, f.Ack = clientISN+1, backendISN+1
	if backend {
		f.SrcMAC, f.Src, f.Dst = hardware(backendMAC(1)), flow.backend, flow.source
		f.Seq, f.Ack = f.Ack, f.Seq
	}
	return f
}

// endAndOpen ends a connection from both sides, and opens it again.
func (w *twin) endAndOpen(flow *translated) error {
	there, back := ofFlow(flow, false), ofFlow(flow, true)
	there.Flags, back.Flags = testenv.FIN|testenv.ACK, testenv.FIN|testenv.ACK
	return errors.Join(w.feedAll(there.Bytes(), back.Bytes()), w.open(there))
}
