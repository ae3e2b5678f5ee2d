/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who may use a service, and how many connections a client may open. */
#ifndef SLUICE_GUARD_H
#define SLUICE_GUARD_H

#include "balance.h"

#define GUARDED (SERVICE_RULES | SERVICE_ALLOW_ONLY | SERVICE_SOURCE_LIMIT)

/* The client of a packet to a service that is guarded. */
struct visitor {
	struct address address;
	__u32 service;
	__u8 v6;
	__u8 opens;
	__u8 pad[2];
};

/* Whether the rule with the longest prefix lets the client in. */
static __always_inline bool allowed(struct visitor *v, __u32 flags)
{
	struct rule_key key = {
		.prefix_length = 8 * (sizeof(key) - sizeof(key.prefix_length)),
		.service = v->service << 1 | v->v6,
	};
	__u32 *rule;

	/* An IPv4 address stands at the front: ::/0 is no prefix of it. */
	if (v->v6) {
		key.address[0] = v->address.word[0];
		key.address[1] = v->address.word[0] >> 32;
		key.address[2] = v->address.word[1];
		key.address[3] = v->address.word[1] >> 32;
	} else {
		key.address[0] = v->address.word[1] >> 32;
	}
	rule = bpf_map_lookup_elem(&access_rules, &key);
	if (!rule)
		return !(flags & SERVICE_ALLOW_ONLY);
	return *rule == RULE_ALLOW;
}

/*
 * Whether the client may open another connection now. The bucket holds the time
 * at which it would be full of what is owed (the generic cell rate algorithm,
 * ITU-T I.371, annex A), so one word is all there is to swap.
 */
static __always_inline bool within_limit(struct visitor *v, struct service *service)
{
	/* Of IPv6 a client has a whole /64. */
	struct source_key key = {
		.address = v->v6 ? v->address.word[0] : v->address.word[1],
		.service = v->service << 1 | v->v6,
	};
	__u64 interval = 1000000000ULL / (service->limit_rate ? service->limit_rate : 1);
	__u64 slack = interval * (service->limit_burst ? service->limit_burst - 1 : 0);
	__u64 now = bpf_ktime_get_ns(), first = now + interval, *due;

	due = bpf_map_lookup_elem(&source_buckets, &key);
	if (!due) {
		if (!dry)
			bpf_map_update_elem(&source_buckets, &key, &first, BPF_NOEXIST);
		return true;
	}
	for (int i = 0; i < 4; i++) {
		__u64 old = *(volatile __u64 *)due, at = old > now ? old : now;

		if (at - now > slack)
			return false;
		if (dry || __sync_val_compare_and_swap(due, old, at + interval) == old)
			return true;
	}
	return false; /* others of this client were faster, four times */
}

SUBPROGRAM int guard(struct visitor *v)
{
	struct service *service;

	if (!v)
		return DROP_INTERNAL;
	service = service_at(v->service);
	if ((service->flags & (SERVICE_RULES | SERVICE_ALLOW_ONLY)) && !allowed(v, service->flags))
		return DROP_DENIED;
	if ((service->flags & SERVICE_SOURCE_LIMIT) && v->opens && !within_limit(v, service))
		return DROP_SOURCE_LIMIT;
	return NEXT;
}

static __always_inline int check_visitor(struct packet *p)
{
	struct visitor v = {
		.address = source_of(p), .service = p->service, .v6 = p->v6, .opens = p->opens,
	};

	return guard(&v);
}

#endif
