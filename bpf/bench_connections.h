/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Whole connections for bench.c: a run is one packet, and it takes its turn. A
 * connection is opened by its client, answered by its backend as the forwarded SYN has
 * named it, and closed by both, or left open. Between two packets of connections
 * there may be packets of flows that are established.
 */
#ifndef SLUICE_BENCH_CONNECTIONS_H
#define SLUICE_BENCH_CONNECTIONS_H

enum bench_packet {
	BENCH_SYN,
	BENCH_SYN_ACK,
	BENCH_OPEN, /* the ACK that opens the connection */
	BENCH_OPENED, /* so many packets open one */
	BENCH_FIN = BENCH_OPENED,
	BENCH_FIN_ACK,
	BENCH_LAST_ACK,
	BENCH_CLOSED, /* so many open and close one */

	/* Sequence numbers. */
	BENCH_CLIENT = 1000,
	BENCH_BACKEND = 5000,
	/* A connection's number makes its client: 198.18.0.0 and what is below these bits, and
	 * a port that counts what is above. */
	BENCH_CLIENT_BITS = 17,
	BENCH_FIRST_PORT = 1024,
};

struct bench_connections {
	__u64 next; /* the number of the connection in hand */
	__u64 wrong; /* packets that were not forwarded */
	__u32 packet; /* what comes next of it */
	__u32 packets; /* of each: BENCH_OPENED or BENCH_CLOSED */
	__u32 between; /* packets of established flows between two of connections */
	__u32 left; /* of these, until the next one */
	__be32 vip;
	__be32 source; /* as the SYN left: these four */
	__be32 backend;
	__be16 source_port;
	__be16 backend_port;
	__be16 vip_port;
	__u16 pad;
};

ARRAY(bench_connections, struct bench_connections, 1, BPF_MAP_TYPE_ARRAY, 0);

volatile const enum bench_packet exported_packet = 0;

static __always_inline bool from_backend(__u32 packet)
{
	return packet == BENCH_SYN_ACK || packet == BENCH_FIN_ACK;
}

/* What the sender of a packet has sent before, SYN and FIN, beyond its first number. */
static __always_inline __u32 sent_before(__u32 packet)
{
	switch (packet) {
	case BENCH_SYN:
	case BENCH_SYN_ACK:
		return 0;
	case BENCH_LAST_ACK:
		return 2;
	default:
		return 1;
	}
}

/* The same of the other side, as far as it is acknowledged. */
static __always_inline __u32 heard_before(__u32 packet)
{
	return packet == BENCH_FIN_ACK || packet == BENCH_LAST_ACK ? 2 : 1;
}

/* Makes a frame the packet of the connection in hand that is next. */
static __always_inline void write_connection(struct bench_connections *c, struct iphdr *ip, struct tcphdr *tcp)
{
	__u32 number = c->next, packet = c->packet;
	bool backend = from_backend(packet);

	if (backend) {
		ip->saddr = c->backend;
		ip->daddr = c->source;
		tcp->source = c->backend_port;
		tcp->dest = c->source_port;
	} else {
		ip->saddr = bpf_htonl(0xc6120000 + (number & ((1 << BENCH_CLIENT_BITS) - 1)));
		ip->daddr = c->vip;
		tcp->source = bpf_htons(BENCH_FIRST_PORT + (number >> BENCH_CLIENT_BITS));
		tcp->dest = c->vip_port;
	}
	tcp->seq = bpf_htonl((backend ? BENCH_BACKEND : BENCH_CLIENT) + sent_before(packet));
	tcp->ack_seq = packet == BENCH_SYN ? 0 : bpf_htonl((backend ? BENCH_CLIENT : BENCH_BACKEND) + heard_before(packet));
	tcp->syn = packet < BENCH_OPEN;
	tcp->ack = packet != BENCH_SYN;
	tcp->fin = packet == BENCH_FIN || packet == BENCH_FIN_ACK;
}

/* Goes on to the next packet; of a SYN that has left it remembers how. */
static __always_inline void connection_left(struct xdp_md *ctx, struct bench_connections *c, int verdict)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = data + ETH_HLEN;
	struct tcphdr *tcp = (void *)(ip + 1);

	if (verdict != XDP_TX)
		c->wrong++;
	if (c->packet == BENCH_SYN && (void *)(tcp + 1) <= end) {
		c->source = ip->saddr;
		c->backend = ip->daddr;
		c->source_port = tcp->source;
		c->backend_port = tcp->dest;
	}
	if (++c->packet >= c->packets) {
		c->packet = BENCH_SYN;
		c->next++;
	}
}

#endif
