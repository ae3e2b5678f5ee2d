/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Parsing. What may not be for a VIP passes untouched: a frame too short to tell,
 * one to another address, one to another NIC. Only a packet that is known to be
 * for a VIP, through this NIC, is dropped when it is malformed.
 */
#ifndef SLUICE_PARSE_H
#define SLUICE_PARSE_H

#include "packet.h"

#define FRAGMENT_MORE bpf_htons(0x2000)
#define FRAGMENT_OFFSET bpf_htons(0x1fff)

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
	if (type != bpf_htons(ETH_P_IP))
		return PASS_NOT_IP;
	p->ip = next;
	if ((void *)(p->ip + 1) > p->end)
		return PASS_NOT_IP;
	return NEXT;
}

static __always_inline int find_vip(struct packet *p)
{
	__u64 address = mapped(p->ip->daddr);
	__u32 hash = address * GOLDEN >> (64 - VIP_BITS);

	for (int i = 0; i < PROBES; i++) {
		__u32 index = (hash + i) & (MAX_VIPS - 1);
		struct vip *vip = bpf_map_lookup_elem(&vips, &index);

		if (!vip || vip->state == ENTRY_EMPTY)
			break;
		if (vip->address[1] == address && !vip->address[0] && vip->state == ENTRY_USED) {
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
	__u32 index = p->interface & (MAX_INTERFACES - 1);
	struct interface *nic = bpf_map_lookup_elem(&interfaces, &index);

	if (!nic || nic->index != p->interface || !mac_equal(p->data, nic->mac))
		return PASS_OTHER_MAC;
	return NEXT;
}

static __always_inline int parse_ipv4(struct packet *p)
{
	struct iphdr *ip = p->ip;
	__u32 header = ip->ihl * 4;

	p->length = bpf_ntohs(ip->tot_len);
	if (ip->version != 4 || header < sizeof(*ip) || p->length < header)
		return DROP_MALFORMED_IP;
	if (p->length > p->end - (void *)ip) {
		/* The rest may lie in further buffers. */
		__u64 whole = bpf_xdp_get_buff_len(p->ctx);

		if (p->length + ETH_HLEN + p->vlans * sizeof(struct vlan_header) > whole)
			return DROP_MALFORMED_IP;
	}
	if (ip->protocol != IPPROTO_TCP)
		return PASS_PROTOCOL;
	if (ip->frag_off & FRAGMENT_OFFSET)
		return PASS_FRAGMENT;
	p->header_length = header;
	return NEXT;
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
	p->opens = (((__u8 *)tcp)[13] & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK)) == TCP_SYN;
	return NEXT;
}

#endif
