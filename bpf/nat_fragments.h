/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * NAT: first fragments. All clients behind a source address share its
 * identifications, too: of two that chose the same one, the backend would put the
 * fragments together into one packet. So a fragmented packet gets a fresh one.
 */
#ifndef SLUICE_NAT_FRAGMENTS_H
#define SLUICE_NAT_FRAGMENTS_H

#include "facts.h"
#include "fragments.h"
#include "nat_rewrite.h"
#include "nat_table.h"

/* Within so many ticks, a first fragment that comes again is a copy, and stays one packet's. */
#define COPY_TICKS 2

/*
 * The next identification from one address to another: a count that starts
 * anywhere, so that nobody can tell it from outside (RFC 7739, section 5.3).
 */
static __always_inline __be32 next_id(struct fragmented *first, struct fragment_key *key)
{
	__u64 hash = mix((first->source[1] ^ first->source[0] * GOLDEN) + nat_seed);
	__u32 index, *count, number = 0;

	hash = mix(hash + (first->dest[1] ^ first->dest[0] * GOLDEN));
	hash = mix(hash + key->protocol);
	index = hash >> 32 & (FRAGMENT_IDS - 1);
	count = bpf_map_lookup_elem(&fragment_ids, &index);
	if (count)
		number = dry ? *count : __sync_fetch_and_add(count, 1);
	number += hash;
	return key->v6 ? bpf_htonl(number) : bpf_htons(number);
}

static __always_inline bool same_words(__u64 *a, __u64 *b)
{
	return a[0] == b[0] && a[1] == b[1];
}

/* What becomes of the fragments of a flow's packet. */
static __always_inline bool translation(struct fragmented *first, __u32 id, __u32 way)
{
	struct nat_flow *flow = nat_entry(id >> 16, id & 0xffff);
	struct nat_place place;

	if (!flow || !nat_place(&place, id >> 16))
		return false;
	make_pin(&first->pin, flow->backend, 0);
	first->way = way;
	first->flow = id;
	if (way == FRAGMENTS_TO_BACKEND) {
		__builtin_memcpy(first->source, place.pair->source, sizeof(first->source));
		__builtin_memcpy(first->dest, place.pair->address, sizeof(first->dest));
	} else {
		__builtin_memcpy(first->source, vip_at(flow->vip)->address, sizeof(first->source));
		__builtin_memcpy(first->dest, flow->client, sizeof(first->dest));
	}
	return true;
}

/*
 * Before the first fragment in hand, of a flow (pair << 16 | port), is translated:
 * gives it its identification, and remembers what later ones are to be. With
 * FRAGMENTS_UNCHANGED they follow it to the kernel. A function, since its caller
 * has no stack to spare.
 */
SUBPROGRAM int begin_fragments(struct xdp_md *ctx, struct facts *f, __u32 id, __u32 way)
{
	struct fragmented first = {}, *before;
	struct fragment_key key;
	struct packet p = {};

	if (!f || !take_facts(&p, ctx, f) || !fragment_key(&p, &key))
		return 0;
	if (way == FRAGMENTS_UNCHANGED) {
		first.pin.seen = ticks();
	} else {
		if (!translation(&first, id, way))
			return 0;
		before = bpf_map_lookup_elem(&fragments, &key);
		if (before && before->way == way && before->flow == id &&
		    same_words(before->dest, first.dest) && first.pin.seen - before->pin.seen < COPY_TICKS)
			first.id = before->id;
		else
			first.id = next_id(&first, &key);
		identify(&p, first.id);
	}
	if (!dry)
		bpf_map_update_elem(&fragments, &key, &first, BPF_ANY);
	return 0;
}

/*
 * Whether a fragment opens a connection. No host sends such: it is an attempt to
 * get past whoever looks at whole packets (RFC 1858, section 4).
 */
static __always_inline bool fragmented_syn(struct packet *p)
{
	if (!p->fragment || p->protocol != IPPROTO_TCP || (void *)(p->tcp + 1) > p->end)
		return false;
	return p->tcp->syn;
}

#endif
