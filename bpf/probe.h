/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Health probes through a VIP, on their way out. On the node that holds the VIP a
 * socket's packets to it stay in the host. So the daemon dials another address, a
 * probe address, one for each VIP at each backend, whose route and neighbour lead
 * to the backend's next hop. This filter, at clsact's egress, makes the VIP of
 * it, puts the packet into a tunnel where clients' packets go through one, and
 * notes what the answer will look like. probe_reply.h is the way back.
 */
#ifndef SLUICE_PROBE_H
#define SLUICE_PROBE_H

#include <linux/pkt_cls.h>

#include "tunnel.h"

/* What probe addresses are taken from, and the masks of it; as struct address. */
volatile const __be32 probe_prefix4 = 0;
volatile const __be32 probe_mask4 = 0xffffffff;
volatile const __u64 probe_prefix6[2] = {};
volatile const __u64 probe_mask6[2] = { ~0ULL, ~0ULL };

/* A packet to a probe address. */
struct probe {
	struct probe_address dialled;
	struct probe_flow flow; /* the VIP and its port are not known at first */
	__u32 length;
	__u32 protocol;
	__u8 v6;
	__u8 tos;
	__u8 ttl;
	__u8 whole; /* it must not be fragmented */
};

/* Whether the packet is to a probe address; what is not passes as it is. */
static __always_inline bool read_probe4(struct __sk_buff *skb, struct probe *p)
{
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
		return false;
	if ((ip.daddr & probe_mask4) != probe_prefix4)
		return false;
	p->dialled.word[1] = mapped(ip.daddr);
	p->flow.node[1] = mapped(ip.saddr);
	p->length = bpf_ntohs(ip.tot_len);
	/* This host's own packets have neither options nor, with a route's MTU, fragments. */
	p->protocol = ip.ihl == 5 && !(ip.frag_off & (FRAGMENT_MORE | FRAGMENT_OFFSET)) ? ip.protocol : 0;
	p->tos = ip.tos;
	p->ttl = ip.ttl;
	p->whole = !!(ip.frag_off & bpf_htons(0x4000));
	return true;
}

static __always_inline bool read_probe6(struct __sk_buff *skb, struct probe *p)
{
	struct ipv6hdr ip;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
		return false;
	p->dialled.word[0] = half(&ip.daddr, 0);
	p->dialled.word[1] = half(&ip.daddr, 1);
	if ((p->dialled.word[0] & probe_mask6[0]) != probe_prefix6[0] ||
	    (p->dialled.word[1] & probe_mask6[1]) != probe_prefix6[1])
		return false;
	p->flow.node[0] = half(&ip.saddr, 0);
	p->flow.node[1] = half(&ip.saddr, 1);
	p->length = bpf_ntohs(ip.payload_len) + sizeof(ip);
	p->protocol = ip.nexthdr;
	p->v6 = 1;
	p->tos = bpf_ntohs(*(__be16 *)&ip) >> 4;
	p->ttl = ip.hop_limit;
	p->whole = 1;
	return true;
}

/* Notes that an answer to this packet comes from the address that was dialled. */
static __always_inline bool note_probe(struct probe *p)
{
	struct probe_address *known = bpf_map_lookup_elem(&probe_notes, &p->flow);

	/* To write what is there already may cost another note its place. */
	if (known && known->word[0] == p->dialled.word[0] && known->word[1] == p->dialled.word[1])
		return true;
	return !bpf_map_update_elem(&probe_notes, &p->flow, &p->dialled, BPF_ANY);
}

/* Writes the VIP in place of the probe address. What the checksums are is the helpers' business. */
static __always_inline bool aim_at_vip(struct __sk_buff *skb, struct probe *p)
{
	if (p->v6) {
		__u32 l4 = ETH_HLEN + sizeof(struct ipv6hdr);
		__s64 change = bpf_csum_diff((void *)&p->dialled, sizeof(p->dialled), (void *)p->flow.vip,
					     sizeof(p->flow.vip), 0);

		return !bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct ipv6hdr, daddr), p->flow.vip,
					    sizeof(p->flow.vip), 0) &&
		       !bpf_l4_csum_replace(skb, l4 + offsetof(struct tcphdr, check), 0, change,
					    BPF_F_PSEUDO_HDR);
	} else {
		__u32 l4 = ETH_HLEN + sizeof(struct iphdr);
		__be32 from = p->dialled.word[1] >> 32, to = p->flow.vip[1] >> 32;

		return !bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct iphdr, daddr), &to, sizeof(to), 0) &&
		       !bpf_l3_csum_replace(skb, ETH_HLEN + offsetof(struct iphdr, check), from, to, sizeof(to)) &&
		       !bpf_l4_csum_replace(skb, l4 + offsetof(struct tcphdr, check), from, to,
					    BPF_F_PSEUDO_HDR | sizeof(to));
	}
}

/* Puts the packet into another one for the backend, as tunnel.h does with those of clients. */
static __always_inline bool tunnel_probe(struct __sk_buff *skb, struct probe *p, struct probe_target *target)
{
	struct backend backend = { .address = { target->backend[0], target->backend[1] } };
	struct outer o = {
		.length = p->length, .v6 = p->v6, .tos = p->tos, .ttl = p->ttl, .whole = p->whole,
		.spread = mix(p->dialled.word[1] + p->flow.node_port),
	};
	__be16 type;

	if (is_ipv4(&backend)) {
		struct iphdr ip = {};

		write_outer4(&ip, &o, &backend);
		type = bpf_htons(ETH_P_IP);
		return !bpf_skb_adjust_room(skb, sizeof(ip), BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4) &&
		       !bpf_skb_store_bytes(skb, ETH_HLEN, &ip, sizeof(ip), 0) &&
		       !bpf_skb_store_bytes(skb, 2 * ETH_ALEN, &type, sizeof(type), 0);
	} else {
		struct ipv6hdr ip = {};

		write_outer6(&ip, &o, &backend);
		type = bpf_htons(ETH_P_IPV6);
		return !bpf_skb_adjust_room(skb, sizeof(ip), BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6) &&
		       !bpf_skb_store_bytes(skb, ETH_HLEN, &ip, sizeof(ip), 0) &&
		       !bpf_skb_store_bytes(skb, 2 * ETH_ALEN, &type, sizeof(type), 0);
	}
}

/*
 * The verdict on a packet that leaves. What is no probe goes on to whatever filters
 * there are besides, and so does a probe once it is as a client's packet; one
 * that cannot be made so is dropped, since a probe address is nobody's.
 */
static __always_inline int send_probe(struct __sk_buff *skb)
{
	struct probe_target *target;
	struct probe p = {};
	__be16 ports[2];

	if (skb->protocol == bpf_htons(ETH_P_IP) ? !read_probe4(skb, &p) :
	    skb->protocol != bpf_htons(ETH_P_IPV6) || !read_probe6(skb, &p))
		return TC_ACT_UNSPEC;
	target = bpf_map_lookup_elem(&probe_targets, &p.dialled);
	if (!target)
		return TC_ACT_UNSPEC;
	/* The next hop's address is that of the neighbour on this very interface. */
	if (target->interface != skb->ifindex || p.protocol != IPPROTO_TCP)
		return TC_ACT_SHOT;
	if (bpf_skb_load_bytes(skb, ETH_HLEN + (p.v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)), ports,
			       sizeof(ports)))
		return TC_ACT_SHOT;
	p.flow.vip[0] = target->vip[0];
	p.flow.vip[1] = target->vip[1];
	p.flow.node_port = ports[0];
	p.flow.vip_port = ports[1];
	if (!note_probe(&p) || !aim_at_vip(skb, &p))
		return TC_ACT_SHOT;
	if (target->forward == FORWARD_TUNNEL && !tunnel_probe(skb, &p, target))
		return TC_ACT_SHOT;
	return TC_ACT_UNSPEC;
}

#endif
