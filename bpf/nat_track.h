/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * NAT: follows connections. Nothing that can be sent blindly ends one: FIN and
 * RST only shorten the idle time, data restores it, and a SYN on a connection
 * that has once been open goes the same way as before. Nor does anything sent
 * blindly open one: that takes the backend's sequence number, once.
 */
#ifndef SLUICE_NAT_TRACK_H
#define SLUICE_NAT_TRACK_H

#include "nat_ports.h"

#define NAT_FIN_BOTH (NAT_FIN_CLIENT | NAT_FIN_BACKEND)

/* Whether the client may use its port for another connection. */
static __always_inline bool nat_over(struct nat_flow *flow)
{
	__u32 flags = flow->flags;

	return flow->state == NAT_CLOSED &&
	       (!(flags & NAT_OPENED) || (flags & NAT_FIN_BOTH) == NAT_FIN_BOTH);
}

/* Swaps a flow's state, unless another CPU was faster: the state after it. */
static __always_inline __u32 advance(struct nat_flow *flow, __u32 from, __u32 to)
{
	__u32 was = __sync_val_compare_and_swap(&flow->state, from, to);

	return was == from ? to : was;
}

/*
 * The handshake: the backend's SYN says what the client must acknowledge. It may
 * happen again on a flow that an RST has closed. Returns the state after it.
 */
static __always_inline __u32 track_handshake(struct tcphdr *tcp, struct nat_flow *flow, __u32 id, __u32 state,
					     __u32 fin)
{
	if (fin == NAT_FIN_BACKEND) {
		if (!tcp->syn || !tcp->ack)
			return state;
		flow->backend_sequence = bpf_ntohl(tcp->seq) + 1;
		if (TELLS && is_told(state))
			mark_news(id);
		return state == NAT_SYN_SENT ? advance(flow, state, NAT_SYN_RECEIVED) : state;
	}
	if (state == NAT_SYN_SENT || tcp->syn || !tcp->ack ||
	    bpf_ntohl(tcp->ack_seq) != flow->backend_sequence)
		return state;
	if (state == NAT_CLOSED) {
		if ((flow->flags & NAT_FIN_BOTH) == NAT_FIN_BOTH || !flow->backend_sequence)
			return state;
		__sync_fetch_and_and(&flow->flags, ~NAT_FIN_BOTH);
	}
	__sync_fetch_and_or(&flow->flags, NAT_OPENED);
	state = advance(flow, state, NAT_ESTABLISHED);
	if (TELLS)
		mark_news(id);
	return state;
}

/* Data from a side shows that its FIN was none, and that an RST was none. */
static __always_inline void track_data(struct nat_flow *flow, __u32 id, __u32 state, __u32 fin)
{
	__u32 flags = flow->flags;

	if (state == NAT_CLOSING && !(flags & fin))
		return;
	if (state == NAT_CLOSED &&
	    (!(flags & NAT_OPENED) || (flags & NAT_FIN_BOTH) == NAT_FIN_BOTH))
		return;
	flags = __sync_fetch_and_and(&flow->flags, ~fin) & ~fin;
	advance(flow, state, flags & NAT_FIN_BOTH ? NAT_CLOSING : NAT_ESTABLISHED);
	if (TELLS)
		mark_news(id);
}

/* Follows a packet of the side whose FIN sets the flag. */
static __always_inline void track(struct packet *p, struct nat_place *place, struct nat_flow *flow,
				  __u32 port, __u32 fin, __u32 now)
{
	struct tcphdr *tcp = p->tcp;
	__u32 state = flow->state, flags, before, id = place->number << 16 | port;

	if (dry)
		return;
	if (flow->last_seen != now)
		flow->last_seen = now;
	if (p->protocol == IPPROTO_UDP) {
		/* UDP has no handshake: who answers has taken part. */
		if (fin == NAT_FIN_BACKEND && state == NAT_SYN_SENT) {
			advance(flow, state, NAT_UDP_REPLIED);
			if (TELLS)
				mark_news(id);
		}
		return;
	}
	/* Linux 6.1 does not know any more that it is there. */
	if ((void *)(tcp + 1) > p->end)
		return;
	if (tcp->rst) {
		if (state != NAT_CLOSED && state != NAT_FREE)
			close_flow(place, flow, port, state);
		return;
	}
	if (state != NAT_ESTABLISHED && state != NAT_CLOSING)
		state = track_handshake(tcp, flow, id, state, fin);
	if (tcp->fin) {
		before = __sync_fetch_and_or(&flow->flags, fin);
		flags = before | fin;
		if ((flags & NAT_FIN_BOTH) != NAT_FIN_BOTH) {
			if (state == NAT_ESTABLISHED)
				advance(flow, state, NAT_CLOSING);
		} else if (state != NAT_CLOSED && state != NAT_FREE) {
			close_flow(place, flow, port, state);
		}
		if (TELLS && is_told(state) && flags != before)
			mark_news(id);
		return;
	}
	if (state >= NAT_CLOSING && p->length > p->header_length)
		track_data(flow, id, state, fin);
}

/* The way back: replies leave by where the client's packets come from. */
static __always_inline void learn_last_hop(struct packet *p, struct nat_flow *flow, __u32 id)
{
	void *source = p->data + ETH_ALEN;
	__be16 outer = p->vlans > 0 ? p->vlan[0] & bpf_htons(0x0fff) : 0;
	__be16 inner = p->vlans > 1 ? p->vlan[1] & bpf_htons(0x0fff) : 0;

	if (dry)
		return;
	if (mac_equal(flow->mac, source) && flow->interface == p->interface && flow->vlans == p->vlans &&
	    flow->vlan[0] == outer && flow->vlan[1] == inner)
		return;
	__builtin_memcpy(flow->mac, source, ETH_ALEN);
	flow->vlans = p->vlans;
	flow->vlan[0] = outer;
	flow->vlan[1] = inner;
	flow->interface = p->interface;
	if (TELLS && is_told(flow->state))
		mark_news(id);
}

#endif
