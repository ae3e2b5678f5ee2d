/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Fencing. The kernel answers for a VIP for as long as the address is on the node,
 * whether the daemon that put it there lives or not. So where the daemon has not been
 * at work for a while, and another node has shown since then that the VIP is its own
 * now, who asks for the VIP gets no answer from this node: neither to ARP requests nor
 * to neighbour solicitations. Packets that come all the same are forwarded as before.
 * While the daemon is at work nothing is kept from the kernel: whose the VIP is, is
 * for VRRP to say. who_has.h answers in the kernel's place.
 */
#ifndef SLUICE_FENCE_H
#define SLUICE_FENCE_H

#include "facts.h"
#include "owner.h"
#include "who_has.h"

#define PROTOCOL_VRRP 112
#define VRRP_ADVERTISEMENT 1

/* As far as both versions and both families agree (RFC 9568, section 5.1). */
struct vrrp_header {
	__u8 version_type;
	__u8 vrid;
	__u8 priority;
	__u8 count; /* of addresses */
	__u8 rest[4];
};

/* Whether a packet to an address that is no service's may say whose a VIP is, or ask for it. */
static __always_inline bool may_tell_owner(struct packet *p)
{
	__u8 protocol;

	if (!tables.fences)
		return false;
	protocol = p->v6 ? p->ip6->nexthdr : p->ip->protocol;
	return protocol == PROTOCOL_VRRP || (p->v6 && protocol == IPPROTO_ICMPV6);
}

static __always_inline void note_other(struct fence *f, __u8 *mac)
{
	__builtin_memcpy(f->other, mac, sizeof(f->other));
}

/* Another node says that it has the VIP. */
static __always_inline void note_claim(struct fence *f, __u8 *mac)
{
	if (dry)
		return;
	note_other(f, mac);
	f->claimed = bpf_ktime_get_ns();
}

static __always_inline void note_heard(struct fence *f, __u8 *mac)
{
	if (dry)
		return;
	note_other(f, mac);
	f->heard = bpf_ktime_get_ns();
}

static __always_inline __u64 mapped_bytes(__u8 *address)
{
	return mapped(*(__be32 *)address);
}

static __always_inline int fence_arp(struct packet *p)
{
	struct arp_packet *arp = p->l3;
	struct fence *f;
	bool claims;

	if ((void *)(arp + 1) > p->end || arp->hardware != bpf_htons(1) ||
	    arp->protocol != bpf_htons(ETH_P_IP) || arp->hardware_length != ETH_ALEN ||
	    arp->protocol_length != sizeof(arp->target))
		return PASS_NOT_IP;
	f = fence_of(p, 0, mapped_bytes(arp->target));
	if (!f)
		return PASS_NOT_IP;
	/*
	 * A backend that asks for its client from the VIP is misconfigured, and no owner. What
	 * comes from the virtual MAC address is another node's: a NIC hears nothing of its own.
	 */
	claims = *(__be32 *)arp->sender == *(__be32 *)arp->target && !mac_equal(arp->sender_mac, f->mac);
	if (claims)
		note_claim(f, arp->sender_mac);
	if (arp->operation != ARP_REQUEST)
		return PASS_NOT_IP;
	return is_fenced(f, claims) ? DROP_FENCED : answer_arp(p, f, arp);
}

/* An advertisement counts if it is from the segment, of this instance, of another node, and no goodbye. */
static __always_inline void fence_vrrp(struct packet *p, void *message, __u8 hops)
{
	struct vrrp_header *vrrp = message;
	struct in6_addr *address6 = (void *)(vrrp + 1);
	struct address source = source_of(p);
	__u64 high = 0, low;
	struct fence *f;

	if ((void *)(vrrp + 1) + 4 > p->end || hops != 255 || !vrrp->priority || !vrrp->count)
		return;
	if ((vrrp->version_type != (2 << 4 | VRRP_ADVERTISEMENT) || p->v6) &&
	    vrrp->version_type != (3 << 4 | VRRP_ADVERTISEMENT))
		return;
	if (p->v6) {
		if ((void *)(address6 + 1) > p->end)
			return;
		high = half(address6, 0);
		low = half(address6, 1);
	} else {
		low = mapped(*(__be32 *)(vrrp + 1));
	}
	f = fence_of(p, high, low);
	if (!f || f->vrid != vrrp->vrid || (f->source[0] == source.word[0] && f->source[1] == source.word[1]))
		return;
	if (p->data + 2 * ETH_ALEN > p->end) /* for Linux 6.1, which does not know any more */
		return;
	note_heard(f, p->data + ETH_ALEN);
}

/* Who a neighbour advertisement says that has the address. */
static __always_inline __u8 *advertised_mac(struct packet *p, struct neighbour_message *m)
{
	struct mac_option *option = (void *)(m + 1);

	if ((void *)(option + 1) <= p->end && option->type == OPTION_TARGET_MAC && option->length == 1)
		return option->mac;
	return p->data + ETH_ALEN;
}

static __always_inline int fence_neighbour(struct packet *p, void *message, int out)
{
	struct neighbour_message *m = message;
	struct fence *f;
	__u8 *mac;

	if ((void *)(m + 1) > p->end || p->data + 2 * ETH_ALEN > p->end || p->ip6->hop_limit != 255 || m->code ||
	    (m->type != ICMP6_SOLICITATION && m->type != ICMP6_ADVERTISEMENT))
		return out;
	f = fence_of(p, half(&m->target, 0), half(&m->target, 1));
	if (!f)
		return out;
	if (m->type == ICMP6_SOLICITATION)
		return is_fenced(f, false) ? DROP_FENCED : answer_solicitation(p, f, m, out);
	mac = advertised_mac(p, m);
	if (!(m->flags & ADVERTISEMENT_SOLICITED) && !mac_equal(mac, f->mac))
		note_claim(f, mac);
	return out;
}

/* What becomes of a frame that so far would pass as out. */
SUBPROGRAM int fence_pipeline(struct xdp_md *ctx, int out)
{
	struct packet p = {};
	__be16 *type;

	p.ctx = ctx;
	p.data = (void *)(long)ctx->data;
	p.end = (void *)(long)ctx->data_end;
	p.interface = came_by(ctx);
	if (parse_ethernet(&p) == NEXT) {
		if (p.v6) {
			if ((void *)(p.ip6 + 1) > p.end)
				return out;
			if (p.ip6->nexthdr == PROTOCOL_VRRP)
				fence_vrrp(&p, p.ip6 + 1, p.ip6->hop_limit);
			else if (p.ip6->nexthdr == IPPROTO_ICMPV6)
				return fence_neighbour(&p, p.ip6 + 1, out);
			return out;
		}
		if ((void *)(p.ip + 1) > p.end || p.ip->protocol != PROTOCOL_VRRP || p.ip->ihl < 5 ||
		    p.ip->frag_off & (FRAGMENT_MORE | FRAGMENT_OFFSET))
			return out;
		fence_vrrp(&p, p.l3 + (p.ip->ihl * 4 & 60), p.ip->ttl);
		return out;
	}
	/* What the type is stands behind whatever tags there are. */
	type = p.data + 2 * ETH_ALEN + (p.vlans * sizeof(struct vlan_header) & 31);
	if (!p.l3 || (void *)(type + 1) > p.end || *type != bpf_htons(ETH_P_ARP))
		return out;
	return fence_arp(&p);
}

#endif
