/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * sluice's XDP program. The packet's way, in order:
 *
 *   parse.h      Ethernet, VLAN tags, VIP, destination MAC, IPv4, TCP
 *   balance.h    service, flow hash, Maglev slot, counters
 *   nat.h        translated flows, both directions; nat_ports.h: source ports
 *   dnat.h       nat that keeps the client's address; routes.h: the way to a client
 *   emit.h       link-layer header, VLAN tags, XDP_TX or redirect
 *   pipeline.h   the stages in a row, and the one place where outcomes count
 *
 * types.h holds what is shared with the daemon, maps.h every map, dry.h what
 * `sluice explain` runs the program with.
 */
#include "pipeline.h"

volatile const struct exported exported = {};

SEC("xdp.frags")
int sluice(struct xdp_md *ctx)
{
	return process(ctx);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
