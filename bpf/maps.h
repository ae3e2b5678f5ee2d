/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Every map, one sentence each. What every packet needs is in arrays: a hash map
 * costs 26 ns more.
 */
#ifndef SLUICE_MAPS_H
#define SLUICE_MAPS_H

#include "types.h"

#define ARRAY_TYPE(value_type, entries, map_type, flags)                        \
	struct {                                                               \
		__uint(type, map_type);                                        \
		__uint(max_entries, entries);                                  \
		__uint(map_flags, flags);                                      \
		__type(key, __u32);                                            \
		__type(value, value_type);                                     \
	}

#define ARRAY(name, value_type, entries, map_type, flags)                       \
	ARRAY_TYPE(value_type, entries, map_type, flags) name SEC(".maps")

/* A hash table of flows; the loader sets its size. */
#define FLOWS(name, map_type, flags)                                            \
	struct {                                                               \
		__uint(type, map_type);                                        \
		__uint(max_entries, 65536);                                    \
		__uint(map_flags, flags);                                      \
		__type(key, struct flow_key);                                  \
		__type(value, struct pin);                                     \
	} name SEC(".maps")

#define ARRAY_OF(name, inner)                                                   \
	struct {                                                               \
		__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);                      \
		__uint(max_entries, MAX_PAIRS);                                \
		__type(key, __u32);                                            \
		__array(values, inner);                                        \
	} name SEC(".maps")

/* What the other maps are: layout, sizes, seed. */
ARRAY(meta, struct meta, 1, BPF_MAP_TYPE_ARRAY, 0);

/*
 * Interfaces, VIPs, services and backends, among others: one variable, so that the program
 * knows its address and needs no look-up. Written through mmap.
 */
struct arrays tables;

/* Port tables; written through mmap. */
ARRAY(ports, struct port_table, MAX_PORT_TABLES, BPF_MAP_TYPE_ARRAY, BPF_F_MMAPABLE);

/* The Maglev tables of all services, written through mmap; the loader sets its size. */
ARRAY(slots, __u64, 65537, BPF_MAP_TYPE_ARRAY, BPF_F_MMAPABLE);

/* Traffic, per backend and CPU. */
ARRAY(traffic, struct counters, MAX_BACKENDS, BPF_MAP_TYPE_PERCPU_ARRAY, 0);

/* What was lost, per service and CPU. */
ARRAY(losses, struct service_losses, MAX_SERVICES, BPF_MAP_TYPE_PERCPU_ARRAY, 0);

/* Packets by outcome and CPU. */
ARRAY(outcomes, __u64, OUTCOMES, BPF_MAP_TYPE_PERCPU_ARRAY, 0);

/* Where the first fragments of packets went; backend 0: to the kernel. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_FRAGMENTED);
	__type(key, struct fragment_key);
	__type(value, struct fragmented);
} fragments SEC(".maps");

/* NAT: how many identifications have been given, by hash of the packet's ends. */
ARRAY(fragment_ids, __u32, FRAGMENT_IDS, BPF_MAP_TYPE_ARRAY, 0);

/* Who may use a service, by prefix. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, MAX_RULES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct rule_key);
	__type(value, __u32); /* enum rule */
} access_rules SEC(".maps");

/* When a client may open its next connection, ns of CLOCK_MONOTONIC. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_SOURCES);
	__type(key, struct source_key);
	__type(value, __u64);
} source_buckets SEC(".maps");

/* TCP flows of slots that are not clean: those whose SYN has been seen. */
FLOWS(handshakes, BPF_MAP_TYPE_HASH, 0);

/* Those that the client has gone on with. */
FLOWS(pins, BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC);

/* Those that are older than the window of their slot. */
FLOWS(stragglers, BPF_MAP_TYPE_LRU_HASH, 0);

/* How many stragglers a CPU has pinned in this tick. */
ARRAY(straggler_allowance, struct allowance, 1, BPF_MAP_TYPE_PERCPU_ARRAY, 0);

/* How many ICMP errors a CPU has sent in this tick. */
ARRAY(answer_allowance, struct allowance, 1, BPF_MAP_TYPE_PERCPU_ARRAY, 0);

/* How many packets of no connection a CPU has left to the kernel in this tick. */
ARRAY(stray_allowance, struct allowance, 1, BPF_MAP_TYPE_PERCPU_ARRAY, 0);

/* UDP flows of services with affinity: flow, after their first datagram. */
FLOWS(udp_new, BPF_MAP_TYPE_LRU_HASH, 0);

/* Those that have sent another one later. */
FLOWS(udp_flows, BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC);

/* DNAT: what backends reply from, by hash of address and port. */
ARRAY(replies, struct reply, MAX_REPLIES, BPF_MAP_TYPE_ARRAY, 0);

/* DNAT: last hops of the clients to whom the kernel knows no neighbour. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_LAST_HOPS);
	__type(key, struct address);
	__type(value, struct last_hop);
} last_hops SEC(".maps");

/* DNAT: when a reply last found no way to its client, ticks. */
ARRAY(way_missed, __u32, 1, BPF_MAP_TYPE_ARRAY, 0);

/* DNAT: neighbours that replies wait for; the daemon has the kernel look for them. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_MISSED);
	__type(key, struct missed_neighbour);
	__type(value, __u32); /* ticks */
} missed_neighbours SEC(".maps");

/* DNAT: what the first fragments of replies were translated by. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_FRAGMENTED_REPLIES);
	__type(key, struct reply_fragment_key);
	__type(value, struct reply_fragment);
} reply_fragments SEC(".maps");

/* Probe addresses that are in use, and where they lead. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_PROBES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct probe_address);
	__type(value, struct probe_target);
} probe_targets SEC(".maps");

/* Which of them a probe under way has dialled. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_PROBES);
	__type(key, struct probe_flow);
	__type(value, struct probe_address);
} probe_notes SEC(".maps");

/* Interfaces, by number, that the loader has put the filter of probes on; 1: and the qdisc that it is in. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_INTERFACES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, __u32);
} probe_links SEC(".maps");

/* Instances of VRRP, and when their daemon was last at work; written through mmap. */
ARRAY(fences, struct fence, MAX_FENCES, BPF_MAP_TYPE_ARRAY, BPF_F_MMAPABLE);

/* The numbers of the instances that VIPs, and virtual MAC addresses, belong to. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_FENCED);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct fence_key);
	__type(value, __u32);
} fence_addresses SEC(".maps");

/* NAT: pairs of backend and source address. */
ARRAY(nat_pairs, struct nat_pair, MAX_PAIRS, BPF_MAP_TYPE_ARRAY, BPF_F_MMAPABLE);

/* NAT: the numbers of the pairs that a backend may choose from, side by side. */
ARRAY(nat_choices, __u32, MAX_CHOICES, BPF_MAP_TYPE_ARRAY, 0);

/* NAT: pairs, by hash of backend and source address. */
ARRAY(nat_keys, struct pair_key, MAX_PAIR_KEYS, BPF_MAP_TYPE_ARRAY, 0);

/* NAT: names of flows, by hash of client and VIP; the loader sets its size. */
ARRAY(nat_buckets, struct nat_bucket, 4096, BPF_MAP_TYPE_ARRAY, BPF_F_MMAPABLE);

/* NAT: a pair's flows, by source port; the loader adds one map for each pair. */
ARRAY_OF(nat_flows, ARRAY_TYPE(struct nat_flow, NAT_PORTS, BPF_MAP_TYPE_ARRAY, BPF_F_MMAPABLE));

/* NAT: a pair's ring of free ports, then that of its handshakes; likewise. */
ARRAY_OF(nat_rings, ARRAY_TYPE(__u64, NAT_RING, BPF_MAP_TYPE_ARRAY, BPF_F_MMAPABLE));

/* NAT: which of a pair's flows other nodes have not been told of; likewise. */
ARRAY_OF(nat_news, ARRAY_TYPE(__u64, NAT_NEWS, BPF_MAP_TYPE_ARRAY, BPF_F_MMAPABLE));

/* Which entries of the tables of flows they have not been told of. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} flow_notes SEC(".maps");

/* How many of these have found no room, per CPU. */
ARRAY(flow_notes_lost, __u64, 1, BPF_MAP_TYPE_PERCPU_ARRAY, 0);

/* NAT: the translation log's records of the packet in hand, per CPU. */
ARRAY(nat_queues, struct nat_queue, 1, BPF_MAP_TYPE_PERCPU_ARRAY, 0);

/* NAT: where the daemon reads them, a buffer a CPU; there is none while no daemon runs. */
struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
} nat_records SEC(".maps");

#endif
