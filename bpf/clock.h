/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Coarse time: a tick is 2^27 ns of CLOCK_MONOTONIC, some 134 ms. */
#ifndef SLUICE_CLOCK_H
#define SLUICE_CLOCK_H

#include "packet.h"

#define TICK_SHIFT 27

static __always_inline __u32 ticks(void)
{
	return bpf_ktime_get_coarse_ns() >> TICK_SHIFT;
}

#endif
