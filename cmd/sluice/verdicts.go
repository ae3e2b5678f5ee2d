package main

import (
	"context"
	"fmt"
	"net/netip"
	"sync"

	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
)

// signalOnce leaves a signal where none is waiting.
func signalOnce(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// An endpointer is who has a pool beside services: an upstream, or a record of dns.
type endpointer interface {
	Endpoint(lb.Server) netip.AddrPort
}

// targetsOf are what is probed of the servers of a pool: what others that have the pool
// have probed, too, is probed once. Who is as healthy as a check has none.
func targetsOf(p lb.Pool, of endpointer) (all []health.Target) {
	if p.Probe == nil || p.Probe.Type == lb.ProbeCheck {
		return nil
	}
	for _, s := range p.Servers {
		all = append(all, targetOf(p, of, s))
	}
	return all
}

func targetOf(p lb.Pool, of endpointer, s lb.Server) health.Target {
	return health.Target{Address: of.Endpoint(s), Probe: *p.Probe}
}

// verdictOn is what probes or a check say of a server of a pool that has health, and why
// where that is not Up. Tried, without a verdict: all that is known are failures, too few for
// one. A share that is nil has probed nothing yet.
func (n *node) verdictOn(share *health.Share, p lb.Pool, of endpointer, s lb.Server) (v health.Verdict, tried bool, why string) {
	switch {
	case share == nil:
		return health.Unknown, false, "not probed yet"
	case p.Probe.Type == lb.ProbeCheck:
		v, why = n.tracker.Verdict(p.Probe.Check)
		if v == health.Unknown {
			return v, false, fmt.Sprintf("check %s has no result yet", p.Probe.Check)
		}
		return v, true, fmt.Sprintf("check %s fails: %s", p.Probe.Check, why)
	}
	probed, _ := share.Status(targetOf(p, of, s))
	if probed.Verdict == health.Unknown {
		return probed.Verdict, probed.Tried(), probed.WhyUnknown(*p.Probe)
	}
	return probed.Verdict, true, probed.LastError
}

// followVerdicts has what is known of servers looked at again, until ctx ends: when a
// verdict has changed, and when somebody asks for it.
func followVerdicts(ctx context.Context, goroutines *sync.WaitGroup, share *health.Share, asked <-chan struct{}, look func()) {
	goroutines.Go(func() {
		for {
			select {
			case <-share.Changed():
			case <-asked:
			case <-ctx.Done():
				return
			}
			look()
		}
	})
}
