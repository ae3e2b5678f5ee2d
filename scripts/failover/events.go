package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/sluice-lb/sluice/internal/testenv"
)

const (
	// interval is the time between two probes of the client.
	interval = time.Millisecond
	// calm is how many probes in a row must be answered before an event and after it.
	calm = 200
)

// errorOutput is where logs go when something fails.
var errorOutput = os.Stderr

// An event happens to the first node, which has the VIPs before it, or takes them
// back by it.
type event struct {
	name string
	do   func(*pair) error
	// over returns an error until the VIPs have moved.
	over func(*pair, context.Context, time.Time) error
	// planned: probes that are lost are counted, too.
	planned bool
	// synchronous: it begins with an advertisement, so that the silence is as long
	// as it may get, in every round and with every program.
	synchronous bool
	// mend brings the first node back.
	mend func(*pair, context.Context) error
}

// events are those of a round, in their order. The first node is Active before the
// first and after the last.
var events = []event{
	{name: "stop", do: (*pair).stopFirst, over: (*pair).handedOver, planned: true},
	{name: "handback", do: func(p *pair) error { return p.start(first) }, over: (*pair).handedBack, planned: true},
	{name: "crash", do: (*pair).crashFirst, over: (*pair).takenOver, synchronous: true, mend: (*pair).bootFirst},
	{name: "kill", do: (*pair).killFirst, over: (*pair).takenOver, synchronous: true,
		mend: func(p *pair, _ context.Context) error { return p.start(first) }},
}

// stopFirst stops the daemon as systemd would, and does not wait for its end.
func (p *pair) stopFirst() error { return p.daemons[first].Signal(syscall.SIGTERM) }

// crashFirst makes the first machine go: cut first, lest its end is heard.
func (p *pair) crashFirst() error {
	return errors.Join(p.lab.Host(first).LinkDown(), p.daemons[first].Kill())
}

// killFirst kills the daemon alone, which leaves its VIPs.
func (p *pair) killFirst() error {
	if err := p.daemons[first].Kill(); err != nil {
		return err
	}
	if err := p.wantVIPs(first, true); err != nil {
		return fmt.Errorf("the daemon was to be killed, but has cleaned up: %w", err)
	}
	return nil
}

// bootFirst brings a machine back that has crashed: it remembers nothing.
func (p *pair) bootFirst(ctx context.Context) error {
	h := p.lab.Host(first)
	if err := p.program.clear(ctx, h); err != nil {
		return err
	}
	if err := p.removeVIPs(h); err != nil {
		return err
	}
	if err := h.LinkUp(); err != nil {
		return err
	}
	return p.start(first)
}

// takenOver: the second node has the VIPs.
func (p *pair) takenOver(_ context.Context, since time.Time) error {
	if !p.wire.last(p.lab.Host(second).Address()).After(since) {
		return fmt.Errorf("%s was not heard", second)
	}
	return p.wantVIPs(second, true)
}

// handedOver: the second node has them, and the first one has ended as it should.
func (p *pair) handedOver(ctx context.Context, since time.Time) error {
	select {
	case <-p.daemons[first].Done():
	default:
		return fmt.Errorf("%s on %s is still running", p.program.name(), first)
	}
	if err := p.daemons[first].Wait(); err != nil {
		return fmt.Errorf("%w: %s on %s ended with: %w", testenv.ErrGiveUp, p.program.name(), first, err)
	}
	if err := p.wantVIPs(first, false); err != nil {
		return err
	}
	return p.takenOver(ctx, since)
}

// handedBack: all is as it was in the beginning.
func (p *pair) handedBack(ctx context.Context, since time.Time) error {
	if !p.wire.last(p.lab.Host(first).Address()).After(since) {
		return fmt.Errorf("%s was not heard", first)
	}
	return p.atRest(ctx)
}

// round measures each event once.
func (p *pair) round(ctx context.Context, configuration string, f *figures) error {
	for _, e := range events {
		if err := p.measure(ctx, e, configuration, f); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
		if e.mend == nil {
			continue
		}
		if err := e.mend(p, ctx); err != nil {
			return fmt.Errorf("bring %s back after %s: %w", first, e.name, err)
		}
		if err := p.wait(ctx, first+" back after "+e.name, p.atRest); err != nil {
			return err
		}
	}
	return nil
}

// measure has an event happen while a client probes both VIPs.
func (p *pair) measure(ctx context.Context, e event, configuration string, f *figures) (err error) {
	var probers []*testenv.DatagramProber
	var results []testenv.DatagramResult
	stop := func() (err error) {
		for _, prober := range probers {
			result, stopErr := prober.Stop()
			results, err = append(results, result), errors.Join(err, stopErr)
		}
		probers = nil
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	for _, vip := range vips {
		prober, err := p.lab.Host("client").StartDatagramProber(netip.AddrPortFrom(vip, echoPort), interval)
		if err != nil {
			return err
		}
		probers = append(probers, prober)
	}
	if err := p.calm(ctx, probers); err != nil {
		return err
	}
	if e.synchronous {
		// A machine that stands still has the second node take over without a reason, for a
		// moment: then there would be nothing to measure.
		if err := p.wait(ctx, "rest before the event", p.atRest); err != nil {
			return err
		}
		if err := p.wire.next(ctx, p.lab.Host(first).Address()); err != nil {
			return err
		}
	}
	from := time.Now()
	if err := e.do(p); err != nil {
		return err
	}
	if err := p.wait(ctx, "the end of it", func(ctx context.Context) error { return e.over(p, ctx, from) }); err != nil {
		return err
	}
	if err := p.calm(ctx, probers); err != nil {
		return err
	}
	// What was sent last may be on its way.
	to := time.Now().Add(-calm / 2 * interval)
	if err := stop(); err != nil {
		return err
	}
	return p.note(e, configuration, results, from, to, f)
}

// calm waits until probes to all VIPs are answered, many in a row.
func (p *pair) calm(ctx context.Context, probers []*testenv.DatagramProber) error {
	before := make([]int, len(probers))
	for i, prober := range probers {
		before[i], _ = prober.Progress()
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return testenv.WaitFor(ctx, fmt.Sprintf("%d answers in a row", calm), func() (bool, error) {
		for i, prober := range probers {
			if answered, streak := prober.Progress(); answered < before[i]+calm || streak < calm {
				return false, fmt.Errorf("%d answers from %v, %d of them in a row", answered-before[i], vips[i], streak)
			}
		}
		return true, nil
	})
}

// note adds to the figures what the client has seen between two moments. A program
// that forwards in one mode only was probed twice alike, and counts once.
func (p *pair) note(e event, configuration string, results []testenv.DatagramResult, from, to time.Time, f *figures) error {
	for i, mode := range p.program.modes() {
		f.probes(results[i])
		if slices.Index(p.program.modes(), mode) < i {
			continue
		}
		name := fmt.Sprintf("failover.%s.%s.%s.", p.program.name(), configuration, e.name)
		if mode == "nat" {
			name += "nat."
		}
		silence := results[i].LongestSilenceBetween(from, to)
		f.Add(name+"ms", "ms", silence.Seconds()*1000)
		f.pause(name+"ms", results[i].LongestPauseBetween(from, to))
		if e.planned {
			f.Add(name+"lost", "probes", float64(results[i].LostBetween(from, to)))
		}
	}
	return nil
}
