/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the stages know of the packet in hand. */
#ifndef SLUICE_PACKET_H
#define SLUICE_PACKET_H

#include <stdbool.h>

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>

#include "include/bpf_endian.h"
#include "include/bpf_helpers.h"
#include "maps.h"

struct packet {
	struct xdp_md *ctx;
	void *data;
	void *end;
	struct iphdr *ip;
	struct tcphdr *tcp;
	__u32 interface; /* it came in by */
	__u32 vlans;
	__be16 vlan[MAX_VLANS]; /* tags as received, outer first */
	__u32 length; /* of the IP packet */
	__u32 header_length; /* of IP and TCP */
	bool opens; /* asks for a new connection: SYN, and none of ACK, RST and FIN */
	struct vip *vip;
	__u32 vip_index;
	__u32 service; /* its number, 0: none */
	__u32 owner; /* dsr: number of the slot's backend, 0: none */
};

/* An IPv4 address, network byte order, as the second word of a mapped one. */
static __always_inline __u64 mapped(__be32 address)
{
	return (__u64)address << 32 | 0xffff0000;
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

static __always_inline void count_outcome(__u32 outcome)
{
	__u64 *n = bpf_map_lookup_elem(&outcomes, &outcome);

	if (n)
		(*n)++;
}

#endif
