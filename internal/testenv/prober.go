package testenv

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A ProbeConfig says what a Prober asks for: HTTP, one request on each of many
// fresh connections.
type ProbeConfig struct {
	Target netip.AddrPort
	Path   string // default: "/"
	// Interval is the time between two requests. 0: the next request starts
	// when there are fewer than Outstanding.
	Interval time.Duration
	// Count is how many requests to send. 0: until Stop.
	Count int
	// Outstanding bounds how many requests are unanswered at a time. A request
	// that is due when there are so many is skipped and counted. Default: 32
	// without an Interval, else as many as fall into one Timeout, up to 1024.
	Outstanding int
	// Timeout is how long a connection with its request may take. Default: 3 s.
	Timeout time.Duration
	// ServerCloses leaves it to the server to close the connection first: the
	// prober asks for it and takes the answer as complete when it is closed.
	ServerCloses bool
}

// A ProbeResult is what a Prober has found.
type ProbeResult struct {
	Timeline
	Sent, Answered, Failed, Skipped int

	Bodies map[string]int // answers by body, without its last line feed
	Errors map[string]int // failures by reason
}

// finish records how one request ended. A failure has no body.
func (r *ProbeResult) finish(at time.Duration, body []byte, failure string) {
	if failure != "" {
		r.Failed++
		r.Errors[failure]++
		return
	}
	r.Answered++
	r.Answers = append(r.Answers, at)
	r.Bodies[string(body)]++ // allocates for a new body only
}

// A Prober opens a fresh TCP connection for each request. It runs on one thread
// inside the namespace of its host, so that its own delays are small against
// what it measures.
type Prober struct {
	cfg  ProbeConfig
	wake int // eventfd: written to stop the loop
	done chan struct{}
	err  error // of the loop; read after done

	stopOnce sync.Once
	mu       sync.Mutex // guards result while the loop runs
	result   ProbeResult
}

// StartProber starts to probe from the host. The lab stops it at Close.
func (h *Host) StartProber(cfg ProbeConfig) (*Prober, error) {
	if cfg.Timeout == 0 {
		cfg.Timeout = 3 * time.Second
	}
	if cfg.Path == "" {
		cfg.Path = "/"
	}
	if cfg.Outstanding == 0 {
		cfg.Outstanding = 32
		if cfg.Interval > 0 {
			cfg.Outstanding = min(int(cfg.Timeout/cfg.Interval)+1, 1024)
		}
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("start prober on %s: make eventfd: %w", h.Name, err)
	}
	p := &Prober{cfg: cfg, wake: wake, done: make(chan struct{}), result: ProbeResult{
		Timeline: Timeline{Start: time.Now()},
		Bodies:   make(map[string]int), Errors: make(map[string]int),
	}}
	started := make(chan error, 1)
	go func() {
		defer close(p.done)
		err := h.Do(func() error {
			loop, err := newProbeLoop(p)
			started <- err
			if err != nil {
				return nil
			}
			return errors.Join(loop.run(), loop.close())
		})
		p.mu.Lock()
		defer p.mu.Unlock()
		p.result.Length = time.Since(p.result.Start)
		p.err = err
		select {
		case started <- err: // the namespace could not be entered
		default:
		}
	}()
	if err := <-started; err != nil {
		<-p.done
		return nil, fmt.Errorf("start prober on %s: %w", h.Name, errors.Join(err, unix.Close(wake)))
	}
	h.lab.adopt(p)
	return p, nil
}

// Wait waits until Count requests have ended and returns the result. Without a
// Count it waits for Stop.
func (p *Prober) Wait() (ProbeResult, error) {
	<-p.done
	// Once: the number of a closed descriptor may be in use again.
	p.stopOnce.Do(func() { _ = unix.Close(p.wake) })
	return p.Result(), p.err
}

// Stop ends the prober and returns the result. Requests still outstanding count
// neither as answered nor as failed.
func (p *Prober) Stop() (ProbeResult, error) {
	p.stopOnce.Do(func() {
		// Writing 1 to a fresh eventfd cannot block or fail.
		_, _ = unix.Write(p.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		<-p.done
		_ = unix.Close(p.wake)
	})
	return p.Wait()
}

func (p *Prober) stop() error {
	_, err := p.Stop()
	return err
}

// Result returns what has been found up to now.
func (p *Prober) Result() ProbeResult {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.result
	// The loop appends beyond the length of r.Answers only: no copy.
	r.Bodies, r.Errors = maps.Clone(r.Bodies), maps.Clone(r.Errors)
	if r.Length == 0 {
		r.Length = time.Since(r.Start)
	}
	return r
}

// Probe sends count requests as fast as the answers come, and waits for the end
// of the last one.
func (h *Host) Probe(target netip.AddrPort, count int) (ProbeResult, error) {
	p, err := h.StartProber(ProbeConfig{Target: target, Count: count})
	if err != nil {
		return ProbeResult{}, err
	}
	return p.Wait()
}
