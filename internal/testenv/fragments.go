package testenv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Fragments returns the frame's packet in fragments of at most size bytes, a
// multiple of 8, of what follows the IP headers. The checksum in the first one is
// that of the whole packet.
func (f Frame) Fragments(size int) [][]byte {
	l4 := f.l4()
	var all [][]byte
	for at := 0; at < len(l4); at += size {
		f.FragOffset, f.MoreFragments = uint16(at), at+size < len(l4)
		all = append(all, f.bytes(l4[at:min(at+size, len(l4))]))
	}
	return all
}

// A fragment is one of those that Reassemble puts together.
type fragment struct {
	Frame
	id      uint32
	content []byte
}

// Reassemble puts fragments together into the frame of the whole packet, which
// has the link layer of the first one, and returns their identification. It wants
// each once, in any order, and all of them of one packet.
func Reassemble(frames [][]byte) (whole []byte, id uint32, err error) {
	var all []fragment
	for _, b := range frames {
		f, err := parseFragment(b)
		if err != nil {
			return nil, 0, err
		}
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b fragment) int { return int(a.FragOffset) - int(b.FragOffset) })
	var l4 []byte
	for i, f := range all {
		first := all[0]
		switch {
		case f.id != first.id:
			return nil, 0, fmt.Errorf("reassemble: identifications %#x and %#x", first.id, f.id)
		case f.Src.Addr() != first.Src.Addr() || f.Dst.Addr() != first.Dst.Addr() || f.Protocol != first.Protocol:
			return nil, 0, fmt.Errorf("reassemble: one from %v to %v and one from %v to %v", first.Src, first.Dst, f.Src, f.Dst)
		case int(f.FragOffset) != len(l4):
			return nil, 0, fmt.Errorf("reassemble: %d bytes, then a fragment at %d", len(l4), f.FragOffset)
		case f.MoreFragments == (i == len(all)-1):
			return nil, 0, fmt.Errorf("reassemble: fragment %d of %d says more %v", i+1, len(all), f.MoreFragments)
		}
		l4 = append(l4, f.content...)
	}
	if len(all) == 0 {
		return nil, 0, errors.New("reassemble: nothing")
	}
	f := all[0].Frame
	f.MoreFragments, f.TotalLength, f.PadTo = false, 0, 0
	return f.bytes(l4), all[0].id, nil
}

func parseFragment(b []byte) (fragment, error) {
	f, err := ParseFrame(b)
	if err != nil {
		return fragment{}, err
	}
	ip := b[etherHeaderLen+len(f.VLANs)*vlanTagLen:]
	if f.EtherType == EtherTypeIPv4 {
		return fragment{f, uint32(f.ID), ip[int(f.IHL)*4 : f.TotalLength]}, nil
	}
	header := ipv6HeaderLen
	for _, e := range f.Extensions {
		header += len(e)
	}
	if len(ip) < header+fragmentHeaderLen {
		return fragment{}, errors.New("reassemble: no fragment header")
	}
	id := binary.BigEndian.Uint32(ip[header+4:])
	return fragment{f, id, ip[header+fragmentHeaderLen : f.TotalLength]}, nil
}
