package config

import (
	"net/netip"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// Bounds of a service's settings.
const (
	minTableSize = 2
	maxTableSize = 1 << 20

	defaultTrackWindow  = 5 * time.Minute
	minTrackWindow      = time.Second    // but for 0, which is none
	maxTrackWindow      = 18 * time.Hour // a slot has room for the time of 18.2 hours
	defaultDrainTimeout = time.Hour
	maxDrainTimeout     = 7 * 24 * time.Hour
	maxSlowStart        = 24 * time.Hour
)

// serviceSettings decodes the keys that may have defaults. What the service
// sets itself must go with its protocol and forwarding mode; a default that does
// not is meant for other services. A word that is not known leaves 0: nothing
// that depends on it is checked.
//
// It returns the places of the source addresses that the service itself sets.
func (d *decoder) serviceSettings(f fields, s *lb.Service) (sources []*node) {
	s.Protocol, s.Quorum, s.TableSize = lb.TCP, 1, lb.DefaultTableSize
	if n := f.get("protocol"); n != nil {
		w, _ := d.oneOf(n, "protocol", []string{"tcp", "udp"}, nil)
		s.Protocol = map[string]lb.Protocol{"tcp": lb.TCP, "udp": lb.UDP}[w]
	}
	s.Forward = d.forward(f)
	s.Scheduler = d.scheduler(f)
	s.Affinity = d.affinity(f, s)
	if n := f.get("source_addresses"); n != nil {
		sources = d.sourceAddresses(f, n, s)
	}
	if n := f.get("quorum"); n != nil {
		if i, ok := d.integer(n, "quorum", 0, maxWeight); ok {
			s.Quorum = i
		}
	}
	if n := f.get("table_size"); n != nil {
		if i, ok := d.integer(n, "table_size", minTableSize, maxTableSize); ok {
			if !isPrime(i) {
				d.errorf(n, "table_size must be a prime, not %d: take %d", i, nextPrime(i))
			} else {
				s.TableSize = i
			}
		}
	}
	d.times(f, s)
	d.access(f, s)
	return sources
}

// forward decodes forward and source_nat, which together are the forwarding
// mode.
func (d *decoder) forward(f fields) lb.Forward {
	mode := lb.NAT
	if n := f.get("forward"); n != nil {
		w, _ := d.oneOf(n, "forward", []string{"nat", "dsr", "tunnel", "proxy"}, nil)
		if w == "proxy" { // a service of its own has been seen before
			d.errorf(n, "forward: proxy is no default: each such service says it itself")
		}
		mode = map[string]lb.Forward{"nat": lb.NAT, "dsr": lb.DSR, "tunnel": lb.Tunnel}[w]
	}
	n := f.get("source_nat")
	if n == nil {
		return mode
	}
	on, ok := d.boolean(n, "source_nat")
	switch {
	case mode == lb.NAT && !ok:
		return 0
	case mode == lb.NAT && !on:
		return lb.DNAT
	case ok && mode.Stateless() && mode != 0 && f.sets("source_nat"):
		d.errorf(n, "source_nat is for forward: nat; with %v the backend sees the client's address", mode)
	}
	return mode
}

func (d *decoder) scheduler(f fields) lb.Scheduler {
	if n := f.get("scheduler"); n != nil {
		if w, _ := d.oneOf(n, "scheduler", []string{"maglev", "source_hash"}, nil); w == "source_hash" {
			return lb.SourceHash
		}
	}
	return lb.Maglev
}

func (d *decoder) affinity(f fields, s *lb.Service) lb.Affinity {
	n := f.get("affinity")
	if n == nil {
		return lb.AffinityNone
	}
	if w, _ := d.oneOf(n, "affinity", []string{"none", "flow"}, nil); w != "flow" {
		return lb.AffinityNone
	}
	why := ""
	switch {
	case s.Protocol == lb.TCP:
		why = "is for protocol: udp; a tcp connection stays with its backend anyway"
	case s.Forward == lb.NAT:
		why = "says nothing with source NAT, which keeps an entry for each flow anyway: leave it out"
	default:
		return lb.AffinityFlow
	}
	if f.sets("affinity") {
		d.errorf(n, "affinity: flow %s", why)
	}
	return lb.AffinityNone
}

// times decodes what depends on when backends come, change and go.
func (d *decoder) times(f fields, s *lb.Service) {
	s.TrackWindow, s.DrainTimeout = defaultTrackWindow, defaultDrainTimeout
	if n := f.get("slow_start"); n != nil {
		s.SlowStart, _ = d.duration(n, "slow_start", 0, maxSlowStart)
	}
	if n := f.get("track_window"); n != nil {
		v, ok := d.duration(n, "track_window", 0, maxTrackWindow)
		if ok && v > 0 && v < minTrackWindow {
			d.errorf(n, "track_window must be 0s (none) or at least %s, not %s", short(minTrackWindow), n.text)
		}
		s.TrackWindow = v
	}
	if n := f.get("drain_timeout"); n != nil {
		s.DrainTimeout, _ = d.duration(n, "drain_timeout", 0, maxDrainTimeout)
	}
}

// sourceAddresses decodes the addresses that nat sends from. Of the defaults,
// those of the VIPs' family are taken: whether the service's own are of that
// family is checked with all else that is of one.
func (d *decoder) sourceAddresses(f fields, n *node, s *lb.Service) (places []*node) {
	items, ok := d.list(n, "source_addresses")
	if !ok {
		return nil
	}
	own := f.sets("source_addresses")
	if s.Forward != lb.NAT && s.Forward != 0 {
		if own && len(items) > 0 {
			d.errorf(n, "source_addresses is for forward: nat; with %v the backend sees the client's address", s.Forward)
		}
		return nil
	}
	seen := map[netip.Addr]bool{}
	for _, item := range items {
		a, ok := d.address(item, "source address")
		if !ok {
			continue
		}
		if seen[a] {
			d.errorf(item, "duplicate source address %v", a)
			continue
		}
		seen[a] = true
		switch {
		case own:
			places = append(places, item)
		case len(s.Addresses) > 0 && a.Is4() != s.Addresses[0].VIP.Is4():
			continue
		}
		s.SourceAddresses = append(s.SourceAddresses, a)
	}
	return places
}

func isPrime(n int) bool {
	for i := 2; i*i <= n; i++ {
		if n%i == 0 {
			return false
		}
	}
	return n >= 2
}

// nextPrime returns the least prime above n, or the greatest one that a table
// may have.
func nextPrime(n int) int {
	for p := n + 1; p <= maxTableSize; p++ {
		if isPrime(p) {
			return p
		}
	}
	for p := n - 1; ; p-- {
		if isPrime(p) {
			return p
		}
	}
}
