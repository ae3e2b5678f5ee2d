/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * IPv6 extension headers (RFC 8200, section 4). They are rare: a subprogram
 * walks them, so that what has none does not pay.
 */
#ifndef SLUICE_EXTENSIONS_H
#define SLUICE_EXTENSIONS_H

#include "packet.h"

/* The furthest that a transport header may be from the start of the frame. */
#define MAX_HEADERS 511

struct extension {
	__u8 next;
	__u8 length; /* in 8 bytes, without the first 8; of AH in 4, without the first 8 */
};

struct fragment_header {
	__u8 next;
	__u8 reserved;
	__be16 offset; /* in 8 bytes, three bits to the left; lowest bit: more follow */
	__be32 id;
};

/*
 * What skip_headers found: offset of the fragment header << 48 | offset << 32 |
 * fragment, as FRAGMENT_, << 16 | protocol.
 */
static __always_inline __u64 found_at(__u32 offset, __u32 header, __be16 fragment, __u32 protocol)
{
	return (__u64)header << 48 | (__u64)offset << 32 | (__u32)fragment << 16 | protocol;
}

/* Walks from the header of this protocol, which is at offset of the frame. */
SUBPROGRAM __u64 skip_headers(struct xdp_md *ctx, __u32 offset, __u32 protocol)
{
	__u32 header_at = 0;
	__be16 fragment = 0;

	/*
	 * Once more than are skipped: the last time, to see that none is left. Unrolled,
	 * since Linux 6.1 takes no loop here.
	 */
#pragma unroll
	for (int i = 0; i <= MAX_EXTENSIONS; i++) {
		struct fragment_header header;

		switch (protocol) {
		case IPPROTO_HOPOPTS:
		case IPPROTO_ROUTING:
		case IPPROTO_DSTOPTS:
		case IPPROTO_AH:
		case IPPROTO_MH:
		case IPPROTO_FRAGMENT:
			break;
		default:
			return found_at(offset, header_at, fragment, protocol);
		}
		/* What follows the header of a later fragment is no header. */
		if (fragment & FRAGMENT_OFFSET)
			return found_at(offset, header_at, fragment, NOT_KNOWN);
		if (i == MAX_EXTENSIONS || offset > MAX_HEADERS - 8 ||
		    bpf_xdp_load_bytes(ctx, offset, &header, sizeof(header)))
			return found_at(offset, 0, 0, MALFORMED);
		if (protocol == IPPROTO_FRAGMENT) {
			__u16 word = bpf_ntohs(header.offset);

			fragment = bpf_htons(word >> 3) | (word & 1 ? FRAGMENT_MORE : 0);
			header_at = offset;
			offset += sizeof(header);
		} else if (protocol == IPPROTO_AH) {
			offset += 8 + ((struct extension *)&header)->length * 4;
		} else {
			offset += 8 + ((struct extension *)&header)->length * 8;
		}
		protocol = header.next;
	}
	return found_at(offset, 0, 0, MALFORMED);
}

/* Of a header that lies too deep the place is void. */
static __always_inline void skip_extensions(struct packet *p)
{
	__u64 found = skip_headers(p->ctx, p->l3 + sizeof(*p->ip6) - p->data, p->protocol);
	__u32 offset = found >> 32 & 0xffff;

	p->protocol = offset > MAX_HEADERS ? MALFORMED : found & 0xffff;
	p->fragment = found >> 16;
	p->fragment_header = found >> 48 & MAX_HEADERS;
	p->l4 = p->data + (offset & MAX_HEADERS);
}

#endif
