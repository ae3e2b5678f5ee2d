/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * NAT: a bounded memory of handshakes, per pair. A flood of SYNs gives up its own
 * kind and nothing else: no more handshakes are open at a time than the ring
 * holds, and the oldest makes way when no port is free.
 *
 * A word of the ring is turn << 48 | place in the flow table << 16 | port. Place
 * and turn tell whether the port's flow is still the one that was meant: the
 * place alone would not, when a client comes back and gets the same port.
 */
#ifndef SLUICE_NAT_HANDSHAKES_H
#define SLUICE_NAT_HANDSHAKES_H

#include "nat_ports.h"

#define PASS_STEP 2

static __always_inline __u64 *handshake_word(struct nat_place *place, __u64 turn)
{
	__u32 mask = place->pair->handshakes & (NAT_EMBRYONIC - 1);

	return ring_word(place->number, NAT_PORTS + (turn & mask));
}

/* The turn of the oldest handshake that is remembered and was not passed yet. */
static __always_inline __u64 oldest_turn(struct nat_place *place, __u64 seen, __u64 begun)
{
	__u64 size = (place->pair->handshakes & (NAT_EMBRYONIC - 1)) + 1;

	return begun - seen > size ? begun - size : seen;
}

/* The flow of a handshake that nothing has come of yet, and its state. */
static __always_inline struct nat_flow *open_handshake(struct nat_place *place, __u64 word,
						       __u32 *state)
{
	struct nat_flow *flow = nat_entry(place->number, word & 0xffff);

	if (!word || !flow || flow->bucket != (__u32)(word >> 16) || flow->turn != (__u8)(word >> 48))
		return NULL;
	*state = flow->state;
	return *state == NAT_SYN_SENT || *state == NAT_SYN_RECEIVED ? flow : NULL;
}

static __always_inline bool give_up(struct nat_place *place, __u64 word, __u32 service)
{
	__u32 state;
	struct nat_flow *flow = open_handshake(place, word, &state);

	if (!flow || !void_flow(place, flow, word & 0xffff, state))
		return false;
	COUNT_LOSS(service, evicted);
	return true;
}

/* Passes handshakes that are over by now, so that the oldest is soon found. */
static __always_inline void pass_finished(struct nat_place *place, __u64 begun)
{
	for (int i = 0; i < PASS_STEP; i++) {
		__u64 seen = *(volatile __u64 *)&place->pair->given_up;
		__u64 turn = oldest_turn(place, seen, begun);
		__u64 *word = handshake_word(place, turn);
		__u32 state;

		if (!word || seen >= begun || open_handshake(place, *(volatile __u64 *)word, &state))
			return;
		__sync_val_compare_and_swap(&place->pair->given_up, seen, turn + 1);
	}
}

/* Begins a flow whose entry is complete, and remembers its handshake in place of the one begun a ring's length ago. */
SUBPROGRAM int remember_handshake(__u32 pair, __u32 port, __u32 service)
{
	struct nat_flow *flow = nat_entry(pair, port);
	struct nat_place where, *place = &where;
	__u64 turn, mine, old, *word;

	if (!flow || !nat_place(place, pair) || dry)
		return 0;
	__sync_lock_test_and_set(&flow->state, NAT_SYN_SENT);
	unmark(pair, port);
	turn = __sync_fetch_and_add(&place->pair->embryonic, 1);
	word = handshake_word(place, turn);
	mine = (turn & 0xff) << 48 | (__u64)flow->bucket << 16 | port;
	flow->turn = turn;
	if (word) {
		old = __sync_lock_test_and_set(word, mine);
		/* The same client may have had the same port a ring's length ago. */
		if (old != mine)
			give_up(place, old, service);
	}
	pass_finished(place, turn);
	return 0;
}

/* Gives up a pair's oldest handshake, which frees a port. */
SUBPROGRAM int give_up_oldest(__u32 pair, __u32 service)
{
	struct nat_place place;
	__u64 passed = 0; /* of a dry run */

	if (!nat_place(&place, pair))
		return 0;
	for (int i = 0; i < SWEEP_MANY; i++) {
		__u64 seen = dry && i ? passed : *(volatile __u64 *)&place.pair->given_up;
		__u64 begun = *(volatile __u64 *)&place.pair->embryonic;
		__u64 turn = oldest_turn(&place, seen, begun), *word, shake;

		if (seen == begun)
			return 0;
		if (!dry && __sync_val_compare_and_swap(&place.pair->given_up, seen, turn + 1) != seen)
			continue;
		passed = turn + 1;
		word = handshake_word(&place, turn);
		if (!word)
			continue;
		shake = dry ? *(volatile __u64 *)word : __sync_lock_test_and_set(word, 0);
		if (give_up(&place, shake, service))
			return 1;
	}
	return 0;
}

#endif
