/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Both ends of a wire for measurements with live frames: live_generate sends frames
 * of many flows in turn into an interface, live_count counts what comes out and
 * ends it there. All of it runs on one CPU.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>

#include "include/bpf_helpers.h"

#define LIVE_WORDS 8

enum live_limits {
	LIVE_FLOWS = 16384, /* a power of two */
	LIVE_LENGTH = LIVE_WORDS * 8,
};

/* A frame of each flow, whole: its checksums are right. */
struct live_frame {
	__u64 words[LIVE_WORDS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LIVE_FLOWS);
	__type(key, __u32);
	__type(value, struct live_frame);
} live_frames SEC(".maps");

struct live_state {
	__u64 sent;
	__u64 right; /* frames that came out as they should */
	__u64 wrong; /* other ones */
	/* When the first and the last round through all flows began: ns. */
	__u64 first;
	__u64 last;
	__u32 interface; /* where live_generate sends to */
	/* What a right frame has. */
	__be32 destination; /* of the outermost header, under the mask */
	__be32 mask;
	__u16 protocol; /* of the outermost header */
	__u8 mac[5]; /* the first bytes of its destination */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct live_state);
} live_state SEC(".maps");

volatile const enum live_limits exported_limits = 0;

SEC("xdp")
int live_generate(struct xdp_md *ctx)
{
	struct live_state *s;
	struct live_frame *f;
	__u64 *to = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	__u32 index = 0;

	s = bpf_map_lookup_elem(&live_state, &index);
	if (!s || (void *)(to + LIVE_WORDS) > end)
		return XDP_ABORTED;
	index = s->sent++ & (LIVE_FLOWS - 1);
	if (!index) {
		s->last = bpf_ktime_get_ns();
		if (!s->first)
			s->first = s->last;
	}
	f = bpf_map_lookup_elem(&live_frames, &index);
	if (!f)
		return XDP_ABORTED;
#pragma unroll
	for (int i = 0; i < LIVE_WORDS; i++)
		to[i] = f->words[i];
	return bpf_redirect(s->interface, 0);
}

static __always_inline int is_right(struct live_state *s, void *data, void *end)
{
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);

	return (void *)(ip + 1) <= end && !__builtin_memcmp(eth->h_dest, s->mac, sizeof(s->mac)) &&
	       ip->version == 4 && ip->protocol == s->protocol && (ip->daddr & s->mask) == s->destination;
}

SEC("xdp")
int live_count(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct live_state *s = bpf_map_lookup_elem(&live_state, &zero);

	if (!s)
		return XDP_ABORTED;
	if (is_right(s, (void *)(long)ctx->data, (void *)(long)ctx->data_end))
		s->right++;
	else
		s->wrong++;
	return XDP_DROP;
}

/* An interface whose driver is to take frames from the one at its other end needs a program. */
SEC("xdp")
int live_pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
