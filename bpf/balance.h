/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From the destination to the service, its slot and the slot's backend. */
#ifndef SLUICE_BALANCE_H
#define SLUICE_BALANCE_H

#include "packet.h"

/* The number of the service of a VIP's port; 0 where there is none. */
static __always_inline __u32 service_of(struct vip *vip, bool udp, __be16 port)
{
	__u64 index = bpf_ntohs(port);
	struct port_table *table;

	if (!vip->ports[udp])
		return 0;
	/* The compiler would swap and scale in one, and Linux 6.1 lose the bound. */
	asm volatile("%0 &= 0xffff" : "+r"(index));
	table = bpf_map_lookup_elem(&ports, &vip->ports[udp]);
	return table ? table->service[index] : 0;
}

/* An IPv6 address in a word: every bit of it depends on all of its. */
static __always_inline __u64 fold_address(__u64 high, __u64 low)
{
	return mix(low + GOLDEN) + high;
}

/* A VIP in a word, by products that wait for nothing: there are few, and nobody chooses them. */
static __always_inline __u64 fold_vip(__u64 high, __u64 low)
{
	return low * GOLDEN + high * 0xff51afd7ed558ccdULL;
}

/*
 * The hash of a flow, whose high half counts. Every node must compute the same,
 * so neither the NIC's hash nor a secret of this host goes in. A product carries
 * bits upwards only, so what stands high is brought down before each: two
 * products that do not wait for each other, and one that mixes them.
 * loader.FlowHash is its twin.
 */
static __always_inline __u64 hash_folded(__u64 addresses, __u64 rest)
{
	__u64 h = (addresses ^ addresses >> 29) * GOLDEN;

	h ^= rest * 0xff51afd7ed558ccdULL;
	h ^= h >> 32;
	return h * 0xc4ceb9fe1a85ec53ULL;
}

static __always_inline __u64 hash_words(__u64 addresses, __u64 rest)
{
	return hash_folded(addresses, rest ^ rest >> 32);
}

static __always_inline __u64 flow_hash4(struct iphdr *ip, __be16 source, __be16 dest, __u32 protocol)
{
	return hash_words((__u64)ip->saddr << 32 | ip->daddr,
			  (__u64)source << 32 | (__u32)dest << 16 | protocol);
}

/* The same of a TCP segment, with both ports at once: source and, above it, destination. */
static __always_inline __u64 tcp_hash4(struct iphdr *ip, struct tcphdr *tcp)
{
	__u32 both = *(__u32 *)tcp;

	return hash_folded((__u64)ip->saddr << 32 | ip->daddr, (__u64)(__u16)both << 32 | (both ^ IPPROTO_TCP));
}

/* Of all that a client does with a service. loader.SourceHash is its twin. */
static __always_inline __u64 source_hash4(struct iphdr *ip)
{
	return hash_words((__u64)ip->saddr << 32, 0);
}

/* The same of IPv6: of the flow, or of the client alone. */
static __always_inline __u64 flow_hash6(struct ipv6hdr *ip, __be16 source, __be16 dest, __u32 protocol, bool both)
{
	__u64 client = fold_address(half(&ip->saddr, 0), half(&ip->saddr, 1));
	__u64 rest = (__u64)source << 32 | (__u32)dest << 16 | protocol;

	if (!both)
		return hash_words(client, 0);
	return hash_words(client, rest + fold_vip(half(&ip->daddr, 0), half(&ip->daddr, 1)));
}

static __always_inline __u64 flow_hash(struct packet *p, struct service *service)
{
	bool both = !(service->flags & SERVICE_SOURCE_HASH);

	if (!p->v6)
		return both ? flow_hash4(p->ip, p->port[0], p->port[1], p->protocol) : source_hash4(p->ip);
	if ((void *)(p->ip6 + 1) > p->end) /* never: for Linux 6.1 */
		return 0;
	return flow_hash6(p->ip6, p->port[0], p->port[1], p->protocol, both);
}

/* The word of the slot that a flow falls into. */
static __always_inline __u64 slot_word(struct service *service, __u64 hash)
{
	__u32 index = service->slots + (__u32)((hash >> 32) * service->slot_count >> 32);
	__u64 *slot = bpf_map_lookup_elem(&slots, &index);

	return slot ? *(volatile __u64 *)slot : 0;
}

static __always_inline __u32 slot_owner(__u64 word)
{
	return word & ((1 << SLOT_OWNER_BITS) - 1);
}

/*
 * Finds the service, and asks for the slot's word before anything is checked: it
 * is the one load that is likely to miss the cache, and the checks that decide
 * whether it counts run meanwhile. The header may be malformed still: what is
 * found is void unless check agrees. NULL: no service.
 */
static __always_inline struct service *look_ahead(struct packet *p)
{
	struct service *service;

	p->service = 0;
	if (p->protocol != IPPROTO_TCP && p->protocol != IPPROTO_UDP)
		return NULL;
	if (p->l4 + sizeof(*p->udp) > p->end)
		return NULL;
	p->service = service_of(p->vip, p->protocol == IPPROTO_UDP, p->udp->dest);
	if (!p->service)
		return NULL;
	TRACE(service, p->service);
	service = service_at(p->service);
	if (service->forward != FORWARD_NAT) {
		p->hash = flow_hash(p, service);
		p->slot = slot_word(service, p->hash);
		TRACE(hash, p->hash);
		TRACE(slot, p->slot);
	}
	return service;
}

#define COUNT_LOSS(service_number, what)                                        \
	do {                                                                    \
		__u32 losing = (service_number);                                \
		struct service_losses *lost = bpf_map_lookup_elem(&losses, &losing); \
		if (lost && !dry)                                               \
			lost->what++;                                           \
	} while (0)

/* Counts what has been sent: packet pointers may be void by now. */
static __always_inline void count_forward(struct packet *p, __u32 backend)
{
	struct counters *c = bpf_map_lookup_elem(&traffic, &backend);

	if (!c || dry)
		return;
	c->packets++;
	c->bytes += p->length;
	c->flows += p->opens;
}

static __always_inline void count_reply(struct packet *p, __u32 backend)
{
	struct counters *c = bpf_map_lookup_elem(&traffic, &backend);

	if (!c || dry)
		return;
	c->reply_packets++;
	c->reply_bytes += p->length;
}

#endif
