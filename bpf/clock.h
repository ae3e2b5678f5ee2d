/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What goes by the clock. Coarse time: a tick is 2^27 ns of CLOCK_MONOTONIC, some 134 ms. */
#ifndef SLUICE_CLOCK_H
#define SLUICE_CLOCK_H

#include "packet.h"

#define TICK_SHIFT 27

static __always_inline __u32 ticks(void)
{
	return bpf_ktime_get_coarse_ns() >> TICK_SHIFT;
}

/* Whether this CPU may do once more in this tick what it may do so often. Map: of struct allowance. */
static __always_inline bool spend(void *map, __u32 limit)
{
	__u32 zero = 0, now = ticks();
	struct allowance *a = bpf_map_lookup_elem(map, &zero);

	if (!a)
		return false;
	if (dry)
		return a->tick != now || a->used < limit;
	if (a->tick != now) {
		a->tick = now;
		a->used = 0;
	}
	return a->used++ < limit;
}

#endif
