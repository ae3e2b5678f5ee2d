// Package vrrp makes this host part of virtual routers: it elects, among the
// nodes of a segment, the one that holds a set of virtual IP addresses (VIPs).
//
// It speaks VRRPv2 (RFC 3768, with the simple password of RFC 2338) and VRRPv3
// (RFC 9568) over IPv4 and IPv6, by multicast or to unicast peers, beside other
// implementations. Terms are those of RFC 9568: Initialize, Backup, Active.
//
// The parts, from the inside out:
//
//   - Advertisement is the wire format; a Filter decides which packets count.
//   - Machine is one virtual router as a pure state machine: events and the
//     time go in, actions come out. It does no I/O and starts no goroutine.
//   - Network, Transport, Announcer and AddressStore are what a virtual router
//     needs of its host. Host and Addresses are the real ones, for Linux.
//   - Heartbeats bring, faster than advertisements, how other nodes of this
//     program stand; a Pacer sends advertisements on time.
//   - alarms name the mistakes that show in what other nodes send.
//   - Router ties one instance together and runs it.
//
// VRRP's password travels in clear text. It guards against mistakes, not
// against an attacker on the segment.
package vrrp
