/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Later fragments: they have no ports, and go where the first one of their packet
 * went, changed as it was. One that comes before the first is dropped, and
 * counted. They are rare, so this is a part of its own.
 */
#ifndef SLUICE_LATER_FRAGMENTS_H
#define SLUICE_LATER_FRAGMENTS_H

#include "nat.h"
#include "nodes.h"
#include "tunnel.h"

static __always_inline int follow_to_backend(struct packet *p, struct fragmented *first, int *action)
{
	__u32 number = first->pin.backend;
	struct backend *backend = backend_at(number);
	struct address client;
	int out;

	p->service = backend->service;
	p->hash = (__u64)first->pin.sequence << 32;
	if (first->way == FRAGMENTS_TO_BACKEND) {
		if (no_hop_left(p))
			return DROP_TTL;
		identify(p, first->id);
		readdress(p, first->source, first->dest);
	} else if (service_at(p->service)->forward == FORWARD_DNAT) {
		if (no_hop_left(p))
			return DROP_TTL;
		client = source_of(p);
		readdress(p, client.word, backend->address);
	} else if (service_at(p->service)->forward == FORWARD_PROXY) {
		out = towards_node(p, number);
		if (out == PASS_HERE)
			count_forward(p, number);
		if (out != NEXT)
			return out;
	}
	if (service_at(p->service)->forward == FORWARD_TUNNEL)
		out = tunnel_to(p, number, action);
	else
		out = emit(p, &backend->next_hop, action);
	if (out == SENT)
		count_forward(p, number);
	return out;
}

static __always_inline int follow_to_client(struct packet *p, struct fragmented *first, int *action)
{
	__u32 number = first->pin.backend;
	struct nat_flow *flow = nat_entry(first->flow >> 16, first->flow & 0xffff);
	struct next_hop hop = {};
	int out;

	/* The port may be another client's by now. */
	if (!flow || flow->state == NAT_FREE || !same_words(flow->client, first->dest))
		return DROP_EARLY_FRAGMENT;
	if (no_hop_left(p))
		return DROP_TTL;
	last_hop(flow, &hop);
	identify(p, first->id);
	readdress(p, first->source, first->dest);
	out = emit(p, &hop, action);
	if (out == SENT)
		count_reply(p, number);
	return out;
}

static __always_inline int follow_first(struct packet *p, int *action)
{
	struct fragment_key key;
	struct fragmented *first;

	/*
	 * It would overwrite the flags of the first one's header (RFC 1858, section 3). IPv6
	 * hosts take no fragments that overlap (RFC 5722).
	 */
	if (p->protocol == IPPROTO_TCP && (p->fragment & FRAGMENT_OFFSET) == bpf_htons(1))
		return DROP_FRAGMENT;
	if (!fragment_key(p, &key))
		return DROP_MALFORMED_IP;
	first = bpf_map_lookup_elem(&fragments, &key);
	/* It may be of ICMPv6, too. */
	if (!first || (int)(ticks() - first->pin.seen) > FRAGMENT_TICKS)
		return p->protocol == NOT_KNOWN ? PASS_PROTOCOL : DROP_EARLY_FRAGMENT;
	if (!first->pin.backend)
		return PASS_FRAGMENT;
	if (!pin_holds(&first->pin))
		return DROP_EARLY_FRAGMENT;
	return first->way == FRAGMENTS_TO_CLIENT ? follow_to_client(p, first, action) :
						   follow_to_backend(p, first, action);
}

/* What becomes of a later fragment to a VIP, of TCP or UDP: verdict << 8 | outcome. */
SUBPROGRAM int fragment_pipeline(struct xdp_md *ctx)
{
	int action = 0, out;
	struct packet p = {};

	p.ctx = ctx;
	p.data = (void *)(long)ctx->data;
	p.end = (void *)(long)ctx->data_end;
	p.interface = came_by(ctx);
	if (parse_ethernet(&p) || find_vip(&p))
		return PASS_FRAGMENT;
	find_transport(&p);
	out = check_ip(&p);
	if (out == PASS_FRAGMENT)
		out = follow_first(&p, &action);
	return action << 8 | out;
}

#endif
