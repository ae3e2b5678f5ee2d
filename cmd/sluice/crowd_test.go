package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// actAsEcho in the environment makes this test binary a server on port 80, of the
// name that it is set to: this process has too few descriptors for both ends of all
// connections.
const actAsEcho = "TEST_BINARY_IS_ECHO"

// echo answers each line with its own name and the line.
func echo(name string) int {
	l, err := net.Listen("tcp", ":80")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for {
		c, err := l.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		go func() {
			defer func() { _ = c.Close() }() // the client sees what goes wrong
			lines := bufio.NewReaderSize(c, lineLength)
			for {
				line, err := lines.ReadString('\n')
				if err != nil {
					return
				}
				if _, err := io.WriteString(c, name+" "+line); err != nil {
					return
				}
			}
		}()
	}
}

// lineLength is room for a line of a crowd: a buffer for each connection is dear.
const lineLength = 128

func (r *rig) startEcho(on string) *testenv.Process {
	r.Helper()
	self, err := os.Executable()
	if err != nil {
		r.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), actAsEcho+"="+on)
	p, err := r.host(on).Start("echo", cmd)
	if err != nil {
		r.Fatal(err)
	}
	return p
}

// needDescriptors makes sure that this process may open so many files, and some
// more that a test needs beside them.
func needDescriptors(t *testing.T, n uint64) {
	t.Helper()
	n += 1000
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Cur >= n {
		return
	}
	before := limit
	// The runtime gives its children the limit that it was started with.
	limit.Cur, limit.Max = n, max(limit.Max, n)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatalf("this test opens %d files, and the limit is %d: %v; raise it with ulimit -n", n, before.Cur, err)
	}
}

// A crowd is many connections of the client to services that echo. Each has an
// address and port that depend on its number alone, so that every run of a test
// has the same flows.
type crowd struct {
	r       *rig
	from    *testenv.Host
	sources []netip.Addr
	opened  int
	members []*member
}

// A member is one connection, and the backend that it has been with from its start.
type member struct {
	net.Conn
	service netip.AddrPort
	backend string
	replies *bufio.Reader
}

// crowd starts one that connects from a host, from all addresses of its spec.
func (r *rig) crowd(from string, sources ...netip.Prefix) *crowd {
	r.Helper()
	c := &crowd{r: r, from: r.host(from)}
	for _, p := range sources {
		c.sources = append(c.sources, p.Addr())
	}
	r.Cleanup(func() {
		for _, m := range c.members {
			_ = m.Close() // the test is over
		}
	})
	return c
}

// errMoved says that another backend answers than before.
var errMoved = errors.New("the connection has moved to another backend")

// say sends a line and waits for it to come back. The first answer makes a
// backend the connection's own.
func (m *member) say(line string) error {
	if err := m.SetDeadline(time.Now().Add(soon)); err != nil {
		return err
	}
	if _, err := io.WriteString(m, line+"\n"); err != nil {
		return fmt.Errorf("%v to %v: %w", m.LocalAddr(), m.service, err)
	}
	got, err := m.replies.ReadString('\n')
	if err != nil {
		return fmt.Errorf("%v to %v by %s: %w", m.LocalAddr(), m.service, m.backend, err)
	}
	var backend string
	if n, err := fmt.Sscan(got, &backend); n != 1 || got != backend+" "+line+"\n" {
		return fmt.Errorf("%v to %v: said %q and got %q: %w", m.LocalAddr(), m.service, line, got, err)
	}
	if m.backend == "" {
		m.backend = backend
	}
	if m.backend != backend {
		return fmt.Errorf("%v to %v: %w: %s, then %s", m.LocalAddr(), m.service, errMoved, m.backend, backend)
	}
	return nil
}

// source is where the connection of a number comes from.
func (c *crowd) source(number int, ipv6 bool) netip.AddrPort {
	const firstPort = 10000
	var own []netip.Addr
	for _, a := range c.sources {
		if a.Is6() == ipv6 {
			own = append(own, a)
		}
	}
	return netip.AddrPortFrom(own[number%len(own)], uint16(firstPort+number/len(own)))
}

// open opens connections to services in turn, each as soon as the one before it has
// got its first answer, many at a time. It returns those that it has opened, and
// why the others failed. What has been opened belongs to the crowd.
func (c *crowd) open(services []netip.AddrPort, count int) ([]*member, error) {
	c.r.Helper()
	first := c.opened
	c.opened += count
	fresh := make([]*member, count)
	err := each(count, func(i int) error {
		service := services[(first+i)%len(services)]
		ctx, cancel := context.WithTimeout(c.r.Context(), soon)
		defer cancel()
		conn, err := c.from.DialFrom(ctx, c.source(first+i, service.Addr().Is6()), service)
		if err != nil {
			return err
		}
		m := &member{Conn: conn, service: service, replies: bufio.NewReaderSize(conn, lineLength)}
		if err := m.say("hello"); err != nil {
			return errors.Join(err, conn.Close())
		}
		fresh[i] = m
		return nil
	})
	fresh = slices.DeleteFunc(fresh, func(m *member) bool { return m == nil })
	c.members = append(c.members, fresh...)
	return fresh, err
}

// mustOpen is open where nothing may fail.
func (c *crowd) mustOpen(services []netip.AddrPort, count int) []*member {
	c.r.Helper()
	fresh, err := c.open(services, count)
	if err != nil {
		c.r.Fatalf("open connections to %v: %v", services, err)
	}
	return fresh
}

// talk has every connection of the crowd say something; none may fail, and none
// may be with another backend than it was.
func (c *crowd) talk(when string) {
	c.r.Helper()
	err := each(len(c.members), func(i int) error { return c.members[i].say(fmt.Sprintf("%d %s", i, when)) })
	if err != nil {
		c.r.Fatalf("%s: %v", when, err)
	}
}

// backends counts connections by backend.
func backends(members []*member) map[string]int {
	count := map[string]int{}
	for _, m := range members {
		count[m.backend]++
	}
	return count
}

// A tally is an error of many.
type tally struct {
	failed, of, moved, reset, timeouts int
	first                              error
}

func (t *tally) Error() string {
	return fmt.Sprintf("%d of %d connections failed (%d moved, %d were reset, %d got no answer): %v",
		t.failed, t.of, t.moved, t.reset, t.timeouts, t.first)
}

func (t *tally) add(err error) {
	if t.failed++; t.first == nil {
		t.first = err
	}
	switch {
	case errors.Is(err, errMoved):
		t.moved++
	case errors.Is(err, syscall.ECONNRESET):
		t.reset++
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		t.timeouts++
	}
}

// each runs f for the numbers below count, some at a time. Its error is a *tally.
func each(count int, f func(i int) error) error {
	const atATime = 64
	var (
		workers sync.WaitGroup
		mu      sync.Mutex
		all     = tally{of: count}
		next    = make(chan int)
	)
	for range atATime {
		workers.Go(func() {
			for i := range next {
				if err := f(i); err != nil {
					mu.Lock()
					all.add(err)
					mu.Unlock()
				}
			}
		})
	}
	for i := range count {
		next <- i
	}
	close(next)
	workers.Wait()
	if all.failed > 0 {
		return &all
	}
	return nil
}

// wantSpread fails unless new connections are spread by weights, each backend's
// number within four standard deviations of what it should be.
func (r *rig) wantSpread(when string, got, weights map[string]int) {
	r.Helper()
	count, sum := 0, 0
	for _, n := range got {
		count += n
	}
	for _, w := range weights {
		sum += w
	}
	for _, name := range slices.Sorted(maps.Keys(weights)) {
		p := float64(weights[name]) / float64(sum)
		want, deviation := float64(count)*p, math.Sqrt(float64(count)*p*(1-p))
		if math.Abs(float64(got[name])-want) > 4*deviation {
			r.Errorf("%s: %s has %d of %d new connections, want %.0f within %.0f", when, name, got[name], count, want, 4*deviation)
		}
	}
	for name := range got {
		if weights[name] == 0 {
			r.Errorf("%s: %s has %d new connections, want none", when, name, got[name])
		}
	}
}
