/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Answers to who asks for a VIP: ARP requests (RFC 826) and neighbour solicitations
 * (RFC 4861, section 7.2). From the moment in which the daemon makes a VIP this
 * node's, by one store, until the kernel has the address and answers itself; of a VIP
 * at a virtual MAC address, which the kernel would not name, for as long as this node
 * has it. What is not exactly as it should be is left to the kernel.
 */
#ifndef SLUICE_WHO_HAS_H
#define SLUICE_WHO_HAS_H

#include "owner.h"
#include "parse.h"

/* ARP for IPv4 on Ethernet (RFC 826). Its addresses are not aligned. */
struct arp_packet {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_length;
	__u8 protocol_length;
	__be16 operation;
	__u8 sender_mac[6];
	__u8 sender[4];
	__u8 target_mac[6];
	__u8 target[4];
} __attribute__((packed));

#define ARP_REQUEST bpf_htons(1)
#define ARP_REPLY bpf_htons(2)

/* ICMPv6 (RFC 4861, sections 4.3 and 4.4). */
#define ICMP6_SOLICITATION 135
#define ICMP6_ADVERTISEMENT 136
#define ADVERTISEMENT_ROUTER 0x80
#define ADVERTISEMENT_SOLICITED 0x40
#define ADVERTISEMENT_OVERRIDE 0x20
#define OPTION_SOURCE_MAC 1
#define OPTION_TARGET_MAC 2

struct neighbour_message {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__u8 flags; /* of an advertisement */
	__u8 reserved[3];
	struct in6_addr target;
};

struct mac_option {
	__u8 type;
	__u8 length; /* in units of 8 bytes */
	__u8 mac[6];
};

/* Of a solicitation so much is looked at: room for 16 short options. In units of 8 bytes. */
#define MAX_SOLICITATION 19

/* No frame with one is longer; what follows it in the frame is padding. */
#define MAX_SOLICITATION_FRAME 512

/* Whether an address may be that of one host: not 0, and not of a group. */
static __always_inline bool is_unicast(__u64 mac)
{
	return mac && !(mac & 1);
}

/* The MAC address that the VIPs of an instance are at. */
static __always_inline __u64 vip_mac(struct fence *f)
{
	return f->flags & FENCE_VIRTUAL ? virtual_mac(f) : mac_word(f->mac);
}

/* Whether the program answers for a VIP, and the frame in hand asks this node. */
static __always_inline bool may_answer_for(struct packet *p, struct fence *f)
{
	if (f->held != HELD_PROGRAM)
		return false;
	return *(__u8 *)p->data & 1 || mac_equal(p->data, f->mac) || mac_word(p->data) == vip_mac(f);
}

/*
 * Whether a host with this address may ask: 0 is one that probes before it takes an
 * address (RFC 5227, section 2.1.1). The kernel takes the others for forged.
 */
static __always_inline bool may_ask(__u8 *sender)
{
	__u8 first = sender[0];

	return *(__be32 *)sender == 0 || (first && first != 127 && first < 224);
}

/* Turns an ARP request for a VIP of an instance into the reply. */
static __always_inline int answer_arp(struct packet *p, struct fence *f, struct arp_packet *arp)
{
	__u64 asker = mac_word(arp->sender_mac), own = vip_mac(f);
	__be32 vip = *(__be32 *)arp->target;

	if (p->data + ETH_HLEN > p->end) /* never: for Linux 6.1 */
		return PASS_NOT_IP;
	if (!may_answer_for(p, f) || !is_unicast(asker) || !may_ask(arp->sender) || *(__be32 *)arp->sender == vip)
		return PASS_NOT_IP;
	arp->operation = ARP_REPLY;
	write_mac(arp->target_mac, asker);
	*(__be32 *)arp->target = *(__be32 *)arp->sender;
	write_mac(arp->sender_mac, own);
	*(__be32 *)arp->sender = vip;
	write_mac(p->data, asker);
	write_mac(p->data + ETH_ALEN, own);
	return ANSWERED_WHO_HAS;
}

/* What an advertisement says, and to whom. */
struct advertisement {
	struct address target;
	struct address to; /* 0: all nodes */
	__u64 to_mac;
	__u64 own_mac;
	__u32 l2; /* length of the Ethernet header with its tags */
	__u32 flags;
};

/* Turns a solicitation into the advertisement, which may be longer or shorter. NEXT: it can't be. */
SUBPROGRAM int advertise(struct xdp_md *ctx, struct advertisement *a)
{
	struct {
		struct ipv6hdr ip;
		struct neighbour_message message;
		struct mac_option option;
	} *out;
	void *data, *end;
	__u32 l2;
	__s64 sum;

	if (!a)
		return DROP_INTERNAL;
	l2 = a->l2 & 31;
	if (bpf_xdp_adjust_tail(ctx, (int)(l2 + sizeof(*out)) - (int)bpf_xdp_get_buff_len(ctx)))
		return NEXT;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	out = data + l2;
	/* The compiler would leave out the check of the shorter one. */
	asm volatile("" : "+r"(data));
	if (data + ETH_HLEN > end || (void *)(out + 1) > end)
		return DROP_INTERNAL;
	write_mac(data, a->to_mac);
	write_mac(data + ETH_ALEN, a->own_mac);
	*(__be32 *)&out->ip = bpf_htonl(6U << 28);
	out->ip.payload_len = bpf_htons(sizeof(out->message) + sizeof(out->option));
	out->ip.nexthdr = IPPROTO_ICMPV6;
	out->ip.hop_limit = 255;
	store6(&out->ip.saddr, a->target.word);
	store6(&out->ip.daddr, a->to.word);
	*(__be32 *)&out->message = bpf_htonl(ICMP6_ADVERTISEMENT << 24);
	*(__be32 *)&out->message.flags = a->flags;
	store6(&out->message.target, a->target.word);
	*(__be16 *)&out->option = bpf_htons(OPTION_TARGET_MAC << 8 | 1);
	write_mac(out->option.mac, a->own_mac);
	sum = bpf_csum_diff(0, 0, (void *)&out->ip.saddr, 2 * sizeof(struct in6_addr), 0);
	sum = bpf_csum_diff(0, 0, (void *)&out->message, sizeof(out->message) + sizeof(out->option), sum);
	sum = (sum & 0xffffffff) + out->ip.payload_len + bpf_htons(IPPROTO_ICMPV6);
	out->message.checksum = fold(sum);
	return ANSWERED_WHO_HAS;
}

/*
 * Whether a solicitation is one by its length, checksum and options (RFC 4861, section
 * 7.1.1). Where it says who asks, that is in *asker.
 */
static __always_inline bool read_solicitation(struct packet *p, struct neighbour_message *m, bool probes, __u64 *asker)
{
	__u32 length = bpf_ntohs(p->ip6->payload_len), left = 0;
	__u64 sum = sum6(&p->ip6->saddr) + sum6(&p->ip6->daddr) + bpf_htons(length) + bpf_htons(IPPROTO_ICMPV6);

	if (length < sizeof(*m) || length % 8 || length > 8 * MAX_SOLICITATION)
		return false;
	KEEP_LOOP for (int i = 0; i < MAX_SOLICITATION; i++) {
		__u8 *part = (void *)m + 8 * i;

		if (8 * i >= length)
			break;
		if ((void *)part + 8 > p->end)
			return false;
		sum += (__u64)*(__u32 *)part + *(__u32 *)(part + 4);
		if (8 * i < sizeof(*m))
			continue;
		if (!left) { /* an option begins */
			left = part[1];
			if (!left || (probes && part[0] == OPTION_SOURCE_MAC))
				return false;
			if (part[0] == OPTION_SOURCE_MAC && left == 1)
				*asker = mac_word(part + 2);
		}
		left--;
	}
	return !left && !fold(sum);
}

/* Whether a packet goes to the group of a target, which everybody asks who does not know its MAC address. */
static __always_inline bool to_solicited_group(struct ipv6hdr *ip, struct in6_addr *target)
{
	return ip->daddr.s6_addr32[0] == bpf_htonl(0xff020000) && !ip->daddr.s6_addr32[1] &&
	       ip->daddr.s6_addr32[2] == bpf_htonl(1) &&
	       ip->daddr.s6_addr32[3] == (target->s6_addr32[3] | bpf_htonl(0xff000000));
}

/* Turns a neighbour solicitation for a VIP of an instance into the advertisement; out: it is left to the kernel. */
static __always_inline int answer_solicitation(struct packet *p, struct fence *f, struct neighbour_message *m, int out)
{
	struct advertisement a = { .l2 = p->l3 - p->data, .own_mac = vip_mac(f) };
	struct ipv6hdr *ip = p->ip6;
	bool probes, to_group;

	if ((void *)(ip + 1) > p->end || (void *)(m + 1) > p->end || ip->version != 6 || !may_answer_for(p, f) ||
	    bpf_xdp_get_buff_len(p->ctx) > MAX_SOLICITATION_FRAME)
		return out;
	a.target.word[0] = half(&m->target, 0);
	a.target.word[1] = half(&m->target, 1);
	a.to.word[0] = half(&ip->saddr, 0);
	a.to.word[1] = half(&ip->saddr, 1);
	a.to_mac = mac_word(p->data + ETH_ALEN);
	probes = !a.to.word[0] && !a.to.word[1];
	to_group = to_solicited_group(ip, &m->target);
	if (!to_group && (probes || half(&ip->daddr, 0) != a.target.word[0] || half(&ip->daddr, 1) != a.target.word[1]))
		return out;
	/* From a group, from ::1, or from the VIP itself nobody asks. */
	if ((__u8)a.to.word[0] == 0xff || (!a.to.word[0] && a.to.word[1] == (__u64)bpf_htonl(1) << 32) ||
	    (a.to.word[0] == a.target.word[0] && a.to.word[1] == a.target.word[1]))
		return out;
	if (!read_solicitation(p, m, probes, &a.to_mac) || !is_unicast(a.to_mac))
		return out;
	a.flags = ADVERTISEMENT_OVERRIDE | (f->flags & FENCE_ROUTER ? ADVERTISEMENT_ROUTER : 0);
	if (probes) {
		/* To all nodes: who probes has no address yet (RFC 4861, section 7.2.4). */
		a.to.word[0] = bpf_htonl(0xff020000);
		a.to.word[1] = (__u64)bpf_htonl(1) << 32;
		a.to_mac = 0x010000003333ULL;
	} else {
		a.flags |= ADVERTISEMENT_SOLICITED;
	}
	return advertise(p->ctx, &a) ?: out;
}

#endif
