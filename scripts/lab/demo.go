package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/sluice-lb/sluice/internal/testenv"
)

const (
	// demoLimit bounds the whole demo.
	demoLimit = 110 * time.Second
	// vipWait is how long the VIP may take to come or to move. The protocol
	// needs 0.4 s at the demo's advertisement interval.
	vipWait = 15 * time.Second
	// healthWait is how long a backend may take to go or to come back. Its
	// health needs 0.6 s.
	healthWait = 10 * time.Second
	// connections are opened to each service to see the spread.
	connections = 2000
	// watchInterval is the time between two requests of the restless client.
	watchInterval = 5 * time.Millisecond
)

// demoDownload lasts 6 s: longer than a failover.
var demoDownload = testenv.NginxConfig{DownloadSize: 12 << 20, DownloadRate: 2 << 20}

// A show is one run of the demo. Each of its steps checks what it shows.
type show struct {
	*pair
	out   io.Writer
	start time.Time

	figures []string // for the end
}

func (s *show) say(format string, args ...any) {
	fmt.Fprintf(s.out, "[%5.1fs] %s\n", time.Since(s.start).Seconds(), fmt.Sprintf(format, args...))
}

func (s *show) figure(format string, args ...any) {
	s.figures = append(s.figures, fmt.Sprintf(format, args...))
}

// demo shows the main job from start to end. Whatever happens, nothing stays.
func demo(ctx context.Context, sluice string, out io.Writer) error {
	ctx, cancel := context.WithTimeoutCause(ctx, demoLimit, fmt.Errorf("the demo has taken %v", demoLimit))
	defer cancel()
	s := &show{out: out, start: time.Now()}
	prefix := fmt.Sprintf("%s%d", testenv.DemoPrefix, os.Getpid())
	s.say("building: a client, two nodes, three backends with nginx on one segment")
	var err error
	if s.pair, err = newPair(ctx, prefix, sluice, demoDownload); err != nil {
		return fmt.Errorf("demo: build the lab: %w", err)
	}
	err = s.play(ctx)
	if err != nil {
		s.printLogs(out)
	}
	s.say("removing it all")
	err = errors.Join(err, s.lab.Close())
	if left := testenv.Leftovers(prefix); len(left) > 0 {
		err = errors.Join(err, fmt.Errorf("left behind: %s", strings.Join(left, ", ")))
	}
	if err != nil {
		return fmt.Errorf("demo: FAILED: %w", err)
	}
	fmt.Fprintln(out)
	for _, f := range s.figures {
		fmt.Fprintln(out, f)
	}
	fmt.Fprintln(out, "demo: ok")
	return nil
}

// play is the demo, step by step.
func (s *show) play(ctx context.Context) error {
	for _, step := range []struct {
		title string
		run   func(context.Context) error
	}{
		{"start sluice on lb1 and lb2, with one configuration file", s.startPair},
		{"spread new connections over the backends by weight", s.showSpread},
		{"stop a backend's nginx, and start it again", s.showHealth},
		{"kill the Active node in the middle of a download, and let it come back", s.showFailover},
		{"stop sluice on both nodes", func(context.Context) error { return s.stopDaemons() }},
	} {
		s.say("%s", step.title)
		if err := step.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.title, err)
		}
	}
	return nil
}

func (s *show) startPair(ctx context.Context) error {
	for _, node := range nodes {
		if err := s.startDaemon(node); err != nil {
			return err
		}
	}
	if err := s.waitForVIP(ctx, "lb1", vipWait); err != nil {
		return err
	}
	if err := s.waitForServing(ctx, []string{"b1", "b2", "b3"}, healthWait); err != nil {
		return err
	}
	s.say("  the VIP %v is on lb1, which has the higher priority", testenv.VIP)
	return s.showAddresses(ctx, nodes...)
}

// showAddresses shows what `ip addr` says on nodes.
func (s *show) showAddresses(ctx context.Context, on ...string) error {
	ip, err := testenv.FindProgram("ip")
	if err != nil {
		return fmt.Errorf("find ip (scripts/setup demo installs it): %w", err)
	}
	for _, node := range on {
		text, err := s.lab.Host(node).Run(ctx, ip, "-4", "addr", "show", "dev", "eth0")
		if err != nil {
			return err
		}
		s.say("  %s: ip -4 addr show dev eth0", node)
		for line := range strings.Lines(text) {
			fmt.Fprintf(s.out, "           %s", line)
		}
	}
	return nil
}

func (s *show) showSpread(context.Context) error {
	for _, service := range services {
		result, err := s.probe(service.target, connections)
		if err != nil {
			return err
		}
		s.say("  %s %v, %d connections, weights %s: %s", service.name, service.target, result.Answered, spread(weights), spread(result.Bodies))
		if err := checkSpread(result.Bodies, weights); err != nil {
			return fmt.Errorf("%s: %w", service.name, err)
		}
	}
	return nil
}

// showHealth stops the nginx of b2. Requests may fail until its health is seen
// to be bad, none after that.
func (s *show) showHealth(ctx context.Context) error {
	const backend = "b2"
	others := []string{"b1", "b3"}
	watch, err := s.startWatch(watchInterval)
	if err != nil {
		return err
	}
	stopped := time.Now()
	if err := s.servers[backend].Stop(); err != nil {
		return err
	}
	if err := s.waitForServing(ctx, others, healthWait); err != nil {
		return err
	}
	took := time.Since(stopped)
	results, err := watch.stop()
	if err != nil {
		return err
	}
	sent, failed := 0, 0
	for _, r := range results {
		sent, failed = sent+r.Sent, failed+r.Failed
	}
	s.say("  %s is out after %d ms; until then %d of %d requests failed", backend, took.Milliseconds(), failed, sent)
	s.figure("backend stopped: out after %d ms, %d of %d requests failed until then, 0 after", took.Milliseconds(), failed, sent)
	for _, service := range services {
		result, err := s.probe(service.target, connections/4)
		if err != nil {
			return fmt.Errorf("after %s was out: %w", backend, err)
		}
		if n := result.Bodies[backend]; n > 0 {
			return fmt.Errorf("%s answers %d requests although its nginx is stopped", backend, n)
		}
		s.say("  %s: %d connections, none failed: %s", service.name, result.Answered, spread(result.Bodies))
	}

	if err := s.startServer(ctx, backend); err != nil {
		return err
	}
	started := time.Now()
	if err := s.waitForServing(ctx, slices.Sorted(slices.Values(append(others, backend))), healthWait); err != nil {
		return err
	}
	s.say("  %s is back %d ms after its nginx", backend, time.Since(started).Milliseconds())
	return nil
}

// showFailover takes lb1 away while a client downloads through it and another
// never rests, and brings it back.
func (s *show) showFailover(ctx context.Context) error {
	watch, err := s.startWatch(watchInterval)
	if err != nil {
		return err
	}
	d, err := s.startDownload(ctx)
	if err != nil {
		return err
	}
	defer d.stop()
	if err := d.waitPercent(ctx, 25, healthWait); err != nil {
		return err
	}

	killed := time.Now()
	if err := s.cutOff("lb1"); err != nil {
		return err
	}
	s.say("  lb1: sluice killed with SIGKILL and the link cut, at %d%% of the download from %s", d.percent(), d.backend)
	if err := s.waitForVIP(ctx, "lb2", vipWait); err != nil {
		return err
	}
	s.say("  the VIP is on lb2 after %d ms, at %d%% of the download", time.Since(killed).Milliseconds(), d.percent())
	if d.ended() {
		return fmt.Errorf("the download ended before the failover, which proves nothing: %v", d.err)
	}
	if err := s.showAddresses(ctx, "lb2"); err != nil {
		return err
	}
	if err := d.wait(ctx, 30*time.Second); err != nil {
		return err
	}
	s.say("  the download is complete: %d bytes, SHA-256 as expected", d.size)
	if err := watch.settle(ctx, healthWait); err != nil {
		return err
	}

	returned := time.Now()
	if err := s.bringBack("lb1"); err != nil {
		return err
	}
	if err := s.waitForVIP(ctx, "lb1", vipWait); err != nil {
		return err
	}
	s.say("  lb1 is back and has taken over again, %d ms after its start", time.Since(returned).Milliseconds())
	if err := s.showAddresses(ctx, nodes...); err != nil {
		return err
	}
	if err := watch.settle(ctx, healthWait); err != nil {
		return err
	}
	results, err := watch.stop()
	if err != nil {
		return err
	}
	var errs []error
	for i, r := range results {
		crash, _ := r.LongestSilenceBetween(killed, returned)
		handBack, _ := r.LongestSilenceBetween(returned, r.Start.Add(r.Length))
		name := services[i].name
		s.figure("%s: client's longest silence %d ms (node killed and cut), %d ms (hand-back); requests failed: %d of %d",
			name, crash.Milliseconds(), handBack.Milliseconds(), r.Failed, r.Sent)
		if len(r.Errors) > 0 {
			s.say("  %s: failed requests by reason: %v", name, r.Errors)
		}
		// A stateless backend choice is the same on both nodes: what was lost
		// in the gap is sent again and answered.
		if name == "dsr" && r.Failed > 0 {
			errs = append(errs, fmt.Errorf("%d of %d requests to the dsr service failed", r.Failed, r.Sent))
		}
	}
	return errors.Join(errs...)
}
