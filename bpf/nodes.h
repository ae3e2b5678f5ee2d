/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Services that are spread over the proxies of all nodes. Their backends are the nodes:
 * a packet is left to the kernel here, or goes on to another node as it is, but for its
 * MAC addresses and a hop, and is left to the kernel there. It comes from a node's MAC
 * address then, so whatever that node's table says, no packet goes on twice.
 */
#ifndef SLUICE_NODES_H
#define SLUICE_NODES_H

#include "tunnel.h"

/* Whether a MAC address, as a number, is another node's. */
SUBPROGRAM int is_node(__u64 mac)
{
	if (!mac)
		return 0;
	KEEP_LOOP
	for (int i = 0; i < MAX_NODES; i++) {
		if (tables.nodes[i] == mac)
			return 1;
	}
	return 0;
}

/* Whether another node has sent the packet in hand here. */
static __always_inline bool from_node(struct packet *p)
{
	/* That it is there has been seen; Linux 6.1 does not know any more. */
	if (p->data + ETH_HLEN > p->end)
		return false;
	return is_node(mac_word(p->data + ETH_ALEN));
}

/*
 * Readies the packet for the node that serves it: NEXT, where it is to leave. Where no
 * node does, this one tries, before it is lost.
 */
static __always_inline int towards_node(struct packet *p, __u32 number)
{
	if (!number || backend_at(number)->next_hop.interface == INTERFACE_HERE)
		return PASS_HERE;
	if ((p->v6 ? p->ip6->hop_limit : p->ip->ttl) <= 1)
		return DROP_TTL;
	take_hop(p->l3, p->v6);
	return NEXT;
}

#endif
