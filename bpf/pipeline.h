/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* One packet: parse, find service, find backend, rewrite, emit. */
#ifndef SLUICE_PIPELINE_H
#define SLUICE_PIPELINE_H

#include "balance.h"
#include "closed.h"
#include "dnat.h"
#include "dnat_errors.h"
#include "emit.h"
#include "facts.h"
#include "fast.h"
#include "fence.h"
#include "fragments.h"
#include "guard.h"
#include "icmp.h"
#include "later_fragments.h"
#include "nat.h"
#include "nodes.h"
#include "parse.h"
#include "pins.h"
#include "probe_reply.h"
#include "tunnel.h"

/* The number of the packet's backend in the stateless modes; 0 where there is none. */
static __always_inline __u32 find_owner(struct packet *p, struct service *service)
{
	/* UDP has no SYN to tell new from old: without affinity, the owner of the moment. */
	if (p->protocol == IPPROTO_TCP ? p->slot >> SLOT_PREVIOUS_SHIFT != 0 :
					 service->flags & SERVICE_UDP_FLOWS)
		return remembered_owner(p);
	return slot_owner(p->slot);
}

static __always_inline int forward_to_owner(struct packet *p, struct service *service, struct facts *f,
					    int *action)
{
	bool spread_over_nodes = service->forward == FORWARD_PROXY;
	int out = NEXT;
	__u32 owner;

	if (spread_over_nodes && from_node(p)) {
		if (p->fragment)
			remember_fragment(p, 0);
		return PASS_FROM_NODE;
	}
	owner = find_owner(p, service);
	TRACE(backend, owner);
	if (!owner && !spread_over_nodes) {
		COUNT_LOSS(p->service, no_backend);
		return DROP_NO_BACKEND;
	}
	if (p->fragment)
		remember_fragment(p, owner);
	if (service->forward == FORWARD_DNAT)
		return to_dnat(p, f, owner);
	if (spread_over_nodes)
		out = towards_node(p, owner);
	if (out == NEXT)
		out = service->forward == FORWARD_TUNNEL ? tunnel_to(p, owner, action) :
							   emit(p, &backend_at(owner)->next_hop, action);
	if (out == SENT || (out == PASS_HERE && owner))
		count_forward(p, owner);
	return out;
}

/* Whether the frame is this NIC's and a well-formed segment or datagram. */
static __always_inline int check(struct packet *p)
{
	int out;

	if ((out = check_mac(p)) || (out = check_ip(p)))
		return out;
	return p->protocol == IPPROTO_UDP ? parse_udp(p) : parse_tcp(p);
}

static __always_inline int balance(struct packet *p, struct facts *f, int *action)
{
	struct service *service;
	int out;

	if ((out = parse_ethernet(p)))
		return out;
	if ((out = find_vip(p)))
		return may_tell_owner(p) ? TO_FENCE : out;
	find_transport(p);
	service = look_ahead(p);
	if (!service) {
		if ((out = check(p)))
			return out;
		if (p->vip->source)
			return to_nat(p, f);
		if (p->fragment)
			remember_fragment(p, 0);
		return PASS_NO_SERVICE;
	}
	if ((out = check(p)))
		return out;
	if (service->flags & GUARDED && (out = check_visitor(p)))
		return out;

	switch (service->forward) {
	case FORWARD_DSR:
	case FORWARD_TUNNEL:
	case FORWARD_DNAT:
	case FORWARD_PROXY:
		return forward_to_owner(p, service, f, action);
	case FORWARD_NAT:
		return to_nat(p, f);
	}
	return PASS_NO_SERVICE;
}

/* What becomes of one frame: verdict << 8 | outcome. */
SUBPROGRAM int pipeline(struct xdp_md *ctx, struct facts *f)
{
	int action = 0, out;
	struct packet p = {};

	if (!f)
		return DROP_INTERNAL;
	p.ctx = ctx;
	p.data = (void *)(long)ctx->data;
	p.end = (void *)(long)ctx->data_end;
	p.interface = came_by(ctx);
	out = balance(&p, f, &action);
	return action << 8 | out;
}

/*
 * The same for a packet to a nat service, in two steps, and for one that may be a
 * nat backend's. Functions, since their stacks and those of what they call are
 * bounded together.
 */
SUBPROGRAM int nat_find_pipeline(struct xdp_md *ctx, struct facts *f)
{
	struct packet p = {};

	if (!f || !take_facts(&p, ctx, f))
		return DROP_INTERNAL;
	return nat_find(&p, service_at(p.service), f);
}

SUBPROGRAM int nat_send_pipeline(struct xdp_md *ctx, struct facts *f)
{
	int action = 0, out;
	struct packet p = {};

	if (!f || !take_facts(&p, ctx, f))
		return DROP_INTERNAL;
	out = nat_send(&p, f, &action);
	return action << 8 | out;
}

static __always_inline int nat_forward(struct xdp_md *ctx, struct facts *f)
{
	int out = nat_find_pipeline(ctx, f);

	if (NAT_LOGS)
		send_records(ctx);
	if (f->fragment && (out == NEXT || out == PASS_NO_FLOW))
		begin_fragments(ctx, f, f->flow, out == NEXT ? FRAGMENTS_TO_BACKEND : FRAGMENTS_UNCHANGED);
	return out == NEXT ? nat_send_pipeline(ctx, f) : out;
}

SUBPROGRAM int nat_reply_pipeline(struct xdp_md *ctx, struct facts *f)
{
	int action = 0, out;
	struct packet p = {};

	if (!f || !take_facts(&p, ctx, f))
		return DROP_INTERNAL;
	out = nat_reply(&p, f, &action);
	return action << 8 | out;
}

/* A first fragment is looked at twice, since what it leaves behind must come before it is changed. */
static __always_inline int nat_answer(struct xdp_md *ctx, struct facts *f)
{
	int out = nat_reply_pipeline(ctx, f);

	if (out == TO_FRAGMENTS) {
		begin_fragments(ctx, f, f->flow, FRAGMENTS_TO_CLIENT);
		f->begun = true;
		out = nat_reply_pipeline(ctx, f);
	} else if (f->fragment && out == PASS_NO_SERVICE) {
		begin_fragments(ctx, f, 0, FRAGMENTS_UNCHANGED);
	}
	return out;
}

/*
 * Packets of no connection that one CPU leaves to the kernel in a tick, some 60,000 a
 * second: so many clients learn at once that theirs is gone. A flood of them would
 * have the kernel answer each with an RST, to whoever it says it comes from.
 */
#define STRAYS_PER_TICK 8192

/* The verdict on a frame that the short way has not taken. What was not forwarded is counted here and nowhere else. */
static __always_inline int take_long_way(struct xdp_md *ctx)
{
	struct facts facts = {};
	int verdict;
	__u32 out;

	out = pipeline(ctx, &facts);
	if (out == TO_NAT)
		out = facts.service ? nat_forward(ctx, &facts) : nat_answer(ctx, &facts);
	else if (out == TO_DNAT)
		out = dnat_pipeline(ctx, &facts);
	else if ((out & 0xff) == PASS_PROTOCOL)
		out = icmp_pipeline(ctx);
	/* These have no verdict yet, and no action. */
	if (tables.fences && (out == TO_FENCE || out == PASS_NOT_IP || out == PASS_PROTOCOL))
		out = fence_pipeline(ctx, out == TO_FENCE ? PASS_NOT_VIP : out);
	/* A source address of nat may be the node's own. */
	if (tables.probes && ((out & 0xff) == PASS_NOT_VIP || (out & 0xff) == PASS_NO_SERVICE) &&
	    answers_probe(ctx))
		out = PASS_PROBE;
	else if ((out & 0xff) == PASS_NOT_VIP && tables.expects_replies)
		out = dnat_reply(ctx);
	else if ((out & 0xff) == PASS_FRAGMENT)
		out = fragment_pipeline(ctx);
	if ((out & 0xff) == TO_DNAT_ERROR)
		out = out >> 8 ? dnat_error_in(ctx, out >> 8) : dnat_error_out(ctx);
	verdict = out >> 8;
	out &= 0xff;
	if (out == PASS_NO_FLOW && !spend(&stray_allowance, STRAYS_PER_TICK))
		out = DROP_STRAY;
	if (tables.closed && no_service_took(out))
		out = keep_out(ctx, out);
	TRACE(outcome, out);
	if (out == SENT || out == ANSWERED)
		return verdict;
	count_outcome(out);
	if (out == ANSWERED_WHO_HAS)
		return XDP_TX;
	if (out >= DROP_MALFORMED_IP)
		return XDP_DROP;
	return tables.virtual_macs ? give_to_kernel(ctx) : XDP_PASS;
}

/* The verdict on one frame. */
static __always_inline int process(struct xdp_md *ctx)
{
	int verdict = dry ? XDP_ABORTED : fast_path(ctx);

	return verdict == XDP_ABORTED ? take_long_way(ctx) : verdict;
}

#endif
