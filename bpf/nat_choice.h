/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * NAT: which source address and port a new flow gets. A backend has a pair for each
 * source address of its service, side by side in nat_choices; the flow's hash says
 * with which of them the search begins.
 */
#ifndef SLUICE_NAT_CHOICE_H
#define SLUICE_NAT_CHOICE_H

#include "nat_handshakes.h"

/* What a packet of a client is translated by. */
struct nat_found {
	struct nat_place place;
	struct nat_flow *flow;
	__u32 port;
	__u32 number; /* of the backend */
	struct backend *backend;
};

/* Of how many source addresses a new flow looks for a port. */
#define SOURCE_TRIES 4

/* The pair of one of a backend's source addresses, by the flow's hash, or of one after it; MAX_PAIRS: there is none. */
static __always_inline __u32 chosen_pair(struct backend *backend, __u64 hash, __u32 after)
{
	__u32 choices = backend->choices, at = (((hash >> 32) * choices) >> 32) + after, choice, *pair;

	if (after >= choices)
		return MAX_PAIRS;
	choice = backend->choice + (at < choices ? at : at - choices);
	pair = bpf_map_lookup_elem(&nat_choices, &choice);
	return pair ? *(volatile __u32 *)pair : MAX_PAIRS;
}

/* A source port of a pair for a new flow; 0 where all are in use. */
SUBPROGRAM __u32 obtain_port(__u32 pair, __u32 service, __u32 now)
{
	__u32 port;

	sweep(pair, now);
	port = claim_port(pair, service, now);
	if (port)
		return port;
	sweep_share(pair, now);
	return claim_port(pair, service, now);
}

/* The same, taken from a handshake. */
SUBPROGRAM __u32 evict_port(__u32 pair, __u32 service, __u32 now)
{
	give_up_oldest(pair, service);
	return claim_port(pair, service, now);
}

/*
 * Finds a source port for a new flow. Where the source address that the hash names
 * has none, the next ones are asked; a handshake gives way only if they have none
 * either.
 */
static __always_inline int find_port(struct nat_found *f, __u64 hash, __u32 service, __u32 now)
{
	__u32 first = chosen_pair(f->backend, hash, 0), pair = first, passed = 0;

	if (first >= MAX_PAIRS)
		return DROP_INTERNAL;
	for (__u32 i = 1; !(f->port = obtain_port(pair, service, now)) && i < SOURCE_TRIES; i++) {
		__u32 next = chosen_pair(f->backend, hash, i);

		if (next >= MAX_PAIRS)
			break;
		if (dry && pair == first)
			passed = traced.passed;
		TRACE(passed, 0);
		pair = next;
	}
	if (!f->port) {
		if (pair != first)
			TRACE(passed, passed);
		pair = first;
		f->port = evict_port(pair, service, now);
	}
	if (!nat_place(&f->place, pair))
		return DROP_INTERNAL;
	TRACE(pair, pair);
	TRACE(port, f->port);
	return f->port ? NEXT : DROP_NO_PORT;
}

#endif
