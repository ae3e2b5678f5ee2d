/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * NAT: a bounded memory of handshakes, per pair. A flood of SYNs gives up its own
 * kind and nothing else: no more handshakes are open at a time than the ring
 * holds, and the oldest makes way when no port is free.
 *
 * A word of the ring is place in the flow table << 16 | port: the place tells
 * whether the port's flow is still the one that was meant.
 */
#ifndef SLUICE_NAT_HANDSHAKES_H
#define SLUICE_NAT_HANDSHAKES_H

#include "nat_ports.h"

static __always_inline __u64 *handshake_word(struct nat_place *place, __u64 turn)
{
	__u32 mask = place->pair->handshakes & (NAT_EMBRYONIC - 1);

	return ring_word(place->number, NAT_PORTS + (turn & mask));
}

/* Gives up a handshake, if nothing has come of it yet. */
static __always_inline bool give_up(struct nat_place *place, __u64 word, __u32 service)
{
	__u32 port = word & 0xffff, state;
	struct nat_flow *flow = nat_entry(place->number, port);

	if (!word || !flow || flow->bucket != word >> 16)
		return false;
	state = flow->state;
	if (state != NAT_SYN_SENT && state != NAT_SYN_RECEIVED)
		return false;
	if (!void_flow(place, flow, port, state))
		return false;
	COUNT_LOSS(service, evicted);
	return true;
}

/* Remembers a handshake in place of the one begun a ring's length ago. */
static __always_inline void remember_handshake(struct nat_place *place, struct nat_flow *flow,
					       __u32 port, __u32 service)
{
	__u64 turn = __sync_fetch_and_add(&place->pair->embryonic, 1);
	__u64 *word = handshake_word(place, turn);

	if (word)
		give_up(place, __sync_lock_test_and_set(word, (__u64)flow->bucket << 16 | port), service);
}

/* Gives up a pair's oldest handshake, which frees a port. */
SUBPROGRAM int give_up_oldest(__u32 pair, __u32 service)
{
	struct nat_place place;
	__u64 size;

	if (!nat_place(&place, pair))
		return 0;
	size = (place.pair->handshakes & (NAT_EMBRYONIC - 1)) + 1;
	for (int i = 0; i < SWEEP_MANY; i++) {
		__u64 seen = *(volatile __u64 *)&place.pair->given_up, turn = seen;
		__u64 begun = *(volatile __u64 *)&place.pair->embryonic;
		__u64 *word;

		if (begun - turn > size)
			turn = begun - size;
		if (turn == begun)
			return 0;
		if (__sync_val_compare_and_swap(&place.pair->given_up, seen, turn + 1) != seen)
			continue;
		word = handshake_word(&place, turn);
		if (word && give_up(&place, __sync_lock_test_and_set(word, 0), service))
			return 1;
	}
	return 0;
}

#endif
