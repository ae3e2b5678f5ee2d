/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Full NAT: an entry per flow. A packet of the client finds it by a hash, a
 * reply through arrays by (backend, source address, port).
 */
#ifndef SLUICE_NAT_H
#define SLUICE_NAT_H

#include "emit.h"
#include "nat_ports.h"

volatile const __u64 nat_seed = 0; /* so that nobody can aim at a bucket */
volatile const __u32 nat_bucket_mask = 0;

static __always_inline __u64 nat_hash(struct packet *p)
{
	__u64 ports = (__u64)p->vip_index << 32 | (__u32)p->tcp->source << 16 | p->tcp->dest;

	return mix(mix(p->ip->saddr + nat_seed) + ports);
}

static __always_inline bool nat_key_equal(struct nat_flow *flow, struct packet *p)
{
	return flow->client[1] == mapped(p->ip->saddr) && !flow->client[0] &&
	       flow->client_port == p->tcp->source && flow->vip_port == p->tcp->dest &&
	       flow->vip == p->vip_index;
}

/* Whether the backend that the flow was made for still stands. */
static __always_inline bool backend_holds(struct backend *backend, struct nat_flow *flow)
{
	return backend && backend->alive && backend->generation == flow->generation;
}

static __always_inline __u32 second_bucket(__u64 hash)
{
	return ((__u32)hash ^ ((__u32)(hash >> 32) | 1) * 0x5bd1e995) & nat_bucket_mask;
}

/* The packet's flow in one bucket: its id, or 0. */
static __always_inline __u32 find_in_bucket(struct packet *p, __u32 index, __u32 tag, __u32 now,
					    struct nat_flow **found)
{
	struct nat_bucket *bucket = bpf_map_lookup_elem(&nat_buckets, &index);

	if (!bucket)
		return 0;
	for (int i = 0; i < NAT_WAYS; i++) {
		__u64 word = *(volatile __u64 *)&bucket->word[i];
		__u32 id = word, pair = id >> 16, port = id & 0xffff;
		struct nat_flow *flow;
		void *flows;

		if (word >> 32 != tag || !id)
			continue;
		flows = bpf_map_lookup_elem(&nat_flows, &pair);
		if (!flows)
			continue;
		flow = bpf_map_lookup_elem(flows, &port);
		if (!flow || flow->state == NAT_FREE || !nat_key_equal(flow, p) ||
		    nat_expired(flow, now))
			continue;
		*found = flow;
		return id;
	}
	return 0;
}

/* Puts the flow's name into an empty word of its buckets. */
static __always_inline bool link_flow(struct nat_flow *flow, __u32 index, __u64 name)
{
	struct nat_bucket *bucket = bpf_map_lookup_elem(&nat_buckets, &index);

	if (!bucket)
		return false;
	for (int i = 0; i < NAT_WAYS; i++) {
		if (*(volatile __u64 *)&bucket->word[i])
			continue;
		flow->bucket = index * NAT_WAYS + i;
		if (__sync_val_compare_and_swap(&bucket->word[i], 0, name) == 0)
			return true;
	}
	return false;
}

/* The way back: replies leave by where the client's packets come from. */
static __always_inline void learn_last_hop(struct packet *p, struct nat_flow *flow)
{
	void *source = p->data + ETH_ALEN;
	__be16 outer = p->vlans > 0 ? p->vlan[0] & bpf_htons(0x0fff) : 0;
	__be16 inner = p->vlans > 1 ? p->vlan[1] & bpf_htons(0x0fff) : 0;

	if (mac_equal(flow->mac, source) && flow->interface == p->interface && flow->vlans == p->vlans &&
	    flow->vlan[0] == outer && flow->vlan[1] == inner)
		return;
	__builtin_memcpy(flow->mac, source, ETH_ALEN);
	flow->vlans = p->vlans;
	flow->vlan[0] = outer;
	flow->vlan[1] = inner;
	flow->interface = p->interface;
}

/* A new flow for a SYN; *place and *found say where it is. */
static __always_inline int new_flow(struct packet *p, struct service *service, __u64 hash,
				    __u32 now, struct nat_place *place, __u32 *port,
				    struct nat_flow **found)
{
	__u32 number = slot_owner(service, flow_hash(p));
	struct backend *backend = bpf_map_lookup_elem(&backends, &number);
	struct nat_flow *flow;
	__u32 choice, *pair;
	__u64 name;

	if (!number || !backend || !backend->alive) {
		COUNT_LOSS(p->service, no_backend);
		return DROP_NO_BACKEND;
	}
	choice = backend->choice + (((hash >> 32) * backend->choices) >> 32);
	pair = bpf_map_lookup_elem(&nat_choices, &choice);
	if (!pair || !nat_place(place, *pair))
		return DROP_INTERNAL;
	sweep(place, now, SWEEP_STEP);
	*port = claim_port(place, p->service, now);
	if (!*port) {
		sweep(place, now, SWEEP_MANY);
		*port = claim_port(place, p->service, now);
	}
	if (!*port) {
		COUNT_LOSS(p->service, no_port);
		return DROP_NO_PORT;
	}
	flow = bpf_map_lookup_elem(place->flows, port);
	if (!flow)
		return DROP_INTERNAL;

	/* Nobody may read a half-written entry: its state comes last. */
	__sync_lock_test_and_set(&flow->state, NAT_FREE);
	flow->client[0] = 0;
	flow->client[1] = mapped(p->ip->saddr);
	flow->client_port = p->tcp->source;
	flow->vip_port = p->tcp->dest;
	flow->vip = p->vip_index;
	flow->backend = number;
	flow->flags = 0;
	flow->last_seen = now;
	flow->backend_sequence = 0;
	flow->generation = backend->generation;
	flow->interface = 0;
	learn_last_hop(p, flow);

	name = hash >> 32 << 32 | place->number << 16 | *port;
	if (!link_flow(flow, hash & nat_bucket_mask, name) &&
	    !link_flow(flow, second_bucket(hash), name)) {
		flow->flags = NAT_QUEUED;
		push_port(place, *port);
		COUNT_LOSS(p->service, flows_full);
		return DROP_FLOWS_FULL;
	}
	__sync_lock_test_and_set(&flow->state, NAT_SYN_SENT);
	remember_handshake(place, *port, p->service);
	*found = flow;
	return NEXT;
}

/*
 * Follows the connection. FIN and RST only shorten the idle time, and data
 * restores it: a forged RST breaks nothing.
 */
static __always_inline void track(struct packet *p, struct nat_place *place, struct nat_flow *flow,
				  __u32 port, __u32 fin, __u32 now)
{
	struct tcphdr *tcp = p->tcp;
	bool data = p->length > p->header_length;
	__u32 state = flow->state;

	if (flow->last_seen != now)
		flow->last_seen = now;
	if (tcp->rst) {
		if (state != NAT_CLOSED)
			close_flow(place, flow, port);
		return;
	}
	if (tcp->fin) {
		__u32 both = NAT_FIN_CLIENT | NAT_FIN_BACKEND;
		__u32 seen = __sync_fetch_and_or(&flow->flags, fin) | fin;

		if ((seen & both) == both) {
			if (state != NAT_CLOSED)
				close_flow(place, flow, port);
		} else if (state == NAT_ESTABLISHED) {
			flow->state = NAT_CLOSING;
		}
		return;
	}
	switch (state) {
	case NAT_SYN_SENT:
	case NAT_SYN_RECEIVED:
		if (fin == NAT_FIN_BACKEND) {
			if (tcp->syn && tcp->ack) {
				flow->backend_sequence = bpf_ntohl(tcp->seq) + 1;
				flow->state = NAT_SYN_RECEIVED;
			}
		} else if (state == NAT_SYN_RECEIVED && tcp->ack && !tcp->syn &&
			   bpf_ntohl(tcp->ack_seq) == flow->backend_sequence) {
			flow->state = NAT_ESTABLISHED;
		}
		break;
	case NAT_CLOSING:
		if (data && flow->flags & fin) {
			__sync_fetch_and_and(&flow->flags, ~fin);
			flow->state = NAT_ESTABLISHED;
		}
		break;
	case NAT_CLOSED:
		if (data && (flow->flags & (NAT_FIN_CLIENT | NAT_FIN_BACKEND)) !=
				    (NAT_FIN_CLIENT | NAT_FIN_BACKEND))
			flow->state = NAT_ESTABLISHED;
		break;
	}
}

static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* Writes the new 4-tuple, one hop less to live, and both checksums (RFC 1624, eqn. 3). */
static __always_inline int rewrite(struct packet *p, __be32 saddr, __be32 daddr, __be16 source,
				   __be16 dest)
{
	struct iphdr *ip = p->ip;
	struct tcphdr *tcp = p->tcp;
	__u64 addresses, rest;

	if (ip->ttl <= 1)
		return DROP_TTL;
	addresses = (__u64)(__u32)~ip->saddr + (__u32)~ip->daddr + saddr + daddr;
	rest = (__u64)(__u16)~tcp->source + (__u16)~tcp->dest + source + dest;
	/* The low byte of the word that time to live and protocol share goes down by one. */
	ip->check = fold((__u16)~ip->check + addresses + 0xfffe);
	tcp->check = fold((__u16)~tcp->check + addresses + rest);
	ip->ttl--;
	ip->saddr = saddr;
	ip->daddr = daddr;
	tcp->source = source;
	tcp->dest = dest;
	return NEXT;
}

/* A packet of a client to a nat service. */
static __always_inline int nat_forward(struct packet *p, struct service *service, int *action)
{
	__u64 hash = nat_hash(p);
	__u32 now = ticks(), tag = hash >> 32, id, port, number;
	bool syn = p->tcp->syn && !p->tcp->ack;
	struct nat_flow *flow = NULL;
	struct nat_place place = {};
	struct backend *backend;
	int out;

	id = find_in_bucket(p, hash & nat_bucket_mask, tag, now, &flow);
	if (!id)
		id = find_in_bucket(p, second_bucket(hash), tag, now, &flow);
	if (id && flow) {
		port = id & 0xffff;
		if (!nat_place(&place, id >> 16))
			return DROP_INTERNAL;
		number = flow->backend;
		backend = bpf_map_lookup_elem(&backends, &number);
		if (!backend_holds(backend, flow) || (syn && flow->state == NAT_CLOSED)) {
			/* Void, or the client uses its port again: the old flow is nobody's now. */
			unlink_flow(flow, id);
			if (flow->state != NAT_CLOSED)
				close_flow(&place, flow, port);
			flow = NULL;
		}
	}
	if (!flow) {
		if (!syn)
			return PASS_NO_FLOW;
		out = new_flow(p, service, hash, now, &place, &port, &flow);
		if (out != NEXT)
			return out;
	} else {
		learn_last_hop(p, flow);
		track(p, &place, flow, port, NAT_FIN_CLIENT, now);
	}
	number = flow->backend;
	backend = bpf_map_lookup_elem(&backends, &number);
	if (!backend)
		return DROP_INTERNAL;
	count_forward(p, number);
	out = rewrite(p, place.pair->source[1] >> 32, backend->address[1] >> 32, bpf_htons(port),
		      backend->port ? backend->port : p->tcp->dest);
	if (out != NEXT)
		return out;
	return emit(p, &backend->next_hop, action);
}

/* The pair that a packet to a source address is a reply to: its number, or MAX_PAIRS. */
static __always_inline __u32 find_pair(struct packet *p)
{
	__u64 address = mapped(p->ip->saddr);
	__u32 hash = (address + p->tcp->source + ((__u64)p->vip_index << 16)) * GOLDEN >> 32;

	for (int i = 0; i < PROBES; i++) {
		__u32 index = (hash + i) & (MAX_PAIR_KEYS - 1);
		struct pair_key *key = bpf_map_lookup_elem(&nat_keys, &index);

		if (!key || key->state == ENTRY_EMPTY)
			break;
		if (key->address[1] == address && !key->address[0] && key->vip == p->vip_index &&
		    key->port == p->tcp->source && key->protocol == IPPROTO_TCP &&
		    key->state == ENTRY_USED)
			return key->pair;
	}
	return MAX_PAIRS;
}

/* A packet to a VIP's port that is no service: a reply to a nat flow, perhaps. */
static __always_inline int nat_reply(struct packet *p, int *action)
{
	__u32 port = bpf_ntohs(p->tcp->dest), now, number, index;
	struct next_hop hop = {};
	struct nat_place place = {};
	struct backend *backend;
	struct nat_flow *flow;
	struct interface *nic;
	struct counters *c;
	struct vip *vip;
	int out;

	if (!p->vip->source)
		return PASS_NO_SERVICE;
	number = find_pair(p);
	if (number >= MAX_PAIRS)
		return PASS_NO_SERVICE;
	if (!nat_place(&place, number))
		return DROP_INTERNAL;
	flow = bpf_map_lookup_elem(place.flows, &port);
	now = ticks();
	if (!flow || flow->state == NAT_FREE || nat_expired(flow, now))
		return PASS_NO_SERVICE;
	number = flow->backend;
	backend = bpf_map_lookup_elem(&backends, &number);
	if (!backend_holds(backend, flow))
		return PASS_NO_SERVICE;
	track(p, &place, flow, port, NAT_FIN_BACKEND, now);

	index = flow->interface & (MAX_INTERFACES - 1);
	nic = bpf_map_lookup_elem(&interfaces, &index);
	if (!nic || !nic->index || nic->index != flow->interface)
		return DROP_NO_NEXT_HOP;
	__builtin_memcpy(hop.destination, flow->mac, ETH_ALEN);
	__builtin_memcpy(hop.source_low, nic->mac, 2);
	__builtin_memcpy(hop.source_high, nic->mac + 2, 4);
	hop.interface = flow->interface;
	hop.vlans = flow->vlans;
	hop.vlan[0] = flow->vlan[0];
	hop.vlan[1] = flow->vlan[1];

	index = flow->vip;
	vip = bpf_map_lookup_elem(&vips, &index);
	if (!vip)
		return DROP_INTERNAL;
	c = bpf_map_lookup_elem(&traffic, &number);
	if (c) {
		c->reply_packets++;
		c->reply_bytes += p->length;
	}
	out = rewrite(p, vip->address[1] >> 32, flow->client[1] >> 32, flow->vip_port,
		      flow->client_port);
	if (out != NEXT)
		return out;
	return emit(p, &hop, action);
}

#endif
