/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Fragments of TCP and UDP. The first one has the ports: where it went is
 * remembered by source, VIP, identification and, of IPv4, protocol, and the later ones
 * follow (later_fragments.h). In IPv6 what a later one says of the protocol means
 * nothing (RFC 8200, section 4.5).
 */
#ifndef SLUICE_FRAGMENTS_H
#define SLUICE_FRAGMENTS_H

#include "pins.h"

/* 30 s: what Linux gives a packet to be whole (net.ipv4.ipfrag_time). */
#define FRAGMENT_TICKS 224

/* A packet's identification. Of IPv6 it is all that its fragments share beside addresses (RFC 8200, section 4.5). */
static __always_inline bool fragment_id(struct packet *p, __be32 *id)
{
	*id = p->v6 ? 0 : p->ip->id;
	return !p->v6 || !bpf_xdp_load_bytes(p->ctx, p->fragment_header + offsetof(struct fragment_header, id), id,
					     sizeof(*id));
}

static __always_inline bool fragment_key(struct packet *p, struct fragment_key *key)
{
	struct address a = source_of(p);

	key->source[0] = a.word[0];
	key->source[1] = a.word[1];
	key->vip = p->vip_index;
	key->protocol = p->v6 ? 0 : p->protocol;
	key->v6 = p->v6;
	return fragment_id(p, &key->id);
}

/*
 * Remembers where the first fragment in hand goes, unchanged; backend 0: to the
 * kernel. The flow's hash stands in place of a sequence number, for the outer header
 * of a tunnel.
 */
static __always_inline void remember_fragment(struct packet *p, __u32 backend)
{
	struct fragment_key key;
	struct fragmented first = {};

	if (dry || !fragment_key(p, &key))
		return;
	make_pin(&first.pin, backend, p->hash >> 32);
	bpf_map_update_elem(&fragments, &key, &first, BPF_ANY);
}

#endif
