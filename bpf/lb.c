/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * sluice's XDP program. The packet's way, in order:
 *
 *   parse.h      Ethernet, VLAN tags, VIP, destination MAC, IPv4, TCP
 *   balance.h    service, flow hash, Maglev slot, counters
 *   nat.h        translated flows, both directions; nat_ports.h: source ports
 *   dnat.h       nat that keeps the client's address; routes.h: the way to a client
 *   fence.h      who else has a VIP, and whether this node may still answer for it
 *   nodes.h      services that the proxies of all nodes serve
 *   closed.h     VIPs that only services answer for
 *   who_has.h    the answers, while the kernel has not the address yet
 *   emit.h       link-layer header, VLAN tags, XDP_TX or redirect
 *   pipeline.h   the stages in a row, and the one place where outcomes count
 *
 * and, beside it, the filter of its health probes: probe.h.
 *
 * types.h holds what is shared with the daemon, maps.h every map, dry.h what
 * `sluice explain` runs the program with.
 */
#include "pipeline.h"
#include "probe.h"

volatile const struct exported exported = {};

SEC("xdp.frags")
int sluice(struct xdp_md *ctx)
{
	return process(ctx);
}

SEC("tc")
int sluice_probe(struct __sk_buff *skb)
{
	return send_probe(skb);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
