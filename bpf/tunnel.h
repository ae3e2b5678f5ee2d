/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * IP in IP, in the four mixes of families (RFC 2003, RFC 2473, RFC 4213). The
 * outer source address varies with the flow, so that the queues of the
 * receiver's NIC share the load: they see no port.
 */
#ifndef SLUICE_TUNNEL_H
#define SLUICE_TUNNEL_H

#include "emit.h"
#include "too_big.h"

/* The prefixes of outer source addresses, and their masks; as struct address. */
volatile const __be32 tunnel_source4 = 0;
volatile const __be32 tunnel_mask4 = 0;
volatile const __u64 tunnel_source6[2] = {};
volatile const __u64 tunnel_mask6[2] = {};

/* What the outer header takes from the packet. Pointers do not outlast its making. */
struct outer {
	__u32 backend;
	__u32 length; /* of the inner packet */
	__u64 spread; /* a hash of the flow */
	__u32 vlans; /* tags that the frame has */
	__be16 vlan[MAX_VLANS];
	__u32 interface; /* it came in by */
	__u8 v6; /* the inner packet */
	__u8 tos; /* DSCP and ECN (RFC 6040, section 4.1) */
	__u8 ttl; /* of the inner packet, after this hop */
	__u8 whole; /* it must not be fragmented */
	__u32 action; /* the verdict, where it was sent */
};

static __always_inline bool is_ipv4(struct backend *backend)
{
	return !backend->address[0] && (__u32)backend->address[1] == 0xffff0000;
}

/*
 * A number that differs from flow to flow, from the flow's hash and its ports: in a
 * hash of the client alone they are not. Every bit of it is fair.
 */
static __always_inline __u64 spread(__u64 hash, __be16 source, __be16 dest)
{
	__u64 h = (hash >> 32 ^ ((__u32)source << 16 | dest)) * GOLDEN;

	return h ^ h >> 32;
}

/* Written in words of 32 bits, so that the checksum comes from registers. */
static __always_inline void write_outer4(struct iphdr *ip, struct outer *o, struct backend *backend)
{
	/* Of a packet that is never fragmented the identification says nothing (RFC 6864). */
	__u32 words[5] = {
		0x45 | (__u32)o->tos << 8 | (__u32)bpf_htons(o->length + sizeof(*ip)) << 16,
		o->whole ? (__u32)bpf_htons(0x4000) << 16 : bpf_get_prandom_u32() & 0xffff,
		o->ttl | (o->v6 ? IPPROTO_IPV6 : IPPROTO_IPIP) << 8,
		tunnel_source4 | ((__u32)o->spread & ~tunnel_mask4),
		backend->address[1] >> 32,
	};
	__u64 sum = (__u64)words[0] + words[1] + words[2] + words[3] + words[4];
	__u32 *at = (void *)ip;

	at[0] = words[0];
	at[1] = words[1];
	at[2] = words[2] | (__u32)fold(sum) << 16;
	at[3] = words[3];
	at[4] = words[4];
}

static __always_inline void write_address(struct in6_addr *a, __u64 high, __u64 low)
{
	a->s6_addr32[0] = high;
	a->s6_addr32[1] = high >> 32;
	a->s6_addr32[2] = low;
	a->s6_addr32[3] = low >> 32;
}

static __always_inline void write_outer6(struct ipv6hdr *ip, struct outer *o, struct backend *backend)
{
	*(__be32 *)ip = bpf_htonl(6U << 28 | (__u32)o->tos << 20 | (o->spread >> 32 & 0xfffff));
	ip->payload_len = bpf_htons(o->length);
	ip->nexthdr = o->v6 ? IPPROTO_IPV6 : IPPROTO_IPIP;
	ip->hop_limit = o->ttl;
	write_address(&ip->saddr, tunnel_source6[0] | (mix(o->spread) & ~tunnel_mask6[0]),
		      tunnel_source6[1] | (o->spread & ~tunnel_mask6[1]));
	write_address(&ip->daddr, backend->address[0], backend->address[1]);
}

/* Puts the packet into another one for its backend and sends it. */
SUBPROGRAM int encapsulate(struct xdp_md *ctx, struct outer *o)
{
	__u32 size, tags, type, interface, more;
	struct vlan_header *tag;
	struct backend *backend;
	__u64 first, second;
	void *data, *end;
	struct ethhdr *eth;
	void *header;
	bool v4;

	if (!o)
		return DROP_INTERNAL;
	backend = backend_at(o->backend);
	first = *(volatile __u64 *)&backend->next_hop;
	second = *((volatile __u64 *)&backend->next_hop + 1);
	interface = second >> 32;
	tags = backend->next_hop.vlans;
	TRACE(interface, interface);
	if (!interface)
		return DROP_NO_NEXT_HOP;
	if (tags > MAX_VLANS || o->vlans > MAX_VLANS)
		return DROP_INTERNAL;
	v4 = is_ipv4(backend);
	size = v4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	more = size + 4 * tags - 4 * o->vlans;
	if (bpf_xdp_adjust_head(ctx, -(int)more))
		return DROP_HEADROOM;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	eth = data;
	tag = (void *)(eth + 1);
	if ((void *)(tag + MAX_VLANS) > end)
		return DROP_INTERNAL;
	*(__u64 *)data = first;
	*(__u32 *)(data + 8) = second;
	type = v4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);
	/* Spelt out: the verifier of Linux 6.1 loses the bounds of an index. */
	if (tags == 2) {
		eth->h_proto = bpf_htons(ETH_P_8021AD);
		tag[0].tci = backend->next_hop.vlan[0] | (o->vlans ? o->vlan[0] & VLAN_PRIORITY : 0);
		tag[0].type = bpf_htons(ETH_P_8021Q);
		tag[1].tci = backend->next_hop.vlan[1] | (o->vlans == 2 ? o->vlan[1] & VLAN_PRIORITY : 0);
		tag[1].type = type;
		header = tag + 2;
	} else if (tags == 1) {
		eth->h_proto = bpf_htons(ETH_P_8021Q);
		tag[0].tci = backend->next_hop.vlan[0] | (o->vlans ? o->vlan[0] & VLAN_PRIORITY : 0);
		tag[0].type = type;
		header = tag + 1;
	} else {
		eth->h_proto = type;
		header = tag;
	}
	/* Not one check for all: the last fragment of a packet may be as long as its header. */
	if (v4) {
		if (header + sizeof(struct iphdr) > end)
			return DROP_INTERNAL;
		write_outer4(header, o, backend);
	} else {
		if (header + sizeof(struct ipv6hdr) > end)
			return DROP_INTERNAL;
		write_outer6(header, o, backend);
	}
	o->action = interface == o->interface ? XDP_TX : bpf_redirect(interface, 0);
	return SENT;
}

/* Takes a hop from a packet that has one left. */
static __always_inline void take_hop(void *l3, bool v6)
{
	struct ipv6hdr *ip6 = l3;
	struct iphdr *ip = l3;
	__u32 check;

	if (v6) {
		ip6->hop_limit--;
		return;
	}
	check = ip->check + bpf_htons(0x0100);
	ip->check = check + (check >= 0xffff);
	ip->ttl--;
}

/* Sends the packet in hand to a backend through a tunnel. Its pointers are void afterwards. */
static __always_inline int tunnel_to(struct packet *p, __u32 number, int *action)
{
	struct backend *backend = backend_at(number);
	__u32 mtu = backend->next_hop.mtu, size;
	struct outer o = {};
	int out;

	if ((p->v6 ? p->ip6->hop_limit : p->ip->ttl) <= 1)
		return DROP_TTL;
	o.whole = p->v6 || p->ip->frag_off & bpf_htons(0x4000);
	size = is_ipv4(backend) ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	if (mtu && p->length + size > mtu) {
		COUNT_LOSS(p->service, too_big);
		if (!o.whole)
			return DROP_TOO_BIG;
		*action = XDP_TX;
		return answer_too_big(p, mtu - size);
	}
	o.backend = number;
	o.length = p->length;
	/* Of fragments only the first has ports. */
	o.spread = p->fragment || p->protocol == IPPROTO_ICMP || p->protocol == IPPROTO_ICMPV6 ?
			   spread(p->hash, 0, 0) : spread(p->hash, p->port[0], p->port[1]);
	o.vlans = p->vlans;
	o.vlan[0] = p->vlan[0];
	o.vlan[1] = p->vlan[1];
	o.interface = p->interface;
	o.v6 = p->v6;
	o.tos = p->v6 ? bpf_ntohs(*(__be16 *)p->ip6) >> 4 : p->ip->tos;
	take_hop(p->l3, p->v6);
	o.ttl = p->v6 ? p->ip6->hop_limit : p->ip->ttl;
	out = encapsulate(p->ctx, &o);
	*action = o.action;
	return out;
}

#endif
