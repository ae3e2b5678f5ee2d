/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The short way of the packets that come most often: a whole TCP segment, untagged,
 * without IP options or extension headers, for a dsr or tunnel service without
 * rules, whose slot is clean. The pipeline would do the same with it; here all
 * that is known fits into registers. Whatever is not as expected takes the pipeline
 * from its start, so nothing is decided here but where such a packet goes.
 */
#ifndef SLUICE_FAST_H
#define SLUICE_FAST_H

#include "balance.h"
#include "parse.h"
#include "tunnel.h"

/* Version 4, five words of header, as the first byte of it. */
#define IPV4_PLAIN 0x45

/*
 * An address in `tables`, kept in a register: the compiler would add it up again for
 * each of its fields.
 */
#define KEEP_POINTER(p) asm volatile("" : "+r"(p))

/* Don't fragment, of an IPv4 header. */
#define IPV4_WHOLE bpf_htons(0x4000)

/* What is known of such a segment. */
struct plain {
	struct xdp_md *ctx;
	void *data;
	__u32 interface; /* it came in by */
	__u32 length; /* of the IP packet */
	bool opens;
	bool v6;
};

/*
 * The first word of an IPv4 header: version, length and fragments all at once.
 * What it has of a plain packet is IPV4_PLAIN.
 */
#define IPV4_FIRST_WORD 0xff3f0000000000ffULL

/* Whether a segment's headers are whole and its lengths agree. */
static __always_inline bool plain_tcp(struct iphdr *ip, struct tcphdr *tcp, __u32 length, void *end)
{
	return (*(__u64 *)ip & IPV4_FIRST_WORD) == IPV4_PLAIN && ip->protocol == IPPROTO_TCP && tcp->doff >= 5 &&
	       length >= sizeof(*ip) + tcp->doff * 4 && length <= end - (void *)ip;
}

static __always_inline bool plain_tcp6(struct ipv6hdr *ip, struct tcphdr *tcp, void *end)
{
	__u32 length = bpf_ntohs(ip->payload_len);

	return ip->version == 6 && tcp->doff >= 5 && length >= tcp->doff * 4 && length <= end - (void *)tcp;
}

/* Whether the frame is for the NIC that it came in by: the first six bytes of both agree. */
static __always_inline bool own_mac(__u32 interface, void *data)
{
	struct interface *nic = interface_at(interface);

	KEEP_POINTER(nic);
	return nic->index == interface && !((*(__u64 *)data ^ *(__u64 *)nic->mac) << 16);
}

/* service_of of a TCP segment. Table 0 is nobody's, and empty. */
static __always_inline __u32 tcp_service(struct vip *vip, struct tcphdr *tcp)
{
	struct port_table *table = bpf_map_lookup_elem(&ports, &vip->ports[0]);
	__u64 index = bpf_ntohs(tcp->dest);

	asm volatile("%0 &= 0xffff" : "+r"(index)); /* as there */
	return table ? table->service[index] : 0;
}

static __always_inline bool is_plain(struct service *service)
{
	return (service->forward == FORWARD_DSR || service->forward == FORWARD_TUNNEL) &&
	       !(service->flags & ~SERVICE_SOURCE_HASH);
}

/* Whether a slot has an owner, and nothing but an owner. */
static __always_inline bool is_clean(__u64 word)
{
	return word - 1 < 1ULL << SLOT_OWNER_BITS;
}

static __always_inline int leave(struct plain *p, __u32 interface)
{
	return interface == p->interface ? XDP_TX : bpf_redirect(interface, 0);
}

static __always_inline bool count_plain(struct plain *p, __u32 owner)
{
	struct counters *count = bpf_map_lookup_elem(&traffic, &owner);

	if (!count)
		return false;
	count->packets++;
	count->bytes += p->length;
	if (p->opens)
		count->flows++;
	return true;
}

static __always_inline int fast_dsr(struct plain *p, struct backend *backend, __u32 owner)
{
	__u64 first, second;

	KEEP_POINTER(backend);
	first = *(volatile __u64 *)&backend->next_hop;
	second = *((volatile __u64 *)&backend->next_hop + 1);
	if (!(second >> 32) || backend->next_hop.vlans || !count_plain(p, owner))
		return XDP_ABORTED;
	*(__u64 *)p->data = first;
	*(__u32 *)(p->data + 8) = second;
	return leave(p, second >> 32);
}

/* Puts the outer header of a constant size before the packet. */
static __always_inline int fast_wrap(struct plain *p, struct outer *o, struct backend *backend, __u32 owner,
				     bool v4)
{
	const int size = v4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	__u64 first = *(volatile __u64 *)&backend->next_hop;
	__u64 second = *((volatile __u64 *)&backend->next_hop + 1);
	__u32 mtu = backend->next_hop.mtu;
	void *data;

	if (!(second >> 32) || backend->next_hop.vlans || (mtu && p->length + size > mtu))
		return XDP_ABORTED;
	if (bpf_xdp_adjust_head(p->ctx, -size))
		return XDP_ABORTED; /* the pipeline will say why */
	data = (void *)(long)p->ctx->data;
	if (data + ETH_HLEN + size + sizeof(struct ipv6hdr) > (void *)(long)p->ctx->data_end)
		return XDP_DROP; /* never: the packet is longer */
	*(__u64 *)data = first;
	*(__u32 *)(data + 8) = second;
	*(__be16 *)(data + 2 * ETH_ALEN) = v4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);
	data += ETH_HLEN;
	if (v4)
		write_outer4(data, o, backend);
	else
		write_outer6(data, o, backend);
	/* This hop is the last that may change the packet: the inner one has it, too. */
	take_hop(data + size, p->v6);
	count_plain(p, owner);
	return leave(p, second >> 32);
}

static __always_inline int fast_tunnel(struct plain *p, struct outer *o, struct backend *backend, __u32 owner)
{
	if (o->ttl <= 1)
		return XDP_ABORTED;
	o->length = p->length;
	o->v6 = p->v6;
	o->whole = true;
	o->ttl--;
	return is_ipv4(backend) ? fast_wrap(p, o, backend, owner, true) :
				  fast_wrap(p, o, backend, owner, false);
}

/*
 * The rest of the way of an IPv4 segment to a tunnel. This and IPv6 are functions of
 * their own, whose stack the pipeline's parts need not share.
 */
SUBPROGRAM int fast_tunnel4(struct xdp_md *ctx, __u32 owner, __u64 spread)
{
	struct plain p = { .ctx = ctx, .data = (void *)(long)ctx->data, .interface = ctx->ingress_ifindex };
	struct iphdr *ip = p.data + ETH_HLEN;
	struct tcphdr *tcp = (void *)(ip + 1);
	struct outer o = {};

	/*
	 * Dry runs do without; Linux 6.1 looks at a function whether it is called or not.
	 * What may be fragmented wants an identification.
	 */
	if (dry || (void *)(tcp + 1) > (void *)(long)ctx->data_end || ip->frag_off != IPV4_WHOLE)
		return XDP_ABORTED;
	p.length = bpf_ntohs(ip->tot_len);
	p.opens = opens(tcp);
	o.spread = spread;
	o.tos = ip->tos;
	o.ttl = ip->ttl;
	return fast_tunnel(&p, &o, backend_at(owner), owner);
}

/* Of a frame whose 54 bytes are there. */
static __always_inline int fast4(struct xdp_md *ctx, void *data, void *end)
{
	struct iphdr *ip = data + ETH_HLEN;
	struct tcphdr *tcp = (void *)(ip + 1);
	struct plain p = { .ctx = ctx, .data = data };
	__u64 destination, hash, word, kind;
	struct service *service;
	struct vip *vip;
	__u32 owner;

	destination = mapped(ip->daddr);
	vip = vip_at(vip_hash(0, destination));
	KEEP_POINTER(vip);
	if (vip->address[1] != destination || vip->address[0] || vip->state != ENTRY_USED)
		return XDP_ABORTED;
	service = service_at(tcp_service(vip, tcp));
	KEEP_POINTER(service);
	/* Mode and flags at once: one comparison tells the services that are most. */
	kind = *(__u64 *)&service->forward;
	if (kind != FORWARD_DSR && !is_plain(service))
		return XDP_ABORTED;
	/* Asked for first: the one load that is likely to miss the cache. */
	hash = kind >> 32 ? source_hash4(ip) : tcp_hash4(ip, tcp);
	word = slot_word(service, hash);
	p.interface = ctx->ingress_ifindex;
	p.length = bpf_ntohs(ip->tot_len);
	if (!own_mac(p.interface, data) || !plain_tcp(ip, tcp, p.length, end))
		return XDP_ABORTED;
	if (!is_clean(word))
		return XDP_ABORTED;
	owner = word;
	if ((__u32)kind == FORWARD_TUNNEL)
		return fast_tunnel4(ctx, owner, spread(hash, tcp->source, tcp->dest));
	p.opens = opens(tcp);
	return fast_dsr(&p, backend_at(owner), owner);
}

SUBPROGRAM int fast6(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ipv6hdr *ip = data + ETH_HLEN;
	struct tcphdr *tcp = (void *)(ip + 1);
	struct plain p = { .ctx = ctx, .data = data, .v6 = true };
	struct outer o = {};
	__u64 high, low, hash, word;
	struct service *service;
	struct backend *backend;
	struct vip *vip;
	__u32 owner;

	if (dry || (void *)(tcp + 1) > end || ip->nexthdr != IPPROTO_TCP)
		return XDP_ABORTED;
	high = half(&ip->daddr, 0);
	low = half(&ip->daddr, 1);
	vip = vip_at(vip_hash(high, low));
	/* Nobody's VIP in IPv6's header is an IPv4 one: its first word is not 0. */
	if (!high || vip->address[1] != low || vip->address[0] != high || vip->state != ENTRY_USED)
		return XDP_ABORTED;
	service = service_at(tcp_service(vip, tcp));
	if (!is_plain(service))
		return XDP_ABORTED;
	hash = flow_hash6(ip, tcp->source, tcp->dest, IPPROTO_TCP, !service->flags);
	word = slot_word(service, hash);
	p.interface = ctx->ingress_ifindex;
	if (!own_mac(p.interface, data) || !plain_tcp6(ip, tcp, end))
		return XDP_ABORTED;
	if (!is_clean(word))
		return XDP_ABORTED;
	owner = word;
	backend = backend_at(owner);
	p.length = bpf_ntohs(ip->payload_len) + sizeof(*ip);
	p.opens = opens(tcp);
	if (service->forward == FORWARD_DSR)
		return fast_dsr(&p, backend, owner);
	o.spread = spread(hash, tcp->source, tcp->dest);
	o.tos = bpf_ntohs(*(__be16 *)ip) >> 4;
	o.ttl = ip->hop_limit;
	return fast_tunnel(&p, &o, backend, owner);
}

/* The verdict on such a packet; XDP_ABORTED: it is none. */
static __always_inline int fast_path(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__be16 type;

	/* Nothing is shorter that is taken here. */
	if (data + ETH_HLEN + sizeof(struct iphdr) + sizeof(struct tcphdr) > end)
		return XDP_ABORTED;
	type = *(__be16 *)(data + 2 * ETH_ALEN);
	if (type == bpf_htons(ETH_P_IP))
		return fast4(ctx, data, end);
	return type == bpf_htons(ETH_P_IPV6) ? fast6(ctx) : XDP_ABORTED;
}

#endif
