/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* One packet: parse, find service, find backend, rewrite, emit. */
#ifndef SLUICE_PIPELINE_H
#define SLUICE_PIPELINE_H

#include "balance.h"
#include "emit.h"
#include "nat.h"
#include "parse.h"

static __always_inline int forward_dsr(struct packet *p, int *action)
{
	struct backend *backend = bpf_map_lookup_elem(&backends, &p->owner);
	int out;

	if (!p->owner || !backend) {
		COUNT_LOSS(p->service, no_backend);
		return DROP_NO_BACKEND;
	}
	out = emit(p, &backend->next_hop, action);
	if (out == SENT)
		count_forward(p, p->owner);
	return out;
}

/* Whether the frame is this NIC's and a well-formed TCP segment. */
static __always_inline int check(struct packet *p)
{
	int out;

	if ((out = check_mac(p)) || (out = parse_ipv4(p)))
		return out;
	return parse_tcp(p);
}

static __always_inline int balance(struct packet *p, int *action)
{
	struct service *service;
	int out;

	if ((out = parse_ethernet(p)) || (out = find_vip(p)))
		return out;
	service = look_ahead(p);
	if (!service) {
		out = check(p);
		return out ? out : nat_reply(p, action);
	}
	if ((out = check(p)))
		return out;
	if (p->ip->frag_off & FRAGMENT_MORE)
		return DROP_FRAGMENT;

	switch (service->forward) {
	case FORWARD_DSR:
		return forward_dsr(p, action);
	case FORWARD_NAT:
		return nat_forward(p, service, action);
	}
	return PASS_NO_SERVICE;
}

/* The verdict on one frame. What was not forwarded is counted here and nowhere else. */
static __always_inline int process(struct xdp_md *ctx)
{
	int action = XDP_ABORTED, out;
	struct packet p;

	p.ctx = ctx;
	p.data = (void *)(long)ctx->data;
	p.end = (void *)(long)ctx->data_end;
	p.interface = ctx->ingress_ifindex;
	out = balance(&p, &action);
	if (out == SENT)
		return action;
	count_outcome(out);
	return out < DROP_MALFORMED_IP ? XDP_PASS : XDP_DROP;
}

#endif
