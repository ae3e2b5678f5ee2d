/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Whose a VIP is: its instance of VRRP, and whether this node may speak for it. */
#ifndef SLUICE_OWNER_H
#define SLUICE_OWNER_H

#include "packet.h"

#define VLAN_IDENTIFIER bpf_htons(0x0fff)

/* MAC addresses of virtual routers begin so: 00:00:5e:00 (RFC 9568, section 7.3). */
#define VIRTUAL_PREFIX bpf_htonl(0x00005e00)

/* The VLANs that a frame is in, the outer one first. A tag that holds a priority alone is none, as to the kernel. */
static __always_inline __u32 vlans_of(struct packet *p)
{
	__be16 outer = p->vlans ? p->vlan[0] & VLAN_IDENTIFIER : 0;
	__be16 inner = p->vlans > 1 ? p->vlan[1] & VLAN_IDENTIFIER : 0;

	return outer ? outer | (__u32)inner << 16 : inner;
}

/* The instance that has an address, or a virtual MAC address, on a NIC. */
static __always_inline struct fence *fence_at(__u32 interface, __u32 vlans, __u64 high, __u64 low)
{
	struct fence_key key = { .address = { high, low }, .interface = interface };
	__u32 *number, place;

	key.vlan[0] = vlans;
	key.vlan[1] = vlans >> 16;
	number = bpf_map_lookup_elem(&fence_addresses, &key);
	if (!number)
		return NULL;
	place = *number;
	return bpf_map_lookup_elem(&fences, &place);
}

/* The instance that has a VIP, where the packet came in. An IPv4 address written as one of IPv6 is nobody's. */
static __always_inline struct fence *fence_of(struct packet *p, __u64 high, __u64 low)
{
	struct fence *f = fence_at(p->interface, vlans_of(p), high, low);

	return f && f->v6 == p->v6 ? f : NULL;
}

/* Whether this node is not to be asked for the VIP; claims: the packet in hand says that another one has it. */
static __always_inline bool is_fenced(struct fence *f, bool claims)
{
	__u64 beat = *(volatile __u64 *)&f->beat;

	if (!f->held || (!claims && f->heard <= beat && f->claimed <= beat))
		return false;
	return (__s64)(bpf_ktime_get_ns() - beat) > (__s64)f->patience;
}

/* The MAC address of an instance's virtual router: 00:00:5e:00:01:VRID, of IPv6 00:00:5e:00:02:VRID. */
static __always_inline __u64 virtual_mac(struct fence *f)
{
	return VIRTUAL_PREFIX | (f->v6 ? 2ULL : 1ULL) << 32 | (__u64)f->vrid << 40;
}

/* Whether this node is who has the virtual MAC address. */
SUBPROGRAM int has_virtual_mac(__u32 interface, __u32 vlans, __u64 mac)
{
	struct fence *f = fence_at(interface, vlans, ~0ULL, mac);

	return f && f->held && f->flags & FENCE_VIRTUAL && !is_fenced(f, false);
}

/*
 * Whether a frame is to a virtual MAC address of this node's. All nodes of a virtual
 * router know it; only who has the VIPs may take what comes to it.
 */
static __always_inline bool to_virtual_mac(struct packet *p)
{
	return tables.virtual_macs && *(__u32 *)p->data == VIRTUAL_PREFIX &&
	       has_virtual_mac(p->interface, vlans_of(p), mac_word(p->data));
}

#endif
