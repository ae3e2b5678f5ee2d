/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * NAT: the translation log, who had which source port when. A record is made
 * where a translation begins or ends, deep in the program, where there is no stack
 * to spare and no packet at hand; so its draft waits in a queue of this CPU's, and
 * the last step of the packet that caused it sends them all. Nobody waits for
 * anybody: a record that finds no reader, or a full buffer, is counted.
 *
 * Where the log is off, and in a dry run, nothing of this is in the program.
 */
#ifndef SLUICE_NAT_LOG_H
#define SLUICE_NAT_LOG_H

#include "balance.h"

/* 1: translations are reported. */
volatile const __u32 nat_logged = 0;

/* Both are constants to the verifier. */
#define NAT_LOGS (nat_logged && !dry)

static __always_inline struct nat_queue *nat_queue(void)
{
	__u32 index = 0;

	return bpf_map_lookup_elem(&nat_queues, &index);
}

/*
 * Writes a draft behind those that wait; who ends a flow does so before it swaps the
 * state. It counts once keep_draft is called with what this returns, which may be
 * NULL.
 */
static __always_inline struct nat_queue *draft_record(struct nat_flow *flow, __u32 id, __u32 event)
{
	struct nat_queue *queue = nat_queue();
	struct nat_draft *d;

	if (!queue)
		return NULL;
	d = &queue->drafts[queue->count & (NAT_QUEUE - 1)];
	d->client[0] = flow->client[0];
	d->client[1] = flow->client[1];
	d->client_port = flow->client_port;
	d->vip_port = flow->vip_port;
	d->vip = flow->vip;
	d->event = event;
	d->id = id;
	d->time = bpf_ktime_get_ns();
	return queue;
}

/* Has the record that was drafted last sent. */
static __always_inline void keep_draft(struct nat_queue *queue)
{
	if (!queue)
		return;
	if (queue->count < NAT_QUEUE)
		queue->count++;
	else
		queue->lost++;
}

/* Makes a record of a draft. Its pair and VIP stay while a packet is under way. */
static __always_inline void complete_record(struct nat_record *r, struct nat_draft *d)
{
	__u32 number = d->id >> 16;
	struct nat_pair *pair = bpf_map_lookup_elem(&nat_pairs, &number);
	struct vip *vip = vip_at(d->vip);
	bool used = vip->state == ENTRY_USED;

	if (!pair)
		return;
	r->time = d->time;
	r->client[0] = d->client[0];
	r->client[1] = d->client[1];
	r->vip[0] = used ? vip->address[0] : 0;
	r->vip[1] = used ? vip->address[1] : 0;
	r->source[0] = pair->source[0];
	r->source[1] = pair->source[1];
	r->backend[0] = pair->address[0];
	r->backend[1] = pair->address[1];
	r->client_port = d->client_port;
	r->vip_port = d->vip_port;
	r->source_port = d->id;
	r->backend_port = pair->port ? pair->port : d->vip_port;
	r->protocol = pair->protocol;
	r->event = d->event;
}

/* Sends what the packet has to report. */
SUBPROGRAM int send_records(struct xdp_md *ctx)
{
	struct nat_queue *queue = nat_queue();
	__u64 count;

	if (!NAT_LOGS || !queue)
		return 0;
	count = queue->count;
	queue->count = 0;
	for (__u32 i = 0; i < NAT_QUEUE && i < count; i++) {
		complete_record(&queue->record, &queue->drafts[i & (NAT_QUEUE - 1)]);
		if (bpf_perf_event_output(ctx, &nat_records, BPF_F_CURRENT_CPU, &queue->record,
					  sizeof(queue->record)))
			queue->lost++;
	}
	return 0;
}

#endif
