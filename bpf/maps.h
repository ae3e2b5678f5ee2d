/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Every map, one sentence each. All are arrays: a hash map costs 26 ns more. */
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

#define ARRAY_OF(name, inner)                                                   \
	struct {                                                               \
		__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);                      \
		__uint(max_entries, MAX_PAIRS);                                \
		__type(key, __u32);                                            \
		__array(values, inner);                                        \
	} name SEC(".maps")

/* What the other maps are: layout, sizes, seed. */
ARRAY(meta, struct meta, 1, BPF_MAP_TYPE_ARRAY, 0);

/* The NICs that receive, by ifindex modulo the table's size. */
ARRAY(interfaces, struct interface, MAX_INTERFACES, BPF_MAP_TYPE_ARRAY, 0);

/* VIPs and source addresses, by hash of the address. */
ARRAY(vips, struct vip, MAX_VIPS, BPF_MAP_TYPE_ARRAY, 0);

/* Port tables: four 16-bit service numbers a word, written through mmap. */
ARRAY(ports, __u64, MAX_PORT_TABLES * PORT_GROUPS, BPF_MAP_TYPE_ARRAY, BPF_F_MMAPABLE);

/* Services, by number; 0 is none. */
ARRAY(services, struct service, MAX_SERVICES, BPF_MAP_TYPE_ARRAY, 0);

/* The Maglev tables of all services, written through mmap; the loader sets its size. */
ARRAY(slots, __u64, 65537, BPF_MAP_TYPE_ARRAY, BPF_F_MMAPABLE);

/* Backends, by number; 0 is none. Written through mmap, word by word. */
ARRAY(backends, struct backend, MAX_BACKENDS, BPF_MAP_TYPE_ARRAY, BPF_F_MMAPABLE);

/* Traffic, per backend and CPU. */
ARRAY(traffic, struct counters, MAX_BACKENDS, BPF_MAP_TYPE_PERCPU_ARRAY, 0);

/* What was lost, per service and CPU. */
ARRAY(losses, struct service_losses, MAX_SERVICES, BPF_MAP_TYPE_PERCPU_ARRAY, 0);

/* Packets by outcome and CPU. */
ARRAY(outcomes, __u64, OUTCOMES, BPF_MAP_TYPE_PERCPU_ARRAY, 0);

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

#endif
