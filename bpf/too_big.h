/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Answers a packet that is too long for its way: ICMP fragmentation needed (RFC
 * 792, RFC 1191) or ICMPv6 packet too big (RFC 4443, section 3.2), from the VIP to
 * the client, by the way that the packet came.
 */
#ifndef SLUICE_TOO_BIG_H
#define SLUICE_TOO_BIG_H

#include "balance.h"
#include "clock.h"
#include "parse.h"

/* Answers of one CPU in a tick: they can be provoked. */
#define ANSWERS_PER_TICK 256

/* Of the packet that is too long so much is quoted. It is longer, or it would not be too long. */
#define QUOTE 512

#define ICMP_HOPS 64

struct icmp_error {
	__u8 type;
	__u8 code;
	__u16 checksum;
	__be32 mtu; /* IPv4: its low half */
};

#define MAX_L2 (ETH_HLEN + MAX_VLANS * sizeof(struct vlan_header))

/* Where the answer goes. */
struct answer {
	__u32 l2; /* length of the Ethernet header with its tags */
	__u32 v6;
	__u32 mtu;
	__u32 pad;
};

static __always_inline void swap_macs(void *eth)
{
	__u16 *a = eth, *b = eth + ETH_ALEN, kept;

#pragma unroll
	for (int i = 0; i < 3; i++) {
		kept = a[i];
		a[i] = b[i];
		b[i] = kept;
	}
}

/* Moves the Ethernet header with its tags to the front of the frame; false: no room. */
static __always_inline bool make_front(struct xdp_md *ctx, __u32 l2, int size)
{
	__u8 kept[24];
	void *data;

	if (l2 != ETH_HLEN && l2 != ETH_HLEN + 4 && l2 != ETH_HLEN + 8)
		return false;
	/* A constant length for each: the verifier of Linux 6.1 wants it so. */
	if (l2 == ETH_HLEN ? bpf_xdp_load_bytes(ctx, 0, kept, ETH_HLEN) :
			     l2 == ETH_HLEN + 4 ? bpf_xdp_load_bytes(ctx, 0, kept, ETH_HLEN + 4) :
						  bpf_xdp_load_bytes(ctx, 0, kept, ETH_HLEN + 8))
		return false;
	swap_macs(kept);
	if (bpf_xdp_adjust_tail(ctx, (int)(l2 + QUOTE) - (int)bpf_xdp_get_buff_len(ctx)) ||
	    bpf_xdp_adjust_head(ctx, -size))
		return false;
	data = (void *)(long)ctx->data;
	if (data + MAX_L2 > (void *)(long)ctx->data_end)
		return false;
	return !(l2 == ETH_HLEN ? bpf_xdp_store_bytes(ctx, 0, kept, ETH_HLEN) :
				  l2 == ETH_HLEN + 4 ? bpf_xdp_store_bytes(ctx, 0, kept, ETH_HLEN + 4) :
						       bpf_xdp_store_bytes(ctx, 0, kept, ETH_HLEN + 8));
}

static __always_inline int answer4(struct xdp_md *ctx, struct answer *a)
{
	struct {
		struct iphdr ip;
		struct icmp_error icmp;
	} *out;
	struct iphdr *in;
	void *data, *end;
	__u32 l2 = a->l2;
	__s64 sum;

	if (!make_front(ctx, l2, sizeof(*out)))
		return DROP_INTERNAL;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if (l2 > MAX_L2)
		return DROP_INTERNAL;
	out = data + l2;
	in = (void *)(out + 1);
	if ((void *)in + QUOTE > end)
		return DROP_INTERNAL;
	*(__u8 *)&out->ip = 0x45;
	out->ip.tos = 0xc0; /* internetwork control (RFC 1812, section 4.3.2.5) */
	out->ip.tot_len = bpf_htons(sizeof(*out) + QUOTE);
	out->ip.id = 0;
	out->ip.frag_off = bpf_htons(0x4000);
	out->ip.ttl = ICMP_HOPS;
	out->ip.protocol = IPPROTO_ICMP;
	out->ip.check = 0;
	out->ip.saddr = in->daddr;
	out->ip.daddr = in->saddr;
	out->icmp.type = 3;
	out->icmp.code = 4;
	out->icmp.checksum = 0;
	out->icmp.mtu = bpf_htonl(a->mtu & 0xffff);
	sum = bpf_csum_diff(0, 0, (void *)&out->ip, sizeof(out->ip), 0);
	out->ip.check = fold(sum);
	sum = bpf_csum_diff(0, 0, (void *)&out->icmp, sizeof(out->icmp), 0);
	sum = bpf_csum_diff(0, 0, (void *)in, QUOTE, sum);
	out->icmp.checksum = fold(sum);
	return ANSWERED;
}

static __always_inline int answer6(struct xdp_md *ctx, struct answer *a)
{
	struct {
		struct ipv6hdr ip;
		struct icmp_error icmp;
	} *out;
	struct ipv6hdr *in;
	void *data, *end;
	__u32 l2 = a->l2;
	__s64 sum;

	if (!make_front(ctx, l2, sizeof(*out)))
		return DROP_INTERNAL;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if (l2 > MAX_L2)
		return DROP_INTERNAL;
	out = data + l2;
	in = (void *)(out + 1);
	if ((void *)in + QUOTE > end)
		return DROP_INTERNAL;
	*(__be32 *)&out->ip = bpf_htonl(6U << 28);
	out->ip.payload_len = bpf_htons(sizeof(out->icmp) + QUOTE);
	out->ip.nexthdr = IPPROTO_ICMPV6;
	out->ip.hop_limit = ICMP_HOPS;
	out->ip.saddr = in->daddr;
	out->ip.daddr = in->saddr;
	out->icmp.type = 2;
	out->icmp.code = 0;
	out->icmp.checksum = 0;
	out->icmp.mtu = bpf_htonl(a->mtu);
	sum = bpf_csum_diff(0, 0, (void *)&out->ip.saddr, 2 * sizeof(struct in6_addr), 0);
	sum = bpf_csum_diff(0, 0, (void *)&out->icmp, sizeof(out->icmp), sum);
	sum = bpf_csum_diff(0, 0, (void *)in, QUOTE, sum);
	sum = (sum & 0xffffffff) + out->ip.payload_len + bpf_htons(IPPROTO_ICMPV6);
	out->icmp.checksum = fold(sum);
	return ANSWERED;
}

/* Turns the frame into the answer; ANSWERED: it is to go back where it came from. */
SUBPROGRAM int make_answer(struct xdp_md *ctx, struct answer *a)
{
	if (!a || !spend(&answer_allowance, ANSWERS_PER_TICK))
		return DROP_TOO_BIG;
	return a->v6 ? answer6(ctx, a) : answer4(ctx, a);
}

/* The longest packet that is no reason for an answer: what any IPv6 link carries (RFC 8200). */
#define MIN_MTU6 1280

/*
 * Not every packet may be answered: no error is sent about an error, nor, over
 * IPv4, about a later fragment (RFC 1122, section 3.2.2; RFC 4443, section 2.4).
 */
static __always_inline bool answerable(struct packet *p)
{
	return (p->protocol == IPPROTO_TCP || p->protocol == IPPROTO_UDP) &&
	       (p->v6 || !(p->fragment & FRAGMENT_OFFSET));
}

static __always_inline int answer_too_big(struct packet *p, __u32 mtu)
{
	struct answer a = {
		.l2 = p->l3 - p->data, .v6 = p->v6, .mtu = p->v6 && mtu < MIN_MTU6 ? MIN_MTU6 : mtu,
	};

	if (p->length < QUOTE || !answerable(p))
		return DROP_TOO_BIG;
	return make_answer(p->ctx, &a);
}

#endif
