/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * NAT that keeps the client's address (DNAT). No flow has an entry: a packet of a
 * client goes where its slot says, as in dsr, and what a backend sends back says by
 * its source whose it is. The kernel's routes lead it on to the client.
 */
#ifndef SLUICE_DNAT_H
#define SLUICE_DNAT_H

#include "emit.h"
#include "facts.h"
#include "fragments.h"
#include "nat.h"
#include "routes.h"
#include "too_big.h"

/* A packet of a client to a service, whose backend has been found. */
SUBPROGRAM int dnat_pipeline(struct xdp_md *ctx, struct facts *f)
{
	struct address client;
	struct backend *backend;
	int action = 0, out;
	struct packet p = {};

	if (!f)
		return DROP_INTERNAL;
	backend = backend_at(f->backend);
	if (!take_facts(&p, ctx, f))
		return DROP_INTERNAL;
	if (no_hop_left(&p))
		return DROP_TTL;
	learn_client(&p, backend->next_hop.interface);
	client = source_of(&p);
	rewrite(&p, client.word, backend->address, p.port[0],
		service_at(p.service)->flags & SERVICE_KEEPS_PORT ? p.port[1] : backend->port);
	out = emit(&p, &backend->next_hop, &action);
	if (out == SENT)
		count_forward(&p, f->backend);
	return action << 8 | out;
}

/* The place of an entry of replies, plus 1; 0: there is none. */
static __always_inline __u32 find_place(struct address *a, __be16 port, __u32 protocol)
{
	__u32 hash = ((a->word[1] ^ a->word[0] * 0xff51afd7ed558ccdULL) + port + ((__u64)protocol << 16)) *
		     GOLDEN >> (64 - REPLY_BITS);

	for (int i = 0; i < PROBES; i++) {
		__u32 place = (hash + i) & (MAX_REPLIES - 1);
		struct reply *r = bpf_map_lookup_elem(&replies, &place);

		if (!r || r->state == ENTRY_EMPTY)
			break;
		if (r->address[1] == a->word[1] && r->address[0] == a->word[0] && r->port == port &&
		    r->protocol == protocol && r->state == ENTRY_USED)
			return place + 1;
	}
	return 0;
}

/*
 * By what a packet of this address and port is a reply, as find_place. An entry for
 * any port is one for those of its service: other connections are the backend's own.
 */
SUBPROGRAM __u32 find_reply(struct address *a, __u32 port, __u32 protocol)
{
	struct reply *r;
	__u32 place, key;

	if (!a)
		return 0;
	place = find_place(a, port, protocol);
	if (place)
		return place;
	place = find_place(a, 0, protocol);
	if (!place)
		return 0;
	key = place - 1;
	r = bpf_map_lookup_elem(&replies, &key);
	if (!r || service_of(vip_at(r->vip), protocol == IPPROTO_UDP, port) != backend_at(r->backend)->service)
		return 0;
	return place;
}

static __always_inline struct address destination_of(struct packet *p)
{
	struct address a = {};

	if (p->v6) {
		if ((void *)(p->ip6 + 1) > p->end) /* never: for Linux 6.1 */
			return a;
		a.word[0] = half(&p->ip6->daddr, 0);
		a.word[1] = half(&p->ip6->daddr, 1);
	} else {
		a.word[1] = mapped(p->ip->daddr);
	}
	return a;
}

static __always_inline bool reply_fragment_key(struct packet *p, struct reply_fragment_key *key)
{
	struct address source = source_of(p), destination = destination_of(p);

	key->source[0] = source.word[0];
	key->source[1] = source.word[1];
	key->destination[0] = destination.word[0];
	key->destination[1] = destination.word[1];
	key->protocol = p->v6 ? 0 : p->protocol;
	key->v6 = p->v6;
	return fragment_id(p, &key->id);
}

/* What a later fragment is a reply by: that of the first one; as find_place. */
static __always_inline __u32 follow_reply(struct packet *p)
{
	struct reply_fragment_key key = {};
	struct reply_fragment *first;

	if (!reply_fragment_key(p, &key))
		return 0;
	first = bpf_map_lookup_elem(&reply_fragments, &key);
	if (!first || (int)(ticks() - first->seen) > FRAGMENT_TICKS)
		return 0;
	return first->place + 1;
}

static __always_inline void remember_reply(struct packet *p, __u32 place)
{
	struct reply_fragment first = { .place = place, .seen = ticks() };
	struct reply_fragment_key key = {};

	if (!dry && reply_fragment_key(p, &key))
		bpf_map_update_elem(&reply_fragments, &key, &first, BPF_ANY);
}

/* Sends a reply on to its client, as the VIP's, by what it was found by. */
static __always_inline int reply_to_client(struct packet *p, __u32 place, struct course *c, int *action)
{
	struct reply *r = bpf_map_lookup_elem(&replies, &place);
	bool later = p->fragment & FRAGMENT_OFFSET;
	__u32 number;
	struct vip *vip;
	int out;

	if (!r)
		return DROP_INTERNAL;
	vip = vip_at(r->vip);
	number = r->backend;
	if (r->state != ENTRY_USED || vip->state != ENTRY_USED)
		return PASS_NOT_VIP;
	c->source.word[0] = vip->address[0];
	c->source.word[1] = vip->address[1];
	c->client = destination_of(p);
	if (!later) {
		/* The verifier does not know any more that it is there. */
		if (p->l4 + sizeof(*p->udp) > p->end)
			return DROP_INTERNAL;
		c->port[0] = r->vip_port ? r->vip_port : p->port[0];
		c->port[1] = p->port[1];
	}
	c->interface = p->interface;
	c->length = p->length;
	describe(p, c);
	/* Wherever it goes: the later ones have the same way. */
	if (p->fragment && !later)
		remember_reply(p, place);
	out = find_course(p->ctx, c);
	if (out == DROP_TOO_BIG) {
		COUNT_LOSS(backend_at(number)->service, too_big);
		if (!p->v6 && !(p->ip->frag_off & bpf_htons(0x4000)))
			return DROP_TOO_BIG;
		*action = XDP_TX;
		return answer_too_big(p, c->mtu);
	}
	if (out)
		return out;
	if (no_hop_left(p))
		return DROP_TTL;
	if (later)
		readdress(p, c->source.word, c->client.word);
	else if (p->l4 + sizeof(*p->udp) <= p->end)
		rewrite(p, c->source.word, c->client.word, c->port[0], c->port[1]);
	out = emit(p, &c->hop, action);
	if (out == SENT)
		count_reply(p, number);
	return out;
}

/*
 * A packet to no VIP: a reply of a backend, perhaps. What is none, and what is for
 * this node itself, as the answer to a probe is, passes as it came.
 */
SUBPROGRAM int dnat_reply(struct xdp_md *ctx)
{
	int action = 0, out;
	struct course c = {};
	struct packet p = {};
	__u32 place;

	p.ctx = ctx;
	p.data = (void *)(long)ctx->data;
	p.end = (void *)(long)ctx->data_end;
	p.interface = came_by(ctx);
	if (parse_ethernet(&p) || check_mac(&p))
		return PASS_NOT_VIP;
	find_transport(&p);
	if (p.protocol == (p.v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP))
		return TO_DNAT_ERROR;
	if (!may_have_ports(&p))
		return PASS_NOT_VIP;
	if (p.fragment & FRAGMENT_OFFSET) {
		place = follow_reply(&p);
	} else {
		if (p.l4 + sizeof(*p.udp) > p.end)
			return PASS_NOT_VIP;
		c.source = source_of(&p); /* until it is the VIP */
		if (p.v6 && is_mapped(c.source.word[0], c.source.word[1]))
			return PASS_NOT_VIP;
		place = find_reply(&c.source, p.port[0], p.protocol);
	}
	if (!place)
		return PASS_NOT_VIP;
	out = check_ip(&p);
	if (!out)
		out = p.protocol == IPPROTO_UDP ? parse_udp(&p) : parse_tcp(&p);
	if (out && out != PASS_FRAGMENT)
		return out;
	out = reply_to_client(&p, place - 1, &c, &action);
	return action << 8 | out;
}

#endif
