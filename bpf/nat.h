/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Full NAT: an entry per flow. A packet of the client finds it by a hash, a
 * reply through arrays by (backend, source address, port).
 */
#ifndef SLUICE_NAT_H
#define SLUICE_NAT_H

#include "emit.h"
#include "nat_choice.h"
#include "nat_fragments.h"
#include "nat_rewrite.h"
#include "nat_table.h"

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
	void_found(id >> 16, f->port);
	TRACE(void_flow, id);
	return PASS_NO_FLOW;
}

/* Makes a flow for a SYN or a datagram. */
static __always_inline int new_flow(struct packet *p, struct service *service, struct nat_key *key,
				    struct nat_found *f)
{
	__u64 hash = key->hash;
	__u32 now = key->now;
	struct nat_flow *flow;
	__u32 pair;
	int out;

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
	out = find_port(f, hash, p->service, now);
	if (out == DROP_NO_PORT)
		COUNT_LOSS(p->service, no_port);
	if (out != NEXT)
		return out;
	pair = f->place.number;
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
	/* Marked until it has a state. */
	flow->flags = NAT_QUEUED | (TELLS ? NAT_CLAIMED : 0) | (key->udp ? NAT_UDP : 0);
	flow->last_seen = now;
	flow->backend_sequence = 0;
	flow->generation = f->backend->generation;
	flow->interface = 0;
	learn_last_hop(p, flow, pair << 16 | f->port);
	if (!link_flow(flow, hash, pair << 16 | f->port, now)) {
		flow->last_seen = 0; /* the port was not used */
		unmark(pair, f->port);
		COUNT_LOSS(p->service, flows_full);
		return DROP_FLOWS_FULL;
	}
	/* Before the flow has a state, so that it is older than its end. */
	if (NAT_LOGS)
		keep_draft(draft_record(flow, pair << 16 | f->port, NAT_BEGIN));
	remember_handshake(pair, f->port, p->service);
	f->flow = flow;
	return NEXT;
}

/* Finds the flow of a client's packet to a nat service, or makes it. NEXT: the facts name it. */
static __always_inline int nat_find(struct packet *p, struct service *service, struct facts *facts)
{
	struct nat_key key = {
		.client = source_of(p), .vip = p->vip_index, .client_port = p->port[0], .vip_port = p->port[1],
		.udp = p->protocol == IPPROTO_UDP, .now = ticks(),
	};
	struct nat_found f = {};
	int out;

	if (no_hop_left(p))
		return DROP_TTL;
	if (fragmented_syn(p))
		return DROP_FRAGMENT;
	set_hash(&key);
	out = find_flow(p, &key, &f);
	if (out == NEXT) {
		TRACE(found, FOUND_NAT);
		TRACE(pair, f.place.number);
		TRACE(port, f.port);
		TRACE(backend, f.number);
		learn_last_hop(p, f.flow, f.place.number << 16 | f.port);
		track(p, &f.place, f.flow, f.port, NAT_FIN_CLIENT, key.now);
	} else if (out == PASS_NO_FLOW && (p->opens || key.udp)) {
		facts->opens = true;
		out = new_flow(p, service, &key, &f);
	}
	facts->backend = f.number;
	facts->flow = f.place.number << 16 | f.port;
	return out;
}

/* Translates a client's packet as its flow says, and sends it. */
static __always_inline int nat_send(struct packet *p, struct facts *facts, int *action)
{
	struct backend *backend = backend_at(facts->backend);
	struct nat_place place;
	int out;

	if (!nat_place(&place, facts->flow >> 16))
		return DROP_INTERNAL;
	rewrite(p, place.pair->source, backend->address, bpf_htons(facts->flow),
		place.pair->port ? place.pair->port : p->port[1]);
	out = emit(p, &backend->next_hop, action);
	if (out == SENT)
		count_forward(p, facts->backend);
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

/*
 * The pair of a backend that has all ports of its service, and a source address: its
 * number, or MAX_PAIRS. It is asked for where none has the port of its own. A function
 * of numbers: its callers have no stack to spare.
 */
SUBPROGRAM __u32 kept_pair_of(__u64 high, __u64 low, __u32 protocol, __u32 vip)
{
	struct address a = { .word = { high, low } };

	return pair_of(&a, 0, protocol, vip);
}

/* Whether a flow of a pair is to this port of the backend: where it has all ports, the flow says so. */
static __always_inline bool is_of_port(struct nat_pair *pair, struct nat_flow *flow, __be16 port)
{
	return pair->port || flow->vip_port == port;
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

/* The flow that a packet to a source address is a reply of; PASS_NO_SERVICE where there is none. */
static __always_inline int find_replied(struct packet *p, struct nat_found *f, __u32 now)
{
	struct address a = source_of(p);
	__u32 number = pair_of(&a, p->port[0], p->protocol, p->vip_index);

	if (number >= MAX_PAIRS)
		number = kept_pair_of(a.word[0], a.word[1], p->protocol, p->vip_index);
	if (number >= MAX_PAIRS)
		return PASS_NO_SERVICE;
	if (!nat_place(&f->place, number))
		return DROP_INTERNAL;
	f->port = bpf_ntohs(p->port[1]);
	f->flow = nat_entry(number, f->port);
	if (!f->flow || f->flow->state == NAT_FREE || nat_expired(f->flow, now) ||
	    !is_of_port(f->place.pair, f->flow, p->port[0]))
		return PASS_NO_SERVICE;
	f->number = f->flow->backend;
	f->backend = backend_at(f->number);
	if (!backend_holds(f->backend, f->flow) || vip_at(f->flow->vip)->state != ENTRY_USED)
		return PASS_NO_SERVICE;
	return NEXT;
}

/* A packet to a VIP's port that is no service: a reply to a nat flow, perhaps. */
static __always_inline int nat_reply(struct packet *p, struct facts *facts, int *action)
{
	struct next_hop hop = {};
	struct nat_found f = {};
	__u32 now = ticks();
	int out;

	if (!p->vip->source)
		return PASS_NO_SERVICE;
	out = find_replied(p, &f, now);
	if (out != NEXT)
		return out;
	if (fragmented_syn(p))
		return DROP_FRAGMENT;
	if (no_hop_left(p))
		return DROP_TTL;
	facts->flow = f.place.number << 16 | f.port;
	if (p->fragment && !facts->begun)
		return TO_FRAGMENTS;
	TRACE(found, FOUND_REPLY);
	TRACE(pair, f.place.number);
	TRACE(port, f.port);
	TRACE(backend, f.number);
	track(p, &f.place, f.flow, f.port, NAT_FIN_BACKEND, now);
	last_hop(f.flow, &hop);
	rewrite(p, vip_at(f.flow->vip)->address, f.flow->client, f.flow->vip_port, f.flow->client_port);
	out = emit(p, &hop, action);
	if (out == SENT)
		count_reply(p, f.number);
	return out;
}

#endif
