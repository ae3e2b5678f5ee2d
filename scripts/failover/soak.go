package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"sync"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
	history "github.com/sluice-lb/sluice/internal/events"
	"github.com/sluice-lb/sluice/internal/testenv"
	"github.com/sluice-lb/sluice/scripts/rounds"
)

const (
	// busyProcesses never rest while a pair is soaked.
	busyProcesses = 40
	// soakLimit is how long a soaking may take beyond its time.
	soakLimit = 3 * time.Minute
	// soakProbe is the time between two probes of the client: many are sent.
	soakProbe = 10 * time.Millisecond
)

// soaked are the configurations that a false takeover is to be feared in.
var soaked = []string{"v3_10ms", "fast"}

// collects has a daemon's runtime tell of each collection of garbage, in its log.
const collects = "GODEBUG=gctrace=1"

// soak leaves a pair of sluice nodes alone for a while, on a machine with many more
// processes than it can bear, and with daemons that collect garbage all the time. The
// VIPs must stay where they are: a takeover is a false one, and an error. It prints the
// figures also then.
func soak(ctx context.Context, t task, c configuration, out io.Writer) (err error) {
	p, err := newPair(ctx, &sluice{path: t.sluice, keys: c.sluice, key: c.key, crowd: true})
	if err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	defer func() {
		if err != nil {
			p.printLogs(errorOutput)
		}
		err = errors.Join(err, p.close())
	}()
	r, err := p.soak(ctx, t.soak)
	if err == nil {
		r.print(out, c.name)
		err = r.verdict()
	}
	return err
}

// A soaking is what was seen of a pair.
type soaking struct {
	length      time.Duration
	changes     []string      // of state, on either node, but for takeovers of the second
	takeovers   []string      // by the second node
	excused     int           // of these: just after the machine had stood still
	stall       time.Duration // the longest
	late        time.Duration // of a pacemaker, where it says so
	strays      int           // advertisements of the second node
	arrivals    map[string]gaps
	lost, sent  int
	silence     time.Duration // the client's longest
	pause       time.Duration // of the client itself
	collections map[string]int
	reloads     int
	slowest     time.Duration // of the answers to who asks for the status and the metrics
}

// soak has the pair at work for a while.
func (p *pair) soak(ctx context.Context, length time.Duration) (r soaking, err error) {
	seen := map[string]uint64{}
	for _, node := range []string{first, second} {
		last, _, err := p.changesAfter(ctx, node, 0)
		if err != nil {
			return r, err
		}
		seen[node] = last
	}
	strays := p.wire.count(p.lab.Host(second).Address())
	ear, err := listenForHeartbeats(p.lab.Host(second), p.lab.Host(first).Address())
	if err != nil {
		return r, err
	}
	defer ear.close()
	// This process collects garbage as rarely as can be: then its probers stand still.
	defer debug.SetGCPercent(debug.SetGCPercent(2000))
	began := time.Now()
	watch, err := startWatch()
	if err != nil {
		return r, err
	}
	stopWatch := sync.OnceValues(watch.stop)
	defer func() { _, _ = stopWatch() }()
	stopBusy, err := testenv.StartBusy(busyProcesses)
	if err != nil {
		return r, err
	}
	defer stopBusy()
	var probers []*testenv.DatagramProber
	for _, vip := range vips {
		prober, err := p.lab.Host("client").StartDatagramProber(netip.AddrPortFrom(vip, echoPort), soakProbe)
		if err != nil {
			return r, err
		}
		probers = append(probers, prober) // the lab ends it
	}
	r.reloads, r.slowest, err = churn(ctx, p.lab, length)
	if err := errors.Join(err, ctx.Err()); err != nil {
		return r, err
	}
	ended := time.Now()
	r.length, r.arrivals = ended.Sub(began), ear.gaps()
	stopBusy()
	stalls, err := stopWatch()
	if err != nil {
		return r, err
	}
	r.stall = longest(stalls)

	for _, prober := range probers {
		result, err := prober.Stop()
		if err != nil {
			return r, err
		}
		const underway = time.Second // what was sent last may be on its way
		r.sent += len(result.Sent)
		r.lost += result.LostBetween(began, ended.Add(-underway))
		r.silence = max(r.silence, result.LongestSilenceBetween(began, ended.Add(-underway)))
		r.pause = max(r.pause, result.LongestPauseBetween(began, ended))
	}
	r.strays = p.wire.count(p.lab.Host(second).Address()) - strays
	r.collections = map[string]int{}
	for _, node := range []string{first, second} {
		_, changes, err := p.changesAfter(ctx, node, seen[node])
		if err != nil {
			return r, err
		}
		for _, e := range changes {
			text := fmt.Sprintf("%s after %v: %v", node, e.Time.Sub(began).Round(time.Millisecond), e)
			stood := stalledBefore(stalls, e.Time)
			if stood > 0 {
				text += fmt.Sprintf(" (the machine had stood still for %v)", stood.Round(time.Millisecond))
			}
			if node == second && e.To == "active" {
				r.takeovers = append(r.takeovers, text)
				if stood > 0 {
					r.excused++
				}
			} else {
				r.changes = append(r.changes, text)
			}
		}
		collections, late, err := readLog(p.lab.Host(node))
		if err != nil {
			return r, err
		}
		r.collections[node], r.late = collections, max(r.late, late)
	}
	return r, nil
}

// changesAfter returns a node's changes of state behind an event, and the last event of all.
func (p *pair) changesAfter(ctx context.Context, node string, after uint64) (last uint64, changes []history.Event, err error) {
	last = after
	err = control.AskEvents(ctx, adminSocket(p.lab.Host(node)), after, false, func(e history.Event) error {
		if last = e.Seq; e.Type == history.VRRPState {
			changes = append(changes, e)
		}
		return nil
	})
	if err != nil {
		return last, nil, fmt.Errorf("ask %s for its events: %w", node, err)
	}
	return last, changes, nil
}

// collection is a line that tells of one.
var collection = regexp.MustCompile(`(?m)^gc \d+ @`)

// lateness is where a daemon's log tells that its pacemaker was late, and by how much.
var lateness = regexp.MustCompile(`(?m) msg="packets that must be on time were late.* late=(\S+)$`)

// readLog reads in a node's log how often its daemon has collected garbage, and by how
// much its pacemaker was late at most.
func readLog(h *testenv.Host) (collections int, late time.Duration, err error) {
	log, err := os.ReadFile(filepath.Join(h.Dir(), "log", daemonName+".log"))
	if err != nil {
		return 0, 0, fmt.Errorf("read the daemon's log: %w", err)
	}
	for _, match := range lateness.FindAllSubmatch(log, -1) {
		d, err := time.ParseDuration(string(match[1]))
		if err != nil {
			return 0, 0, fmt.Errorf("read the daemon's log: %w", err)
		}
		late = max(late, d)
	}
	return len(collection.FindAll(log, -1)), late, nil
}

// scrape asks a node's daemon for its metrics.
func scrape(ctx context.Context, h *testenv.Host) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:9780/metrics", nil)
	if err != nil {
		return err
	}
	request.Close = true // a connection each, as most who ask have
	response, err := h.HTTPClient().Do(request)
	if err != nil {
		return fmt.Errorf("ask %s for its metrics: %w", h.Name, err)
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return fmt.Errorf("ask %s for its metrics: %w", h.Name, err)
	}
	return nil
}

// print prints a line for each figure.
func (r *soaking) print(w io.Writer, configuration string) {
	figure := func(name string, value float64, unit string) {
		fmt.Fprintf(w, "figure: soak.%s.%s %s %s\n", configuration, name, rounds.Number(value), unit)
	}
	ms := func(d time.Duration) float64 { return d.Seconds() * 1000 }
	figure("false_takeovers", float64(len(r.takeovers)), "takeovers")
	for _, kind := range kinds {
		if a := r.arrivals[kind]; a.count > 0 {
			figure(kind+"_gap.ms", ms(a.longest), "ms")
			fmt.Fprintf(w, "# soak.%s.%s_gap.ms: the longest of %d, at the Backup's interface\n", configuration, kind, a.count)
		}
	}
	figure("lost", float64(r.lost), "probes")
	fmt.Fprintf(w, "# soak.%s: %v, %d busy processes, %d reloads of each node; %d and %d collections of garbage\n",
		configuration, r.length.Round(time.Second), busyProcesses, r.reloads, r.collections[first], r.collections[second])
	fmt.Fprintf(w, "# soak.%s: a status, or metrics, took %s ms at most\n", configuration, rounds.Number(ms(r.slowest)))
	fmt.Fprintf(w, "# soak.%s: the client sent %d probes; its longest silence was %s ms, and it paused for %s ms at most\n",
		configuration, r.sent, rounds.Number(ms(r.silence)), rounds.Number(ms(r.pause)))
	fmt.Fprintf(w, "# soak.%s: pacemakers were late by %s ms at most, and the machine itself stood still for %s ms\n",
		configuration, rounds.Number(ms(r.late)), rounds.Number(ms(r.stall)))
	for _, text := range append(r.takeovers, r.changes...) {
		fmt.Fprintf(w, "# soak.%s: %s\n", configuration, bytes.ReplaceAll([]byte(text), []byte("\n"), []byte("; ")))
	}
}

// errStalled says that takeovers tell nothing of sluice.
var errStalled = errors.New("the machine itself had stood still: soak on one that does nothing else")

// verdict is an error unless all stayed as it was, and there was something to see.
func (r *soaking) verdict() error {
	switch {
	case len(r.takeovers) > 0 && r.excused == len(r.takeovers):
		return fmt.Errorf("%d takeovers, each after %w, the first: %s", len(r.takeovers), errStalled, r.takeovers[0])
	case len(r.takeovers) > 0:
		return fmt.Errorf("%d false takeovers, the first: %s", len(r.takeovers), r.takeovers[0])
	case len(r.changes) > 0:
		return fmt.Errorf("%d changes of state, the first: %s", len(r.changes), r.changes[0])
	case r.strays > 0:
		return fmt.Errorf("%s has advertised %d times", second, r.strays)
	case r.reloads == 0 || r.collections[first] == 0 || r.collections[second] == 0:
		return fmt.Errorf("%d reloads, collections %v: the daemons made no garbage", r.reloads, r.collections)
	case r.arrivals[advertisements].count == 0:
		return errors.New("no advertisement came: nothing is shown")
	}
	return nil
}
