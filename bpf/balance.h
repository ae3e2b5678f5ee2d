/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From the destination to the service, its slot and the slot's backend. */
#ifndef SLUICE_BALANCE_H
#define SLUICE_BALANCE_H

#include "packet.h"

/* The service of the packet's VIP and port; 0 where there is none. */
static __always_inline __u32 find_service(struct packet *p)
{
	__u16 port = bpf_ntohs(p->tcp->dest);
	__u32 index = p->vip->tcp_ports * PORT_GROUPS + (port >> 2);
	__u64 *group;

	if (!p->vip->tcp_ports)
		return 0;
	group = bpf_map_lookup_elem(&ports, &index);
	if (!group)
		return 0;
	return *group >> (port & 3) * 16 & 0xffff;
}

/*
 * The hash of a flow, whose high half counts. Every node must compute the same,
 * so neither the NIC's hash nor a secret of this host goes in. A product carries
 * bits upwards only, so what stands high is brought down before each: two
 * products that do not wait for each other, and one that mixes them.
 * loader.FlowHash is its twin.
 */
static __always_inline __u64 flow_hash(struct packet *p)
{
	__u64 addresses = (__u64)p->ip->saddr << 32 | p->ip->daddr;
	__u64 rest = (__u64)p->tcp->source << 32 | (__u32)p->tcp->dest << 16 | IPPROTO_TCP;
	__u64 h = (addresses ^ addresses >> 29) * GOLDEN;

	h ^= (rest ^ rest >> 32) * 0xff51afd7ed558ccdULL;
	h ^= h >> 32;
	return h * 0xc4ceb9fe1a85ec53ULL;
}

/* The number of the backend that owns the packet's slot; 0 where none does. */
static __always_inline __u32 slot_owner(struct service *service, __u64 hash)
{
	__u32 index = service->slots + (__u32)((hash >> 32) * service->slot_count >> 32);
	__u64 *slot = bpf_map_lookup_elem(&slots, &index);

	if (!slot)
		return 0;
	return *(volatile __u64 *)slot & ((1 << SLOT_OWNER_BITS) - 1);
}

/*
 * Finds the service, and asks for the slot's word before anything is checked: it
 * is the one load that is likely to miss the cache, and the checks that decide
 * whether it counts run meanwhile. The header may be malformed still: what is
 * found is void unless parse_ipv4 and parse_tcp agree. NULL: no service.
 */
static __always_inline struct service *look_ahead(struct packet *p)
{
	struct service *service;

	p->tcp = (void *)p->ip + (p->ip->ihl * 4 & 60);
	p->service = 0;
	p->owner = 0;
	if ((void *)(p->tcp + 1) > p->end)
		return NULL;
	p->service = find_service(p);
	if (!p->service)
		return NULL;
	service = bpf_map_lookup_elem(&services, &p->service);
	if (service && service->forward == FORWARD_DSR)
		p->owner = slot_owner(service, flow_hash(p));
	return service;
}

#define COUNT_LOSS(service_number, what)                                        \
	do {                                                                    \
		__u32 number = (service_number);                                \
		struct service_losses *lost = bpf_map_lookup_elem(&losses, &number); \
		if (lost)                                                       \
			lost->what++;                                           \
	} while (0)

/* Counts what has been sent: packet pointers may be void by now. */
static __always_inline void count_forward(struct packet *p, __u32 backend)
{
	struct counters *c = bpf_map_lookup_elem(&traffic, &backend);

	if (!c)
		return;
	c->packets++;
	c->bytes += p->length;
	c->flows += p->opens;
}

static __always_inline void count_reply(struct packet *p, __u32 backend)
{
	struct counters *c = bpf_map_lookup_elem(&traffic, &backend);

	if (!c)
		return;
	c->reply_packets++;
	c->reply_bytes += p->length;
}

#endif
