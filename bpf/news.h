/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What other nodes are to know of flows. The daemon reads it every few
 * milliseconds; nothing here is about a packet that changes nothing.
 *
 *   nat     a bit for each port whose flow has changed, and above these, so that
 *           they are found, a bit for each word of them, for each 64 of these, and
 *           in the pair's entry. It says that there is news, not what: whoever takes the bit away and
 *           reads the entry then has the latest. So there is no queue that could be full.
 *   others  a note that names the entry, in a ring buffer. One that finds no room
 *           is counted, and the daemon has to look at everything.
 *
 * A flow that is not open is told of nowhere: a flood of SYNs costs other nodes
 * nothing. Where flows are not told, and in a dry run, nothing of this is in the
 * program.
 */
#ifndef SLUICE_NEWS_H
#define SLUICE_NEWS_H

#include "packet.h"

/* 1: other nodes are told of flows, and the daemon writes what they tell. */
volatile const __u32 flows_told = 0;

/* Both are constants to the verifier. */
#define TELLS (flows_told && !dry)

/* Whether other nodes know of a flow in this state. */
static __always_inline bool is_told(__u32 state)
{
	return state >= NAT_ESTABLISHED;
}

/* Sets a bit of a pair's: whether it was not set. */
static __always_inline bool set_news(void *news, __u32 word, __u32 bit)
{
	__u64 *at = bpf_map_lookup_elem(news, &word), mask = 1ULL << (bit & 63);

	return at && !(__sync_fetch_and_or(at, mask) & mask);
}

/*
 * Marks a flow (pair << 16 | port) as one that has changed. It comes after the
 * change, and a bit that is set already has somebody who sees to those above it.
 */
SUBPROGRAM int mark_news(__u32 id)
{
	__u32 number = id >> 16, word = id >> 6 & (NAT_NEWS_WORDS - 1);
	struct nat_pair *pair;
	void *news;

	if (!TELLS)
		return 0;
	news = bpf_map_lookup_elem(&nat_news, &number);
	if (!news || !set_news(news, word, id) || !set_news(news, NAT_NEWS_WORDS + (word >> 6), word))
		return 0;
	pair = bpf_map_lookup_elem(&nat_pairs, &number);
	if (pair)
		__sync_fetch_and_or(&pair->news, 1ULL << (word >> 6));
	return 0;
}

/* Notes that an entry of a table of flows has changed, or is gone. */
static __always_inline void note_entry(struct flow_key *key, __u32 table)
{
	struct flow_note *note;
	__u32 zero = 0;
	__u64 *lost;

	if (!TELLS || !table)
		return;
	note = bpf_ringbuf_reserve(&flow_notes, sizeof(*note), 0);
	if (note) {
		note->key = *key;
		note->table = table;
		note->pad = 0;
		bpf_ringbuf_submit(note, BPF_RB_NO_WAKEUP);
		return;
	}
	lost = bpf_map_lookup_elem(&flow_notes_lost, &zero);
	if (lost)
		(*lost)++;
}

#endif
