package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/testenv"
	"github.com/sluice-lb/sluice/scripts/rounds"
)

const (
	// fastEvery is the time from an answer to the fast client's next request.
	fastEvery = 2 * time.Millisecond
	// fastRounds are before the slow clients, beside them, and after them.
	fastRounds = 5
)

// measureCrowds measures what slow clients do to a fast one, and what idle ones cost.
func (b *bench) measureCrowds(ctx context.Context, f *figures) error {
	if err := b.measureSlow(ctx, f); err != nil {
		return fmt.Errorf("slow clients: %w", err)
	}
	if err := b.measureIdle(ctx, f); err != nil {
		return fmt.Errorf("idle clients: %w", err)
	}
	return nil
}

// measureSlow has a fast client ask before there are slow ones, beside them, and when they
// have gone: whatever else goes on is in the way of both.
func (b *bench) measureSlow(ctx context.Context, f *figures) error {
	p := b.proxies[0]
	ask := func(name string) error {
		for range fastRounds {
			took, err := b.fast(ctx, p.at, b.task.length)
			if err != nil {
				return err
			}
			f.Add("http.slow_clients."+name+"_ms", "ms", took.Seconds()*1000)
		}
		return nil
	}
	if err := ask("none.p99"); err != nil {
		return err
	}
	c, err := b.startCrowd(ctx, slow, p.at, b.task.clients)
	if err != nil {
		return err
	}
	if err := errors.Join(ask("p99"), c.end()); err != nil {
		return err
	}
	if err := ask("none.p99"); err != nil {
		return err
	}
	f.Add("http.slow_clients.p99.ratio", "x", rounds.Median(f.Values["http.slow_clients.p99_ms"])/rounds.Median(f.Values["http.slow_clients.none.p99_ms"]))
	f.comment("http.slow_clients: %d clients sent a byte a second", b.task.clients)
	return nil
}

// measureIdle has clients come to a daemon that is fresh: what it has learnt to need
// before would hide what they need.
func (b *bench) measureIdle(ctx context.Context, f *figures) error {
	p := b.proxies[0]
	if err := p.process.Stop(); err != nil {
		return err
	}
	if err := b.start(ctx, p); err != nil {
		return err
	}
	few, many, err := b.countMemory(ctx, p)
	if err != nil {
		return err
	}
	clients := b.task.clients
	f.Add("http.idle_connection.bytes", "bytes", float64(many-few)/float64(clients-clients/10))
	f.comment("http.idle_connection: %d clients had one answer each; the daemon has %d MB then, with %d of them %d MB",
		clients, many>>20, clients/10, few>>20)
	return nil
}

// countMemory returns what the proxy needs with a tenth of the clients, and with all of
// them.
func (b *bench) countMemory(ctx context.Context, p *proxy) (few, many int64, err error) {
	tenth := b.task.clients / 10
	first, err := b.startCrowd(ctx, idle, p.at, tenth)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, first.end()) }()
	if few, err = resident(p.process.ID().PID); err != nil {
		return 0, 0, err
	}
	rest, err := b.startCrowd(ctx, idle, p.at, b.task.clients-tenth)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, rest.end()) }()
	many, err = resident(p.process.ID().PID)
	return few, many, err
}

// resident is the memory that a process has of its own, in bytes.
func resident(pid int) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("ask for the memory of process %d: %w", pid, err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("the memory of process %d is not told", pid)
}

// fast asks again and again on one connection, and returns the 99th percentile of what an
// answer took. Its thread goes before all others of its CPU and waits in the kernel: what
// is measured is the proxy.
func (b *bench) fast(ctx context.Context, at netip.AddrPort, length time.Duration) (time.Duration, error) {
	var all []time.Duration
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never let go: the thread ends with its priority
		done <- testenv.OnCPUs(b.ofLoad, func() error {
			return b.host.Do(func() error {
				attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 10}
				if err := unix.SchedSetAttr(0, &attr, 0); err != nil {
					return fmt.Errorf("go before others: %w", err)
				}
				var err error
				all, err = askFast(ctx, at, length)
				return err
			})
		})
	}()
	if err := <-done; err != nil {
		return 0, err
	}
	slices.Sort(all)
	return all[len(all)*99/100], nil
}

// fastPatience is how long an answer may take.
const fastPatience = 20

// askFast returns how long each answer took.
func askFast(ctx context.Context, at netip.AddrPort, length time.Duration) (all []time.Duration, err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if err := errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: fastPatience}),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
		unix.Connect(fd, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}),
	); err != nil {
		return nil, err
	}
	request := []byte("GET /1k HTTP/1.1\r\nHost: a\r\n" + strings.Join(browser, "\r\n") + "\r\n\r\n")
	answers := bufio.NewReader(socketReader(fd))
	pause := unix.NsecToTimespec(int64(fastEvery))
	for end := time.Now().Add(length); len(all) == 0 || time.Now().Before(end) && ctx.Err() == nil; {
		began := time.Now()
		if _, err := unix.Write(fd, request); err != nil {
			return nil, err
		}
		res, err := http.ReadResponse(answers, nil)
		if err != nil {
			return nil, err
		}
		n, err := io.Copy(io.Discard, res.Body)
		if err != nil || res.StatusCode != http.StatusOK || n != sizes["/1k"] {
			return nil, fmt.Errorf("got %s, %d bytes, %w", res.Status, n, err)
		}
		all = append(all, time.Since(began))
		_ = unix.Nanosleep(&pause, nil) // a signal may end it early
	}
	return all, ctx.Err()
}

// A socketReader reads from a socket, and waits in the kernel.
type socketReader int

func (s socketReader) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(int(s), p)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}
