/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * NAT: who may use which source port.
 *
 * A port that may be handed out stands in its pair's ring, at most once
 * (NAT_QUEUED); who takes it from there owns its flow entry, if that is free or
 * closed. The ring is a bounded queue for many producers and consumers: a word
 * is ticket << 16 | port, and it is valid for the consumer whose ticket it bears,
 * so nobody waits for anybody.
 *
 * A flow's port joins the ring when the flow closes, and the entry goes on
 * translating until the port is handed out again: the oldest comes first, so
 * stragglers are served as long as can be.
 *
 * Several CPUs may handle one entry at a time. Whoever ends a flow swaps its
 * state first, and only who has swapped it goes on. Who has taken a port keeps it
 * marked as queued until its new flow has a state: another CPU that ended the old
 * flow, and comes to queue the port only now, would queue it a second time.
 *
 * Where other nodes tell of their flows the daemon writes entries, too. It takes
 * no port from the ring, but whoever writes an entry has claimed it (NAT_CLAIMED); a
 * port whose flow came so may stand in the ring, and is passed over when its turn comes.
 */
#ifndef SLUICE_NAT_PORTS_H
#define SLUICE_NAT_PORTS_H

#include "balance.h"
#include "clock.h"
#include "nat_log.h"
#include "news.h"

/* 60 s: a backend may still hold the old connection in TIME_WAIT. */
#define REUSE_TICKS 447

#define CLAIM_TRIES 8
#define SWEEP_STEP 2
#define SWEEP_MANY 64

/* Idle time in ticks after which a flow is void, by enum nat_state. */
volatile const __u32 nat_timeout[NAT_STATES] = {};

/* A pair, by its number. */
struct nat_place {
	__u32 number;
	struct nat_pair *pair;
};

static __always_inline bool nat_place(struct nat_place *place, __u32 number)
{
	place->number = number;
	place->pair = bpf_map_lookup_elem(&nat_pairs, &number);
	return place->pair;
}

static __always_inline struct nat_flow *nat_entry(__u32 pair, __u32 port)
{
	void *flows = bpf_map_lookup_elem(&nat_flows, &pair);

	return flows ? bpf_map_lookup_elem(flows, &port) : NULL;
}

/*
 * Frees the entry of a flow (pair << 16 | port), unless its state is another by now,
 * and reports its end: 1 if it did. It is the deepest of all functions, with next to
 * no stack left to it.
 */
SUBPROGRAM int free_and_tell(__u32 id, __u32 state)
{
	struct nat_flow *flow = nat_entry(id >> 16, id & 0xffff);
	struct nat_queue *queue;

	if (!flow || !NAT_LOGS)
		return 0;
	queue = draft_record(flow, id, NAT_END);
	if (__sync_val_compare_and_swap(&flow->state, state, NAT_FREE) != state)
		return 0;
	keep_draft(queue);
	return 1;
}

static __always_inline __u64 *ring_word(__u32 pair, __u32 index)
{
	void *ring = bpf_map_lookup_elem(&nat_rings, &pair);

	return ring ? bpf_map_lookup_elem(ring, &index) : NULL;
}

static __always_inline bool nat_expired(struct nat_flow *flow, __u32 now)
{
	__u64 state = flow->state;

	/*
	 * Where the verifier of Linux 6.1 must see the bound: the compiler would
	 * compare one copy of the state and index by another.
	 */
	asm volatile("%0 &= %1" : "+r"(state) : "i"(NAT_STATES - 1));
	/* Another CPU may have stamped the flow a tick ahead. */
	return (int)(now - flow->last_seen) > (int)nat_timeout[state];
}

/* Another node's port may have come with its flows; it is not ours to hand out. */
static __always_inline bool in_share(struct nat_pair *pair, __u32 port)
{
	return port >= *(volatile __u16 *)&pair->first_port &&
	       port <= *(volatile __u16 *)&pair->last_port;
}

/* For a port that is marked as NAT_QUEUED and stands in no ring. */
static __always_inline void push_port(struct nat_place *place, __u32 port)
{
	__u64 ticket, *word;

	/* Of what would join it in a dry run the first is remembered. */
	if (dry) {
		if (!traced.joins || traced.joins >> 16 != place->number)
			traced.joins = place->number << 16 | port;
		return;
	}
	ticket = __sync_fetch_and_add(&place->pair->tail, 1);
	word = ring_word(place->number, ticket & (NAT_PORTS - 1));
	if (word)
		__sync_lock_test_and_set(word, (ticket + 1) << 16 | port);
}

/* Marks a flow's port as one that stands in the ring: the flags before. */
static __always_inline __u32 mark_queued(struct nat_flow *flow)
{
	return dry ? flow->flags : __sync_fetch_and_or(&flow->flags, NAT_QUEUED);
}

/* Has a port handed out again, after all older ones. */
static __always_inline void queue_port(struct nat_place *place, struct nat_flow *flow, __u32 port)
{
	if (in_share(place->pair, port) && !(mark_queued(flow) & NAT_QUEUED))
		push_port(place, port);
}

/* Frees the entry of a flow, unless its state is another by now. */
static __always_inline bool free_entry(struct nat_flow *flow, __u32 id, __u32 state)
{
	bool freed;

	if (NAT_LOGS)
		freed = free_and_tell(id, state);
	else
		freed = dry || __sync_val_compare_and_swap(&flow->state, state, NAT_FREE) == state;
	if (freed && TELLS && is_told(state))
		mark_news(id);
	return freed;
}

/* Claims the entry of a port that was taken from the ring; false: the daemon has, or had, a flow for it. */
static __always_inline bool claim_entry(struct nat_flow *flow)
{
	if (!TELLS)
		return true;
	if (__sync_fetch_and_or(&flow->flags, NAT_CLAIMED) & NAT_CLAIMED)
		return false;
	if (*(volatile __u32 *)&flow->state == NAT_FREE)
		return true;
	__sync_fetch_and_and(&flow->flags, ~NAT_CLAIMED);
	return false;
}

/* Whether a dry run would have had the port join the ring. */
static __always_inline bool foreseen(struct nat_place *place, __u32 port)
{
	return traced.joins == (place->number << 16 | port);
}

/*
 * Lets go of a port's marks. Who ended the flow before has seen that it was queued and relied
 * on it, so a port without a flow joins the ring again.
 */
static __always_inline void unmark_port(struct nat_place *place, struct nat_flow *flow, __u32 port, __u32 marks)
{
	__u32 state;

	if (dry)
		return;
	__sync_fetch_and_and(&flow->flags, ~marks);
	state = *(volatile __u32 *)&flow->state;
	if (state == NAT_FREE || state == NAT_CLOSED)
		queue_port(place, flow, port);
}

/* The same by who has claimed the entry, where there is no stack to spare. */
SUBPROGRAM int unmark(__u32 pair, __u32 port)
{
	struct nat_flow *flow = nat_entry(pair, port);
	struct nat_place place;

	if (flow && nat_place(&place, pair))
		unmark_port(&place, flow, port, NAT_QUEUED | (TELLS ? NAT_CLAIMED : 0));
	return 0;
}

/* The oldest free port; 0 where there is none. In a dry run: after those passed over, and what would join the ring. */
static __always_inline __u32 pop_port(struct nat_place *place)
{
	for (int i = 0; i < CLAIM_TRIES; i++) {
		__u64 head = *(volatile __u64 *)&place->pair->head + (dry ? traced.passed : 0), value;
		__u64 *word = ring_word(place->number, head & (NAT_PORTS - 1));

		if (!word)
			return 0;
		value = *(volatile __u64 *)word;
		if (value >> 16 != ((head + 1) & 0xffffffffffffULL)) {
			/* Empty, or its producer has not stored the word yet. */
			if (dry)
				return foreseen(place, traced.joins & 0xffff) ? traced.joins & 0xffff : 0;
			if (head == *(volatile __u64 *)&place->pair->head)
				return 0;
			continue;
		}
		if (dry || __sync_val_compare_and_swap(&place->pair->head, head, head + 1) == head)
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

	if (!bucket || dry)
		return;
	word = &bucket->word[flow->bucket & (NAT_WAYS - 1)];
	value = *(volatile __u64 *)word;
	if ((__u32)value == id)
		__sync_val_compare_and_swap(word, value, 0);
}

/* Ends a flow that goes on translating, unless its state is another by now. */
static __always_inline void close_flow(struct nat_place *place, struct nat_flow *flow, __u32 port,
				       __u32 state)
{
	if (dry || __sync_val_compare_and_swap(&flow->state, state, NAT_CLOSED) != state)
		return;
	if (TELLS && is_told(state))
		mark_news(place->number << 16 | port);
	queue_port(place, flow, port);
}

/* Ends a flow, both ways, unless its state is another by now. */
static __always_inline bool void_flow(struct nat_place *place, struct nat_flow *flow, __u32 port,
				      __u32 state)
{
	__u32 id = place->number << 16 | port, index = flow->bucket / NAT_WAYS;
	struct nat_bucket *bucket = bpf_map_lookup_elem(&nat_buckets, &index);
	__u64 *word = NULL, value = 0;

	/* Another CPU has ended it, and the port may have a new owner. */
	if (state == NAT_FREE)
		return false;
	/* Its name is read now: once the state is swapped, the entry may be another's. */
	if (bucket) {
		word = &bucket->word[flow->bucket & (NAT_WAYS - 1)];
		value = *(volatile __u64 *)word;
	}
	if (!free_entry(flow, id, state))
		return false;
	if (!dry && word && (__u32)value == id)
		__sync_val_compare_and_swap(word, value, 0);
	queue_port(place, flow, port);
	return true;
}

/* Ends a flow as it is now, where there is no stack to spare. */
SUBPROGRAM int void_found(__u32 pair, __u32 port)
{
	struct nat_flow *flow = nat_entry(pair, port);
	struct nat_place place;

	return flow && nat_place(&place, pair) && void_flow(&place, flow, port, flow->state);
}

static __always_inline void sweep_port(struct nat_place *place, __u32 port, __u32 now)
{
	struct nat_flow *flow = nat_entry(place->number, port);
	__u32 state;

	if (!flow)
		return;
	state = flow->state;
	if (state != NAT_FREE && nat_expired(flow, now))
		void_flow(place, flow, port, state);
}

/* Moves a hand of the search, and returns where it was. */
static __always_inline __u32 move_hand(__u32 *hand, __u32 by)
{
	return dry ? *hand : __sync_fetch_and_add(hand, by);
}

/* Looks at a pair's next few entries, whoever's, and ends what was idle too long. */
SUBPROGRAM int sweep(__u32 pair, __u32 now)
{
	struct nat_place place;
	__u32 hand;

	if (!nat_place(&place, pair))
		return 0;
	hand = move_hand(&place.pair->hand, SWEEP_STEP);
	KEEP_LOOP
	for (int i = 0; i < SWEEP_STEP; i++)
		sweep_port(&place, (hand + i) & (NAT_PORTS - 1), now);
	return 1;
}

/* The same for many of those whose ports are this node's, which needs one now. */
SUBPROGRAM int sweep_share(__u32 pair, __u32 now)
{
	struct nat_place place;
	__u32 hand, first, ports;

	if (!nat_place(&place, pair))
		return 0;
	first = *(volatile __u16 *)&place.pair->first_port;
	ports = *(volatile __u16 *)&place.pair->last_port - first + 1;
	hand = move_hand(&place.pair->share_hand, SWEEP_MANY);
	for (__u32 i = 0; i < SWEEP_MANY; i++)
		sweep_port(&place, (first + (hand + i) % ports) & (NAT_PORTS - 1), now);
	return 0;
}

/* Whether a port of the pair's source address is a service's. */
static __always_inline bool is_service(struct nat_pair *pair, __u32 port)
{
	return service_of(vip_at(pair->vip), pair->protocol == IPPROTO_UDP, bpf_htons(port));
}

/* A port for a new flow, its entry void and owned by the caller; 0 where none is free. */
SUBPROGRAM int claim_port(__u32 pair, __u32 service, __u32 now)
{
	struct nat_place place;

	if (!nat_place(&place, pair))
		return 0;
	for (int i = 0; i < CLAIM_TRIES; i++) {
		__u32 port = pop_port(&place), state;
		struct nat_flow *flow;

		if (!port)
			return 0;
		if (dry)
			traced.passed++; /* until it is found to be good */
		flow = nat_entry(pair, port);
		if (!flow)
			return 0;
		/* The ring may hold what the share or the services have lost since. */
		if (!in_share(place.pair, port)) {
			unmark_port(&place, flow, port, NAT_QUEUED); /* the share may have it back by now */
			continue;
		}
		if (is_service(place.pair, port)) {
			if (!dry)
				push_port(&place, port);
			continue;
		}
		state = flow->state;
		if (dry && foreseen(&place, port))
			state = NAT_FREE;
		if (state == NAT_CLOSED && free_entry(flow, pair << 16 | port, NAT_CLOSED))
			state = NAT_FREE;
		if (state != NAT_FREE || !claim_entry(flow)) {
			/*
			 * Data came after the close, or another node has told of a flow: it lives,
			 * and queues again when it ends.
			 */
			unmark_port(&place, flow, port, NAT_QUEUED);
			continue;
		}
		/* Another CPU may have stamped the flow a tick ahead. */
		if (flow->last_seen && (int)(now - flow->last_seen) < REUSE_TICKS)
			COUNT_LOSS(service, early_reuse);
		unlink_flow(flow, pair << 16 | port);
		return port;
	}
	return 0;
}

#endif
