/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The outside of a tunnel packet: Ethernet, VLAN tags, outer IPv4 or IPv6, and
 * whether it is for this host.
 */
#ifndef SLUICE_DECAP_OUTER_H
#define SLUICE_DECAP_OUTER_H

#include <stdbool.h>

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include "decap.h"
#include "include/bpf_endian.h"

#define FRAGMENT_ANY bpf_htons(0x3fff) /* more follow, or an offset */
#define OPTION_ACTION 0xc0 /* what to do with an unknown option; 0: skip it (RFC 8200, section 4.2) */
#define ECN_MASK 3 /* of traffic class and type of service (RFC 3168) */

struct tunnel {
	struct xdp_md *ctx;
	void *data;
	void *end;
	void *outer; /* IP header */
	__be16 type; /* EtherType */
	__u32 tags;
	__u32 header; /* of the outer packet, with options and extension headers */
	__u32 length; /* of the outer packet */
	__u8 protocol; /* inner */
	__u8 ecn; /* outer */
	bool fragment;
	bool options; /* that may not be skipped */
};

static __always_inline bool is_tunnel(__u8 protocol)
{
	return protocol == IPPROTO_IPIP || protocol == IPPROTO_IPV6;
}

static __always_inline void set_mapped(struct address *a, __be32 v4)
{
	__builtin_memset(a->bytes, 0, 10);
	a->bytes[10] = a->bytes[11] = 0xff;
	__builtin_memcpy(a->bytes + 12, &v4, sizeof(v4));
}

/* False for a mapped IPv4 address, which no IPv6 packet may pretend to be for. */
static __always_inline bool set_ipv6(struct address *a, struct in6_addr *v6)
{
	__be32 *words = v6->in6_u.u6_addr32;

	__builtin_memcpy(a->bytes, words, sizeof(a->bytes));
	return words[0] || words[1] || words[2] != bpf_htonl(0xffff);
}

static __always_inline int parse_ethernet(struct tunnel *t)
{
	struct tag {
		__be16 tci;
		__be16 type;
	} *tag;
	struct ethhdr *eth = t->data;
	void *next = eth + 1;

	if (next > t->end)
		return PASS_NOT_TUNNEL;
	t->type = eth->h_proto;
#pragma unroll
	for (int i = 0; i < MAX_TAGS; i++) {
		if (t->type != bpf_htons(ETH_P_8021Q) && t->type != bpf_htons(ETH_P_8021AD))
			break;
		tag = next;
		if ((void *)(tag + 1) > t->end)
			return PASS_NOT_TUNNEL;
		t->type = tag->type;
		t->tags = i + 1;
		next = tag + 1;
	}
	t->outer = next;
	return NEXT;
}

static __always_inline int parse_ipv4(struct tunnel *t, struct host *host)
{
	struct iphdr *ip = t->outer;

	if ((void *)(ip + 1) > t->end || !is_tunnel(ip->protocol))
		return PASS_NOT_TUNNEL;
	t->protocol = ip->protocol;
	t->header = ip->ihl * 4;
	t->length = bpf_ntohs(ip->tot_len);
	t->ecn = ip->tos & ECN_MASK;
	t->fragment = ip->frag_off & FRAGMENT_ANY;
	set_mapped(&host->address, ip->daddr);
	return NEXT;
}

/*
 * Whether a header of destination options may be skipped: every option in it may.
 * Negative where that can't be seen. A function of its own, so that the verifier
 * does not walk its many paths for each way that leads to it.
 */
__attribute__((noinline)) int may_skip(struct xdp_md *ctx, __u32 offset)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ipv6_opt_hdr *header;
	__u32 at = sizeof(*header), size;

	if (offset > 4096)
		return -1;
	data += offset;
	header = data;
	if ((void *)(header + 1) > end)
		return -1;
	size = (header->hdrlen + 1) * 8;
	if (data + size > end)
		return -1;
	for (int i = 0; i < MAX_OPTIONS; i++) {
		__u8 *option = data + at;

		if (at >= size)
			break;
		if ((void *)(option + 2) > end)
			return -1;
		if (option[0] & OPTION_ACTION)
			return 0;
		/* Type 0 is one byte of padding, without a length. */
		at += option[0] ? 2 + option[1] : 1;
	}
	return at == size;
}

static __always_inline int parse_ipv6(struct tunnel *t, struct host *host)
{
	struct ipv6hdr *ip = t->outer;
	__u8 next;

	if ((void *)(ip + 1) > t->end)
		return PASS_NOT_TUNNEL;
	next = ip->nexthdr;
	t->header = sizeof(*ip);
	t->length = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	t->ecn = ((__u8 *)ip)[1] >> 4 & ECN_MASK;
	/* Where a tunnel's encapsulation limit is (RFC 2473, section 4.1.1). */
	for (int i = 0; i < MAX_OPTION_HEADERS && next == IPPROTO_DSTOPTS; i++) {
		struct ipv6_opt_hdr *header = t->outer + t->header;
		int skip;

		if ((void *)(header + 1) > t->end)
			return PASS_NOT_TUNNEL;
		next = header->nexthdr;
		skip = may_skip(t->ctx, t->outer - t->data + t->header);
		if (skip < 0)
			return PASS_NOT_TUNNEL;
		if (!skip)
			t->options = true;
		t->header += (header->hdrlen + 1) * 8;
	}
	if (next == IPPROTO_FRAGMENT) {
		struct ipv6_opt_hdr *header = t->outer + t->header;

		if ((void *)(header + 1) > t->end)
			return PASS_NOT_TUNNEL;
		next = header->nexthdr;
		t->fragment = true;
	}
	if (!is_tunnel(next) && !(t->fragment && next == IPPROTO_DSTOPTS))
		return PASS_NOT_TUNNEL;
	t->protocol = next;
	return set_ipv6(&host->address, &ip->daddr) ? NEXT : PASS_NOT_HOST;
}

static __always_inline bool checksum_right(struct tunnel *t)
{
	__u16 *word = t->outer;
	__u32 sum = 0;

	for (int i = 0; i < 60 / 2 && i * 2 < t->header; i++, word++) {
		if ((void *)(word + 1) > t->end)
			return false;
		sum += *word;
	}
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum == 0xffff;
}

/* Whether the packet is one for this host whose header tells where the inner one is. */
static __always_inline int check_outer(struct tunnel *t, struct host *host)
{
	bool v4 = t->type == bpf_htons(ETH_P_IP);
	__u8 version;

	if (!bpf_map_lookup_elem(&hosts, host))
		return PASS_NOT_HOST;
	if (t->fragment)
		return PASS_FRAGMENT;
	if (t->options)
		return PASS_OPTIONS;
	version = *(__u8 *)t->outer >> 4;
	if (version != (v4 ? 4 : 6) || t->header < sizeof(struct iphdr) || t->length < t->header)
		return DROP_OUTER;
	/* With several buffers the end is that of the first. */
	if (t->outer - t->data + t->length > bpf_xdp_get_buff_len(t->ctx))
		return DROP_OUTER;
	return NEXT;
}

#endif
