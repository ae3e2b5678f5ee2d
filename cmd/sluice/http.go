package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/events"
	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/l7"
)

// drainHTTP is how long requests that are under way when the daemon stops may take.
const drainHTTP = 10 * time.Second

// An httpFront is layer 7 of a node.
type httpFront struct {
	proxy *l7.Proxy
	dirty chan struct{} // something that counts for servers may have changed
	share *health.Share // guarded by node.mu; nil: nothing is probed yet
}

// touch has what is known of servers looked at again, soon. It never waits.
func (f *httpFront) touch() { signalOnce(f.dirty) }

// openHTTP begins to serve. Health is not known yet: all servers count as able.
func (n *node) openHTTP() error {
	n.http.dirty = make(chan struct{}, 1)
	n.http.proxy = l7.New(l7.Options{Log: n.log, Health: n.upstreamHealth, Event: n.recordUpstream})
	n.closers = append(n.closers, func() error { n.closeHTTP(); return nil })
	if err := n.http.proxy.Apply(n.cfg.HTTP); err != nil {
		return fmt.Errorf("http: %w", err)
	}
	return nil
}

// closeHTTP accepts nothing more, and gives requests that are under way their time. A
// second time it does nothing.
func (n *node) closeHTTP() {
	ctx, cancel := context.WithTimeout(context.Background(), drainHTTP)
	defer cancel()
	n.http.proxy.Close(ctx)
}

// probeHTTP has the servers of upstreams probed, and what is found count, until ctx ends.
// The tracker is there already.
func (n *node) probeHTTP(ctx context.Context, goroutines *sync.WaitGroup) {
	share := n.checker.Share()
	n.mu.Lock()
	n.http.share = share
	n.mu.Unlock()
	share.Set(httpTargets(&n.cfg.HTTP))
	n.http.touch()
	followVerdicts(ctx, goroutines, share, n.http.dirty, func() {
		n.http.proxy.Refresh()
		n.tracker.Dirty() // who tracks an upstream may want to know
	})
}

// reloadHTTP has another configuration served. After an error the one of before is. New
// targets are there before they are asked about: they know what those of before did.
func (n *node) reloadHTTP(before, next *config.Config) error {
	n.http.share.Set(httpTargets(&next.HTTP))
	if err := n.http.proxy.Apply(next.HTTP); err != nil {
		n.http.share.Set(httpTargets(&before.HTTP))
		return fmt.Errorf("http: %w", err)
	}
	return nil
}

// httpTargets are what is probed of the servers of upstreams.
func httpTargets(h *lb.HTTP) (all []health.Target) {
	for i := range h.Upstreams {
		all = append(all, targetsOf(h.Upstreams[i].Pool, &h.Upstreams[i])...)
	}
	return all
}

// upstreamHealth tells what probes and checks have found out, and what operators want.
func (n *node) upstreamHealth(u *lb.Upstream, s lb.Server) l7.Standing {
	o := n.overrides.Of(asService(u), s)
	known := n.upstreamVerdict(u, s)
	known.Weight = s.Weight
	if o.Weight != nil {
		known.Weight = *o.Weight
	}
	switch {
	case o.State == control.Disable:
		known.State, known.Why = l7.StateDown, "disabled by an operator"
	case o.State == control.Drain && known.State != l7.StateDown:
		known.State, known.Why = l7.StateDrained, "drained by an operator"
	}
	return known
}

// upstreamVerdict is what probes or a check say of a server.
func (n *node) upstreamVerdict(u *lb.Upstream, s lb.Server) l7.Standing {
	n.mu.RLock()
	share := n.http.share
	n.mu.RUnlock()
	if u.Pool.Probe == nil || share == nil { // nobody is asked, or not yet: requests find out
		return l7.Standing{State: l7.StateUnknown}
	}
	switch v, _, why := n.verdictOn(share, u.Pool, u, s); v {
	case health.Up:
		return l7.Standing{State: l7.StateUp}
	case health.Down:
		return l7.Standing{State: l7.StateDown, Why: why}
	default:
		return l7.Standing{State: l7.StateUnknown, Why: why, Pending: true}
	}
}

// asService is an upstream as operators' changes know it: by its name, or its pool's.
func asService(u *lb.Upstream) lb.Service {
	s := lb.Service{Name: u.Name, Pool: u.Pool, Addresses: []lb.Frontend{{Ports: lb.PortRange{First: u.Port, Last: u.Port}}}}
	if s.Pool.Name == "" {
		s.Pool.Name = u.Name
	}
	return s
}

// Change makes an operator's change to servers of services, upstreams and records.
func (d daemonOf) Change(c control.Change) (text string, err error) {
	others := changeable(d.config())
	switch {
	case d.loop != nil:
		text, err = d.loop.Change(c, others...)
	case len(others) == 0:
		return "", errors.New("there is no service, no upstream and no record, so there is no backend to change")
	default:
		if text, err = d.overrides.Apply(c, others); err == nil {
			d.log.Info("changed by an operator", "change", text)
			d.events.Record(events.Event{Type: events.OperatorChange, To: string(c.Action), Text: text})
		}
	}
	if err == nil {
		d.http.proxy.Refresh()
		d.dns.responder.Refresh()
		d.tracker.Dirty()
	}
	return text, err
}

func (n *node) recordUpstream(e l7.Event) {
	n.events.Record(events.Event{
		Type: events.UpstreamState, Service: e.Upstream, Server: e.Server, From: string(e.From), To: string(e.To), Text: e.Text,
	})
}

// httpStatus is how layer 7 is; nil: nothing is served there.
func (n *node) httpStatus() *l7.Status {
	if len(n.config().HTTP.Servers) == 0 {
		return nil
	}
	s := n.http.proxy.Status()
	return &s
}

// printHTTP prints layer 7.
func printHTTP(b *strings.Builder, s control.Status) {
	if s.HTTP == nil {
		return
	}
	t := tabwriter.NewWriter(b, 0, 8, 2, ' ', 0)
	c := s.HTTP.Connections
	fmt.Fprintf(b, "\nhttp: %d of %d connections of clients, %d of %d to servers\n", c.Open, c.Max, c.Servers, c.MaxServers)
	fmt.Fprintln(t, "  SERVER\tLISTEN\tIN FLIGHT\tREQUESTS\t2XX\t3XX\t4XX\t5XX\tRECEIVED\tSENT\t")
	for _, v := range s.HTTP.Servers {
		var at []string
		for _, l := range v.Listen {
			at = append(at, l.String())
		}
		fmt.Fprintf(t, "  %s\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t\n", v.Name, strings.Join(at, ", "), v.InFlight, v.Requests,
			v.Answers["2xx"], v.Answers["3xx"], v.Answers["4xx"], v.Answers["5xx"], v.Received, v.Sent)
	}
	t.Flush()
	for _, u := range s.HTTP.Upstreams {
		policy := strings.ReplaceAll(u.Policy, "_", " ")
		if u.Sticky != nil {
			policy += fmt.Sprintf(", sticky by %s (%d moved)", u.Sticky.Cookie, u.Sticky.Moved)
		}
		fmt.Fprintf(b, "\nupstream %s: %s, %d requests, %d answered by nobody\n", u.Name, policy, u.Requests, u.Failures)
		fmt.Fprintln(t, "  SERVER\tSTATE\tFOR\tWEIGHT\tIN FLIGHT\tREQUESTS\tFAILURES\tBYTES\t")
		for _, k := range u.Servers {
			state := string(k.State)
			if k.Backup {
				state += " backup"
			}
			fmt.Fprintf(t, "  %s\t%s\t%s\t%d\t%d\t%d\t%d\t%d\t%s\n", k.Address, state, age(s.Time, k.Since), k.Weight, k.InFlight, k.Requests, k.Failures, k.Bytes, k.Reason(s.Time))
		}
		t.Flush()
	}
	if n := s.HTTP.LogDropped; n > 0 {
		fmt.Fprintf(b, "  %d lines of access logs are lost\n", n)
	}
}
