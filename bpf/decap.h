/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the decapsulating program shares with `sluice decap`: keys, outcomes and
 * maps. The Go side of it is generated from here.
 *
 * Addresses are IPv6 in network byte order; an IPv4 address is held as
 * ::ffff:a.b.c.d (RFC 4291, section 2.5.5.2).
 */
#ifndef SLUICE_DECAP_H
#define SLUICE_DECAP_H

#include <linux/types.h>

#include "include/bpf_helpers.h"

enum limits {
	MAX_HOSTS = 4096,
	MAX_VIPS = 4096,
	MAX_TAGS = 2,
	MAX_OPTION_HEADERS = 2,
	MAX_OPTIONS = 8,	/* in one header */
};

/*
 * What became of a frame. The order is the contract of the pinned outcomes map:
 * a new one takes a number that was never used.
 */
enum outcome {
	NEXT = 0,		/* none yet: the next stage goes on */
	PASS_DECAPSULATED = 1,
	PASS_NOT_TUNNEL,	/* no IP packet with an IP packet in it */
	PASS_NOT_HOST,		/* outer destination is not the interface's */
	PASS_NOT_VIP,		/* inner destination is no VIP */
	PASS_FRAGMENT,		/* outer packet is a fragment */
	PASS_OPTIONS,		/* outer IPv6 has options that may not be skipped */
	PASS_SPLIT,		/* headers reach beyond the first buffer */
	DROP_OUTER = 16,	/* outer header is malformed */
	DROP_CHECKSUM,		/* checksum of the outer IPv4 header */
	DROP_INNER,		/* inner header is malformed, or of another version */
	DROP_CONGESTION,	/* outer says congestion, inner transport can't (RFC 6040) */
	DROP_INTERNAL,		/* the frame could not be shortened */
	OUTCOMES = 32,
};

struct address {
	__u8 bytes[16];
};

/* An address that the stack takes packets for, by the interface they come in by. */
struct host {
	__u32 interface;
	struct address address;
};

struct exported {
	enum limits limits;
	enum outcome outcome;
};

/* Outer destinations. The value says nothing. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_HOSTS);
	__type(key, struct host);
	__type(value, __u8);
} hosts SEC(".maps");

/* Inner destinations. The value says nothing. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_VIPS);
	__type(key, struct address);
	__type(value, __u8);
} vips SEC(".maps");

/* Frames by outcome and CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, OUTCOMES);
	__type(key, __u32);
	__type(value, __u64);
} outcomes SEC(".maps");

#endif
