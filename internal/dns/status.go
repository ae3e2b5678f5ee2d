package dns

import (
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// A Status is how a responder is.
type Status struct {
	Listeners []ListenerStatus `json:"listeners"` // by address
	Zones     []ZoneStatus     `json:"zones"`     // in the order of the configuration
	Records   []RecordStatus   `json:"records"`   // the same
	Pools     []PoolStatus     `json:"pools"`     // in the order in which records name them
	// Answers counts what was sent, by the name of the response code: "NOERROR".
	Answers map[string]uint64 `json:"answers"`
	// Dropped counts messages that got no answer, by reason.
	Dropped map[string]uint64 `json:"dropped"`
	// Truncated answers did not fit into a datagram; Slipped ones were too many, and have
	// asked the client to come over TCP.
	Truncated   uint64 `json:"truncated"`
	Slipped     uint64 `json:"slipped"`
	Connections int    `json:"connections"` // that are open
	Evicted     uint64 `json:"evicted"`     // connections that made room for newer ones
}

// A ListenerStatus is how a listener is.
type ListenerStatus struct {
	Address  netip.AddrPort `json:"address"`
	UDP      uint64         `json:"udp"`      // messages
	TCP      uint64         `json:"tcp"`      // messages
	Accepted uint64         `json:"accepted"` // connections
}

// A ZoneStatus is a zone.
type ZoneStatus struct {
	Name   string `json:"name"`
	Serial uint32 `json:"serial"`
}

// A RecordStatus is how a record is.
type RecordStatus struct {
	Name    string `json:"name"`
	Policy  string `json:"policy"`
	TTL     int    `json:"ttl"` // in seconds
	Pool    string `json:"pool"`
	Queries uint64 `json:"queries"`
}

// A PoolStatus is how a pool is.
type PoolStatus struct {
	Name string `json:"name"`
	// Port is where servers that have none are probed; 0: nowhere.
	Port uint16 `json:"port"`
	// Healthy is false where no server is: all are given that were not taken out on
	// purpose.
	Healthy bool         `json:"healthy"`
	Servers []PoolServer `json:"servers"` // in the order of the configuration
}

// A PoolServer is how a server of a pool is.
type PoolServer struct {
	Address string    `json:"address"` // with the port where it is probed, if there is one
	State   State     `json:"state"`
	Why     string    `json:"why,omitempty"`
	Since   time.Time `json:"since"`
	Weight  int       `json:"weight"`
	Backup  bool      `json:"backup"`
	Given   bool      `json:"given"`   // its address is among those that are answered
	Answers uint64    `json:"answers"` // that it was chosen for
}

// Status tells how the responder is.
func (r *Responder) Status() Status {
	w := r.now.Load()
	s := Status{
		Listeners: []ListenerStatus{}, Zones: []ZoneStatus{}, Records: []RecordStatus{}, Pools: []PoolStatus{},
		Answers: r.counts.answersByName(), Dropped: map[string]uint64{},
		Truncated: r.counts.truncated.Load(), Slipped: r.counts.slipped.Load(),
	}
	for reason, name := range dropNames {
		s.Dropped[name] = r.counts.dropped[reason].Load()
	}
	s.Connections, s.Evicted = r.conns.count()
	for at, l := range w.listeners {
		s.Listeners = append(s.Listeners, ListenerStatus{at, l.overUDP.Load(), l.overTCP.Load(), l.accepted.Load()})
	}
	slices.SortFunc(s.Listeners, func(a, b ListenerStatus) int { return a.Address.Compare(b.Address) })
	for _, z := range w.config.Zones {
		s.Zones = append(s.Zones, ZoneStatus{z.Name, w.zones[z.Name].serial})
	}
	for _, k := range w.records {
		c := k.config
		s.Records = append(s.Records, RecordStatus{c.Name, string(c.Policy), int(c.TTL / time.Second), c.Pool.Name, k.stats.queries.Load()})
	}
	for _, p := range w.pools {
		s.Pools = append(s.Pools, p.status())
	}
	return s
}

func (p *pool) status() PoolStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now.Load()
	s := PoolStatus{Name: p.name, Port: p.record.Port, Healthy: now.healthy}
	for _, k := range p.servers {
		given := slices.ContainsFunc(now.of(k.config.Address.Is6()), func(c candidate) bool { return slices.Contains(c.servers, k) })
		s.Servers = append(s.Servers, PoolServer{
			Address: k.text, State: k.state, Why: k.why, Since: k.since, Weight: k.weight, Backup: k.config.Backup,
			Given: given, Answers: k.given.Load(),
		})
	}
	return s
}

// Why a message got no answer.
type dropReason int

const (
	dropMalformed   dropReason = iota // it is no message
	dropResponse                      // it is an answer
	dropRateLimited                   // its network has had too many
	dropUnsent                        // the kernel has not taken the answer
)

var dropNames = [...]string{dropMalformed: "malformed", dropResponse: "response", dropRateLimited: "rate_limited", dropUnsent: "unsent"}

// counts are what a responder has counted.
type counts struct {
	answers            [dns.RcodeBadVers + 1]atomic.Uint64 // by response code
	dropped            [len(dropNames)]atomic.Uint64
	truncated, slipped atomic.Uint64
}

func (c *counts) answer(rcode int)       { c.answers[rcode].Add(1) }
func (c *counts) drop(reason dropReason) { c.dropped[reason].Add(1) }

// rcodes are the response codes that there are here, by their names.
var rcodes = map[int]string{
	dns.RcodeSuccess: "NOERROR", dns.RcodeFormatError: "FORMERR", dns.RcodeServerFailure: "SERVFAIL", dns.RcodeNameError: "NXDOMAIN",
	dns.RcodeNotImplemented: "NOTIMP", dns.RcodeRefused: "REFUSED", dns.RcodeBadVers: "BADVERS",
}

func (c *counts) answersByName() map[string]uint64 {
	all := map[string]uint64{}
	for rcode, name := range rcodes {
		all[name] = c.answers[rcode].Load()
	}
	return all
}
