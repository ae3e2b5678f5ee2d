/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* NAT: writes other ends into a packet, and what follows from that. */
#ifndef SLUICE_NAT_REWRITE_H
#define SLUICE_NAT_REWRITE_H

#include "extensions.h"
#include "packet.h"

/*
 * Writes the new addresses, one hop less to live, and an IPv4 header's checksum
 * (RFC 1624, eqn. 3). There must be a hop left. The addresses are of the packet's
 * family. Returns what the change adds to a checksum over them.
 */
static __always_inline __u64 readdress(struct packet *p, __u64 *source, __u64 *dest)
{
	__u64 sum;

	if (p->v6) {
		struct ipv6hdr *ip = p->ip6;

		/* Linux 6.1 does not know any more that it is there. */
		if ((void *)(ip + 1) > p->end)
			return 0;
		sum = unsum6(&ip->saddr) + unsum6(&ip->daddr);
		store6(&ip->saddr, source);
		store6(&ip->daddr, dest);
		sum += sum6(&ip->saddr) + sum6(&ip->daddr);
		ip->hop_limit--;
	} else {
		struct iphdr *ip = p->ip;
		__be32 saddr = source[1] >> 32, daddr = dest[1] >> 32;

		sum = (__u64)(__u32)~ip->saddr + (__u32)~ip->daddr + saddr + daddr;
		/* The low byte of the word that time to live and protocol share goes down by one. */
		ip->check = fold((__u16)~ip->check + sum + 0xfffe);
		ip->ttl--;
		ip->saddr = saddr;
		ip->daddr = daddr;
	}
	return sum;
}

/*
 * The same with the ports and the checksum of the transport header. That of a
 * fragmented packet is over all of its fragments, and right for all of them.
 */
static __always_inline void rewrite(struct packet *p, __u64 *source, __u64 *dest,
				    __be16 source_port, __be16 dest_port)
{
	__u64 sum = readdress(p, source, dest);
	__u16 *check;

	sum += (__u64)(__u16)~p->port[0] + (__u16)~p->port[1] + source_port + dest_port;
	p->port[0] = source_port;
	p->port[1] = dest_port;
	if (p->protocol == IPPROTO_UDP) {
		check = &p->udp->check;
		/* 0 says that there is none (RFC 768); over IPv6 some tunnels have none (RFC 6935). */
		if (!*check)
			return;
		*check = fold((__u16)~*check + sum);
		if (!*check)
			*check = 0xffff;
		return;
	}
	if ((void *)(p->tcp + 1) > p->end) /* for Linux 6.1, too */
		return;
	check = &p->tcp->check;
	*check = fold((__u16)~*check + sum);
}

static __always_inline bool no_hop_left(struct packet *p)
{
	return (p->v6 ? p->ip6->hop_limit : p->ip->ttl) <= 1;
}

/* Gives a fragmented packet another identification, which no checksum of IPv6 covers. */
static __always_inline void identify(struct packet *p, __be32 id)
{
	if (p->v6) {
		struct fragment_header *header = p->data + (p->fragment_header & MAX_HEADERS);

		if ((void *)(header + 1) <= p->end)
			header->id = id;
		return;
	}
	p->ip->check = fold((__u16)~p->ip->check + (__u64)(__u16)~p->ip->id + (__u16)id);
	p->ip->id = id;
}

#endif
