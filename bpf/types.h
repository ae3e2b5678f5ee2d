/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the kernel and the daemon share: keys, values and enums of every map.
 * The Go side of all of this is generated from here.
 *
 * Addresses are IPv6 in network byte order as two 64-bit words; an IPv4
 * address is held as ::ffff:a.b.c.d (RFC 4291, section 2.5.5.2). Ports are in
 * network byte order where the type is __be16.
 */
#ifndef SLUICE_TYPES_H
#define SLUICE_TYPES_H

#include <linux/types.h>

/* Raised whenever the meaning of a pinned map changes. */
enum layout {
	LAYOUT_VERSION = 2,
};

enum limits {
	MAX_INTERFACES = 1024,	/* index: ifindex modulo this */
	VIP_BITS = 12,
	MAX_VIPS = 4096,	/* open addressing: filled to a quarter, there is room for any */
	MAX_PORT_TABLES = 256,	/* one per VIP and protocol */
	PORTS = 65536,		/* in a port table */
	MAX_SERVICES = 4096,
	MAX_BACKENDS = 16384,
	MAX_PAIRS = 8192,	/* NAT: backend and source address */
	MAX_CHOICES = 65536,	/* NAT: pairs that backends may choose from */
	PAIR_KEY_BITS = 15,
	MAX_PAIR_KEYS = 32768,
	PROBES = 16,		/* steps of open addressing */
	NAT_PORTS = 65536,	/* entries of one pair */
	NAT_EMBRYONIC = 16384,	/* handshakes that one pair remembers, at most */
	NAT_RING = 81920,	/* NAT_PORTS + NAT_EMBRYONIC words */
	NAT_NEWS_WORDS = 1024,	/* a bit for each of NAT_PORTS */
	NAT_NEWS = 1040,	/* the same, and a bit for each of these words */
	NAT_WAYS = 8,		/* words in a bucket: one cache line */
	NAT_QUEUE = 512,	/* records of the translation log that one packet causes, at most: some 350 */
	REPLY_BITS = 16,
	MAX_REPLIES = 65536,	/* DNAT: open addressing, filled to a quarter */
	MAX_LAST_HOPS = 65536,	/* DNAT: clients that the kernel knows no way to */
	MAX_MISSED = 1024,	/* DNAT: neighbours that the kernel is to look for */
	MAX_FRAGMENTED = 65536,	/* packets in fragments that are remembered */
	MAX_FRAGMENTED_REPLIES = 16384, /* DNAT: the same of backends */
	FRAGMENT_IDS = 2048,	/* counters of identifications */
	MAX_RULES = 65536,	/* of all services together */
	MAX_SOURCES = 262144,	/* whose new connections are counted */
	MAX_VLANS = 2,
	STRAGGLERS_PER_TICK = 2048, /* that one CPU may pin */
	UDP_IDLE_TICKS = 2235,	/* 300 s (RFC 4787, REQ-5) */
	/* A flow that goes on is told again after a quarter of the time that it may be idle. */
	PIN_TOLD_TICKS = 13858,	/* 31 min */
	ENDING_TOLD_TICKS = 111, /* 15 s */
	UDP_TOLD_TICKS = 558,	/* 75 s */
	MAX_EXTENSIONS = 8,	/* IPv6 extension headers that are skipped */
	MAX_PROBES = 16384,	/* VIPs at backends that are probed; probes that are noted */
	MAX_FENCES = 1024,	/* instances of VRRP; 0 is the daemon itself */
	MAX_FENCED = 4096,	/* their VIPs */
	MAX_NODES = 16,		/* other nodes that packets are spread over */
	INTERFACE_HERE = 0x7fffffff, /* of a next hop: none, the node itself */
};

/* How a service's packets reach their backend. */
enum forward {
	FORWARD_NAT = 1,
	FORWARD_DSR = 2,
	FORWARD_TUNNEL = 3,
	FORWARD_DNAT = 4, /* nat without source NAT */
	FORWARD_PROXY = 5, /* spread: backends are nodes, whose proxies serve */
};

enum service_flags {
	SERVICE_SOURCE_HASH = 1, /* the client's address alone chooses the slot */
	SERVICE_UDP_FLOWS = 2, /* affinity: flow */
	SERVICE_RULES = 4, /* it has prefixes in access_rules */
	SERVICE_ALLOW_ONLY = 8, /* who matches none of them is refused */
	SERVICE_SOURCE_LIMIT = 16,
	SERVICE_UDP = 32, /* its protocol; else TCP */
	SERVICE_KEEPS_PORT = 64, /* DNAT and NAT: it has several ports, and the backend has the same */
};

/*
 * What became of a packet. The order is the contract of the outcomes map.
 * PASS_ goes to the kernel's stack, DROP_ is dropped.
 */
enum outcome {
	NEXT = 0,		/* none yet: the next stage goes on */
	SENT,			/* forwarded; counted per backend, not here */
	ANSWERED,		/* sent back to the client as an ICMP error; counted per service */
	ANSWERED_WHO_HAS,	/* asks who has a VIP of this node: sent back as the answer, and counted */
	PASS_NOT_IP,		/* neither IPv4 nor IPv6 */
	PASS_NOT_VIP,		/* destination address is no VIP */
	PASS_OTHER_MAC,		/* destination MAC is not this NIC's */
	PASS_PROTOCOL,		/* to a VIP, neither TCP nor UDP */
	PASS_FRAGMENT,		/* to a VIP, a later fragment: no ports to see */
	PASS_NO_SERVICE,	/* to a VIP, to a port that is no service */
	PASS_NO_FLOW,		/* nat, no SYN and no flow: the kernel answers RST */
	PASS_NOT_FORWARDING,	/* DNAT, a reply; but the kernel is told not to forward */
	PASS_PROBE,		/* the answer to a probe of this node's through a VIP */
	PASS_HERE,		/* spread, and this node's proxy serves it; counted per backend, too */
	PASS_FROM_NODE,		/* spread, and another node has sent it here */
	DROP_MALFORMED_IP,
	DROP_MALFORMED_TCP,
	DROP_MALFORMED_UDP,
	DROP_FRAGMENT,		/* one that would overwrite a TCP header; nat, a SYN */
	DROP_EARLY_FRAGMENT,	/* a later fragment before the first, or long after it */
	DROP_DENIED,		/* the service's rules keep the client out */
	DROP_SOURCE_LIMIT,	/* the client opens connections too fast */
	DROP_TTL,		/* nat, dnat, tunnel and spread, time to live used up */
	DROP_NO_BACKEND,	/* service has no healthy backend */
	DROP_NO_PORT,		/* nat, every source port towards the backend is taken */
	DROP_FLOWS_FULL,	/* nat, no room in the flow table */
	DROP_NO_NEXT_HOP,	/* nat, no way back to the client is known */
	DROP_NO_ROUTE,		/* DNAT, the routing table rejects the client */
	DROP_TOO_BIG,		/* tunnel and DNAT, too long for the way, and not answered */
	DROP_HEADROOM,		/* no room for a VLAN tag or an outer header */
	DROP_STRAY,		/* nat, no SYN and no flow, and the kernel has had enough of these */
	DROP_FENCED,		/* asks who has a VIP that another node has taken from a daemon that is gone */
	DROP_NOT_ACCEPTED,	/* to a VIP that this node takes nothing for but what services do */
	DROP_INTERNAL,		/* an entry that should exist does not */
	OUTCOMES,
};

/* An entry of a table with open addressing. GONE keeps later probes going. */
enum entry {
	ENTRY_EMPTY = 0,
	ENTRY_USED = 1,
	ENTRY_GONE = 2,
};

/* Two words that hold an address: network byte order, IPv4 mapped into IPv6. */
struct address {
	__u64 word[2];
};

/* A NIC that the program is attached to. */
struct interface {
	__u8 mac[6];
	__u8 pad[2];
	__u32 index; /* 0: not in use */
	__u32 pad2;
} __attribute__((aligned(8)));

/* How a frame leaves by an interface that a route names: a NIC, or a VLAN on top of one. */
struct way {
	__u32 index; /* that interface; 0: not in use */
	__u32 nic;
	__be16 vlan[MAX_VLANS]; /* VLAN identifiers, outer first */
	__u16 vlans;
	__u16 pad;
};

struct vip {
	__u64 address[2];
	__u32 ports[2]; /* port table of TCP and UDP, 0: none */
	__u32 source; /* 1: source address of a nat service */
	__u32 state; /* enum entry */
};

/* A way out: written before the frame leaves. Each 64-bit word is stored whole. */
struct next_hop {
	__u8 destination[6];
	__u8 source_low[2]; /* first two bytes of the source MAC */
	__u8 source_high[4];
	__u32 interface;
	__be16 vlan[MAX_VLANS]; /* VLAN identifiers, outer first */
	__u16 vlans;
	__u16 mtu; /* longest IP packet on the way; 0: not known */
} __attribute__((aligned(8)));

/* The services that a VIP has for one protocol, by port in host byte order. */
struct port_table {
	__u16 service[PORTS];
};

struct service {
	__u32 slots; /* first slot */
	__u32 slot_count;
	__u32 forward; /* enum forward */
	__u32 flags; /* enum service_flags */
	__u32 limit_rate; /* new connections of one source, a second */
	__u32 limit_burst;
	__u64 pad;
};

/*
 * A slot of a Maglev table is one 64-bit word, stored whole: bits 0 to 23
 * current owner, 24 to 47 previous owner, 48 to 49 state, 50 to 63 when its
 * window closes, which is the loader's. Owner 0 is none. Of a clean slot all but
 * the owner is 0.
 */
enum slot_bits {
	SLOT_OWNER_BITS = 24,
	SLOT_PREVIOUS_SHIFT = 24,
	SLOT_STATE_SHIFT = 48,
	SLOT_STATE_MASK = 3,
	SLOT_CLOSES_SHIFT = 50,
};

enum slot_state {
	SLOT_CLEAN = 0,
	SLOT_TRACKED = 1,
	SLOT_SETTLING = 2,
};

struct backend {
	__u64 address[2];
	struct next_hop next_hop;
	__be16 port; /* 0: the packet's own */
	__u16 service;
	__u32 generation; /* flows of another generation are void */
	__u32 choice; /* NAT: first of its pairs in nat_choices */
	__u32 choices; /* NAT: one per source address */
	__u32 alive; /* 0: known, but its flows are void */
	__u32 leaving; /* the loader's: when it left the configuration, s of CLOCK_BOOTTIME; 0: it has not */
};

/* What only the daemon writes, word by word; the program reads it without a look-up. */
struct arrays {
	struct interface interfaces[MAX_INTERFACES]; /* by ifindex modulo their number */
	struct vip vips[MAX_VIPS]; /* VIPs and source addresses, by hash of the address */
	struct service services[MAX_SERVICES]; /* by number; 0 is none */
	struct backend backends[MAX_BACKENDS]; /* by number; 0 is none */
	struct way ways[MAX_INTERFACES]; /* by ifindex modulo their number */
	__u64 expects_replies; /* 1: there are entries in replies */
	__u64 probes; /* not 0: servers are probed through VIPs */
	__u64 fences; /* not 0: there are entries in fence_addresses */
	__u64 virtual_macs; /* not 0: MAC addresses among them */
	__u64 closed; /* not 0: VIPs of closed instances */
	__u64 nodes[MAX_NODES]; /* MAC addresses that other nodes' packets come from, the first byte lowest; 0: none */
};

struct counters {
	__u64 packets; /* towards the backend */
	__u64 bytes; /* IP length */
	__u64 flows; /* SYNs that ask for a new one */
	__u64 reply_packets; /* nat only: the others answer the client themselves */
	__u64 reply_bytes;
};

/* What a service lost, by reason. */
struct service_losses {
	__u64 no_backend;
	__u64 no_port;
	__u64 flows_full;
	__u64 early_reuse; /* ports handed out again within 60 s of their close */
	__u64 evicted; /* handshakes given up for newer ones */
	__u64 handshakes_full; /* SYNs in a tracked slot that found no room */
	__u64 too_big; /* tunnel: packets too long for the way to their backend; DNAT: to the client */
	__u64 pins_full; /* flows that found no room among the pinned ones */
};

#include "types_nat.h"

/*
 * DNAT: whose what a backend sends is. Whom it stands for is one word, stored whole,
 * and whether the entry is in use comes last.
 */
struct reply {
	__u64 address[2]; /* backend's */
	__u32 backend; /* its number */
	__u16 vip; /* index */
	__be16 vip_port; /* 0: the packet's own */
	__be16 port; /* backend's; 0: any that is one of its service's */
	__u16 protocol;
	__u32 state; /* enum entry */
};

/* DNAT: the neighbour that a client's packets come from. */
struct last_hop {
	__u8 mac[6];
	__u16 vlans;
	__be16 vlan[MAX_VLANS];
	__u32 interface;
	__u32 seen; /* ticks */
};

/* DNAT: a neighbour that a route names, and that the kernel does not know. */
struct missed_neighbour {
	__u64 address[2];
	__u32 interface;
	__u32 pad;
};

/* DNAT: a packet of a backend that comes in fragments. */
struct reply_fragment_key {
	__u64 source[2];
	__u64 destination[2];
	__be32 id;
	__u16 protocol; /* of IPv4 */
	__u16 v6;
};

struct reply_fragment {
	__u32 place; /* in replies */
	__u32 seen; /* ticks */
};

/* A flow, as the client names it. */
struct flow_key {
	__u64 client[2];
	__u32 vip; /* index */
	__be16 client_port;
	__be16 vip_port;
	__u32 protocol;
	__u32 pad;
};

/* Where a flow goes, whoever owns its slot. Void once its backend is of another generation. */
struct pin {
	__u32 backend;
	__u32 generation;
	__u32 seen; /* ticks */
	__u32 sequence; /* of a handshake: that of the SYN, host byte order */
	__u16 ending; /* FIN or RST has been seen, and no data since */
	__u16 held; /* another node has told of it, and no packet of its own has come */
	__u32 told; /* when other nodes were last told of it, ticks */
};

/* The tables whose entries other nodes are told of. */
enum told_table {
	TOLD_NONE = 0,
	TOLD_PINS,
	TOLD_STRAGGLERS,
	TOLD_UDP,
};

/* An entry of such a table that has changed. */
struct flow_note {
	struct flow_key key;
	__u32 table; /* enum told_table */
	__u32 pad;
};

/* A prefix of clients of a service. */
struct rule_key {
	__u32 prefix_length; /* bits of what follows */
	__u32 service; /* its number << 1, 1 for IPv6 */
	__be32 address[4]; /* IPv4 in the first word alone */
};

enum rule {
	RULE_ALLOW = 1,
	RULE_DENY = 2,
};

/* A client of a service, or the /64 that it is in. */
struct source_key {
	__u64 address;
	__u64 service; /* its number << 1, 1 for IPv6 */
};

/* A packet that comes in fragments. */
struct fragment_key {
	__u64 source[2];
	__u32 vip; /* index */
	__be32 id;
	__u32 protocol; /* of IPv4 */
	__u32 v6;
};

/* What becomes of the later fragments of a packet. */
enum fragments_way {
	FRAGMENTS_UNCHANGED = 0, /* they go to the backend, or the kernel, as they are */
	FRAGMENTS_TO_BACKEND, /* nat */
	FRAGMENTS_TO_CLIENT,
};

/* Where the first fragment of a packet went; what nat has made of it. */
struct fragmented {
	struct pin pin; /* backend 0: to the kernel */
	__u64 source[2]; /* nat: its addresses now */
	__u64 dest[2];
	__u32 way; /* enum fragments_way */
	__u32 flow; /* nat: pair << 16 | port */
	__be32 id; /* nat: its identification now; of IPv4 the low half counts */
	__u32 pad;
};

/* What is dialled to probe a VIP at a backend: an address that nobody has. */
struct probe_address {
	__u64 word[2];
};

/* Where a probe address leads. */
struct probe_target {
	__u64 vip[2];
	__u64 backend[2];
	__u32 forward; /* FORWARD_DSR or FORWARD_TUNNEL */
	__u32 interface; /* that its route leads to */
};

/* A probe under way, as the backend's answer names it. */
struct probe_flow {
	__u64 node[2];
	__u64 vip[2];
	__be16 node_port;
	__be16 vip_port;
	__u32 pad;
};

/* Who answers ARP and neighbour solicitations for the VIPs of an instance of VRRP. */
enum fence_held {
	HELD_NOT = 0, /* they are not on this node */
	HELD_KERNEL, /* they are on the interface */
	HELD_PROGRAM, /* they are this node's, whether they are on the interface or not */
};

enum fence_flags {
	FENCE_ROUTER = 1, /* of IPv6: the kernel forwards what comes in there */
	FENCE_VIRTUAL = 2, /* the VIPs are at the virtual router's MAC address */
	FENCE_CLOSED = 4, /* accept: false */
};

/*
 * A VIP of an instance of VRRP, or its virtual MAC address, as frames name it. A VIP of
 * a closed one is there without interface and VLANs, too: whichever way it is reached.
 */
struct fence_key {
	__u64 address[2]; /* of a MAC address: all ones, then its bytes as a number, the first one lowest */
	__u32 interface; /* the NIC that they come in by */
	__be16 vlan[MAX_VLANS]; /* VLAN identifiers, outer first; 0: none */
};

/*
 * An instance of VRRP, and what tells whether its daemon may still speak for its VIPs.
 * Times are ns of CLOCK_MONOTONIC. The daemon writes all but the last three words.
 */
struct fence {
	__u64 beat; /* when the daemon was last at work as the Active node */
	__u64 patience; /* so long without a beat, and the daemon counts as gone */
	__u64 source[2]; /* that its own advertisements come from */
	__u32 interface; /* VRRP's: the NIC, or a VLAN on top of it */
	__u8 vrid;
	__u8 v6;
	__u8 used; /* an instance has this entry */
	__u8 held; /* enum fence_held */
	__u8 mac[6]; /* of that interface */
	__u8 flags; /* enum fence_flags */
	__u8 pad;
	__u64 heard; /* another node's advertisement */
	__u64 claimed; /* gratuitous ARP, or an unsolicited neighbour advertisement, for a VIP */
	__u8 other[6]; /* who has sent the last of these */
	__u8 pad2[2];
};

/* What one CPU may do in a tick, and has done. */
struct allowance {
	__u32 tick;
	__u32 used;
	__u32 granted; /* in all */
	__u32 refused; /* when it was refused last, ticks; 0: never */
};

/* One entry that says what the other maps are. */
struct meta {
	__u32 layout; /* the first word in every version: see loader/upgrade.go */
	__u32 bucket_mask;
	__u64 nat_seed;
};

/* Names the types that no map names, so that the compiler describes them too. */
struct exported {
	enum layout layout;
	enum limits limits;
	enum forward forward;
	enum service_flags service_flags;
	enum rule rule;
	enum outcome outcome;
	enum entry entry;
	enum slot_bits slot_bits;
	enum slot_state slot_state;
	enum nat_state nat_state;
	enum nat_flags nat_flags;
	enum nat_event nat_event;
	enum fragments_way fragments_way;
	enum fence_held fence_held;
	enum fence_flags fence_flags;
	enum told_table told_table;
	struct nat_flow nat_flow;
	struct flow_note flow_note;
};

#endif
