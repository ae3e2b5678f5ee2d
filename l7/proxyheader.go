package l7

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// proxySignature begins a header of version 2.
const proxySignature = "\r\n\r\n\x00\r\nQUIT\n"

// proxyHeader is the PROXY protocol's header, of version 1 or 2, about a client and the
// address that it has connected to. Addresses of two families, as a trusted proxy's word
// may make them, are both of IPv6 there, the other one mapped into it: the protocol has
// one family for both. Where an address is not known nothing is said of either.
func proxyHeader(version int, source, destination netip.AddrPort) []byte {
	known := source.IsValid() && destination.IsValid()
	four := source.Addr().Is4() && destination.Addr().Is4()
	if version == 1 {
		switch {
		case !known:
			return []byte("PROXY UNKNOWN\r\n")
		case four:
			return fmt.Appendf(nil, "PROXY TCP4 %v %v %d %d\r\n", source.Addr(), destination.Addr(), source.Port(), destination.Port())
		}
		return fmt.Appendf(nil, "PROXY TCP6 %v %v %d %d\r\n", mapped(source.Addr()), mapped(destination.Addr()), source.Port(), destination.Port())
	}
	const local, proxy, overIPv4, overIPv6 = 0x20, 0x21, 0x11, 0x21 // of TCP
	h := []byte(proxySignature)
	if !known {
		return append(h, local, 0, 0, 0)
	}
	var addresses []byte
	family := byte(overIPv6)
	if four {
		family = overIPv4
		addresses = append(source.Addr().AsSlice(), destination.Addr().AsSlice()...)
	} else {
		addresses = append(mapped(source.Addr()).AsSlice(), mapped(destination.Addr()).AsSlice()...)
	}
	addresses = binary.BigEndian.AppendUint16(addresses, source.Port())
	addresses = binary.BigEndian.AppendUint16(addresses, destination.Port())
	h = append(h, proxy, family)
	return append(binary.BigEndian.AppendUint16(h, uint16(len(addresses))), addresses...)
}

// mapped is an address as one of IPv6.
func mapped(a netip.Addr) netip.Addr { return netip.AddrFrom16(a.WithZone("").As16()) }
