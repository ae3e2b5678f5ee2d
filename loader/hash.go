package loader

import (
	"encoding/binary"
	"net/netip"

	"github.com/sluice-lb/sluice/internal/lb"
)

// mapped returns a the way bpf/types.h holds addresses: as IPv6, IPv4 as
// ::ffff:a.b.c.d, in two words whose bytes stand in network order.
func mapped(a netip.Addr) [2]uint64 {
	b := a.As16()
	return [2]uint64{binary.LittleEndian.Uint64(b[:8]), binary.LittleEndian.Uint64(b[8:])}
}

// unmapped is the reverse of mapped.
func unmapped(w [2]uint64) netip.Addr {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:8], w[0])
	binary.LittleEndian.PutUint64(b[8:], w[1])
	return netip.AddrFrom16(b).Unmap()
}

// bigEndian16 returns the value that holds port's bytes in network order.
func bigEndian16(port uint16) uint16 { return port<<8 | port>>8 }

// golden is GOLDEN of bpf/packet.h.
const golden = 0x9e3779b97f4a7c15

// FlowHash is the hash of a flow from client to VIP, as the XDP program
// computes it (flow_hash in bpf/balance.h). Every node computes the same. Both
// addresses are of one family.
func FlowHash(client, vip netip.AddrPort, protocol lb.Protocol) uint64 {
	rest := uint64(bigEndian16(client.Port()))<<32 | uint64(bigEndian16(vip.Port()))<<16 | uint64(protocol)
	if client.Addr().Is4() {
		c, v := client.Addr().As4(), vip.Addr().As4()
		return hashWords(uint64(binary.LittleEndian.Uint32(c[:]))<<32|uint64(binary.LittleEndian.Uint32(v[:])), rest)
	}
	v := mapped(vip.Addr())
	return hashWords(foldAddress(client.Addr()), rest+v[1]*golden+v[0]*0xff51afd7ed558ccd)
}

// SourceHash is what a service with lb.SourceHash has in place of FlowHash.
func SourceHash(client netip.Addr) uint64 {
	if client.Is4() {
		c := client.As4()
		return hashWords(uint64(binary.LittleEndian.Uint32(c[:]))<<32, 0)
	}
	return hashWords(foldAddress(client), 0)
}

func foldAddress(a netip.Addr) uint64 {
	w := mapped(a)
	return mix(w[1]+golden) + w[0]
}

func hashWords(addresses, rest uint64) uint64 {
	h := (addresses ^ addresses>>29) * golden
	h ^= (rest ^ rest>>32) * 0xff51afd7ed558ccd
	h ^= h >> 32
	return h * 0xc4ceb9fe1a85ec53
}

// mix is mix of bpf/packet.h.
func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// Slot is the slot of a table with size slots that a flow with this hash falls
// into.
func Slot(hash uint64, size uint32) uint32 {
	return uint32((hash >> 32) * uint64(size) >> 32)
}

// vipHash is where find_vip of bpf/parse.h begins to look for an address.
func vipHash(a netip.Addr) uint32 {
	w := mapped(a)
	if a.Is4() {
		w[0] = 0
	}
	return uint32((w[1] ^ w[0]*0xff51afd7ed558ccd) * golden >> (64 - lbLimitsVIP_BITS))
}

// pairHash is where find_pair of bpf/nat.h begins to look for a pair.
func pairHash(backend netip.AddrPort, vip uint32, protocol lb.Protocol) uint32 {
	w := mapped(backend.Addr())
	if backend.Addr().Is4() {
		w[0] = 0
	}
	h := w[1] ^ w[0]*0xff51afd7ed558ccd
	h += uint64(bigEndian16(backend.Port())) + uint64(vip)<<16 + uint64(protocol)
	return uint32(h * golden >> (64 - lbLimitsPAIR_KEY_BITS))
}

// replyHash is where find_place of bpf/dnat.h begins to look for a reply.
func replyHash(id replyID) uint32 {
	w := mapped(id.Address)
	h := w[1] ^ w[0]*0xff51afd7ed558ccd
	h += uint64(bigEndian16(id.Port)) + uint64(id.Protocol)<<16
	return uint32(h * golden >> (64 - lbLimitsREPLY_BITS))
}
