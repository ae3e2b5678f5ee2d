// Package lb is the vocabulary of sluice: the words that every other package
// uses for what is balanced. It holds values only and imports the standard
// library alone.
package lb

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
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
	// Tunnel puts the packet into another IP packet (RFC 2003, RFC 2473, RFC 4213);
	// the backend answers the client.
	Tunnel Forward = 3
	// DNAT is nat with source_nat: false. It rewrites the destination only, so
	// the backend sees the client; replies come back through sluice because it is
	// the backend's gateway.
	DNAT Forward = 4
	// Proxy is spread over nodes: the backends are the nodes, whose proxies serve. The
	// MAC addresses change, and a hop is taken, where it is not this node itself.
	Proxy Forward = 5
)

// Stateless tells whether f finds the backend of a packet by its slot alone, as
// long as the slot is clean.
func (f Forward) Stateless() bool { return f != NAT }

// Rewrites tells whether f may send to another port than the packet came to.
func (f Forward) Rewrites() bool { return f == NAT || f == DNAT }

func (f Forward) String() string {
	switch f {
	case NAT:
		return "nat"
	case DSR:
		return "dsr"
	case Tunnel:
		return "tunnel"
	case DNAT:
		return "nat, source_nat: false"
	case Proxy:
		return "proxy, spread"
	}
	return fmt.Sprintf("forward %d", uint8(f))
}

// A PortRange is an inclusive range of ports.
type PortRange struct{ First, Last uint16 }

// Count is the number of ports in the range.
func (r PortRange) Count() int { return int(r.Last) - int(r.First) + 1 }

// Contains tells whether port is in the range.
func (r PortRange) Contains(port uint16) bool { return r.First <= port && port <= r.Last }

// String writes one port as "80", all as "*", others as "8000-8100".
func (r PortRange) String() string {
	switch {
	case r == EveryPort:
		return "*"
	case r.First == r.Last:
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// EveryPort is every port that a packet may be for.
var EveryPort = PortRange{1, 65535}

// A Frontend is where a service listens: a VIP and its ports.
type Frontend struct {
	VIP   netip.Addr
	Ports PortRange
}

// FrontendOf returns the frontend of one port.
func FrontendOf(a netip.AddrPort) Frontend {
	return Frontend{a.Addr(), PortRange{a.Port(), a.Port()}}
}

// Addr is the VIP.
func (f Frontend) Addr() netip.Addr { return f.VIP }

// Port is the first of the ports.
func (f Frontend) Port() uint16 { return f.Ports.First }

// String writes 192.0.2.100:80, 192.0.2.100:8000-8100 or [2001:db8::100]:*.
func (f Frontend) String() string {
	if f.VIP.Is6() {
		return fmt.Sprintf("[%v]:%v", f.VIP, f.Ports)
	}
	return fmt.Sprintf("%v:%v", f.VIP, f.Ports)
}

// MarshalText writes what String does.
func (f Frontend) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (f *Frontend) UnmarshalText(text []byte) error {
	s := string(text)
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return fmt.Errorf("frontend %q has no port", s)
	}
	var err error
	if f.VIP, err = netip.ParseAddr(strings.Trim(s[:i], "[]")); err != nil {
		return fmt.Errorf("frontend %q: %w", s, err)
	}
	first, last, two := strings.Cut(s[i+1:], "-")
	if first == "*" {
		f.Ports = EveryPort
		return nil
	}
	if !two {
		last = first
	}
	for _, p := range []struct {
		into *uint16
		text string
	}{{&f.Ports.First, first}, {&f.Ports.Last, last}} {
		n, err := strconv.ParseUint(p.text, 10, 16)
		if err != nil {
			return fmt.Errorf("frontend %q: %w", s, err)
		}
		*p.into = uint16(n)
	}
	return nil
}

// CompareFrontends orders by VIP, then by ports.
func CompareFrontends(a, b Frontend) int {
	return cmp.Or(a.VIP.Compare(b.VIP), cmp.Compare(a.Ports.First, b.Ports.First), cmp.Compare(a.Ports.Last, b.Ports.Last))
}

// A Scheduler says what of a packet chooses its slot.
type Scheduler uint8

// The schedulers.
const (
	// Maglev takes addresses, ports and protocol: each connection by itself.
	Maglev Scheduler = iota
	// SourceHash takes the client's address alone: all that a client does with
	// the service goes to one backend.
	SourceHash
)

// An Affinity says what keeps a UDP flow with its backend.
type Affinity uint8

// The affinities.
const (
	// AffinityNone: the slot alone. A change of backends moves some flows.
	AffinityNone Affinity = iota
	// AffinityFlow: an entry for each flow, a look-up for each packet.
	AffinityFlow
)

// A Rule lets a client in, or keeps it out. Of the rules that hold the client's
// address the longest prefix counts; of two that are equally long, the one that
// denies.
type Rule struct {
	Prefix netip.Prefix // masked
	Allow  bool
}

// A SourceLimit bounds how many connections one client's address (IPv6: its
// /64) may open. The zero value is no limit.
type SourceLimit struct {
	Rate  int // per second
	Burst int // at once; at least 1 where there is a rate
}

// A Server is a member of a pool, as configured.
type Server struct {
	Address netip.Addr
	Port    uint16 // 0: the port of the service
	Weight  int    // share of the table, 0 or more
	Backup  bool   // serves only when no primary is healthy
	Node    string // of Proxy: the node that it is
	Here    bool   // of Proxy: that is this one
}

// A Pool is a set of servers that are probed in the same way.
type Pool struct {
	Name    string
	Servers []Server
	Probe   *Probe // nil: not probed, always healthy
}

// A Service is a layer-4 service, as configured.
type Service struct {
	Name            string
	Addresses       []Frontend // all share one Maglev table
	Protocol        Protocol
	Forward         Forward
	SourceAddresses []netip.Addr // for NAT, of the VIPs' family; never empty there
	// KeepsPorts is of NAT, where the service has several ports and its servers have none
	// of their own: each packet reaches the port that it came to.
	KeepsPorts bool
	Scheduler  Scheduler
	Affinity   Affinity // of UDP in a stateless mode
	TableSize  int      // slots, a prime
	Quorum     int      // healthy backends below which the service is reported as below quorum
	// SlowStart is how long a backend that comes back takes to its full weight.
	SlowStart time.Duration
	// TrackWindow is how long after a planned change of backends a connection is
	// found, by any packet of its, and stays where it is. 0: its slot moves at once.
	TrackWindow time.Duration
	// DrainTimeout is how long a removed backend keeps its connections.
	DrainTimeout time.Duration
	// Rules say who may use the service. AllowOnly: who matches none may not.
	Rules       []Rule
	AllowOnly   bool
	SourceLimit SourceLimit
	Pool        Pool
}

// A Misfit is why the data plane has no room for the services of a configuration.
type Misfit struct {
	Service int    // the first one, by its place in the list, that does not fit any more
	Message string // one line
}

// A NextHop is where a frame goes on the link: what is written into it and the
// interface it leaves by. The zero value is none.
type NextHop struct {
	Interface   int     // index
	Destination [6]byte // MAC address of the neighbour
	Source      [6]byte // MAC address of the interface
	VLANs       [2]uint16
	Tags        int // how many of VLANs are written, outer first
	MTU         int // the longest IP packet on the way, in bytes; 0: not known
	// Routed tells that the neighbour is a gateway, which the data plane does not ask.
	Routed bool
}

// Known tells whether h leads anywhere.
func (h NextHop) Known() bool { return h.Interface != 0 }

// Here is the next hop of a backend that is this node itself. Its interface is none
// (INTERFACE_HERE in bpf/types.h).
var Here = NextHop{Interface: math.MaxInt32}

// A Backend is one destination of a service in a Snapshot.
type Backend struct {
	Address netip.AddrPort // the port is never 0
	// Weight is the share of the table. 0 keeps the backend known, so that what
	// it already serves goes on, but gives it no slot: it drains.
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
	// Followed: another node's table is in force, which was adopted: slots stay as they
	// are, and so does which backends count as failed, whatever Backends says. Without
	// it again, the change to this node's own table is a planned one.
	Followed bool
	// Leaving are backends that the configuration does not have, and their next hops,
	// for as long as they are there: an adopted table has brought them, or a change of
	// the configuration has left them.
	Leaving []Backend
}

// A Snapshot is the world as it should be. It is immutable: whoever holds one
// may keep it and compare it with a later one.
type Snapshot struct {
	Services []ServiceState // sorted by Name
}
