/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the kernel and the daemon share of full NAT. types.h includes it. */
#ifndef SLUICE_TYPES_NAT_H
#define SLUICE_TYPES_NAT_H

#include "types.h"

/*
 * NAT: the ports of one source address towards one address and port of a
 * backend. Services that have both in common share it.
 */
struct nat_pair {
	__u64 source[2];
	__u64 address[2]; /* backend's */
	__u32 vip; /* of the source address */
	__be16 port; /* backend's */
	__u16 protocol;
	/* This node's share, one word: it changes while packets come. */
	__u16 first_port; /* inclusive, host byte order */
	__u16 last_port;
	__u32 handshakes; /* that are remembered, less 1: a mask */
	/* The daemon's own, one word. */
	__u32 ports; /* of the share: those in the ring and those in use */
	__u32 filling; /* 1: a daemon is at the ring, or was killed there */
	__u64 pad;
	/* The ring of free ports, oldest first; a cache line of its own. */
	__u64 head;
	__u64 tail;
	__u64 embryonic; /* handshakes begun */
	__u64 given_up; /* handshakes that were the oldest when no port was free */
	__u32 hand; /* where the search for idle flows goes on */
	__u32 share_hand; /* and that among the ports of this node */
	__u64 news; /* a bit for each 4096 ports: flows among them have changed */
	__u32 pad2[4];
};

/* NAT: finds a reply's pair. */
struct pair_key {
	__u64 address[2]; /* backend */
	__u32 vip; /* source address's */
	__be16 port; /* backend's */
	__u16 protocol;
	__u32 pair;
	__u32 state; /* enum entry */
};

enum nat_state {
	NAT_FREE = 0,
	NAT_SYN_SENT, /* embryonic: no reply yet */
	NAT_SYN_RECEIVED, /* embryonic: replied, not yet acknowledged by the client */
	NAT_ESTABLISHED,
	NAT_CLOSING, /* one side has sent FIN */
	NAT_CLOSED, /* both have, or one has sent RST */
	NAT_UDP_REPLIED, /* UDP: both ends have sent */
	NAT_STATES = 8, /* a power of two, with room */
};

enum nat_flags {
	NAT_FIN_CLIENT = 1,
	NAT_FIN_BACKEND = 2,
	NAT_QUEUED = 4, /* its port stands in the ring */
	NAT_OPENED = 8, /* the client has answered the backend's SYN */
	NAT_UDP = 16, /* its protocol; else TCP */
	NAT_CLAIMED = 32, /* somebody writes its entry: nobody else may */
	NAT_HELD = 64, /* the daemon's: another node has told of it, and no packet of its own has come since */
};

/* NAT: a translated flow. Its place is its source port. One cache line. */
struct nat_flow {
	__u64 client[2];
	__be16 client_port;
	__be16 vip_port;
	__u16 vip;
	__u16 backend;
	__u32 state; /* enum nat_state */
	__u32 flags; /* enum nat_flags */
	__u32 last_seen; /* ticks */
	__u32 bucket; /* word that names it */
	__u32 backend_sequence; /* host byte order; what the client acknowledges first */
	__u32 generation; /* of the backend */
	__u8 mac[6]; /* the client's last hop */
	__u8 vlans;
	__u8 turn; /* of its handshake, the low bits */
	__be16 vlan[MAX_VLANS];
	__u32 interface; /* 0: not known */
};

struct nat_bucket {
	__u64 word[NAT_WAYS]; /* tag of the hash << 32 | pair << 16 | port */
};

enum nat_event {
	NAT_BEGIN = 1,
	NAT_END = 2,
};

/* NAT: a line of the translation log. It needs no other map to be understood. */
struct nat_record {
	__u64 time; /* ns of CLOCK_MONOTONIC */
	__u64 client[2];
	__u64 vip[2]; /* 0: it is none any more */
	__u64 source[2];
	__u64 backend[2];
	__be16 client_port;
	__be16 vip_port;
	__be16 backend_port;
	__u16 source_port; /* host byte order */
	__u16 protocol;
	__u16 event; /* enum nat_event */
	__u32 pad;
};

/* NAT: what of it only the flow's entry knows. */
struct nat_draft {
	__u64 time;
	__u64 client[2];
	__be16 client_port;
	__be16 vip_port;
	__u16 vip; /* index */
	__u16 event;
	__u32 id; /* pair << 16 | source port */
	__u32 pad;
};

/* NAT: what the packet in hand has to report, and how much found no reader. */
struct nat_queue {
	__u64 lost; /* records */
	__u64 count;
	struct nat_record record; /* the one that is sent */
	struct nat_draft drafts[NAT_QUEUE];
};

#endif
