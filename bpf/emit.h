/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The last stage: link-layer header and the way out. */
#ifndef SLUICE_EMIT_H
#define SLUICE_EMIT_H

#include "parse.h"

#define VLAN_PRIORITY bpf_htons(0xf000)

/* What a tagged frame leaves with. */
struct leaving {
	__u64 first; /* words of the next hop */
	__u64 second;
	__u32 want; /* tags of the way out */
	__u32 have; /* tags that the frame has */
	__be16 want_vlan[MAX_VLANS];
	__be16 have_vlan[MAX_VLANS];
	__be16 type; /* of the packet */
	__u16 pad[3];
};

/* Writes the tags that the way out wants in place of those that came in, and the MAC addresses. */
SUBPROGRAM int leave_tagged(struct xdp_md *ctx, struct leaving *l)
{
	struct vlan_header *tag;
	struct ethhdr *eth;
	__u32 want, have;
	void *data, *end;

	if (!l)
		return DROP_INTERNAL;
	want = l->want;
	have = l->have;
	if (want > MAX_VLANS || have > MAX_VLANS)
		return DROP_INTERNAL;
	if (want != have && bpf_xdp_adjust_head(ctx, 4 * ((int)have - (int)want)))
		return DROP_HEADROOM;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	eth = data;
	tag = (void *)(eth + 1);
	if ((void *)(tag + MAX_VLANS) > end)
		return DROP_INTERNAL;
	/* Spelt out: the verifier of Linux 6.1 loses the bounds of an index. */
	if (want != have && want == 2) {
		eth->h_proto = bpf_htons(ETH_P_8021AD);
		tag[0].type = bpf_htons(ETH_P_8021Q);
		tag[1].type = l->type;
	} else if (want != have && want == 1) {
		eth->h_proto = bpf_htons(ETH_P_8021Q);
		tag[0].type = l->type;
	} else if (want != have) {
		eth->h_proto = l->type;
	}
	/* Priority bits travel from tag to tag. */
	if (want)
		tag[0].tci = l->want_vlan[0] | (have ? l->have_vlan[0] & VLAN_PRIORITY : 0);
	if (want == 2)
		tag[1].tci = l->want_vlan[1] | (have == 2 ? l->have_vlan[1] & VLAN_PRIORITY : 0);
	*(__u64 *)data = l->first;
	*(__u32 *)(data + 8) = l->second;
	return SENT;
}

/* Sends the frame to the next hop; *action is the verdict then. Packet pointers are void afterwards. */
static __always_inline int emit(struct packet *p, struct next_hop *hop, int *action)
{
	/* The destination and the first two bytes of the source are one word, the rest
	 * of the source and the interface are the next. */
	__u64 first = *(volatile __u64 *)hop, second = *((volatile __u64 *)hop + 1);
	__u32 interface = second >> 32;
	int out;

	TRACE(interface, interface);
	if (!interface)
		return DROP_NO_NEXT_HOP;
	if (hop->vlans | p->vlans) {
		struct leaving l = {
			.first = first, .second = second, .want = hop->vlans, .have = p->vlans,
			.want_vlan = { hop->vlan[0], hop->vlan[1] }, .have_vlan = { p->vlan[0], p->vlan[1] },
			.type = p->v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP),
		};

		out = leave_tagged(p->ctx, &l);
		if (out != SENT)
			return out;
	} else {
		if (p->data + ETH_HLEN > p->end)
			return DROP_INTERNAL;
		*(__u64 *)p->data = first;
		*(__u32 *)(p->data + 8) = second;
	}
	*action = interface == p->interface ? XDP_TX : bpf_redirect(interface, 0);
	return SENT;
}

#endif
