/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Flows of slots whose owner has changed. A slot that is clean needs none of
 * this; in one that is not, every packet is looked up, so that a planned change
 * of backends moves no connection:
 *
 *   handshakes   SYN seen, sent to the owner of that moment
 *   pins         the client has answered the SYN-ACK: the flow stays where it is
 *   stragglers   no SYN seen, so the flow is older: it stays with the previous owner
 *
 * Three maps, so that a flood of one kind of packet takes no room from what
 * another kind has earned: SYNs fill handshakes alone, only who goes on with the
 * SYN's sequence number makes a pin, and stragglers are rate limited.
 *
 * Other nodes are told of pins and stragglers, and of UDP flows that last: when an
 * entry is made, when FIN, RST or data change how long it may be idle, and then now and
 * again while it goes on, so that theirs stays, too.
 */
#ifndef SLUICE_PINS_H
#define SLUICE_PINS_H

#include "balance.h"
#include "clock.h"
#include "news.h"
#include "parse.h"

/* How far behind its SYN a segment may be and belong to its handshake. */
#define HANDSHAKE_REACH (1 << 20)

/* A flow, and what its packet says of it. */
struct flow {
	struct flow_key key;
	__u32 sequence; /* host byte order */
	__u32 opens; /* SYN alone */
	__u32 ends; /* FIN or RST */
	__u32 data; /* it has a payload */
};

static __always_inline bool pin_holds(struct pin *pin)
{
	struct backend *backend = backend_at(pin->backend);

	return backend->alive && backend->generation == pin->generation;
}

static __always_inline void make_pin(struct pin *pin, __u32 number, __u32 sequence)
{
	pin->backend = number;
	pin->generation = backend_at(number)->generation;
	pin->seen = ticks();
	pin->sequence = sequence;
	pin->ending = 0;
	pin->held = 0;
	pin->told = pin->seen;
}

/* After how many ticks a flow of a table that goes on is told again. */
static __always_inline __u32 told_ticks(__u32 table, __u32 ending)
{
	if (table == TOLD_UDP)
		return UDP_TOLD_TICKS;
	return ending ? ENDING_TOLD_TICKS : PIN_TOLD_TICKS;
}

/*
 * The backend that an entry of a table names (enum told_table); FIN and RST shorten
 * its idle time, and data restores it.
 */
static __always_inline __u32 follow(struct pin *pin, struct flow *f, struct flow_key *key, __u32 table)
{
	__u32 now = ticks(), ending = f->ends ? 1 : f->data ? 0 : pin->ending, before = pin->ending;

	if (dry || (pin->seen == now && before == ending))
		return pin->backend;
	pin->seen = now;
	pin->ending = ending;
	if (TELLS && table) {
		pin->held = 0;
		if (before != ending || now - pin->told > told_ticks(table, ending)) {
			pin->told = now;
			note_entry(key, table);
		}
	}
	return pin->backend;
}

static __always_inline bool may_straggle(void)
{
	__u32 zero = 0, now = ticks();
	struct allowance *a = bpf_map_lookup_elem(&straggler_allowance, &zero);

	if (!a || dry)
		return false;
	if (a->tick != now) {
		a->tick = now;
		a->used = 0;
	}
	if (a->used++ >= STRAGGLERS_PER_TICK) {
		a->refused = now;
		return false;
	}
	a->granted++;
	return true;
}

/* Remembers a SYN, in place of an old one of the same flow; false where there is no room. */
static __always_inline bool remember_syn(struct flow_key *key, struct pin *pin, struct pin *old)
{
	if (dry)
		return old || !traced.handshakes_full;
	return !bpf_map_update_elem(&handshakes, key, pin, BPF_ANY);
}

/*
 * A SYN goes to the current owner if it can be remembered, else to the previous
 * one, where its later packets will go. It changes no pin.
 */
static __always_inline __u32 owner_of_syn(struct flow *f, struct flow_key *key, __u32 owner,
					  __u32 previous)
{
	struct pin *old = bpf_map_lookup_elem(&handshakes, key), pin;

	if (old && pin_holds(old) && old->sequence == f->sequence) {
		TRACE(found, FOUND_HANDSHAKE);
		return follow(old, f, key, TOLD_NONE);
	}
	/* Without a previous owner a miss goes to this one anyway, unless an old pin does. */
	if (!previous && !bpf_map_lookup_elem(&pins, key) &&
	    !bpf_map_lookup_elem(&stragglers, key))
		return owner;
	TRACE(found, NEW_HANDSHAKE);
	make_pin(&pin, owner, f->sequence);
	if (remember_syn(key, &pin, old))
		return owner;
	TRACE(found, NEW_HANDSHAKE_LOST);
	COUNT_LOSS(backend_at(owner)->service, handshakes_full);
	return previous ? previous : owner;
}

/* The backend of a segment that continues a handshake; 0 where none does. */
static __always_inline __u32 owner_of_handshake(struct flow *f, struct flow_key *key)
{
	struct pin *shake = bpf_map_lookup_elem(&handshakes, key), pin;
	__u32 distance, number;

	if (!shake || !pin_holds(shake))
		return 0;
	distance = f->sequence - shake->sequence;
	if (!distance || distance > HANDSHAKE_REACH)
		return 0;
	TRACE(found, distance == 1 && !f->ends ? FOUND_HANDSHAKE_DONE : FOUND_HANDSHAKE_DATA);
	number = shake->backend;
	if (distance != 1 || f->ends || dry)
		return number;
	make_pin(&pin, number, 0);
	if (bpf_map_update_elem(&pins, key, &pin, BPF_ANY)) {
		COUNT_LOSS(backend_at(number)->service, pins_full);
		return number;
	}
	note_entry(key, TOLD_PINS);
	if (!bpf_map_delete_elem(&stragglers, key))
		note_entry(key, TOLD_STRAGGLERS);
	bpf_map_delete_elem(&handshakes, key);
	return number;
}

/*
 * The number of the backend for a TCP segment whose slot is tracked or settling;
 * 0 where there is none.
 */
SUBPROGRAM __u32 tracked_owner(struct flow *f, __u64 word)
{
	__u32 owner = slot_owner(word), previous = slot_owner(word >> SLOT_PREVIOUS_SHIFT), number;
	struct flow_key key;
	struct pin *old, pin;

	if (!f)
		return 0;
	key = f->key; /* Linux 6.1 takes keys from a function's own stack only */
	if (f->opens)
		return owner ? owner_of_syn(f, &key, owner, previous) : previous;
	number = owner_of_handshake(f, &key);
	if (number)
		return number;
	old = bpf_map_lookup_elem(&pins, &key);
	if (old && pin_holds(old)) {
		TRACE(found, FOUND_PIN);
		return follow(old, f, &key, TOLD_PINS);
	}
	old = bpf_map_lookup_elem(&stragglers, &key);
	if (old && pin_holds(old)) {
		TRACE(found, FOUND_STRAGGLER);
		return follow(old, f, &key, TOLD_STRAGGLERS);
	}
	if ((word >> SLOT_STATE_SHIFT & SLOT_STATE_MASK) != SLOT_TRACKED || !previous)
		return owner;
	TRACE(found, NEW_STRAGGLER);
	if (!f->ends && may_straggle()) {
		make_pin(&pin, previous, 0);
		if (!bpf_map_update_elem(&stragglers, &key, &pin, BPF_ANY))
			note_entry(&key, TOLD_STRAGGLERS);
	}
	return previous;
}

/* Whether an entry of a UDP flow still stands. What another node tells of may be older than the flow. */
static __always_inline bool udp_holds(struct pin *pin)
{
	int idle = ticks() - pin->seen;

	return pin_holds(pin) && idle <= (pin->held ? UDP_IDLE_TICKS + UDP_TOLD_TICKS : UDP_IDLE_TICKS);
}

/*
 * The number of the backend for a datagram of a service with affinity: flow. A
 * flow earns its place among the lasting ones by a second datagram, a tick or
 * more after the first, so that a flood of single ones takes it from nobody.
 */
SUBPROGRAM __u32 udp_owner(struct flow *f, __u64 word)
{
	__u32 owner = slot_owner(word);
	struct flow_key key;
	struct pin *old, pin;

	if (!f)
		return 0;
	key = f->key;
	old = bpf_map_lookup_elem(&udp_flows, &key);
	if (old && udp_holds(old)) {
		TRACE(found, FOUND_UDP);
		return follow(old, f, &key, TOLD_UDP);
	}
	old = bpf_map_lookup_elem(&udp_new, &key);
	if (old && udp_holds(old)) {
		TRACE(found, FOUND_UDP_NEW);
		owner = old->backend;
		if (old->seen == ticks() || dry)
			return owner;
		make_pin(&pin, owner, 0);
		if (bpf_map_update_elem(&udp_flows, &key, &pin, BPF_ANY)) {
			COUNT_LOSS(backend_at(owner)->service, pins_full);
			follow(old, f, &key, TOLD_NONE);
		} else {
			note_entry(&key, TOLD_UDP);
		}
		return owner;
	}
	TRACE(found, NEW_UDP);
	if (owner && !dry) {
		make_pin(&pin, owner, 0);
		bpf_map_update_elem(&udp_new, &key, &pin, BPF_ANY);
	}
	return owner;
}

/* The same for the packet in hand, whose slot is not to be believed alone. */
static __always_inline __u32 remembered_owner(struct packet *p)
{
	struct address client = source_of(p);
	struct flow f = {};

	f.key.client[0] = client.word[0];
	f.key.client[1] = client.word[1];
	f.key.vip = p->vip_index;
	f.key.client_port = p->port[0];
	f.key.vip_port = p->port[1];
	f.key.protocol = p->protocol;
	if (p->protocol == IPPROTO_UDP)
		return udp_owner(&f, p->slot);
	/* Linux 6.1 does not know any more that it is there. */
	if ((void *)(p->tcp + 1) > p->end)
		return 0;
	f.sequence = bpf_ntohl(p->tcp->seq);
	f.opens = p->opens;
	f.ends = p->tcp->fin | p->tcp->rst;
	f.data = p->length > p->header_length;
	return tracked_owner(&f, p->slot);
}

#endif
