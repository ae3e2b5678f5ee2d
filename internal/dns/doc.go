// Package dns answers queries for names whose addresses are those of a pool's servers,
// with authority and without recursion: healthy servers only, chosen by a policy.
//
// A [Responder] holds the sockets and outlives reloads. What it answers is a world, which
// is never changed but replaced. The wire format is miekg/dns's.
package dns
