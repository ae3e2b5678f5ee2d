package lb

import (
	"cmp"
	"net/netip"
	"time"
)

// DNS is what is answered with authority. The zero value answers nothing. Names are in
// lower case, with their final dot.
type DNS struct {
	Listen    []netip.AddrPort // over UDP and TCP; an unspecified one is all of its family
	Zones     []DNSZone
	Records   []DNSRecord
	RateLimit *DNSRateLimit // nil: none
	TCP       DNSTCP
}

// A DNSZone is a part of the tree of names that the node answers for: all below its
// name that is in no other zone.
type DNSZone struct {
	Name        string
	NameServers []DNSNameServer // one at least; the first is the SOA's primary one
	Mailbox     string          // of who is responsible, as a name
	// Serial of 0 is the moment when the zone has last changed.
	Serial                 uint32
	Refresh, Retry, Expire time.Duration
	TTL                    time.Duration // of all that is not said of a record
	NegativeTTL            time.Duration // of what is not there
}

// A DNSNameServer is a name server of a zone, and its addresses where they are to be
// answered here.
type DNSNameServer struct {
	Name      string
	Addresses []netip.Addr
}

// A DNSPolicy says which addresses of a pool are an answer, and in which order.
type DNSPolicy string

// The policies.
const (
	DNSRoundRobin DNSPolicy = "round_robin" // all, and each answer begins with the next one
	DNSWeighted   DNSPolicy = "weighted"    // one, by weight
	DNSSourceHash DNSPolicy = "source_hash" // one, by weight and the client's network
	DNSAll        DNSPolicy = "all"         // all, in the order of the pool
)

// A DNSRecord is a name whose addresses are those of a pool's servers.
type DNSRecord struct {
	Name    string // "*.example.com." is every name below that nothing else says anything of
	TTL     time.Duration
	Policy  DNSPolicy
	Answers int // addresses of an answer at most; 0: all
	Pool    Pool
	// Port is where servers that have none are probed, the same in all records of a pool;
	// 0: they are not probed at a port.
	Port uint16
}

// Endpoint is where a server of the record's pool is probed; the port may be 0.
func (r *DNSRecord) Endpoint(s Server) netip.AddrPort {
	return netip.AddrPortFrom(s.Address, cmp.Or(s.Port, r.Port))
}

// A DNSRateLimit bounds the answers of one kind over UDP to one network of clients.
type DNSRateLimit struct {
	Rate   int // a second
	Burst  int // at once, beyond one
	Slip   int // of the answers that are too many each Slip-th is sent cut short; 0: none
	Exempt []netip.Prefix
}

// DNSTCP bounds what connections cost.
type DNSTCP struct {
	MaxConnections int
	IdleTimeout    time.Duration
}
