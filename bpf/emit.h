/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The last stage: link-layer header and the way out. */
#ifndef SLUICE_EMIT_H
#define SLUICE_EMIT_H

#include "parse.h"

#define VLAN_PRIORITY bpf_htons(0xf000)

/*
 * Writes the tags that the way out wants in place of those that came in. All
 * packet pointers are void afterwards.
 */
static __always_inline int retag(struct packet *p, struct next_hop *hop)
{
	__u32 want = hop->vlans, have = p->vlans;
	__be16 type = p->v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
	struct vlan_header *tag;
	struct ethhdr *eth;

	if (want > MAX_VLANS || have > MAX_VLANS)
		return DROP_INTERNAL;
	if (want != have) {
		if (bpf_xdp_adjust_head(p->ctx, 4 * ((int)have - (int)want)))
			return DROP_HEADROOM;
		p->data = (void *)(long)p->ctx->data;
		p->end = (void *)(long)p->ctx->data_end;
	}
	eth = p->data;
	tag = (void *)(eth + 1);
	if ((void *)(tag + MAX_VLANS) > p->end)
		return DROP_INTERNAL;
	/* Spelt out: the verifier of Linux 6.1 loses the bounds of an index. */
	if (want != have && want == 2) {
		eth->h_proto = bpf_htons(ETH_P_8021AD);
		tag[0].type = bpf_htons(ETH_P_8021Q);
		tag[1].type = type;
	} else if (want != have && want == 1) {
		eth->h_proto = bpf_htons(ETH_P_8021Q);
		tag[0].type = type;
	} else if (want != have) {
		eth->h_proto = type;
	}
	/* Priority bits travel from tag to tag. */
	if (want)
		tag[0].tci = hop->vlan[0] | (have ? p->vlan[0] & VLAN_PRIORITY : 0);
	if (want == 2)
		tag[1].tci = hop->vlan[1] | (have == 2 ? p->vlan[1] & VLAN_PRIORITY : 0);
	return NEXT;
}

/* Sends the frame to the next hop; *action is the verdict then. */
static __always_inline int emit(struct packet *p, struct next_hop *hop, int *action)
{
	/* The destination and the first two bytes of the source are one word, the rest
	 * of the source and the interface are the next. */
	__u64 first = *(volatile __u64 *)hop, second = *((volatile __u64 *)hop + 1);
	__u32 interface = second >> 32;
	int out;

	if (!interface)
		return DROP_NO_NEXT_HOP;
	if (hop->vlans | p->vlans) {
		out = retag(p, hop);
		if (out != NEXT)
			return out;
	}
	if (p->data + ETH_HLEN > p->end)
		return DROP_INTERNAL;
	*(__u64 *)p->data = first;
	*(__u32 *)(p->data + 8) = second;
	*action = interface == p->interface ? XDP_TX : bpf_redirect(interface, 0);
	return SENT;
}

#endif
