/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Whose a VIP is: its instance of VRRP, and whether this node may speak for it. */
#ifndef SLUICE_OWNER_H
#define SLUICE_OWNER_H

#include "packet.h"

#define VLAN_IDENTIFIER bpf_htons(0x0fff)

/* The instance that has a VIP, where the packet came in. A tag that holds a priority alone is none, as to the kernel. */
static __always_inline struct fence *fence_of(struct packet *p, __u64 high, __u64 low)
{
	struct fence_key key = { .address = { high, low }, .interface = p->interface };
	__be16 outer = p->vlans ? p->vlan[0] & VLAN_IDENTIFIER : 0;
	__be16 inner = p->vlans > 1 ? p->vlan[1] & VLAN_IDENTIFIER : 0;
	__u32 *number, place;
	struct fence *f;

	key.vlan[0] = outer ? outer : inner;
	key.vlan[1] = outer ? inner : 0;
	number = bpf_map_lookup_elem(&fence_addresses, &key);
	if (!number)
		return NULL;
	place = *number;
	f = bpf_map_lookup_elem(&fences, &place);
	/* An IPv4 address that is written as one of IPv6 is nobody's there. */
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

#endif
