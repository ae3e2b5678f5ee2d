/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Where the time of a segment to a dsr service goes, for bench.c: the short way of
 * fast.h in the same order, cut off after one of its stages. What the stages so far
 * have found is computed, and counts as a wrong verdict if it is not what it should be.
 */
#ifndef SLUICE_BENCH_STAGES_H
#define SLUICE_BENCH_STAGES_H

enum bench_stage {
	STAGE_MOVE, /* not of dsr: makes room for an outer header, and takes it back */
	STAGE_FRAME, /* a frame of IPv4, long enough */
	STAGE_VIP,
	STAGE_SERVICE, /* by its port */
	STAGE_HASH,
	STAGE_SLOT,
	STAGE_CHECKS, /* MAC address, lengths; the slot is clean */
	STAGE_BACKEND, /* its next hop */
	STAGE_COUNT, /* packets and bytes */
	STAGE_SEND, /* all of it */
	STAGES,
};

volatile const enum bench_stage stage = STAGES;

/* Ends a packet's way here, with this in hand. */
#define CUT(here, value)                                      \
	do {                                                  \
		if (stage == (here)) {                        \
			asm volatile("" : : "r"((__u64)(value))); \
			return XDP_PASS;                      \
		}                                             \
	} while (0)

static __always_inline int staged(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = data + ETH_HLEN;
	struct tcphdr *tcp = (void *)(ip + 1);
	struct plain p = { .ctx = ctx, .data = data };
	__u64 destination, hash, word, first, second;
	struct backend *backend;
	struct service *service;
	struct vip *vip;
	__u32 owner;

	if (stage == STAGE_MOVE)
		return bpf_xdp_adjust_head(ctx, -(int)sizeof(*ip)) || bpf_xdp_adjust_head(ctx, sizeof(*ip)) ?
			       XDP_ABORTED : XDP_PASS;
	if ((void *)(tcp + 1) > end || *(__be16 *)(data + 2 * ETH_ALEN) != bpf_htons(ETH_P_IP))
		return XDP_ABORTED;
	CUT(STAGE_FRAME, 0);
	destination = mapped(ip->daddr);
	vip = vip_at(vip_hash(0, destination));
	KEEP_POINTER(vip);
	if (vip->address[1] != destination || vip->address[0] || vip->state != ENTRY_USED)
		return XDP_ABORTED;
	CUT(STAGE_VIP, vip);
	service = service_at(tcp_service(vip, tcp));
	KEEP_POINTER(service);
	if (*(__u64 *)&service->forward != FORWARD_DSR)
		return XDP_ABORTED;
	CUT(STAGE_SERVICE, service);
	hash = tcp_hash4(ip, tcp);
	CUT(STAGE_HASH, hash);
	word = slot_word(service, hash);
	CUT(STAGE_SLOT, word);
	p.interface = ctx->ingress_ifindex;
	p.length = bpf_ntohs(ip->tot_len);
	if (!own_mac(p.interface, data) || !plain_tcp(ip, tcp, p.length, end) || !is_clean(word))
		return XDP_ABORTED;
	owner = word;
	p.opens = opens(tcp);
	CUT(STAGE_CHECKS, owner);
	backend = backend_at(owner);
	KEEP_POINTER(backend);
	first = *(volatile __u64 *)&backend->next_hop;
	second = *((volatile __u64 *)&backend->next_hop + 1);
	if (!(second >> 32) || backend->next_hop.vlans)
		return XDP_ABORTED;
	CUT(STAGE_BACKEND, first);
	if (!count_plain(&p, owner))
		return XDP_ABORTED;
	CUT(STAGE_COUNT, first);
	*(__u64 *)data = first;
	*(__u32 *)(data + 8) = second;
	return leave(&p, second >> 32);
}

SEC("xdp.frags")
int bench_stage(struct xdp_md *ctx)
{
	struct bench_state *s = prepare(ctx);

	return s ? verify(s, staged(ctx)) : XDP_ABORTED;
}

#endif
