/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Health probes through a VIP, on their way back. The backend answers from the VIP
 * to this node's own address. On the node that holds the VIP the stack would take
 * that for forged; so the source becomes the address that was dialled, and the
 * stack delivers it to the socket. probe.h is the way out.
 */
#ifndef SLUICE_PROBE_REPLY_H
#define SLUICE_PROBE_REPLY_H

#include "nat.h"

/* Whether an address is a VIP's. */
static __always_inline bool is_vip(struct address *a)
{
	__u32 hash = vip_hash(a->word[0], a->word[1]);

	for (int i = 0; i < PROBES; i++) {
		struct vip *vip = vip_at(hash + i);

		if (vip->state == ENTRY_EMPTY)
			break;
		if (vip->address[1] == a->word[1] && vip->address[0] == a->word[0] && vip->state == ENTRY_USED)
			return true;
	}
	return false;
}

/* Writes another source address, and the checksums (RFC 1624, eqn. 3). */
static __always_inline void write_source(struct packet *p, struct probe_address *source)
{
	__u64 sum;

	if (p->v6) {
		/* Linux 6.1 does not know any more that it is there. */
		if ((void *)(p->ip6 + 1) > p->end)
			return;
		sum = unsum6(&p->ip6->saddr);
		store6(&p->ip6->saddr, source->word);
		sum += sum6(&p->ip6->saddr);
	} else {
		__be32 saddr = source->word[1] >> 32;

		sum = (__u64)(__u32)~p->ip->saddr + saddr;
		p->ip->check = fold((__u16)~p->ip->check + sum);
		p->ip->saddr = saddr;
	}
	if ((void *)(p->tcp + 1) > p->end) /* for Linux 6.1, too */
		return;
	p->tcp->check = fold((__u16)~p->tcp->check + sum);
}

/* Whether a packet to no service answers a probe. Then it goes to the stack, from the address that was dialled. */
SUBPROGRAM int answers_probe(struct xdp_md *ctx)
{
	struct probe_address *dialled;
	struct probe_flow flow = {};
	struct packet p = {};
	struct address source;

	p.ctx = ctx;
	p.data = (void *)(long)ctx->data;
	p.end = (void *)(long)ctx->data_end;
	p.interface = came_by(ctx);
	if (parse_ethernet(&p))
		return 0;
	source = source_of(&p);
	/* All but few packets end here. */
	if (!is_vip(&source))
		return 0;
	find_transport(&p);
	if (check_mac(&p) || check_ip(&p) || p.protocol != IPPROTO_TCP || p.fragment)
		return 0;
	if ((void *)(p.tcp + 1) > p.end || p.l3 + sizeof(struct iphdr) > p.end)
		return 0;
	if (p.v6) {
		if ((void *)(p.ip6 + 1) > p.end)
			return 0;
		flow.node[0] = half(&p.ip6->daddr, 0);
		flow.node[1] = half(&p.ip6->daddr, 1);
	} else {
		flow.node[1] = mapped(p.ip->daddr);
	}
	flow.vip[0] = source.word[0];
	flow.vip[1] = source.word[1];
	flow.node_port = p.tcp->dest;
	flow.vip_port = p.tcp->source;
	dialled = bpf_map_lookup_elem(&probe_notes, &flow);
	if (!dialled)
		return 0;
	write_source(&p, dialled);
	return 1;
}

#endif
