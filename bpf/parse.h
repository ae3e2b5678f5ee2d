/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Parsing. What may not be for a VIP passes untouched: a frame too short to tell,
 * one to another address, one to another NIC. Only a packet that is known to be
 * for a VIP, through this NIC, is dropped when it is malformed.
 */
#ifndef SLUICE_PARSE_H
#define SLUICE_PARSE_H

#include "extensions.h"
#include "owner.h"
#include "packet.h"

/* The flags' bits in the 14th byte of a TCP header (RFC 9293, section 3.1). */
#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

struct vlan_header {
	__be16 tci;
	__be16 type;
};

static __always_inline int parse_ethernet(struct packet *p)
{
	struct ethhdr *eth = p->data;
	void *next = eth + 1;
	__be16 type;
	__u64 tags;

	if (next > p->end)
		return PASS_NOT_IP;
	type = *(__be16 *)(p->data + 2 * ETH_ALEN);
	p->vlans = 0;
#pragma unroll
	for (int i = 0; i < MAX_VLANS; i++) {
		struct vlan_header *tag = next;

		if (type != bpf_htons(ETH_P_8021Q) && type != bpf_htons(ETH_P_8021AD))
			break;
		if ((void *)(tag + 1) > p->end)
			return PASS_NOT_IP;
		p->vlan[i] = tag->tci;
		p->vlans = i + 1;
		type = tag->type;
		next = tag + 1;
	}
	/*
	 * A length that the verifier does not know: all that follows is checked once,
	 * and not for each number of tags.
	 */
	tags = next - p->data;
	asm volatile("%0 &= 31" : "+r"(tags));
	next = p->data + tags;
	p->l3 = next;
	p->v6 = type == bpf_htons(ETH_P_IPV6);
	if (p->v6)
		return next + sizeof(*p->ip6) > p->end ? PASS_NOT_IP : NEXT;
	if (type != bpf_htons(ETH_P_IP) || next + sizeof(*p->ip) > p->end)
		return PASS_NOT_IP;
	return NEXT;
}

static __always_inline __u32 vip_hash(__u64 high, __u64 low)
{
	return (low ^ high * 0xff51afd7ed558ccdULL) * GOLDEN >> (64 - VIP_BITS);
}

static __always_inline int find_vip(struct packet *p)
{
	__u64 high = 0, low;
	__u32 hash;

	if (p->v6) {
		high = half(&p->ip6->daddr, 0);
		low = half(&p->ip6->daddr, 1);
		if (is_mapped(high, low))
			return PASS_NOT_VIP;
		hash = vip_hash(high, low);
	} else {
		low = mapped(p->ip->daddr);
		hash = vip_hash(0, low);
	}
	for (int i = 0; i < PROBES; i++) {
		__u32 index = (hash + i) & (MAX_VIPS - 1);
		struct vip *vip = vip_at(index);

		if (vip->state == ENTRY_EMPTY)
			break;
		if (vip->address[1] == low && vip->address[0] == high && vip->state == ENTRY_USED) {
			p->vip = vip;
			p->vip_index = index;
			return NEXT;
		}
	}
	return PASS_NOT_VIP;
}

/*
 * Two MAC addresses, through untyped pointers: of a packed type the compiler
 * would read byte by byte.
 */
static __always_inline bool mac_equal(void *a, void *b)
{
	return *(__u32 *)a == *(__u32 *)b && *(__u16 *)(a + 4) == *(__u16 *)(b + 4);
}

/*
 * XDP sees frames before the NIC's MAC filter does: on a segment that floods,
 * every node sees every frame, and only one may balance it.
 */
static __always_inline int check_mac(struct packet *p)
{
	struct interface *nic = interface_at(p->interface);

	if (nic->index != p->interface)
		return PASS_OTHER_MAC;
	return mac_equal(p->data, nic->mac) || to_virtual_mac(p) ? NEXT : PASS_OTHER_MAC;
}

/*
 * The kernel takes no frame that is to a virtual MAC address. One that this node has, and
 * that passes, gets the NIC's.
 */
SUBPROGRAM int give_to_kernel(struct xdp_md *ctx)
{
	struct packet p = {};
	struct interface *nic;

	p.data = (void *)(long)ctx->data;
	p.end = (void *)(long)ctx->data_end;
	p.interface = came_by(ctx);
	if (p.data + ETH_HLEN > p.end || *(__u32 *)p.data != VIRTUAL_PREFIX)
		return XDP_PASS;
	parse_ethernet(&p); /* for its tags, whatever it holds */
	nic = interface_at(p.interface);
	if (nic->index == p.interface && to_virtual_mac(&p))
		write_mac(p.data, mac_word(nic->mac));
	return XDP_PASS;
}

/* Whether the whole IP packet has come; the end of it may lie in further buffers. */
static __always_inline bool complete(struct packet *p)
{
	if (p->length <= p->end - p->l3)
		return true;
	return p->length + ETH_HLEN + p->vlans * sizeof(struct vlan_header) <=
	       bpf_xdp_get_buff_len(p->ctx);
}

/*
 * Where the transport header is, and what it is. Nothing has been checked yet:
 * it counts only if check_ip agrees.
 */
static __always_inline void find_transport(struct packet *p)
{
	p->fragment = 0;
	if (!p->v6) {
		p->protocol = p->ip->protocol;
		p->fragment = p->ip->frag_off & (FRAGMENT_MORE | FRAGMENT_OFFSET);
		p->l4 = p->l3 + (p->ip->ihl * 4 & 60);
		return;
	}
	p->protocol = p->ip6->nexthdr;
	p->l4 = p->l3 + sizeof(*p->ip6);
	if (p->protocol != IPPROTO_TCP && p->protocol != IPPROTO_UDP)
		skip_extensions(p);
}

/* Whether the packet may be one of TCP or UDP. */
static __always_inline bool may_have_ports(struct packet *p)
{
	return p->protocol == IPPROTO_TCP || p->protocol == IPPROTO_UDP || p->protocol == NOT_KNOWN;
}

/* Of jumbograms (RFC 2675) the length is 0 here: they are malformed to sluice. */
static __always_inline int check_ip(struct packet *p)
{
	p->header_length = p->l4 - p->l3;
	if (p->v6) {
		p->length = bpf_ntohs(p->ip6->payload_len) + sizeof(*p->ip6);
		if (p->ip6->version != 6)
			return DROP_MALFORMED_IP;
	} else {
		p->length = bpf_ntohs(p->ip->tot_len);
		if (p->ip->version != 4 || p->header_length < sizeof(*p->ip))
			return DROP_MALFORMED_IP;
	}
	if (p->length < p->header_length || !complete(p) || p->protocol == MALFORMED)
		return DROP_MALFORMED_IP;
	if (!may_have_ports(p))
		return PASS_PROTOCOL;
	if (p->fragment & FRAGMENT_OFFSET)
		return PASS_FRAGMENT;
	return NEXT;
}

/* Whether a segment asks for a new connection. */
static __always_inline bool opens(struct tcphdr *tcp)
{
	return (((__u8 *)tcp)[13] & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK)) == TCP_SYN;
}

static __always_inline int parse_tcp(struct packet *p)
{
	struct tcphdr *tcp = p->tcp;

	if ((void *)(tcp + 1) > p->end)
		return DROP_MALFORMED_TCP;
	if (tcp->doff < 5)
		return DROP_MALFORMED_TCP;
	p->header_length += tcp->doff * 4;
	if (p->header_length > p->length)
		return DROP_MALFORMED_TCP;
	p->opens = opens(tcp);
	return NEXT;
}

/* A first fragment may hold less than the datagram's length says, but not less than its header. */
static __always_inline int parse_udp(struct packet *p)
{
	struct udphdr *udp = p->udp;
	__u32 length;

	if ((void *)(udp + 1) > p->end || p->header_length + sizeof(*udp) > p->length)
		return DROP_MALFORMED_UDP;
	length = bpf_ntohs(udp->len);
	if (length < sizeof(*udp) || (p->header_length + length > p->length && !p->fragment))
		return DROP_MALFORMED_UDP;
	p->header_length += sizeof(*udp);
	p->opens = false;
	return NEXT;
}

#endif
