/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Dry runs: `sluice explain` loads this program a second time over the same maps,
 * with dry = 1. Nothing is written then but the trace, which is explain's own.
 * Both are constants to the verifier: of the program that forwards it removes
 * what is for dry runs alone, and the other way round.
 *
 * A function that writes asks for dry itself, and returns what it would have
 * returned; so the way of a packet is the same in both.
 */
#ifndef SLUICE_DRY_H
#define SLUICE_DRY_H

#include <linux/types.h>

#include "include/bpf_helpers.h"

/* 1: nothing is written. */
volatile const __u32 dry = 0;

/* The interface that a dry run's packet came in by; a test run can't be given one. */
volatile const __u32 dry_interface = 0;

/* How the backend of a packet was found. */
enum trace_found {
	FOUND_BY_SLOT = 0,	/* its slot's owner, or nothing */
	FOUND_HANDSHAKE,	/* a SYN that has come before */
	FOUND_HANDSHAKE_DONE,	/* the next segment after such a SYN: the flow is pinned */
	FOUND_HANDSHAKE_DATA,	/* a later one */
	FOUND_PIN,
	FOUND_STRAGGLER,
	FOUND_UDP_NEW,		/* a flow of one datagram so far */
	FOUND_UDP,
	FOUND_NAT,		/* a client's flow */
	FOUND_REPLY,		/* a flow that the backend answers to */
	NEW_HANDSHAKE,		/* its slot's owner; the SYN is remembered */
	NEW_HANDSHAKE_LOST,	/* there is no room to remember it: its slot's previous owner */
	NEW_STRAGGLER,		/* its slot's previous owner: it is older than the window */
	NEW_UDP,		/* its slot's owner; the flow is remembered */
	NEW_NAT,		/* its slot's owner; a flow is made */
};

/* The steps of one packet, as far as it has come. */
struct trace {
	__u64 hash; /* of the flow; it says which slot */
	__u64 slot; /* its word */
	__u32 service;
	enum trace_found found;
	__u32 backend; /* its number, 0: none */
	__u32 pair; /* with FOUND_NAT, FOUND_REPLY and NEW_NAT, as is the port */
	__u32 port; /* source port in host byte order, 0: none is free */
	__u32 void_flow; /* nat: an older flow of the same ports, which ends; pair << 16 | port */
	__u32 joins; /* nat: the port that would join the ring first; likewise */
	__u32 passed; /* nat: places of the pair's ring that would be passed over */
	__u32 interface; /* it leaves by */
	__u32 outcome; /* enum outcome */
	__u32 handshakes_full; /* told to the program, which can't ask without writing */
};

/* Not pinned and not shared: each program has its own. */
struct trace traced SEC(".data.trace");

#define TRACE(what, value)                                                      \
	do {                                                                    \
		if (dry)                                                        \
			traced.what = (value);                                   \
	} while (0)

#endif
