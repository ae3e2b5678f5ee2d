/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Measures the pipeline with a fresh packet each run: BPF_PROG_TEST_RUN repeats
 * on the packet as the last run left it, so each program here writes its frame
 * first and hands it on. bench_empty does all of this and nothing more: it is
 * the floor. Flows come in the order of the table, which is random.
 */
#include "pipeline.h"
#include "probe.h" /* for the constants that the loader sets */
#include "bench_connections.h"

enum bench_limits {
	BENCH_FLOWS = 1048576,
	BENCH_HEADERS = 54,
	BENCH_HEADERS6 = 74,
};

/* What differs between two flows, as it stands in the frame. */
struct bench_flow {
	__be32 saddr;
	__be32 daddr;
	__be16 source;
	__be16 dest;
	__u32 sequence; /* what the flow's backend sends next, host byte order */
};

ARRAY(bench_flows, struct bench_flow, BENCH_FLOWS, BPF_MAP_TYPE_ARRAY, 0);

struct bench_state {
	__u64 next; /* runs so far: the flow of a run is this, modulo flows */
	__u64 wrong; /* runs with another verdict than expected */
	__u32 flows; /* a power of two */
	__u32 expect;
	__u8 frame[80];
};

ARRAY(bench_state, struct bench_state, 1, BPF_MAP_TYPE_ARRAY, 0);

volatile const struct exported exported = {};
volatile const enum bench_limits exported_limits = 0;

#define COPY(type, to, from, offset) (*(volatile type *)((to) + (offset)) = *(volatile type *)((from) + (offset)))

/*
 * Writes a frame in the words in which it is read: a load of bytes that several
 * stores have just written waits for all of them, which none does of what a NIC has
 * written.
 */
static __always_inline void write_ethernet(void *data, void *frame)
{
	COPY(__u64, data, frame, 0);
	COPY(__u32, data, frame, 8);
	COPY(__u16, data, frame, 12);
}

static __always_inline void write_ip(void *ip, void *from, const int size)
{
	COPY(__u64, ip, from, 0);
#pragma unroll
	for (int i = 8; i < size; i += 4)
		COPY(__u32, ip, from, i);
}

static __always_inline void write_tcp(void *tcp, void *from, struct bench_flow *flow)
{
	*(volatile __u32 *)tcp = *(__u32 *)&flow->source; /* both ports */
#pragma unroll
	for (int i = 4; i < (int)sizeof(struct tcphdr); i += 4)
		COPY(__u32, tcp, from, i);
}

static __always_inline struct bench_state *prepare(struct xdp_md *ctx)
{
	__u32 zero = 0, index;
	struct bench_state *s = bpf_map_lookup_elem(&bench_state, &zero);
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct bench_flow *flow;
	struct iphdr *ip = data + ETH_HLEN;
	struct tcphdr *tcp = (void *)(ip + 1);

	if (!s || data + BENCH_HEADERS > end)
		return NULL;
	index = s->next++ & (s->flows - 1);
	flow = bpf_map_lookup_elem(&bench_flows, &index);
	if (!flow)
		return NULL;
	write_ethernet(data, s->frame);
	write_ip(ip, s->frame + ETH_HLEN, sizeof(*ip));
	write_tcp(tcp, s->frame + BENCH_HEADERS - sizeof(*tcp), flow);
	ip->saddr = flow->saddr;
	ip->daddr = flow->daddr;
	/* The compiler must not carry what it knows of the frame into the pipeline. */
	asm volatile("" ::: "memory");
	return s;
}

/* The same for a frame of IPv6, whose client is the last 32 bits of an address. */
static __always_inline struct bench_state *prepare6(struct xdp_md *ctx)
{
	__u32 zero = 0, index;
	struct bench_state *s = bpf_map_lookup_elem(&bench_state, &zero);
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ipv6hdr *ip = data + ETH_HLEN;
	struct tcphdr *tcp = (void *)(ip + 1);
	struct bench_flow *flow;

	if (!s || data + BENCH_HEADERS6 > end)
		return NULL;
	index = s->next++ & (s->flows - 1);
	flow = bpf_map_lookup_elem(&bench_flows, &index);
	if (!flow)
		return NULL;
	write_ethernet(data, s->frame);
	write_ip(ip, s->frame + ETH_HLEN, sizeof(*ip));
	write_tcp(tcp, s->frame + BENCH_HEADERS6 - sizeof(*tcp), flow);
	ip->saddr.s6_addr32[3] = flow->saddr;
	asm volatile("" ::: "memory");
	return s;
}

static __always_inline int verify(struct bench_state *s, int verdict)
{
	if (verdict != s->expect)
		s->wrong++;
	return verdict;
}

SEC("xdp.frags")
int bench_empty(struct xdp_md *ctx)
{
	struct bench_state *s = prepare(ctx);

	return s ? verify(s, XDP_PASS) : XDP_ABORTED;
}

SEC("xdp.frags")
int bench_pipeline(struct xdp_md *ctx)
{
	struct bench_state *s = prepare(ctx);

	return s ? verify(s, process(ctx)) : XDP_ABORTED;
}

/* Packets of connections, and between them those of bench_pipeline. */
SEC("xdp.frags")
int bench_mixed(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = data + ETH_HLEN;
	struct tcphdr *tcp = (void *)(ip + 1);
	struct bench_connections *c;
	struct bench_state *s;
	__u32 zero = 0;
	bool mine;
	int verdict;

	s = prepare(ctx);
	c = bpf_map_lookup_elem(&bench_connections, &zero);
	if (!s || !c || (void *)(tcp + 1) > end)
		return XDP_ABORTED;
	mine = !c->left;
	if (mine) {
		c->left = c->between;
		write_connection(c, ip, tcp);
		asm volatile("" ::: "memory");
	} else {
		c->left--;
	}
	verdict = process(ctx);
	if (!mine)
		return verify(s, verdict);
	connection_left(ctx, c, verdict);
	return verdict;
}

/* The floor of IPv6, whose frame is longer. */
SEC("xdp.frags")
int bench_empty6(struct xdp_md *ctx)
{
	struct bench_state *s = prepare6(ctx);

	return s ? verify(s, XDP_PASS) : XDP_ABORTED;
}

SEC("xdp.frags")
int bench_pipeline6(struct xdp_md *ctx)
{
	struct bench_state *s = prepare6(ctx);

	return s ? verify(s, process(ctx)) : XDP_ABORTED;
}

/* A tunnel makes the frame longer; here that is undone, which costs a little, too. */
SEC("xdp.frags")
int bench_tunnel(struct xdp_md *ctx)
{
	struct bench_state *s = prepare(ctx);
	int verdict;

	if (!s)
		return XDP_ABORTED;
	verdict = verify(s, process(ctx));
	return bpf_xdp_adjust_head(ctx, sizeof(struct iphdr)) ? XDP_ABORTED : verdict;
}

#include "bench_stages.h"

struct bench_key {
	__be32 saddr;
	__be32 daddr;
	__be16 source;
	__be16 dest;
};

/* What a balancer with a flow table looks up for every packet. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 2 * BENCH_FLOWS);
	__type(key, struct bench_key);
	__type(value, __u32);
} bench_lru_map SEC(".maps");

SEC("xdp.frags")
int bench_lru(struct xdp_md *ctx)
{
	struct bench_state *s = prepare(ctx);
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = data + ETH_HLEN;
	struct tcphdr *tcp = (void *)(ip + 1);
	struct bench_key key = {};
	__u32 one = 1;

	if (!s || (void *)(tcp + 1) > end)
		return XDP_ABORTED;
	key.saddr = ip->saddr;
	key.daddr = ip->daddr;
	key.source = tcp->source;
	key.dest = tcp->dest;
	if (!bpf_map_lookup_elem(&bench_lru_map, &key))
		bpf_map_update_elem(&bench_lru_map, &key, &one, BPF_ANY);
	return verify(s, process(ctx));
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
