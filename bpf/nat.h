/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Full NAT: an entry per flow. A packet of the client finds it by a hash, a
 * reply through arrays by (backend, source address, port).
 */
#ifndef SLUICE_NAT_H
#define SLUICE_NAT_H

#include "emit.h"
#include "nat_handshakes.h"
#include "nat_table.h"

/* What a packet of a client is translated by. */
struct nat_found {
	struct nat_place place;
	struct nat_flow *flow;
	__u32 port;
	__u32 number; /* of the backend */
	struct backend *backend;
};

/* Whether the backend that the flow was made for still stands. */
static __always_inline bool backend_holds(struct backend *backend, struct nat_flow *flow)
{
	return backend->alive && backend->generation == flow->generation;
}

/* Finds the packet's flow; PASS_NO_FLOW where there is none that holds. */
static __always_inline int find_flow(struct packet *p, struct nat_key *key, struct nat_found *f)
{
	__u32 id = find_id(key);

	if (!id)
		return PASS_NO_FLOW;
	f->port = id & 0xffff;
	f->flow = nat_entry(id >> 16, f->port);
	if (!f->flow || !nat_place(&f->place, id >> 16))
		return DROP_INTERNAL;
	f->number = f->flow->backend;
	f->backend = backend_at(f->number);
	if (backend_holds(f->backend, f->flow) && !(p->opens && nat_over(f->flow)))
		return NEXT;
	/* Void, or the client uses its port again: the old flow is nobody's now. */
	void_flow(&f->place, f->flow, f->port, f->flow->state);
	TRACE(void_flow, id);
	return PASS_NO_FLOW;
}

/* A source port for a new flow, taken from a handshake if need be; 0 where there is none. */
SUBPROGRAM __u32 obtain_port(__u32 pair, __u32 service, __u32 now)
{
	struct nat_place place;
	__u32 port;

	if (!nat_place(&place, pair))
		return 0;
	sweep(&place, now);
	port = claim_port(pair, service, now);
	if (port)
		return port;
	sweep_share(pair, now);
	port = claim_port(pair, service, now);
	if (port)
		return port;
	give_up_oldest(pair, service);
	return claim_port(pair, service, now);
}

/* Makes a flow for a SYN or a datagram. */
static __always_inline int new_flow(struct packet *p, struct service *service, struct nat_key *key,
				    struct nat_found *f)
{
	__u64 hash = key->hash;
	__u32 now = key->now;
	struct nat_flow *flow;
	__u32 choice, pair, *chosen;

	f->number = slot_owner(slot_word(service, flow_hash(p, service)));
	f->backend = backend_at(f->number);
	TRACE(found, NEW_NAT);
	TRACE(hash, flow_hash(p, service));
	TRACE(slot, slot_word(service, flow_hash(p, service)));
	TRACE(backend, f->number);
	if (!f->number || !f->backend->alive) {
		COUNT_LOSS(p->service, no_backend);
		return DROP_NO_BACKEND;
	}
	choice = f->backend->choice + (((hash >> 32) * f->backend->choices) >> 32);
	chosen = bpf_map_lookup_elem(&nat_choices, &choice);
	if (!chosen)
		return DROP_INTERNAL;
	pair = *(volatile __u32 *)chosen;
	if (!nat_place(&f->place, pair))
		return DROP_INTERNAL;
	f->port = obtain_port(pair, p->service, now);
	TRACE(pair, pair);
	TRACE(port, f->port);
	if (!f->port) {
		COUNT_LOSS(p->service, no_port);
		return DROP_NO_PORT;
	}
	flow = nat_entry(pair, f->port);
	if (!flow)
		return DROP_INTERNAL;
	if (dry)
		return link_flow(flow, hash, pair << 16 | f->port, now) ? NEXT : DROP_FLOWS_FULL;

	/* Nobody reads the entry while it is free: its state comes last. */
	flow->client[0] = key->client.word[0];
	flow->client[1] = key->client.word[1];
	flow->client_port = key->client_port;
	flow->vip_port = key->vip_port;
	flow->vip = key->vip;
	flow->backend = f->number;
	flow->flags = key->udp ? NAT_UDP : 0;
	flow->last_seen = now;
	flow->backend_sequence = 0;
	flow->generation = f->backend->generation;
	flow->interface = 0;
	learn_last_hop(p, flow);
	if (!link_flow(flow, hash, pair << 16 | f->port, now)) {
		flow->last_seen = 0; /* the port was not used */
		queue_port(&f->place, flow, f->port);
		COUNT_LOSS(p->service, flows_full);
		return DROP_FLOWS_FULL;
	}
	__sync_lock_test_and_set(&flow->state, NAT_SYN_SENT);
	remember_handshake(pair, f->port, p->service);
	f->flow = flow;
	return NEXT;
}

static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* The sum of an address's words, for a checksum. */
static __always_inline __u64 sum6(struct in6_addr *a)
{
	return (__u64)a->s6_addr32[0] + a->s6_addr32[1] + a->s6_addr32[2] + a->s6_addr32[3];
}

static __always_inline __u64 unsum6(struct in6_addr *a)
{
	return (__u64)(__u32)~a->s6_addr32[0] + (__u32)~a->s6_addr32[1] + (__u32)~a->s6_addr32[2] +
	       (__u32)~a->s6_addr32[3];
}

static __always_inline void store6(struct in6_addr *a, __u64 *word)
{
	a->s6_addr32[0] = word[0];
	a->s6_addr32[1] = word[0] >> 32;
	a->s6_addr32[2] = word[1];
	a->s6_addr32[3] = word[1] >> 32;
}

/*
 * Writes the new 4-tuple, one hop less to live, and the checksums (RFC 1624, eqn.
 * 3). There must be a hop left. The addresses are of the packet's family.
 */
static __always_inline void rewrite(struct packet *p, __u64 *source, __u64 *dest,
				    __be16 source_port, __be16 dest_port)
{
	__u64 sum;
	__u16 *check;

	if (p->v6) {
		struct ipv6hdr *ip = p->ip6;

		/* Linux 6.1 does not know any more that it is there. */
		if ((void *)(ip + 1) > p->end)
			return;
		sum = unsum6(&ip->saddr) + unsum6(&ip->daddr);
		store6(&ip->saddr, source);
		store6(&ip->daddr, dest);
		sum += sum6(&ip->saddr) + sum6(&ip->daddr);
		ip->hop_limit--;
	} else {
		struct iphdr *ip = p->ip;
		__be32 saddr = source[1] >> 32, daddr = dest[1] >> 32;

		sum = (__u64)(__u32)~ip->saddr + (__u32)~ip->daddr + saddr + daddr;
		/* The low byte of the word that time to live and protocol share goes down by one. */
		ip->check = fold((__u16)~ip->check + sum + 0xfffe);
		ip->ttl--;
		ip->saddr = saddr;
		ip->daddr = daddr;
	}
	sum += (__u64)(__u16)~p->port[0] + (__u16)~p->port[1] + source_port + dest_port;
	p->port[0] = source_port;
	p->port[1] = dest_port;
	if (p->protocol == IPPROTO_UDP) {
		check = &p->udp->check;
		/* Over IPv4, 0 says that there is none (RFC 768). */
		if (!*check && !p->v6)
			return;
		*check = fold((__u16)~*check + sum);
		if (!*check)
			*check = 0xffff;
		return;
	}
	if ((void *)(p->tcp + 1) > p->end) /* for Linux 6.1, too */
		return;
	check = &p->tcp->check;
	*check = fold((__u16)~*check + sum);
}

static __always_inline bool no_hop_left(struct packet *p)
{
	return (p->v6 ? p->ip6->hop_limit : p->ip->ttl) <= 1;
}

/* A packet of a client to a nat service. */
static __always_inline int nat_forward(struct packet *p, struct service *service, int *action)
{
	struct nat_key key = {
		.client = source_of(p), .vip = p->vip_index, .client_port = p->port[0], .vip_port = p->port[1],
		.udp = p->protocol == IPPROTO_UDP, .now = ticks(),
	};
	struct nat_found f = {};
	int out;

	if (no_hop_left(p))
		return DROP_TTL;
	set_hash(&key);
	out = find_flow(p, &key, &f);
	if (out == NEXT) {
		TRACE(found, FOUND_NAT);
		TRACE(pair, f.place.number);
		TRACE(port, f.port);
		TRACE(backend, f.number);
		learn_last_hop(p, f.flow);
		track(p, &f.place, f.flow, f.port, NAT_FIN_CLIENT, key.now);
	} else if (out == PASS_NO_FLOW && (p->opens || key.udp)) {
		p->opens = true;
		out = new_flow(p, service, &key, &f);
	}
	if (out != NEXT)
		return out;
	rewrite(p, f.place.pair->source, f.backend->address, bpf_htons(f.port),
		f.backend->port ? f.backend->port : p->port[1]);
	out = emit(p, &f.backend->next_hop, action);
	if (out == SENT)
		count_forward(p, f.number);
	return out;
}

/* The pair of a backend and a source address: its number, or MAX_PAIRS. */
static __always_inline __u32 pair_of(struct address *a, __be16 port, __u32 protocol, __u32 vip)
{
	__u32 hash = ((a->word[1] ^ a->word[0] * 0xff51afd7ed558ccdULL) + port + ((__u64)vip << 16) +
		      protocol) * GOLDEN >> (64 - PAIR_KEY_BITS);

	for (int i = 0; i < PROBES; i++) {
		__u32 index = (hash + i) & (MAX_PAIR_KEYS - 1);
		struct pair_key *key = bpf_map_lookup_elem(&nat_keys, &index);

		if (!key || key->state == ENTRY_EMPTY)
			break;
		if (key->address[1] == a->word[1] && key->address[0] == a->word[0] && key->vip == vip &&
		    key->port == port && key->protocol == protocol && key->state == ENTRY_USED)
			return key->pair;
	}
	return MAX_PAIRS;
}

/* The pair that a packet to a source address is a reply to: its number, or MAX_PAIRS. */
static __always_inline __u32 find_pair(struct packet *p)
{
	struct address a = source_of(p);

	return pair_of(&a, p->port[0], p->protocol, p->vip_index);
}

/* The way to the client of a flow; its interface is 0 where none is known. */
static __always_inline void last_hop(struct nat_flow *flow, struct next_hop *hop)
{
	struct interface *nic = interface_at(flow->interface);

	if (!nic->index || nic->index != flow->interface)
		return;
	__builtin_memcpy(hop->destination, flow->mac, ETH_ALEN);
	__builtin_memcpy(hop->source_low, nic->mac, 2);
	__builtin_memcpy(hop->source_high, nic->mac + 2, 4);
	hop->interface = nic->index;
	hop->vlans = flow->vlans;
	hop->vlan[0] = flow->vlan[0];
	hop->vlan[1] = flow->vlan[1];
}

/* A packet to a VIP's port that is no service: a reply to a nat flow, perhaps. */
static __always_inline int nat_reply(struct packet *p, int *action)
{
	__u32 port = bpf_ntohs(p->port[1]), now, number;
	struct next_hop hop = {};
	struct nat_place place = {};
	struct backend *backend;
	struct nat_flow *flow;
	struct vip *vip;
	int out;

	if (!p->vip->source)
		return PASS_NO_SERVICE;
	number = find_pair(p);
	if (number >= MAX_PAIRS)
		return PASS_NO_SERVICE;
	if (!nat_place(&place, number))
		return DROP_INTERNAL;
	flow = nat_entry(number, port);
	now = ticks();
	if (!flow || flow->state == NAT_FREE || nat_expired(flow, now))
		return PASS_NO_SERVICE;
	number = flow->backend;
	backend = backend_at(number);
	vip = vip_at(flow->vip);
	if (!backend_holds(backend, flow) || vip->state != ENTRY_USED)
		return PASS_NO_SERVICE;
	if (p->fragment)
		return DROP_FRAGMENT;
	if (no_hop_left(p))
		return DROP_TTL;
	TRACE(found, FOUND_REPLY);
	TRACE(pair, place.number);
	TRACE(port, port);
	TRACE(backend, number);
	track(p, &place, flow, port, NAT_FIN_BACKEND, now);
	last_hop(flow, &hop);
	rewrite(p, vip->address, flow->client, flow->vip_port, flow->client_port);
	out = emit(p, &hop, action);
	if (out == SENT)
		count_reply(p, number);
	return out;
}

#endif
