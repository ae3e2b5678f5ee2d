/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the stages know of the packet in hand. */
#ifndef SLUICE_PACKET_H
#define SLUICE_PACKET_H

#include <stdbool.h>

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include "include/bpf_endian.h"
#include "include/bpf_helpers.h"
#include "dry.h"
#include "maps.h"

/* As in an IPv4 header (RFC 791, section 3.1); those of IPv6 are brought into this form. */
#define FRAGMENT_MORE bpf_htons(0x2000)
#define FRAGMENT_OFFSET bpf_htons(0x1fff)

/* Of extension headers that lead nowhere: no protocol has this number. */
#define MALFORMED 256

/* Of later fragments whose header names another header: the first one says what they are of. */
#define NOT_KNOWN (256 + IPPROTO_NONE)

struct packet {
	struct xdp_md *ctx;
	void *data;
	void *end;
	union {
		void *l3;
		struct iphdr *ip;
		struct ipv6hdr *ip6;
	};
	union {
		void *l4;
		struct tcphdr *tcp;
		struct udphdr *udp;
		__be16 *port; /* source, destination: TCP and UDP alike */
	};
	__u32 interface; /* it came in by */
	__u32 vlans;
	__be16 vlan[MAX_VLANS]; /* tags as received, outer first */
	__u32 length; /* of the IP packet, with its headers */
	__u32 header_length; /* of IP and transport */
	__u32 protocol; /* of the transport header; MALFORMED */
	__be16 fragment; /* FRAGMENT_MORE and FRAGMENT_OFFSET; 0: the packet is whole */
	__u32 fragment_header; /* IPv6: its offset in the frame */
	bool v6;
	bool opens; /* asks for a new connection: SYN, and none of ACK, RST and FIN */
	struct vip *vip;
	__u32 vip_index;
	__u32 service; /* its number, 0: none */
	__u64 hash; /* of the flow, in the stateless modes */
	__u64 slot; /* its word, in the stateless modes */
};

/* The interface that a packet came in by. */
static __always_inline __u32 came_by(struct xdp_md *ctx)
{
	return dry ? dry_interface : ctx->ingress_ifindex;
}

/* An IPv4 address, network byte order, as the second word of a mapped one. */
static __always_inline __u64 mapped(__be32 address)
{
	return (__u64)address << 32 | 0xffff0000;
}

/* Whether an address is an IPv4 one. On the wire of IPv6 it is nobody's (RFC 4291, section 2.5.5.2). */
static __always_inline bool is_mapped(__u64 high, __u64 low)
{
	return !high && (__u32)low == 0xffff0000;
}

/* One word of an address of an IPv6 header: the header has no alignment to speak of. */
static __always_inline __u64 half(struct in6_addr *address, int i)
{
	return (__u64)address->s6_addr32[2 * i + 1] << 32 | address->s6_addr32[2 * i];
}

static __always_inline struct address source_of(struct packet *p)
{
	struct address a = {};

	/* That the header is there has been seen; Linux 6.1 does not know any more. */
	if (p->v6) {
		if ((void *)(p->ip6 + 1) > p->end)
			return a;
		a.word[0] = half(&p->ip6->saddr, 0);
		a.word[1] = half(&p->ip6->saddr, 1);
	} else {
		a.word[1] = mapped(p->ip->saddr);
	}
	return a;
}

/* Six bytes as a number, the first one lowest. */
static __always_inline __u64 mac_word(void *mac)
{
	return *(__u32 *)mac | (__u64)*(__u16 *)(mac + 4) << 32;
}

static __always_inline void write_mac(void *to, __u64 mac)
{
	*(__u32 *)to = mac;
	*(__u16 *)(to + 4) = mac >> 32;
}

/* 2^64 divided by the golden ratio: the high half of a product is a fair hash. */
#define GOLDEN 0x9e3779b97f4a7c15ULL

/* A 64-bit finaliser with full avalanche (MurmurHash3, fmix64). */
static __always_inline __u64 mix(__u64 h)
{
	h ^= h >> 33;
	h *= 0xff51afd7ed558ccdULL;
	h ^= h >> 33;
	h *= 0xc4ceb9fe1a85ec53ULL;
	h ^= h >> 33;
	return h;
}

/* The Internet checksum (RFC 1071) of a sum of words. */
static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* The sum of an address's words, for a checksum. */
static __always_inline __u64 sum6(struct in6_addr *a)
{
	return (__u64)a->s6_addr32[0] + a->s6_addr32[1] + a->s6_addr32[2] + a->s6_addr32[3];
}

static __always_inline __u64 unsum6(struct in6_addr *a)
{
	return (__u64)(__u32)~a->s6_addr32[0] + (__u32)~a->s6_addr32[1] + (__u32)~a->s6_addr32[2] +
	       (__u32)~a->s6_addr32[3];
}

static __always_inline void store6(struct in6_addr *a, __u64 *word)
{
	a->s6_addr32[0] = word[0];
	a->s6_addr32[1] = word[0] >> 32;
	a->s6_addr32[2] = word[1];
	a->s6_addr32[3] = word[1] >> 32;
}

/*
 * A function that the verifier checks once, for itself, and not for every state
 * that its callers may be in: for what is rare, or too much to be inlined.
 */
#define SUBPROGRAM __attribute__((noinline))

/* Before a loop: it stays one. Unrolled it would take more of the stack. */
#define KEEP_LOOP _Pragma("clang loop unroll(disable)")

/* The entries of tables. A number that is out of range is another's: never memory's. */
static __always_inline struct interface *interface_at(__u32 index)
{
	return &tables.interfaces[index & (MAX_INTERFACES - 1)];
}

static __always_inline struct vip *vip_at(__u32 index)
{
	return &tables.vips[index & (MAX_VIPS - 1)];
}

static __always_inline struct service *service_at(__u32 number)
{
	return &tables.services[number & (MAX_SERVICES - 1)];
}

static __always_inline struct backend *backend_at(__u32 number)
{
	return &tables.backends[number & (MAX_BACKENDS - 1)];
}

static __always_inline struct way *way_at(__u32 interface)
{
	return &tables.ways[interface & (MAX_INTERFACES - 1)];
}

static __always_inline void count_outcome(__u32 outcome)
{
	__u64 *n = bpf_map_lookup_elem(&outcomes, &outcome);

	if (n && !dry)
		(*n)++;
}

#endif
