package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// services are probed in this order.
var services = []struct {
	name   string
	target netip.AddrPort
}{{"dsr", dsrService}, {"nat", natService}}

// burst is how many connections tell which backends serve: one that has a
// quarter of the table is missed by all of them once in 10^12 times.
const burst = 100

// probeTimeout is how long a request of a burst may take: long enough for one
// packet to be lost and sent again after a second.
const probeTimeout = 1500 * time.Millisecond

// checkSpread tells whether the answers are spread by weight: each backend's
// share within four standard deviations of what chance allows.
func checkSpread(answers map[string]int, weights map[string]int) error {
	total, sum := 0, 0
	for _, n := range answers {
		total += n
	}
	for _, w := range weights {
		sum += w
	}
	if total == 0 {
		return errors.New("nobody has answered")
	}
	var errs []error
	for name, w := range weights {
		p := float64(w) / float64(sum)
		want := p * float64(total)
		tolerance := 4 * math.Sqrt(float64(total)*p*(1-p))
		if got := answers[name]; math.Abs(float64(got)-want) > tolerance {
			errs = append(errs, fmt.Errorf("%s has %d of %d connections, want %.0f within %.0f", name, got, total, want, tolerance))
		}
	}
	for name := range answers {
		if _, ok := weights[name]; !ok {
			errs = append(errs, fmt.Errorf("%q answers, which is no backend", name))
		}
	}
	return errors.Join(errs...)
}

// spread shows answers by backend, for example "b1 501  b2 998  b3 501".
func spread(answers map[string]int) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(answers)) {
		parts = append(parts, fmt.Sprintf("%s %d", name, answers[name]))
	}
	return strings.Join(parts, "  ")
}

// probe opens count connections to a service; a request that fails is an error.
func (p *pair) probe(target netip.AddrPort, count int) (testenv.ProbeResult, error) {
	prober, err := p.lab.Host("client").StartProber(testenv.ProbeConfig{Target: target, Count: count, Timeout: probeTimeout})
	if err != nil {
		return testenv.ProbeResult{}, err
	}
	result, err := prober.Wait()
	if err == nil && result.Failed > 0 {
		err = fmt.Errorf("%d of %d requests to %v failed: %v", result.Failed, result.Sent, target, result.Errors)
	}
	return result, err
}

// waitForServing waits until exactly these backends answer on both services and
// no request fails.
func (p *pair) waitForServing(ctx context.Context, want []string, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	return testenv.WaitFor(ctx, strings.Join(want, ", ")+" serving on both services", func() (bool, error) {
		for node := range p.daemons {
			if err := p.alive(node); err != nil {
				return false, err
			}
		}
		for _, s := range services {
			result, err := p.probe(s.target, burst)
			if err != nil {
				return false, err
			}
			if got := slices.Sorted(maps.Keys(result.Bodies)); !slices.Equal(got, want) {
				return false, fmt.Errorf("%s is served by %v", s.name, got)
			}
		}
		return true, nil
	})
}

// A watch probes both services all the time, as a client that never rests.
type watch struct{ probers []*testenv.Prober }

func (p *pair) startWatch(interval time.Duration) (*watch, error) {
	w := &watch{}
	for _, s := range services {
		prober, err := p.lab.Host("client").StartProber(testenv.ProbeConfig{Target: s.target, Interval: interval})
		if err != nil {
			_, stopErr := w.stop()
			return nil, errors.Join(err, stopErr)
		}
		w.probers = append(w.probers, prober)
	}
	return w, nil
}

// stop ends the watch and returns the results in the order of services.
func (w *watch) stop() ([]testenv.ProbeResult, error) {
	var (
		results []testenv.ProbeResult
		errs    []error
	)
	for _, prober := range w.probers {
		result, err := prober.Stop()
		results, errs = append(results, result), append(errs, err)
	}
	return results, errors.Join(errs...)
}

// settle waits until requests are answered that were sent from now on.
func (w *watch) settle(ctx context.Context, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	const enough = 40
	for i, prober := range w.probers {
		before := prober.Result().Answered
		err := testenv.WaitFor(ctx, "answers from "+services[i].name, func() (bool, error) {
			return prober.Result().Answered > before+enough, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// A download is a GET of nginx's big file over the dsr service that goes on in
// the background.
type download struct {
	size    int64
	got     atomic.Int64
	backend string
	cancel  context.CancelFunc
	done    chan struct{}
	err     error // read after done
}

// startDownload returns when the first bytes are there.
func (p *pair) startDownload(ctx context.Context) (_ *download, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		if err != nil {
			cancel()
		}
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%v/download", dsrService), nil)
	if err != nil {
		return nil, fmt.Errorf("prepare download: %w", err)
	}
	resp, err := p.lab.Host("client").HTTPClient().Do(req)
	if err != nil {
		return nil, fmt.Errorf("start download: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, errors.Join(fmt.Errorf("start download: status %s", resp.Status), resp.Body.Close())
	}
	d := &download{size: p.nginx.DownloadSize, backend: resp.Header.Get("X-Backend"), cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(d.done)
		d.err = errors.Join(d.read(resp.Body), resp.Body.Close())
	}()
	return d, nil
}

// read reads the file to its end and compares it with what nginx was given.
func (d *download) read(body io.Reader) error {
	sum := sha256.New()
	buf := make([]byte, 32<<10)
	for {
		n, err := body.Read(buf)
		sum.Write(buf[:n])
		got := d.got.Add(int64(n))
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("download broke after %d of %d bytes: %w", got, d.size, err)
		}
	}
	want, err := testenv.DownloadSum(d.size)
	if err != nil {
		return err
	}
	if got := [sha256.Size]byte(sum.Sum(nil)); got != want {
		return fmt.Errorf("download of %d bytes has SHA-256 %x, want %x", d.got.Load(), got, want)
	}
	return nil
}

// percent is how much of the file has arrived.
func (d *download) percent() int64 { return d.got.Load() * 100 / d.size }

// waitPercent waits until so much of the file has arrived.
func (d *download) waitPercent(ctx context.Context, percent int64, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	return testenv.WaitFor(ctx, fmt.Sprintf("%d%% of the download", percent), func() (bool, error) {
		if d.ended() {
			return false, fmt.Errorf("%w: the download has ended: %v", testenv.ErrGiveUp, d.err)
		}
		return d.percent() >= percent, nil
	})
}

// stop ends the download where it is.
func (d *download) stop() {
	d.cancel()
	<-d.done
}

func (d *download) ended() bool {
	select {
	case <-d.done:
		return true
	default:
		return false
	}
}

// wait waits for the end of the download.
func (d *download) wait(ctx context.Context, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	select {
	case <-d.done:
		return d.err
	case <-ctx.Done():
		return fmt.Errorf("download stopped at %d%%: %w", d.percent(), context.Cause(ctx))
	}
}
