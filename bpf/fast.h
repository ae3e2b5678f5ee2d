/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The short way of the packet that comes most often: a whole IPv4 TCP segment,
 * untagged and without IP options, for a dsr service without rules, whose slot
 * is clean. The pipeline would do the same with it; here all that is known fits
 * into registers. Whatever is not as expected takes the pipeline from its start,
 * so nothing is decided here but where such a packet goes.
 */
#ifndef SLUICE_FAST_H
#define SLUICE_FAST_H

#include "balance.h"
#include "parse.h"

/* Version 4, five words of header, as the first byte of it. */
#define IPV4_PLAIN 0x45

/* Whether a segment's headers are whole and its lengths agree. */
static __always_inline bool plain_tcp(struct iphdr *ip, struct tcphdr *tcp, void *end)
{
	__u32 length = bpf_ntohs(ip->tot_len);

	return *(__u8 *)ip == IPV4_PLAIN && ip->protocol == IPPROTO_TCP &&
	       !(ip->frag_off & (FRAGMENT_MORE | FRAGMENT_OFFSET)) && tcp->doff >= 5 &&
	       length >= sizeof(*ip) + tcp->doff * 4 && length <= end - (void *)ip;
}

/* The verdict on such a packet; XDP_ABORTED: it is none. */
static __always_inline int fast_path(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = data + ETH_HLEN;
	struct tcphdr *tcp = (void *)(ip + 1);
	__u64 word, destination, first, second;
	struct service *service;
	struct counters *count;
	struct interface *nic;
	struct backend *backend;
	struct vip *vip;
	__u32 owner;

	if ((void *)(tcp + 1) > end || *(__be16 *)(data + 2 * ETH_ALEN) != bpf_htons(ETH_P_IP))
		return XDP_ABORTED;
	destination = mapped(ip->daddr);
	vip = vip_at(vip_hash(0, destination));
	if (vip->address[1] != destination || vip->address[0] || vip->state != ENTRY_USED)
		return XDP_ABORTED;
	owner = service_of(vip, false, tcp->dest);
	service = service_at(owner);
	if (service->forward != FORWARD_DSR || (service->flags & ~SERVICE_SOURCE_HASH))
		return XDP_ABORTED;
	/* Asked for first: the one load that is likely to miss the cache. */
	word = slot_word(service, service->flags ? source_hash4(ip) :
						   flow_hash4(ip, tcp->source, tcp->dest, IPPROTO_TCP));
	nic = interface_at(ctx->ingress_ifindex);
	if (nic->index != ctx->ingress_ifindex || !mac_equal(data, nic->mac) || !plain_tcp(ip, tcp, end))
		return XDP_ABORTED;
	owner = word;
	if (owner != word || !owner)
		return XDP_ABORTED;
	backend = backend_at(owner);
	first = *(volatile __u64 *)&backend->next_hop;
	second = *((volatile __u64 *)&backend->next_hop + 1);
	if (!(second >> 32) || backend->next_hop.vlans)
		return XDP_ABORTED;
	count = bpf_map_lookup_elem(&traffic, &owner);
	if (!count)
		return XDP_ABORTED;
	count->packets++;
	count->bytes += bpf_ntohs(ip->tot_len);
	count->flows += opens(tcp);
	*(__u64 *)data = first;
	*(__u32 *)(data + 8) = second;
	return second >> 32 == ctx->ingress_ifindex ? XDP_TX : bpf_redirect(second >> 32, 0);
}

#endif
