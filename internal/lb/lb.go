// Package lb is the vocabulary of sluice: the words that every other package
// uses for what is balanced. It holds values only and imports the standard
// library alone.
package lb

import (
	"fmt"
	"net/netip"
	"regexp"
	"time"
)

// DefaultTableSize is the number of slots of a service's Maglev table. A prime,
// so that every permutation step visits every slot.
const DefaultTableSize = 65537

// Protocol is a transport protocol, by its IANA number.
type Protocol uint8

// The protocols that a service may have.
const (
	TCP Protocol = 6
	UDP Protocol = 17
)

func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	}
	return fmt.Sprintf("protocol %d", uint8(p))
}

// Forward is a forwarding mode: how a packet reaches its backend.
type Forward uint8

// The forwarding modes. Their numbers are those of enum forward in bpf/types.h.
const (
	// NAT rewrites destination and source; replies come back through sluice.
	NAT Forward = 1
	// DSR rewrites the MAC addresses only; the backend answers the client.
	DSR Forward = 2
)

func (f Forward) String() string {
	switch f {
	case NAT:
		return "nat"
	case DSR:
		return "dsr"
	}
	return fmt.Sprintf("forward %d", uint8(f))
}

// A Server is a member of a pool, as configured.
type Server struct {
	Address netip.Addr
	Port    uint16 // 0: the port of the service
	Weight  int    // share of the table, 0 or more
	Backup  bool   // serves only when no primary is healthy
}

// A Pool is a set of servers that are probed in the same way.
type Pool struct {
	Name    string
	Servers []Server
	Probe   *Probe // nil: not probed, always healthy
}

// ProbeType is the kind of a health probe.
type ProbeType string

// The kinds of probe.
const (
	ProbeTCP  ProbeType = "tcp"
	ProbeHTTP ProbeType = "http"
)

// A Probe says how the health of a server is found out.
type Probe struct {
	Type     ProbeType
	Interval time.Duration // from the start of one run to the start of the next
	Timeout  time.Duration // of one run
	Rise     int           // successes in a row that make a failed server healthy
	Fall     int           // failures in a row that make a healthy server failed
	Port     uint16        // 0: the port of the server

	// For ProbeHTTP.
	Path   string // request target, starting with "/"
	Host   string // Host header; "": the address and port
	Status []StatusRange
	Body   *regexp.Regexp // must match within the first 64 KiB; nil: any body
}

// A StatusRange is an inclusive range of HTTP status codes.
type StatusRange struct{ First, Last int }

// A Service is a layer-4 service, as configured.
type Service struct {
	Name            string
	Addresses       []netip.AddrPort // VIP and port; all share one Maglev table
	Protocol        Protocol
	Forward         Forward
	SourceAddresses []netip.Addr // for NAT; never empty there
	TableSize       int          // slots, a prime
	Quorum          int          // healthy backends below which the service is reported as below quorum
	Pool            Pool
}

// A NextHop is where a frame goes on the link: what is written into it and the
// interface it leaves by. The zero value is none.
type NextHop struct {
	Interface   int     // index
	Destination [6]byte // MAC address of the neighbour
	Source      [6]byte // MAC address of the interface
	VLANs       [2]uint16
	Tags        int // how many of VLANs are written, outer first
}

// Known tells whether h leads anywhere.
func (h NextHop) Known() bool { return h.Interface != 0 }

// A Backend is one destination of a service in a Snapshot.
type Backend struct {
	Address netip.AddrPort // the port is never 0
	// Weight is the share of the table. 0 keeps the backend known, so that what
	// it already serves goes on, but gives it no slot.
	Weight int
	// Failed voids all that the backend serves; it has no slot, whatever its
	// weight.
	Failed bool
	// NextHop of zero keeps the one that is in use, if there is one.
	NextHop NextHop
}

func (b Backend) String() string { return fmt.Sprintf("%v weight %d", b.Address, b.Weight) }

// A ServiceState is a service with the backends that may serve it now.
type ServiceState struct {
	Service
	Backends []Backend // sorted by Address, no duplicates
}

// A Snapshot is the world as it should be. It is immutable: whoever holds one
// may keep it and compare it with a later one.
type Snapshot struct {
	Services []ServiceState // sorted by Name
}
