package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/dns"
	"github.com/sluice-lb/sluice/internal/events"
	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
)

// A dnsFront is DNS of a node.
type dnsFront struct {
	responder *dns.Responder
	dirty     chan struct{} // something that counts for servers may have changed
	refreshed chan struct{} // what was known of them has been looked at
	share     *health.Share // guarded by node.mu; nil: nothing is probed yet
}

// touch has what is known of servers looked at again, soon. It never waits.
func (f *dnsFront) touch() { signalOnce(f.dirty) }

// openDNS begins to answer. Health is not known yet: all servers count as able.
func (n *node) openDNS() error {
	n.dns.dirty, n.dns.refreshed = make(chan struct{}, 1), make(chan struct{}, 1)
	n.dns.responder = dns.New(dns.Options{Log: n.log, Health: n.recordHealth, Event: n.recordPool})
	n.closers = append(n.closers, func() error { n.dns.responder.Close(); return nil })
	if err := n.dns.responder.Apply(n.cfg.DNS); err != nil {
		return fmt.Errorf("dns: %w", err)
	}
	return nil
}

// probeDNS has the servers of records probed, and what is found count, until ctx ends.
// The tracker is there already.
func (n *node) probeDNS(ctx context.Context, goroutines *sync.WaitGroup) {
	share := n.checker.Share()
	n.mu.Lock()
	n.dns.share = share
	n.mu.Unlock()
	share.Set(dnsTargets(&n.cfg.DNS))
	n.dns.touch()
	followVerdicts(ctx, goroutines, share, n.dns.dirty, func() {
		n.dns.responder.Refresh()
		signalOnce(n.dns.refreshed)
	})
}

// reloadDNS has another configuration answered, as soon as there is a verdict on the
// servers that are new in it, so that they are not given before. After an error the one
// of before is.
func (n *node) reloadDNS(before, next *config.Config) error {
	targets := dnsTargets(&next.DNS)
	n.dns.share.Set(append(dnsTargets(&before.DNS), targets...))
	if err := n.awaitVerdicts(targets, patience(next)); err != nil {
		n.dns.share.Set(dnsTargets(&before.DNS))
		return err
	}
	if err := n.dns.responder.Apply(next.DNS); err != nil {
		n.dns.share.Set(dnsTargets(&before.DNS))
		return fmt.Errorf("dns: %w", err)
	}
	n.dns.share.Set(targets)
	n.dns.responder.Refresh()
	return nil
}

// awaitVerdicts waits until there is a result of each of these targets, or patience is
// over: what is silent counts as down. The error is that the daemon stops.
func (n *node) awaitVerdicts(targets []health.Target, patience time.Duration) error {
	over := time.NewTimer(patience)
	defer over.Stop()
	untried := func(t health.Target) bool {
		s, _ := n.dns.share.Status(t)
		return !s.Tried()
	}
	for slices.ContainsFunc(targets, untried) {
		select {
		case <-n.dns.refreshed: // a verdict may have come
		case <-over.C:
			return nil
		case <-n.until.Done():
			return n.until.Err()
		}
	}
	return nil
}

// dnsTargets are what is probed of the servers of records: the addresses that clients are
// given, so not a VIP at them.
func dnsTargets(c *lb.DNS) (all []health.Target) {
	for i := range c.Records {
		all = append(all, targetsOf(c.Records[i].Pool, &c.Records[i])...)
	}
	return all
}

// recordHealth tells what probes and checks have found out, and what operators want.
func (n *node) recordHealth(r *lb.DNSRecord, s lb.Server) dns.Standing {
	o := n.overrides.Of(recordAsService(r), s)
	known := n.recordVerdict(r, s)
	known.Weight = s.Weight
	if o.Weight != nil {
		known.Weight = *o.Weight
	}
	switch o.State {
	case control.Disable:
		known.State, known.Why = dns.StateDisabled, "by an operator"
	case control.Drain: // where it fails, too: of servers that fail, drained ones are not given
		why := "by an operator"
		if known.State == dns.StateDown {
			why += "; " + known.Why
		}
		known.State, known.Why = dns.StateDrained, why
	}
	return known
}

// recordVerdict is what probes or a check say of a server. One that has been silent so far
// counts as down: clients would go to it for as long as they keep the answer, and where no
// other one is up it is given all the same.
func (n *node) recordVerdict(r *lb.DNSRecord, s lb.Server) dns.Standing {
	if r.Pool.Probe == nil {
		return dns.Standing{State: dns.StateUp}
	}
	n.mu.RLock()
	share := n.dns.share
	n.mu.RUnlock()
	switch v, tried, why := n.verdictOn(share, r.Pool, r, s); {
	case v == health.Up:
		return dns.Standing{State: dns.StateUp}
	case tried:
		return dns.Standing{State: dns.StateDown, Why: why}
	default:
		return dns.Standing{State: dns.StateUnknown, Why: why}
	}
}

// recordAsService is a record as operators' changes know it: by its pool's name.
func recordAsService(r *lb.DNSRecord) lb.Service {
	return lb.Service{Name: r.Pool.Name, Pool: r.Pool, Addresses: []lb.Frontend{{Ports: lb.PortRange{First: r.Port, Last: r.Port}}}}
}

// changeable are those beside services whose servers operators may change: upstreams, and
// pools of records.
func changeable(cfg *config.Config) (all []lb.Service) {
	for i := range cfg.HTTP.Upstreams {
		all = append(all, asService(&cfg.HTTP.Upstreams[i]))
	}
	for i := range cfg.DNS.Records {
		all = append(all, recordAsService(&cfg.DNS.Records[i]))
	}
	return all
}

func (n *node) recordPool(e dns.Event) {
	n.events.Record(events.Event{
		Type: events.PoolState, Service: e.Pool, Server: e.Server, From: string(e.From), To: string(e.To), Text: e.Text,
	})
}

// dnsStatus is how DNS is; nil: nothing is answered.
func (n *node) dnsStatus() *dns.Status {
	if len(n.config().DNS.Listen) == 0 {
		return nil
	}
	s := n.dns.responder.Status()
	return &s
}

// printDNS prints DNS.
func printDNS(b *strings.Builder, s control.Status) {
	d := s.DNS
	if d == nil {
		return
	}
	t := tabwriter.NewWriter(b, 0, 8, 2, ' ', 0)
	fmt.Fprintln(b, "\ndns")
	fmt.Fprintln(t, "  LISTEN\tQUERIES BY UDP\tBY TCP\tCONNECTIONS\t")
	for _, l := range d.Listeners {
		fmt.Fprintf(t, "  %v\t%d\t%d\t%d\t\n", l.Address, l.UDP, l.TCP, l.Accepted)
	}
	fmt.Fprintln(t, "  ZONE\tSERIAL\t")
	for _, z := range d.Zones {
		fmt.Fprintf(t, "  %s\t%d\t\n", z.Name, z.Serial)
	}
	fmt.Fprintln(t, "  RECORD\tPOLICY\tTTL\tPOOL\tQUERIES\t")
	for _, r := range d.Records {
		fmt.Fprintf(t, "  %s\t%s\t%ds\t%s\t%d\t\n", r.Name, strings.ReplaceAll(r.Policy, "_", " "), r.TTL, r.Pool, r.Queries)
	}
	t.Flush()
	fmt.Fprintf(b, "  answers: %s\n", counted(d.Answers, "none"))
	if text := counted(d.Dropped, ""); text != "" {
		fmt.Fprintf(b, "  without an answer: %s\n", text)
	}
	if d.Truncated+d.Slipped > 0 {
		fmt.Fprintf(b, "  sent to come again over TCP: %d too long, %d too many\n", d.Truncated, d.Slipped)
	}
	for _, p := range d.Pools {
		note := ""
		if !p.Healthy {
			note = ": no server is healthy"
		}
		fmt.Fprintf(b, "\ndns pool %s%s\n", p.Name, note)
		fmt.Fprintln(t, "  SERVER\tSTATE\tFOR\tWEIGHT\tGIVEN\tANSWERS\t")
		for _, k := range p.Servers {
			state, given := string(k.State), "no"
			if k.Backup {
				state += " backup"
			}
			if k.Given {
				given = "yes"
			}
			fmt.Fprintf(t, "  %s\t%s\t%s\t%d\t%s\t%d\t%s\n", k.Address, state, age(s.Time, k.Since), k.Weight, given, k.Answers, k.Why)
		}
		t.Flush()
	}
}

// counted names what was counted, or says that there is nothing.
func counted(all map[string]uint64, nothing string) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if n := all[name]; n > 0 {
			parts = append(parts, fmt.Sprintf("%s %d", strings.ReplaceAll(name, "_", " "), n))
		}
	}
	if len(parts) == 0 {
		return nothing
	}
	return strings.Join(parts, ", ")
}
