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

static __always_inline __u64 nat_hash(__u64 high, __u64 low, __be16 client_port, __u32 vip,
				      __be16 vip_port, bool udp)
{
	__u64 rest = (__u64)udp << 48 | (__u64)vip << 32 | (__u32)client_port << 16 | vip_port;

	/*
	 * The halves of the low word change places, so that the names of IPv4 flows are
	 * those of layout 1 but for a constant in the seed: an upgrade keeps its table.
	 */
	low = low << 32 | low >> 32;
	return mix(mix((low ^ high * GOLDEN) + nat_seed) + rest);
}

static __always_inline __u32 first_bucket(__u64 hash)
{
	return hash & nat_bucket_mask;
}

static __always_inline __u32 second_bucket(__u64 hash)
{
	return ((__u32)hash ^ ((__u32)(hash >> 32) | 1) * 0x5bd1e995) & nat_bucket_mask;
}

/* A flow, as the client names it. */
struct nat_key {
	struct address client;
	__u64 hash;
	__u32 vip;
	__be16 client_port;
	__be16 vip_port;
	__u32 udp;
	__u32 now; /* ticks */
};

static __always_inline void set_hash(struct nat_key *key)
{
	key->hash = nat_hash(key->client.word[0], key->client.word[1], key->client_port, key->vip,
			     key->vip_port, key->udp);
}

static __always_inline bool nat_key_equal(struct nat_flow *flow, struct nat_key *key)
{
	return flow->client[1] == key->client.word[1] && flow->client[0] == key->client.word[0] &&
	       flow->client_port == key->client_port && flow->vip_port == key->vip_port &&
	       flow->vip == key->vip && !(flow->flags & NAT_UDP) == !key->udp;
}

/* The flow in one bucket: its pair << 16 | port, or 0. */
static __always_inline __u32 find_in_bucket(struct nat_key *key, __u32 index)
{
	struct nat_bucket *bucket = bpf_map_lookup_elem(&nat_buckets, &index);

	if (!bucket)
		return 0;
	for (int i = 0; i < NAT_WAYS; i++) {
		__u64 word = *(volatile __u64 *)&bucket->word[i];
		__u32 id = word;
		struct nat_flow *flow;

		if (word >> 32 != key->hash >> 32 || !id)
			continue;
		flow = nat_entry(id >> 16, id & 0xffff);
		if (!flow || flow->state == NAT_FREE || !nat_key_equal(flow, key) ||
		    nat_expired(flow, key->now))
			continue;
		return id;
	}
	return 0;
}

/* A flow's pair << 16 | port, or 0. */
SUBPROGRAM __u32 find_id(struct nat_key *key)
{
	__u32 id;

	if (!key)
		return 0;
	id = find_in_bucket(key, first_bucket(key->hash));
	return id ? id : find_in_bucket(key, second_bucket(key->hash));
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
		if (dry)
			return true;
		flow->bucket = index * NAT_WAYS + i;
		if (__sync_val_compare_and_swap(&bucket->word[i], 0, name) == 0)
			return true;
	}
	return false;
}

static __always_inline __u64 *name_at(__u32 where)
{
	__u32 index = where / NAT_WAYS;
	struct nat_bucket *bucket = bpf_map_lookup_elem(&nat_buckets, &index);

	return bucket ? &bucket->word[where & (NAT_WAYS - 1)] : NULL;
}

/* Empties a word that names a flow which is over, or nothing: 1 if it is empty. */
SUBPROGRAM int end_name(__u32 where, __u32 now)
{
	__u64 *word = name_at(where), value;
	struct nat_place place;
	struct nat_flow *flow;
	__u32 pair, state;

	if (!word)
		return 0;
	value = *(volatile __u64 *)word;
	if (!value)
		return 1;
	pair = (__u32)value >> 16;
	flow = nat_entry(pair, value & 0xffff);
	if (!flow)
		return dry || __sync_val_compare_and_swap(word, value, 0) == value;
	state = flow->state;
	if (state == NAT_FREE)
		/* A new flow's name is where its entry says; this one is forgotten. */
		return flow->bucket != where &&
		       (dry || __sync_val_compare_and_swap(word, value, 0) == value);
	if (flow->bucket != where || !(nat_expired(flow, now) || nat_over(flow)))
		return 0;
	return nat_place(&place, pair) && void_flow(&place, flow, value & 0xffff, state);
}

/* Moves a name to its other bucket, if there is room: 1 if it did. */
SUBPROGRAM int move_name(__u32 where, __u32 now)
{
	__u64 *word = name_at(where), *other, value, hash;
	struct nat_flow *flow;
	__u32 index;

	if (!word)
		return 0;
	value = *(volatile __u64 *)word;
	flow = nat_entry((__u32)value >> 16, value & 0xffff);
	if (!value || !flow || flow->bucket != where)
		return 0;
	hash = nat_hash(flow->client[0], flow->client[1], flow->client_port, flow->vip, flow->vip_port,
			flow->flags & NAT_UDP);
	index = first_bucket(hash);
	if (index == where / NAT_WAYS)
		index = second_bucket(hash);
	if (index == where / NAT_WAYS)
		return 0;
	KEEP_LOOP
	for (int i = 0; i < NAT_WAYS; i++) {
		__u32 there = index * NAT_WAYS + i;

		other = name_at(there);
		if (!other || !end_name(there, now))
			continue;
		if (dry)
			return 1;
		/* For a moment the name stands twice, so that it is always found. */
		if (__sync_val_compare_and_swap(other, 0, value))
			continue;
		if (__sync_val_compare_and_swap(&flow->bucket, where, there) != where) {
			__sync_val_compare_and_swap(other, value, 0);
			return 0;
		}
		return __sync_val_compare_and_swap(word, value, 0) == value;
	}
	return 0;
}

/* Makes room in a full bucket: what is over goes, or something moves. 1: there is some. */
SUBPROGRAM int make_room(__u32 index, __u32 now)
{
	KEEP_LOOP
	for (int i = 0; i < NAT_WAYS; i++)
		if (end_name(index * NAT_WAYS + i, now))
			return 1;
	KEEP_LOOP
	for (int i = 0; i < NAT_WAYS; i++)
		if (move_name(index * NAT_WAYS + i, now))
			return 1;
	return 0;
}

/* Puts a flow's name into one of its buckets. */
static __always_inline bool link_flow(struct nat_flow *flow, __u64 hash, __u32 id, __u32 now)
{
	__u32 first = first_bucket(hash), second = second_bucket(hash);
	__u64 name = hash >> 32 << 32 | id;

	if (link_in_bucket(flow, first, name) || link_in_bucket(flow, second, name))
		return true;
	/* The name of the flow that ends for this one stands in one of the two still. */
	if (dry)
		return traced.void_flow || make_room(first, now) || make_room(second, now);
	if (make_room(first, now) && link_in_bucket(flow, first, name))
		return true;
	return make_room(second, now) && link_in_bucket(flow, second, name);
}

#endif
