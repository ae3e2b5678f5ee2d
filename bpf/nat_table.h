/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * NAT: finds a client's flow. Names of flows stand in buckets of a cache line
 * each; a flow's name is in one of two. A name is tag of the hash << 32 | pair
 * << 16 | port, and the flow's entry says who it is.
 */
#ifndef SLUICE_NAT_TABLE_H
#define SLUICE_NAT_TABLE_H

#include "nat_track.h"
#include "parse.h"

volatile const __u64 nat_seed = 0; /* so that nobody can aim at a bucket */
volatile const __u32 nat_bucket_mask = 0;

static __always_inline __u64 nat_hash(__be32 client, __be16 client_port, __u32 vip, __be16 vip_port)
{
	__u64 ports = (__u64)vip << 32 | (__u32)client_port << 16 | vip_port;

	return mix(mix(client + nat_seed) + ports);
}

static __always_inline __u32 first_bucket(__u64 hash)
{
	return hash & nat_bucket_mask;
}

static __always_inline __u32 second_bucket(__u64 hash)
{
	return ((__u32)hash ^ ((__u32)(hash >> 32) | 1) * 0x5bd1e995) & nat_bucket_mask;
}

static __always_inline bool nat_key_equal(struct nat_flow *flow, struct packet *p)
{
	return flow->client[1] == mapped(p->ip->saddr) && !flow->client[0] &&
	       flow->client_port == p->tcp->source && flow->vip_port == p->tcp->dest &&
	       flow->vip == p->vip_index;
}

/* The packet's flow in one bucket: its pair << 16 | port, or 0. */
static __always_inline __u32 find_in_bucket(struct packet *p, __u32 index, __u32 tag, __u32 now,
					    struct nat_flow **found)
{
	struct nat_bucket *bucket = bpf_map_lookup_elem(&nat_buckets, &index);

	if (!bucket)
		return 0;
	for (int i = 0; i < NAT_WAYS; i++) {
		__u64 word = *(volatile __u64 *)&bucket->word[i];
		__u32 id = word;
		struct nat_flow *flow;

		if (word >> 32 != tag || !id)
			continue;
		flow = nat_entry(id >> 16, id & 0xffff);
		if (!flow || flow->state == NAT_FREE || !nat_key_equal(flow, p) ||
		    nat_expired(flow, now))
			continue;
		*found = flow;
		return id;
	}
	return 0;
}

/* Puts the flow's name into an empty word of a bucket. */
static __always_inline bool link_in_bucket(struct nat_flow *flow, __u32 index, __u64 name)
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

/* Empties a word that names a flow which is over, or nothing: true if it did. */
static __always_inline bool end_word(__u64 *word, __u32 where, __u32 now)
{
	__u64 value = *(volatile __u64 *)word;
	__u32 pair = (__u32)value >> 16, port = value & 0xffff, state;
	struct nat_flow *flow = nat_entry(pair, port);
	struct nat_place place = {};

	if (!value)
		return true;
	if (!flow)
		return __sync_val_compare_and_swap(word, value, 0) == value;
	state = flow->state;
	if (state == NAT_FREE)
		/* A new flow's name is where its entry says; this one is forgotten. */
		return flow->bucket != where &&
		       __sync_val_compare_and_swap(word, value, 0) == value;
	if (flow->bucket != where || !(nat_expired(flow, now) || nat_over(flow)))
		return false;
	return nat_place(&place, pair) && void_flow(&place, flow, port, state);
}

/* Moves a name to its other bucket, if there is room: true if it did. */
static __always_inline bool move_word(__u64 *word, __u32 where)
{
	__u64 value = *(volatile __u64 *)word, hash;
	struct nat_flow *flow = nat_entry((__u32)value >> 16, value & 0xffff);
	struct nat_bucket *bucket;
	__u32 index, there;

	if (!value || !flow || flow->bucket != where)
		return false;
	hash = nat_hash(flow->client[1] >> 32, flow->client_port, flow->vip, flow->vip_port);
	index = first_bucket(hash);
	if (index == where / NAT_WAYS)
		index = second_bucket(hash);
	bucket = bpf_map_lookup_elem(&nat_buckets, &index);
	if (!bucket || index == where / NAT_WAYS)
		return false;
	for (int i = 0; i < NAT_WAYS; i++) {
		there = index * NAT_WAYS + i;
		/* For a moment the name stands twice, so that it is always found. */
		if (bucket->word[i] || __sync_val_compare_and_swap(&bucket->word[i], 0, value))
			continue;
		if (__sync_val_compare_and_swap(&flow->bucket, where, there) != where) {
			__sync_val_compare_and_swap(&bucket->word[i], value, 0);
			return false;
		}
		return __sync_val_compare_and_swap(word, value, 0) == value;
	}
	return false;
}

/* Makes room in a full bucket: what is over goes, or something moves. */
SUBPROGRAM int make_room(__u32 index, __u32 now)
{
	struct nat_bucket *bucket = bpf_map_lookup_elem(&nat_buckets, &index);

	if (!bucket)
		return 0;
	for (int i = 0; i < NAT_WAYS; i++)
		if (end_word(&bucket->word[i], index * NAT_WAYS + i, now))
			return 1;
	for (int i = 0; i < NAT_WAYS; i++)
		if (move_word(&bucket->word[i], index * NAT_WAYS + i))
			return 1;
	return 0;
}

/* Puts the flow's name into one of its buckets. */
static __always_inline bool link_flow(struct nat_flow *flow, __u64 hash, __u32 id, __u32 now)
{
	__u32 first = first_bucket(hash), second = second_bucket(hash);
	__u64 name = hash >> 32 << 32 | id;

	if (link_in_bucket(flow, first, name) || link_in_bucket(flow, second, name))
		return true;
	if (make_room(first, now) && link_in_bucket(flow, first, name))
		return true;
	return make_room(second, now) && link_in_bucket(flow, second, name);
}

#endif
