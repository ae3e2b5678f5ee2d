/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * NAT: who may use which source port.
 *
 * A port that may be handed out stands in its pair's ring, at most once; who
 * takes it from there owns its flow entry. The ring is a bounded queue for many
 * producers and consumers: a word is ticket << 16 | port, and it is valid for
 * the consumer whose ticket it bears, so nobody waits for anybody.
 *
 * A flow's port joins the ring when the flow closes, and the entry goes on
 * translating until the port is handed out again: the oldest comes first, so
 * stragglers are served as long as can be.
 */
#ifndef SLUICE_NAT_PORTS_H
#define SLUICE_NAT_PORTS_H

#include "balance.h"

/* A tick is 2^27 ns of CLOCK_MONOTONIC, some 134 ms. */
#define TICK_SHIFT 27
/* 60 s: a backend may still hold the old connection in TIME_WAIT. */
#define REUSE_TICKS 447

#define CLAIM_TRIES 8
#define SWEEP_STEP 2
#define SWEEP_MANY 64

/* Idle time in ticks after which a flow is void, by enum nat_state. */
volatile const __u32 nat_timeout[NAT_STATES] = {};

/* A pair and its maps. */
struct nat_place {
	__u32 number;
	struct nat_pair *pair;
	void *ring;
	void *flows;
};

static __always_inline __u32 ticks(void)
{
	return bpf_ktime_get_coarse_ns() >> TICK_SHIFT;
}

static __always_inline bool nat_expired(struct nat_flow *flow, __u32 now)
{
	__u32 state = flow->state;

	if (state >= NAT_STATES)
		return true;
	/* Another CPU may have stamped the flow a tick ahead. */
	return (int)(now - flow->last_seen) > (int)nat_timeout[state];
}

static __always_inline bool nat_place(struct nat_place *place, __u32 number)
{
	place->number = number;
	place->pair = bpf_map_lookup_elem(&nat_pairs, &number);
	place->ring = bpf_map_lookup_elem(&nat_rings, &number);
	place->flows = bpf_map_lookup_elem(&nat_flows, &number);
	return place->pair && place->ring && place->flows;
}

static __always_inline void push_port(struct nat_place *place, __u32 port)
{
	__u64 ticket;
	__u32 index;
	__u64 *word;

	/* Another node's port came with its flows; it is not ours to hand out. */
	if (port < place->pair->first_port || port > place->pair->last_port)
		return;
	ticket = __sync_fetch_and_add(&place->pair->tail, 1);
	index = ticket & (NAT_PORTS - 1);
	word = bpf_map_lookup_elem(place->ring, &index);
	if (word)
		__sync_lock_test_and_set(word, (ticket + 1) << 16 | port);
}

/* The oldest free port; 0 where there is none. */
static __always_inline __u32 pop_port(struct nat_place *place)
{
	for (int i = 0; i < CLAIM_TRIES; i++) {
		__u64 head = *(volatile __u64 *)&place->pair->head;
		__u32 index = head & (NAT_PORTS - 1);
		__u64 *word = bpf_map_lookup_elem(place->ring, &index);
		__u64 value;

		if (!word)
			return 0;
		value = *(volatile __u64 *)word;
		/* Empty, or its producer has not stored the word yet. */
		if (value >> 16 != ((head + 1) & 0xffffffffffffULL))
			return 0;
		if (__sync_val_compare_and_swap(&place->pair->head, head, head + 1) == head)
			return value & 0xffff;
	}
	return 0;
}

/* Takes the flow's name out of the table, if it still stands there. */
static __always_inline void unlink_flow(struct nat_flow *flow, __u32 id)
{
	__u32 index = flow->bucket / NAT_WAYS;
	struct nat_bucket *bucket = bpf_map_lookup_elem(&nat_buckets, &index);
	__u64 *word, value;

	if (!bucket)
		return;
	word = &bucket->word[flow->bucket & (NAT_WAYS - 1)];
	value = *(volatile __u64 *)word;
	if ((__u32)value == id)
		__sync_val_compare_and_swap(word, value, 0);
}

/* Ends a flow: its port may be handed out again, after all older ones. */
static __always_inline void close_flow(struct nat_place *place, struct nat_flow *flow, __u32 port)
{
	flow->state = NAT_CLOSED;
	if (!(__sync_fetch_and_or(&flow->flags, NAT_QUEUED) & NAT_QUEUED))
		push_port(place, port);
}

/* Looks at the next entries of the pair and ends what has been idle too long. */
static __always_inline void sweep(struct nat_place *place, __u32 now, int entries)
{
	__u32 hand = __sync_fetch_and_add(&place->pair->hand, entries);

	for (int i = 0; i < entries; i++) {
		__u32 port = (hand + i) & (NAT_PORTS - 1);
		struct nat_flow *flow = bpf_map_lookup_elem(place->flows, &port);

		if (!flow || flow->state == NAT_FREE || !nat_expired(flow, now))
			continue;
		unlink_flow(flow, place->number << 16 | port);
		if (flow->state != NAT_CLOSED)
			close_flow(place, flow, port);
	}
}

/* A port for a new flow, its entry unlinked and owned by the caller; 0 where none is free. */
static __always_inline __u32 claim_port(struct nat_place *place, __u32 service, __u32 now)
{
	__u32 vip_index = place->pair->vip;
	struct vip *vip = bpf_map_lookup_elem(&vips, &vip_index);

	if (!vip)
		return 0;
	for (int i = 0; i < CLAIM_TRIES; i++) {
		__u32 port = pop_port(place);
		struct nat_flow *flow;
		__u32 group;
		__u64 *word;

		if (!port)
			return 0;
		flow = bpf_map_lookup_elem(place->flows, &port);
		if (!flow)
			return 0;
		if (flow->state != NAT_FREE && flow->state != NAT_CLOSED) {
			/* Data came after the close: the flow lives, and queues again when it ends. */
			__sync_fetch_and_and(&flow->flags, ~NAT_QUEUED);
			continue;
		}
		/* A service that came after the ring was filled: the port is its own now. */
		group = vip->tcp_ports * PORT_GROUPS + (port >> 2);
		word = vip->tcp_ports ? bpf_map_lookup_elem(&ports, &group) : NULL;
		if (word && (*word >> (port & 3) * 16 & 0xffff)) {
			unlink_flow(flow, place->number << 16 | port);
			flow->state = NAT_FREE;
			continue;
		}
		if (flow->state == NAT_CLOSED) {
			if (now - flow->last_seen < REUSE_TICKS)
				COUNT_LOSS(service, early_reuse);
			unlink_flow(flow, place->number << 16 | port);
		}
		return port;
	}
	return 0;
}

/*
 * Remembers a handshake, and gives up the one begun NAT_EMBRYONIC handshakes
 * ago if it never came to anything: a flood of SYNs evicts its own kind only.
 */
static __always_inline void remember_handshake(struct nat_place *place, __u32 port, __u32 service)
{
	__u64 turn = __sync_fetch_and_add(&place->pair->embryonic, 1);
	__u32 index = NAT_PORTS + (turn & (NAT_EMBRYONIC - 1));
	__u64 *word = bpf_map_lookup_elem(place->ring, &index);
	struct nat_flow *flow;
	__u32 old;

	if (!word)
		return;
	old = __sync_lock_test_and_set(word, port);
	if (!old || old == port)
		return;
	flow = bpf_map_lookup_elem(place->flows, &old);
	if (!flow || (flow->state != NAT_SYN_SENT && flow->state != NAT_SYN_RECEIVED))
		return;
	COUNT_LOSS(service, evicted);
	unlink_flow(flow, place->number << 16 | old);
	close_flow(place, flow, old);
}

#endif
