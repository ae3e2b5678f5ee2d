/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What one part of the program tells another about the packet in hand. A part
 * that is a function of its own is verified for any facts, not for every way
 * that leads to it; so it finds the headers again, at the offsets that it is told.
 */
#ifndef SLUICE_FACTS_H
#define SLUICE_FACTS_H

#include "parse.h"

/* Small, since the stacks of all functions that are under way share 512 bytes. */
struct facts {
	__u16 l4; /* offset in the frame */
	__u16 fragment_header;
	__be16 fragment;
	__u16 vip_index;
	__u16 service;
	__u8 vlans;
	__u8 protocol;
	__u8 v6;
	__u8 opens;
	__u16 backend; /* NAT, DNAT: where the packet goes */
	__u32 flow; /* NAT: pair << 16 | port */
	__u8 begun; /* NAT: what becomes of its fragments is known */
	__u8 pad[3];
};

/*
 * The outcomes of a part that leaves the packet to another one. They are counted
 * nowhere.
 */
#define TO_NAT 0xfe
#define TO_DNAT 0xfd
#define TO_DNAT_ERROR 0xfc
#define TO_FRAGMENTS 0xfb
#define TO_FENCE 0xfa

static __always_inline void note_facts(struct packet *p, struct facts *f)
{
	f->l4 = p->l4 - p->data;
	f->fragment_header = p->fragment_header;
	f->fragment = p->fragment;
	f->vip_index = p->vip_index;
	f->service = p->service;
	f->vlans = p->vlans;
	f->protocol = p->protocol;
	f->v6 = p->v6;
	f->opens = p->opens;
}

static __always_inline int to_nat(struct packet *p, struct facts *f)
{
	note_facts(p, f);
	return TO_NAT;
}

static __always_inline int to_dnat(struct packet *p, struct facts *f, __u32 backend)
{
	note_facts(p, f);
	f->backend = backend;
	return TO_DNAT;
}

/* Whether the headers are where they were. */
static __always_inline bool take_facts(struct packet *p, struct xdp_md *ctx, struct facts *f)
{
	p->ctx = ctx;
	p->data = (void *)(long)ctx->data;
	p->end = (void *)(long)ctx->data_end;
	p->interface = came_by(ctx);
	p->l3 = p->data + ((ETH_HLEN + f->vlans * sizeof(struct vlan_header)) & 31);
	p->l4 = p->data + (f->l4 & MAX_HEADERS);
	p->protocol = f->protocol;
	p->vip_index = f->vip_index;
	p->vip = vip_at(f->vip_index);
	p->service = f->service;
	p->vlans = f->vlans;
	p->fragment = f->fragment;
	p->v6 = f->v6;
	p->opens = f->opens;
	p->fragment_header = f->fragment_header;
	if (p->data + ETH_HLEN + 2 * sizeof(struct vlan_header) > p->end ||
	    p->l3 + sizeof(struct iphdr) > p->end || p->l4 + sizeof(struct udphdr) > p->end)
		return false;
	/* Tags as parse_ethernet has read them. */
	if (p->vlans)
		p->vlan[0] = ((struct vlan_header *)(p->data + ETH_HLEN))[0].tci;
	if (p->vlans > 1)
		p->vlan[1] = ((struct vlan_header *)(p->data + ETH_HLEN))[1].tci;
	p->length = p->v6 ? bpf_ntohs(p->ip6->payload_len) + sizeof(*p->ip6) : bpf_ntohs(p->ip->tot_len);
	p->header_length = p->l4 - p->l3 + sizeof(struct udphdr);
	if (p->protocol == IPPROTO_TCP) {
		if ((void *)(p->tcp + 1) > p->end)
			return false;
		p->header_length = p->l4 - p->l3 + p->tcp->doff * 4;
	}
	return true;
}

#endif
