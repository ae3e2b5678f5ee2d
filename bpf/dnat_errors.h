/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* DNAT: ICMP errors about packets of a flow, translated as the packets are. */
#ifndef SLUICE_DNAT_ERRORS_H
#define SLUICE_DNAT_ERRORS_H

#include "dnat.h"
#include "icmp.h"

/* An error about what a backend sent, from the client's side: on to the backend. */
static __always_inline int dnat_error_to_backend(struct packet *p, struct quoted *q, __u32 number, int *action)
{
	struct backend *backend = backend_at(number);
	struct address router = source_of(p), address;
	__be16 port = backend->port;
	int out;

	if (service_at(backend->service)->flags & SERVICE_KEEPS_PORT)
		port = q->port[0];
	__builtin_memcpy(&address, backend->address, sizeof(address));
	out = translate(p, q, &router, &address, &address, port, &q->dest, q->port[1]);
	return out ? out : emit(p, &backend->next_hop, action);
}

/* Whether the packet is an error that quotes enough. */
static __always_inline bool take_error(struct packet *p, struct xdp_md *ctx, struct quoted *q)
{
	struct icmp_error *icmp;

	p->ctx = ctx;
	p->data = (void *)(long)ctx->data;
	p->end = (void *)(long)ctx->data_end;
	p->interface = came_by(ctx);
	if (parse_ethernet(p))
		return false;
	find_transport(p);
	if (p->protocol != (p->v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP) || p->fragment || check_ip(p) != PASS_PROTOCOL)
		return false;
	icmp = p->l4;
	return (void *)(icmp + 1) <= p->end && is_error(p, icmp->type) && read_quote(p, q);
}

/* An error to a VIP, about a flow of this backend. */
SUBPROGRAM int dnat_error_in(struct xdp_md *ctx, __u32 number)
{
	int action = 0, out = PASS_PROTOCOL;
	struct quoted q = {};
	struct packet p = {};

	if (take_error(&p, ctx, &q))
		out = dnat_error_to_backend(&p, &q, number, &action);
	return action << 8 | out;
}

/* Where an error to a client goes, and whose it is to be. */
struct error_way {
	struct next_hop hop;
	__u16 vip; /* index */
	__be16 vip_port;
	__u32 pad;
};

/* Finds the way of a packet to no VIP that is an error about what a client sent to a backend. */
SUBPROGRAM int read_error(struct xdp_md *ctx, struct error_way *w)
{
	struct course c = {};
	struct quoted q = {};
	struct packet p = {};
	struct reply *r;
	struct vip *vip;
	__u32 place;
	int out;

	if (!w || !take_error(&p, ctx, &q))
		return PASS_NOT_VIP;
	if (p.v6 && is_mapped(q.dest.word[0], q.dest.word[1]))
		return PASS_NOT_VIP;
	place = find_reply(&q.dest, q.port[1], q.protocol);
	if (!place--)
		return PASS_NOT_VIP;
	r = bpf_map_lookup_elem(&replies, &place);
	if (!r)
		return DROP_INTERNAL;
	vip = vip_at(r->vip);
	c.client = destination_of(&p);
	/* One that is not about a packet from there is nobody's. */
	if (vip->state != ENTRY_USED || q.source.word[0] != c.client.word[0] ||
	    q.source.word[1] != c.client.word[1])
		return PASS_NOT_VIP;
	w->vip = r->vip;
	w->vip_port = r->vip_port ? r->vip_port : q.port[1];
	c.source.word[0] = vip->address[0];
	c.source.word[1] = vip->address[1];
	c.interface = p.interface;
	describe(&p, &c);
	out = find_course(ctx, &c);
	w->hop = c.hop;
	return out;
}

/* Sends it to the client, as the VIP's. */
SUBPROGRAM int send_error(struct xdp_md *ctx, struct error_way *w)
{
	int action = 0, out;
	struct address *vip;
	struct quoted q = {};
	struct packet p = {};

	if (!w || !take_error(&p, ctx, &q))
		return DROP_INTERNAL;
	vip = (struct address *)vip_at(w->vip)->address;
	out = translate(&p, &q, vip, &q.source, &q.source, q.port[0], vip, w->vip_port);
	if (!out)
		out = emit(&p, &w->hop, &action);
	return action << 8 | out;
}

/* An ICMP packet to no VIP. In two parts, since the stack of all that is under way is small. */
SUBPROGRAM int dnat_error_out(struct xdp_md *ctx)
{
	struct error_way w = {};
	int out = read_error(ctx, &w);

	return out ? out : send_error(ctx, &w);
}

#endif
