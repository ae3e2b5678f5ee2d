/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Fragments of TCP and UDP in the stateless modes. The first one has the ports:
 * where it went is remembered by source, VIP, identification and protocol, and
 * the later ones follow. One that comes before the first is dropped, and counted.
 */
#ifndef SLUICE_FRAGMENTS_H
#define SLUICE_FRAGMENTS_H

#include "facts.h"
#include "pins.h"
#include "tunnel.h"

/* 30 s: what Linux gives a packet to be whole (net.ipv4.ipfrag_time). */
#define FRAGMENT_TICKS 224

static __always_inline bool fragment_key(struct packet *p, struct fragment_key *key)
{
	struct address a = source_of(p);

	key->source[0] = a.word[0];
	key->source[1] = a.word[1];
	key->vip = p->vip_index;
	key->protocol = p->protocol;
	key->v6 = p->v6;
	key->id = 0;
	if (p->v6)
		return !bpf_xdp_load_bytes(p->ctx, p->fragment_header + offsetof(struct fragment_header, id),
					   &key->id, sizeof(key->id));
	key->id = p->ip->id;
	return true;
}

/* Remembers where the first fragment in hand goes; backend 0: to the kernel. */
static __always_inline void remember_fragment(struct packet *p, __u32 backend)
{
	struct fragment_key key;
	struct pin pin = {};

	if (dry || !fragment_key(p, &key))
		return;
	make_pin(&pin, backend, 0);
	bpf_map_update_elem(&fragments, &key, &pin, BPF_ANY);
}

/* Sends a later fragment where the first one went. */
static __always_inline int follow_fragment(struct packet *p, struct facts *f, int *action)
{
	struct fragment_key key;
	struct backend *backend;
	struct pin *first;
	__u32 number;
	int out;

	/* It would overwrite the flags of the first one's header (RFC 1858, section 3). */
	if (p->protocol == IPPROTO_TCP && (p->fragment & FRAGMENT_OFFSET) == bpf_htons(1))
		return DROP_FRAGMENT;
	if (!fragment_key(p, &key))
		return DROP_MALFORMED_IP;
	first = bpf_map_lookup_elem(&fragments, &key);
	if (!first || (int)(ticks() - first->seen) > FRAGMENT_TICKS)
		return DROP_EARLY_FRAGMENT;
	if (!first->backend)
		return PASS_FRAGMENT;
	if (!pin_holds(first))
		return DROP_EARLY_FRAGMENT;
	number = first->backend;
	backend = backend_at(number);
	p->service = backend->service;
	if (service_at(p->service)->forward == FORWARD_DNAT)
		return to_dnat(p, f, number);
	if (service_at(p->service)->forward == FORWARD_TUNNEL)
		out = tunnel_to(p, number, action);
	else
		out = emit(p, &backend->next_hop, action);
	if (out == SENT)
		count_forward(p, number);
	return out;
}

#endif
