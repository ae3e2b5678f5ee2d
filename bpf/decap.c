/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The XDP program of a tunnel backend: takes the outer header off packets that a
 * node has sent, and leaves the rest to the kernel, which has the VIP on lo.
 *
 * In order: Ethernet and VLAN tags, outer IPv4 (RFC 2003) or IPv6 (RFC 2473),
 * is it for this host, inner header, is it for a VIP, are both well-formed,
 * congestion marks (RFC 6040), strip. What is not for a VIP passes untouched:
 * the kernel may have tunnels of its own. The destination MAC address is left for
 * the kernel to judge, since the frame keeps it.
 */
#include "decap_outer.h"

/* The congestion marks of RFC 3168. */
#define ECN_NOT_ECT 0
#define ECN_ECT1 1
#define ECN_ECT0 2
#define ECN_CE 3

volatile const struct exported exported = {};

/*
 * The inner congestion mark from both (RFC 6040, section 4.2); negative: drop.
 */
static __always_inline int combine(__u8 outer, __u8 inner)
{
	if (outer == ECN_CE)
		return inner == ECN_NOT_ECT ? -1 : ECN_CE;
	if (outer == ECN_ECT1 && inner == ECN_ECT0)
		return ECN_ECT1;
	return inner;
}

static __always_inline int check_vip(struct tunnel *t, struct address *vip)
{
	if (!bpf_map_lookup_elem(&vips, vip))
		return PASS_NOT_VIP;
	if (t->type == bpf_htons(ETH_P_IP) && !checksum_right(t))
		return DROP_CHECKSUM;
	return NEXT;
}

static __always_inline int inner_ipv4(struct tunnel *t)
{
	struct iphdr *ip = t->outer + t->header;
	__u32 length, sum;
	struct address vip;
	__be16 old;
	int out, ecn;

	if (t->header + sizeof(*ip) > t->length)
		return DROP_INNER;
	if ((void *)(ip + 1) > t->end)
		return PASS_SPLIT;
	set_mapped(&vip, ip->daddr);
	if ((out = check_vip(t, &vip)))
		return out;
	length = bpf_ntohs(ip->tot_len);
	if (ip->version != 4 || ip->ihl < 5 || length < ip->ihl * 4 || t->header + length > t->length)
		return DROP_INNER;
	ecn = combine(t->ecn, ip->tos & ECN_MASK);
	if (ecn < 0)
		return DROP_CONGESTION;
	old = *(__be16 *)ip;
	ip->tos = (ip->tos & ~ECN_MASK) | ecn;
	/* RFC 1624, equation 3. */
	sum = (__u16)~ip->check + (__u16)~old + *(__be16 *)ip;
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	ip->check = ~sum;
	return NEXT;
}

static __always_inline int inner_ipv6(struct tunnel *t)
{
	struct ipv6hdr *ip = t->outer + t->header;
	__u8 *bytes = (__u8 *)ip;
	struct address vip;
	int out, ecn;

	if (t->header + sizeof(*ip) > t->length)
		return DROP_INNER;
	if ((void *)(ip + 1) > t->end)
		return PASS_SPLIT;
	if (!set_ipv6(&vip, &ip->daddr))
		return PASS_NOT_VIP;
	if ((out = check_vip(t, &vip)))
		return out;
	if (bytes[0] >> 4 != 6 || t->header + sizeof(*ip) + bpf_ntohs(ip->payload_len) > t->length)
		return DROP_INNER;
	ecn = combine(t->ecn, bytes[1] >> 4 & ECN_MASK);
	if (ecn < 0)
		return DROP_CONGESTION;
	bytes[1] = (bytes[1] & ~(ECN_MASK << 4)) | ecn << 4;
	return NEXT;
}

/* Takes the outer header out: the Ethernet header moves up to the inner packet. */
static __always_inline int strip(struct tunnel *t)
{
	__be16 type = t->protocol == IPPROTO_IPIP ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);
	struct {
		__u32 macs[3];
		__u32 tags[MAX_TAGS];
	} link, *to;

	if (t->data + sizeof(link) > t->end)
		return DROP_INTERNAL;
	__builtin_memcpy(&link, t->data, sizeof(link));
	if (bpf_xdp_adjust_head(t->ctx, t->header))
		return DROP_INTERNAL;
	t->data = (void *)(long)t->ctx->data;
	t->end = (void *)(long)t->ctx->data_end;
	to = t->data;
	if (t->data + sizeof(link) + sizeof(type) > t->end)
		return DROP_INTERNAL;
	__builtin_memcpy(to->macs, link.macs, sizeof(link.macs));
	/* Spelt out: the verifier of Linux 6.1 loses the bounds of an index. */
	if (t->tags == 2) {
		__builtin_memcpy(to->tags, link.tags, sizeof(link.tags));
		*(__be16 *)(to + 1) = type;
	} else if (t->tags == 1) {
		to->tags[0] = link.tags[0];
		*(__be16 *)&to->tags[1] = type;
	} else {
		*(__be16 *)&to->tags[0] = type;
	}
	return PASS_DECAPSULATED;
}

static __always_inline int process(struct tunnel *t)
{
	struct host host = {.interface = t->ctx->ingress_ifindex};
	int out;

	if ((out = parse_ethernet(t)))
		return out;
	if (t->type == bpf_htons(ETH_P_IP))
		out = parse_ipv4(t, &host);
	else if (t->type == bpf_htons(ETH_P_IPV6))
		out = parse_ipv6(t, &host);
	else
		out = PASS_NOT_TUNNEL;
	if (out || (out = check_outer(t, &host)))
		return out;
	out = t->protocol == IPPROTO_IPIP ? inner_ipv4(t) : inner_ipv6(t);
	return out ? out : strip(t);
}

SEC("xdp.frags")
int sluice_decap(struct xdp_md *ctx)
{
	struct tunnel t = {
		.ctx = ctx,
		.data = (void *)(long)ctx->data,
		.end = (void *)(long)ctx->data_end,
	};
	__u32 outcome = process(&t);
	__u64 *n = bpf_map_lookup_elem(&outcomes, &outcome);

	if (n)
		(*n)++;
	return outcome < DROP_OUTER ? XDP_PASS : XDP_DROP;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
