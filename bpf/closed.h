/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Accept mode (RFC 9568, section 6.1). An instance that is closed takes for its VIPs
 * what services do, and nothing else. Who has a VIP is told all the same.
 */
#ifndef SLUICE_CLOSED_H
#define SLUICE_CLOSED_H

#include "parse.h"
#include "who_has.h"

/* Whether the kernel might take for a VIP's own what has this outcome: no service did. */
static __always_inline bool no_service_took(__u32 out)
{
	return out == PASS_NOT_VIP || out == PASS_PROTOCOL || out == PASS_FRAGMENT || out == PASS_NO_SERVICE;
}

/* Whether a packet is one of those that tell neighbours from each other (RFC 9568, section 6.4.3, (650)). */
static __always_inline bool is_neighbour_message(struct packet *p)
{
	struct neighbour_message *m = (void *)(p->ip6 + 1);

	if ((void *)(p->ip6 + 1) > p->end || p->ip6->nexthdr != IPPROTO_ICMPV6 || (void *)(m + 1) > p->end)
		return false;
	return m->type == ICMP6_SOLICITATION || m->type == ICMP6_ADVERTISEMENT;
}

/* What becomes of a packet that no service took, and that so far would pass as out. */
SUBPROGRAM int keep_out(struct xdp_md *ctx, int out)
{
	__u64 high = 0, low;
	struct packet p = {};
	struct fence *f;

	p.data = (void *)(long)ctx->data;
	p.end = (void *)(long)ctx->data_end;
	p.interface = came_by(ctx);
	if (parse_ethernet(&p))
		return out;
	if (p.v6) {
		if ((void *)(p.ip6 + 1) > p.end) /* never: for Linux 6.1 */
			return out;
		high = half(&p.ip6->daddr, 0);
		low = half(&p.ip6->daddr, 1);
	} else {
		low = mapped(p.ip->daddr);
	}
	/* Of a link-local VIP another link may have another one. */
	if (p.v6 && (p.ip6->daddr.s6_addr32[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000))
		f = fence_of(&p, high, low);
	else
		f = fence_at(0, 0, high, low);
	if (!f || f->v6 != p.v6 || !f->held || !(f->flags & FENCE_CLOSED))
		return out;
	if (check_mac(&p) || (p.v6 && is_neighbour_message(&p)))
		return out;
	return DROP_NOT_ACCEPTED;
}

#endif
