// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"
)

// A Packet is an IP packet of protocol 112, as a Transport receives it.
type Packet struct {
	Source      netip.Addr
	Destination netip.Addr
	TTL         uint8
	Payload     []byte // the VRRP message; valid as long as the buffer it was read into
}

const ttl = 255

// A Filter decides which received packets are advertisements of one virtual
// router (RFC 3768, 7.1; RFC 9568, 7.1).
type Filter struct {
	Version  Version
	VRID     uint8
	Interval time.Duration // v2 only: every node has the same
	Password string        // v2 only; "" is no authentication
	VIPs     []netip.Addr
	Local    netip.Addr // this node's source address, may be invalid
	// Peers are all who may send, where advertisements are unicast. Empty:
	// multicast, anybody on the segment.
	Peers []netip.Addr
}

// Accept decodes p into a. Its error is a Reason; what was decoded until then
// is in a. It does not allocate, except when a.Addresses has to grow.
//
// The address list comes last, so that a is whole where only that differs.
func (f *Filter) Accept(p Packet, a *Advertisement) error {
	*a = Advertisement{Addresses: a.Addresses[:0]}
	// That a packet was not routed shows that it is from the segment. Unicast
	// peers may be anywhere, and are known by their addresses.
	switch {
	case len(f.Peers) == 0 && p.TTL != ttl:
		return ReasonTTL
	case len(f.Peers) > 0 && !slices.Contains(f.Peers, p.Source):
		return ReasonPeer
	}
	if len(p.Payload) < headerLen {
		return ReasonLength
	}
	// The VRID before all else: what another virtual router on the segment
	// sends, in whatever version, is not this one's mistake.
	if p.Payload[1] != f.VRID {
		a.VRID = p.Payload[1]
		return ReasonVRID
	}
	if v := Version(p.Payload[0] >> 4); v != f.Version {
		a.Version, a.VRID = v, f.VRID
		return ReasonVersion
	}
	if _, err := a.Decode(p.Payload, p.Source, p.Destination); err != nil {
		return err
	}
	if p.Source == f.Local {
		return ReasonOwnSource
	}
	switch f.Version {
	case V2:
		authType, auth := authData(f.Password)
		if a.AuthType != authType {
			return ReasonAuthType
		}
		// With no authentication the data is ignored (RFC 3768, 5.3.10).
		if authType == authPassword && a.Auth != auth {
			return ReasonPassword
		}
		if a.Interval != f.Interval {
			return ReasonInterval
		}
	case V3:
		if a.Interval == 0 {
			return ReasonInterval
		}
	}
	if !a.SameAddresses(f.VIPs) {
		return ReasonAddresses
	}
	return nil
}

// authData is v2's authentication type and data for a password.
func authData(password string) (uint8, [authLen]byte) {
	var data [authLen]byte
	if password == "" {
		return authNone, data
	}
	copy(data[:], password)
	return authPassword, data
}

// parseIPv4 reads an IPv4 packet, header first. Bytes behind the total length
// are padding and ignored.
func parseIPv4(b []byte) (Packet, error) {
	if len(b) < 20 || b[0]>>4 != 4 {
		return Packet{}, ReasonHeader
	}
	header, total := int(b[0]&0xf)*4, int(binary.BigEndian.Uint16(b[2:4]))
	if header < 20 || total < header || total > len(b) || b[9] != Protocol {
		return Packet{}, ReasonHeader
	}
	return Packet{
		Source:      netip.AddrFrom4([4]byte(b[12:16])),
		Destination: netip.AddrFrom4([4]byte(b[16:20])),
		TTL:         b[8],
		Payload:     b[header:total],
	}, nil
}
