/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * ICMP errors about packets of a flow (RFC 792, RFC 4443) go to the backend that
 * owns it, or to the client: what they quote says which. An error changes
 * nothing that is known of a flow. All of this is rare, so it has a program part
 * of its own.
 */
#ifndef SLUICE_ICMP_H
#define SLUICE_ICMP_H

#include "facts.h"
#include "nat.h"
#include "nodes.h"
#include "pins.h"
#include "tunnel.h"

/* What an error quotes, at least: IP header and 8 bytes (RFC 792). */
#define QUOTED_L4 8

/* A TCP header's checksum may be quoted, too; it is 16 bytes into it. */
#define QUOTED_CHECKSUM 18

static __always_inline bool is_error(struct packet *p, __u8 type)
{
	if (p->v6)
		return type >= 1 && type <= 4;
	return type == 3 || type == 11 || type == 12;
}

/* The packet that an error quotes. It went from the VIP or a source address. */
struct quoted {
	void *l3;
	void *l4;
	__be16 *port;
	__u32 protocol;
	struct address source;
	struct address dest;
};

/* Whether the packet in hand goes on to here: what may follow it in the frame is padding. */
static __always_inline bool within_packet(struct packet *p, void *here)
{
	return (__u64)(here - p->l3) <= p->length;
}

/* Reads what is quoted; false: it is cut too short, or of no flow of ours. */
static __always_inline bool read_quote(struct packet *p, struct quoted *q)
{
	void *end = p->end;

	q->l3 = p->l4 + sizeof(struct icmp_error);
	if (p->v6) {
		struct ipv6hdr *ip = q->l3;

		if ((void *)(ip + 1) > end || ip->version != 6)
			return false;
		q->protocol = ip->nexthdr;
		q->l4 = ip + 1;
		q->source.word[0] = half(&ip->saddr, 0);
		q->source.word[1] = half(&ip->saddr, 1);
		q->dest.word[0] = half(&ip->daddr, 0);
		q->dest.word[1] = half(&ip->daddr, 1);
	} else {
		struct iphdr *ip = q->l3;

		if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5 ||
		    (ip->frag_off & FRAGMENT_OFFSET))
			return false;
		q->protocol = ip->protocol;
		q->l4 = q->l3 + (ip->ihl * 4 & 60);
		q->source.word[1] = mapped(ip->saddr);
		q->dest.word[1] = mapped(ip->daddr);
	}
	if (q->protocol != IPPROTO_TCP && q->protocol != IPPROTO_UDP)
		return false;
	q->port = q->l4;
	return q->l4 + QUOTED_L4 <= end && within_packet(p, q->l4 + QUOTED_L4);
}

/* The number of the backend that a client's flow goes to in a stateless mode. */
static __always_inline __u32 owner_of_quote(struct packet *p, struct quoted *q, struct service *service)
{
	bool both = !(service->flags & SERVICE_SOURCE_HASH);
	__u64 rest = both ? (__u64)q->port[1] << 32 | (__u32)q->port[0] << 16 | q->protocol : 0;
	struct flow f = {};
	__u64 addresses;
	struct pin *pin;

	/* The client sends to where the quoted packet came from. */
	if (p->v6) {
		addresses = fold_address(q->dest.word[0], q->dest.word[1]);
		if (both)
			rest += fold_vip(q->source.word[0], q->source.word[1]);
	} else {
		addresses = q->dest.word[1] >> 32 << 32;
		if (both)
			addresses |= q->source.word[1] >> 32;
	}
	p->hash = hash_words(addresses, rest);
	p->slot = slot_word(service, p->hash);
	f.key.client[0] = q->dest.word[0];
	f.key.client[1] = q->dest.word[1];
	f.key.vip = p->vip_index;
	f.key.client_port = q->port[1];
	f.key.vip_port = q->port[0];
	f.key.protocol = q->protocol;
	if (service->flags & SERVICE_UDP_FLOWS) {
		pin = bpf_map_lookup_elem(&udp_flows, &f.key);
		if (!pin || !udp_holds(pin))
			pin = bpf_map_lookup_elem(&udp_new, &f.key);
		return pin && udp_holds(pin) ? pin->backend : slot_owner(p->slot);
	}
	if (!(p->slot >> SLOT_PREVIOUS_SHIFT) || q->protocol != IPPROTO_TCP)
		return slot_owner(p->slot);
	pin = bpf_map_lookup_elem(&pins, &f.key);
	if (!pin || !pin_holds(pin))
		pin = bpf_map_lookup_elem(&stragglers, &f.key);
	if (!pin || !pin_holds(pin))
		pin = bpf_map_lookup_elem(&handshakes, &f.key);
	if (pin && pin_holds(pin))
		return pin->backend;
	return slot_owner(p->slot >> SLOT_PREVIOUS_SHIFT) ?: slot_owner(p->slot);
}

/* Adds to a sum what a change of 16-bit words does to a checksum over both. */
#define CHANGED(sum, old, new) ((sum) += (__u64)(__u16)~(old) + (new))

/*
 * Writes other ends into what is quoted, and the same into the error's own
 * header. The ICMP checksum covers all that changes in the quote.
 */
static __always_inline int translate(struct packet *p, struct quoted *q, struct address *outer_source,
				     struct address *outer_dest, struct address *source, __be16 source_port,
				     struct address *dest, __be16 dest_port)
{
	struct icmp_error *icmp = p->l4;
	__u64 inner = 0, sum = 0;
	__u16 *check;

	if (no_hop_left(p))
		return DROP_TTL;
	if (p->v6) {
		struct ipv6hdr *in = q->l3, *out = p->ip6;

		/* Linux 6.1 does not know any more that all of this has been looked at. */
		if ((void *)(in + 1) > p->end || (void *)(out + 1) > p->end)
			return DROP_INTERNAL;
		inner = unsum6(&in->saddr) + unsum6(&in->daddr);
		store6(&in->saddr, source->word);
		store6(&in->daddr, dest->word);
		inner += sum6(&in->saddr) + sum6(&in->daddr);
		sum = inner + unsum6(&out->saddr) + unsum6(&out->daddr);
		store6(&out->saddr, outer_source->word);
		store6(&out->daddr, outer_dest->word);
		sum += sum6(&out->saddr) + sum6(&out->daddr);
		out->hop_limit--;
	} else {
		struct iphdr *in = q->l3, *out = p->ip;
		__be32 s = source->word[1] >> 32, d = dest->word[1] >> 32;
		__u16 old = in->check;
		__u64 delta;

		inner = (__u64)(__u32)~in->saddr + (__u32)~in->daddr + s + d;
		in->check = fold((__u16)~in->check + inner);
		in->saddr = s;
		in->daddr = d;
		sum = inner;
		CHANGED(sum, old, in->check);
		s = outer_source->word[1] >> 32;
		d = outer_dest->word[1] >> 32;
		delta = (__u64)(__u32)~out->saddr + (__u32)~out->daddr + s + d;
		out->check = fold((__u16)~out->check + delta + 0xfffe);
		out->ttl--;
		out->saddr = s;
		out->daddr = d;
	}
	CHANGED(inner, q->port[0], source_port);
	CHANGED(sum, q->port[0], source_port);
	CHANGED(inner, q->port[1], dest_port);
	CHANGED(sum, q->port[1], dest_port);
	q->port[0] = source_port;
	q->port[1] = dest_port;
	/* The quoted transport checksum, as far as it is there. */
	check = q->protocol == IPPROTO_UDP ? q->l4 + 6 : q->l4 + 16;
	if ((void *)(check + 1) <= p->end && within_packet(p, check + 1) &&
	    (q->protocol == IPPROTO_TCP || *check)) {
		__u16 old = *check;

		*check = fold((__u16)~old + inner);
		/* 0 would say that there is none (RFC 768). */
		if (!*check && q->protocol == IPPROTO_UDP)
			*check = 0xffff;
		CHANGED(sum, old, *check);
	}
	icmp->checksum = fold((__u16)~icmp->checksum + sum);
	return NEXT;
}

/* An error about what a nat backend sent, from the client's side: on to the backend. */
static __always_inline int error_to_backend(struct packet *p, struct quoted *q, int *action)
{
	/* The client sends to where the quoted packet came from. */
	struct nat_key key = {
		.client = q->dest, .vip = p->vip_index, .client_port = q->port[1], .vip_port = q->port[0],
		.udp = q->protocol == IPPROTO_UDP, .now = ticks(),
	};
	struct address source, dest;
	struct backend *backend;
	struct nat_place place;
	struct nat_flow *flow;
	__u32 id;
	int out;

	set_hash(&key);
	id = find_id(&key);
	flow = id ? nat_entry(id >> 16, id & 0xffff) : NULL;
	if (!flow || !nat_place(&place, id >> 16))
		return PASS_NO_FLOW;
	backend = backend_at(flow->backend);
	if (!backend_holds(backend, flow))
		return PASS_NO_FLOW;
	__builtin_memcpy(&source, backend->address, sizeof(source));
	__builtin_memcpy(&dest, place.pair->source, sizeof(dest));
	/* The backend sees its own packet quoted, from the pair's address. */
	out = translate(p, q, &dest, &source, &source, place.pair->port ? place.pair->port : q->port[0], &dest,
			bpf_htons(id & 0xffff));
	if (out)
		return out;
	return emit(p, &backend->next_hop, action);
}

/* An error about what a client sent, from the backend's side: on to the client. */
static __always_inline int error_to_client(struct packet *p, struct quoted *q, int *action)
{
	__u32 port = bpf_ntohs(q->port[0]), number, now = ticks();
	struct address client, address;
	struct next_hop hop = {};
	struct nat_flow *flow;
	struct nat_place place;
	struct vip *vip;
	int out;

	number = pair_of(&q->dest, q->port[1], q->protocol, p->vip_index);
	if (number >= MAX_PAIRS)
		number = kept_pair_of(q->dest.word[0], q->dest.word[1], q->protocol, p->vip_index);
	if (number >= MAX_PAIRS || !nat_place(&place, number))
		return PASS_NO_FLOW;
	flow = nat_entry(number, port);
	if (!flow || flow->state == NAT_FREE || nat_expired(flow, now) ||
	    !is_of_port(place.pair, flow, q->port[1]) || !backend_holds(backend_at(flow->backend), flow))
		return PASS_NO_FLOW;
	vip = vip_at(flow->vip);
	if (vip->state != ENTRY_USED)
		return PASS_NO_FLOW;
	__builtin_memcpy(&client, flow->client, sizeof(client));
	__builtin_memcpy(&address, vip->address, sizeof(address));
	last_hop(flow, &hop);
	out = translate(p, q, &address, &client, &client, flow->client_port, &address, flow->vip_port);
	if (out)
		return out;
	return emit(p, &hop, action);
}

/*
 * A packet to a VIP that is ICMP: the verdict << 8 | outcome. What is no error
 * about a flow passes; the kernel answers echo requests.
 */
SUBPROGRAM int icmp_pipeline(struct xdp_md *ctx)
{
	int action = 0, out;
	struct service *service;
	struct quoted q = {};
	struct packet p = {};
	struct icmp_error *icmp;
	__u32 number;

	p.ctx = ctx;
	p.data = (void *)(long)ctx->data;
	p.end = (void *)(long)ctx->data_end;
	p.interface = came_by(ctx);
	if (parse_ethernet(&p) || find_vip(&p))
		return PASS_PROTOCOL;
	find_transport(&p);
	if ((out = check_mac(&p)))
		return out;
	out = check_ip(&p);
	if (out != PASS_PROTOCOL || p.protocol != (p.v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP) || p.fragment)
		return out ? out : PASS_PROTOCOL;
	icmp = p.l4;
	if ((void *)(icmp + 1) > p.end || !is_error(&p, icmp->type) || !read_quote(&p, &q))
		return PASS_PROTOCOL;
	/* An error that is not about a packet from here is nobody's. */
	if (q.source.word[0] != p.vip->address[0] || q.source.word[1] != p.vip->address[1])
		return PASS_PROTOCOL;
	p.service = service_of(p.vip, q.protocol == IPPROTO_UDP, q.port[0]);
	if (!p.service) {
		out = p.vip->source ? error_to_client(&p, &q, &action) : PASS_PROTOCOL;
		return action << 8 | out;
	}
	service = service_at(p.service);
	if (service->forward == FORWARD_NAT) {
		out = error_to_backend(&p, &q, &action);
		return action << 8 | out;
	}
	if (service->forward == FORWARD_PROXY && from_node(&p))
		return PASS_FROM_NODE;
	number = owner_of_quote(&p, &q, service);
	if (service->forward == FORWARD_PROXY) {
		out = towards_node(&p, number);
		if (out != NEXT)
			return out;
	}
	if (!number)
		return DROP_NO_BACKEND;
	if (service->forward == FORWARD_DNAT)
		return number << 8 | TO_DNAT_ERROR;
	if (service->forward == FORWARD_TUNNEL)
		out = tunnel_to(&p, number, &action);
	else
		out = emit(&p, &backend_at(number)->next_hop, &action);
	return action << 8 | out;
}

#endif
