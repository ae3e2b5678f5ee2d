/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * DNAT: the way from a VIP to a client, as the kernel's routing table has it. It
 * sends no ARP request for XDP: where it knows no neighbour, the packet goes to the
 * one that the client's own packets come from. Those are learnt at a connection's
 * start, and from every packet as long as replies find no way; and the daemon has the
 * kernel look for the neighbour.
 */
#ifndef SLUICE_ROUTES_H
#define SLUICE_ROUTES_H

#include "balance.h"
#include "clock.h"
#include "emit.h"

#define AF_INET 2
#define AF_INET6 10

/* 10 s: how long every client is looked at after a reply has found no way. */
#define LEARN_TICKS 75

/* 30 s: an older last hop is used, and learnt anew. */
#define LAST_HOP_TICKS 224

/* A packet of a VIP to a client, and the way that it takes. */
struct course {
	struct address source;
	struct address client;
	struct next_hop hop; /* what is found */
	__be16 port[2];
	__u32 interface; /* the packet comes in by */
	__be32 class; /* traffic class, IPv6: and flow label */
	__u16 length;
	__u16 mtu; /* what is found, where the packet is too long */
	__u8 v6;
	__u8 protocol;
	__u16 pad[3];
};

/* What of a packet a route may depend on. */
static __always_inline void describe(struct packet *p, struct course *c)
{
	c->v6 = p->v6;
	c->protocol = p->protocol;
	c->class = p->v6 ? *(__be32 *)p->ip6 & bpf_htonl(0x0fffffff) : p->ip->tos;
}

static __always_inline void split(__u32 *to, struct address *a)
{
	to[0] = a->word[0];
	to[1] = a->word[0] >> 32;
	to[2] = a->word[1];
	to[3] = a->word[1] >> 32;
}

/* Has the kernel be asked to find the neighbour that a look-up has missed. */
static __always_inline void miss_neighbour(struct bpf_fib_lookup *fib)
{
	struct missed_neighbour key = { .interface = fib->ifindex };
	__u32 now = ticks();

	if (dry)
		return;
	if (fib->family == AF_INET6) {
		key.address[0] = (__u64)fib->ipv6_dst[1] << 32 | fib->ipv6_dst[0];
		key.address[1] = (__u64)fib->ipv6_dst[3] << 32 | fib->ipv6_dst[2];
	} else {
		key.address[1] = mapped(fib->ipv4_dst);
	}
	bpf_map_update_elem(&missed_neighbours, &key, &now, BPF_NOEXIST);
}

/*
 * Asks the routing table. NEXT: the hop is found. PASS_: the packet is the kernel's,
 * which will not forward it either. DROP_NO_NEXT_HOP: no neighbour is known, or the
 * way leads where sluice is not.
 */
static __always_inline int find_route(struct xdp_md *ctx, struct course *c)
{
	struct bpf_fib_lookup fib = {};
	struct way *way;

	if (!c)
		return DROP_INTERNAL;
	fib.family = c->v6 ? AF_INET6 : AF_INET;
	fib.l4_protocol = c->protocol;
	fib.sport = c->port[0];
	fib.dport = c->port[1];
	fib.tot_len = c->length;
	fib.ifindex = c->interface;
	if (c->v6) {
		fib.flowinfo = c->class;
		split(fib.ipv6_src, &c->source);
		split(fib.ipv6_dst, &c->client);
	} else {
		fib.tos = c->class;
		fib.ipv4_src = c->source.word[1] >> 32;
		fib.ipv4_dst = c->client.word[1] >> 32;
	}
	switch (bpf_fib_lookup(ctx, &fib, sizeof(fib), 0)) {
	case BPF_FIB_LKUP_RET_SUCCESS:
		break;
	case BPF_FIB_LKUP_RET_NOT_FWDED: /* to this node, or nowhere */
		return PASS_NOT_VIP;
	case BPF_FIB_LKUP_RET_FWD_DISABLED:
		return PASS_NOT_FORWARDING;
	case BPF_FIB_LKUP_RET_BLACKHOLE:
	case BPF_FIB_LKUP_RET_UNREACHABLE:
	case BPF_FIB_LKUP_RET_PROHIBIT:
		return DROP_NO_ROUTE;
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
		c->mtu = fib.mtu_result;
		return DROP_TOO_BIG;
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		miss_neighbour(&fib);
		return DROP_NO_NEXT_HOP;
	default:
		return DROP_NO_NEXT_HOP;
	}
	way = way_at(fib.ifindex);
	if (way->index != fib.ifindex)
		return DROP_NO_NEXT_HOP;
	__builtin_memcpy(c->hop.destination, fib.dmac, ETH_ALEN);
	__builtin_memcpy(c->hop.source_low, fib.smac, 2);
	__builtin_memcpy(c->hop.source_high, fib.smac + 2, 4);
	c->hop.interface = way->nic;
	c->hop.vlans = way->vlans;
	c->hop.vlan[0] = way->vlan[0];
	c->hop.vlan[1] = way->vlan[1];
	return NEXT;
}

/* Has every client's last hop be learnt for a while. */
static __always_inline void miss_way(__u32 now)
{
	__u32 zero = 0, *missed = bpf_map_lookup_elem(&way_missed, &zero);

	if (missed && !dry && *missed != now)
		*missed = now;
}

/* The way to the client, by its last hop where no route has one. As find_route. */
SUBPROGRAM int find_course(struct xdp_md *ctx, struct course *c)
{
	struct interface *nic;
	struct last_hop *last;
	struct address client;
	__u32 now = ticks();
	int out;

	if (!c)
		return DROP_INTERNAL;
	out = find_route(ctx, c);
	if (out != DROP_NO_NEXT_HOP)
		return out;
	client = c->client;
	last = bpf_map_lookup_elem(&last_hops, &client);
	if (!last || (int)(now - last->seen) > LAST_HOP_TICKS)
		miss_way(now);
	if (!last)
		return DROP_NO_NEXT_HOP;
	nic = interface_at(last->interface);
	if (!nic->index || nic->index != last->interface)
		return DROP_NO_NEXT_HOP;
	__builtin_memcpy(c->hop.destination, last->mac, ETH_ALEN);
	__builtin_memcpy(c->hop.source_low, nic->mac, 2);
	__builtin_memcpy(c->hop.source_high, nic->mac + 2, 4);
	c->hop.interface = nic->index;
	c->hop.vlans = last->vlans;
	c->hop.vlan[0] = last->vlan[0];
	c->hop.vlan[1] = last->vlan[1];
	return NEXT;
}

/* Remembers the last hop that c holds, if the kernel knows no neighbour for replies. */
SUBPROGRAM int remember_last_hop(struct xdp_md *ctx, struct course *c, struct last_hop *came)
{
	struct last_hop *last, now;
	struct address client;

	if (!c || !came || dry || find_route(ctx, c) != DROP_NO_NEXT_HOP)
		return 0;
	now = *came;
	client = c->client;
	last = bpf_map_lookup_elem(&last_hops, &client);
	if (last && now.seen - last->seen < LEARN_TICKS && mac_equal(last->mac, now.mac) &&
	    last->interface == now.interface && last->vlans == now.vlans && last->vlan[0] == now.vlan[0] &&
	    last->vlan[1] == now.vlan[1])
		return 0;
	bpf_map_update_elem(&last_hops, &client, &now, BPF_ANY);
	return 1;
}

/* Looks whether a reply to the client in hand, which comes in by that interface, will find its way. */
static __always_inline void learn_client(struct packet *p, __u32 interface)
{
	__u32 zero = 0, now = ticks(), *missed = bpf_map_lookup_elem(&way_missed, &zero);
	struct last_hop came = { .seen = now, .interface = p->interface, .vlans = p->vlans };
	struct course c = {};

	if (dry || !missed || (!p->opens && now - *missed > LEARN_TICKS))
		return;
	c.source.word[0] = p->vip->address[0];
	c.source.word[1] = p->vip->address[1];
	c.client = source_of(p);
	c.port[0] = p->port[1];
	c.port[1] = p->port[0];
	c.interface = interface;
	describe(p, &c);
	__builtin_memcpy(came.mac, p->data + ETH_ALEN, ETH_ALEN);
	came.vlan[0] = p->vlans > 0 ? p->vlan[0] & bpf_htons(0x0fff) : 0;
	came.vlan[1] = p->vlans > 1 ? p->vlan[1] & bpf_htons(0x0fff) : 0;
	remember_last_hop(p->ctx, &c, &came);
}

#endif
