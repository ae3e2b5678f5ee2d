/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* One packet: parse, find service, find backend, rewrite, emit. */
#ifndef SLUICE_PIPELINE_H
#define SLUICE_PIPELINE_H

#include "balance.h"
#include "emit.h"
#include "nat.h"
#include "parse.h"

static __always_inline int forward_dsr(struct packet *p, struct service *service, int *action)
{
	__u32 number = slot_owner(service, flow_hash(p));
	struct backend *backend = bpf_map_lookup_elem(&backends, &number);

	if (!number || !backend) {
		COUNT_LOSS(p->service, no_backend);
		return DROP_NO_BACKEND;
	}
	count_forward(p, number);
	return emit(p, &backend->next_hop, action);
}

static __always_inline int balance(struct packet *p, int *action)
{
	struct service *service;
	int out;

	if ((out = parse_ethernet(p)) || (out = find_vip(p)) || (out = check_mac(p)) ||
	    (out = parse_ipv4(p)) || (out = parse_tcp(p)))
		return out;

	p->service = find_service(p);
	if (!p->service)
		return nat_reply(p, action);
	service = bpf_map_lookup_elem(&services, &p->service);
	if (!service)
		return DROP_INTERNAL;
	if (p->ip->frag_off & FRAGMENT_MORE)
		return DROP_FRAGMENT;

	switch (service->forward) {
	case FORWARD_DSR:
		return forward_dsr(p, service, action);
	case FORWARD_NAT:
		return nat_forward(p, service, action);
	}
	return PASS_NO_SERVICE;
}

/* The verdict on one frame. What was not forwarded is counted here and nowhere else. */
static __always_inline int process(struct xdp_md *ctx)
{
	struct packet p = {
		.ctx = ctx,
		.data = (void *)(long)ctx->data,
		.end = (void *)(long)ctx->data_end,
		.interface = ctx->ingress_ifindex,
	};
	int action = XDP_ABORTED;
	int out = balance(&p, &action);

	if (out == SENT)
		return action;
	count_outcome(out);
	return out < DROP_MALFORMED_IP ? XDP_PASS : XDP_DROP;
}

#endif
