package health

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

var (
	errRefused  = errors.New("connect: connection refused")
	errNoAnswer = fmt.Errorf("connect: %w within 500ms", errSilent)
)

// target returns a target at 192.0.2.n, probed once a second.
func target(n int) Target {
	return Target{
		Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), 80),
		Probe:   lb.Probe{Type: lb.ProbeTCP, Interval: time.Second, Timeout: 500 * time.Millisecond, Rise: 2, Fall: 3},
	}
}

// fakes is a probe function whose results and duration the test sets. Its clock
// is that of a synctest bubble.
type fakes struct {
	mu      sync.Mutex
	result  map[netip.AddrPort]error
	took    time.Duration
	deaf    time.Duration // how long a run goes on after its context ended
	starts  []time.Time
	running map[netip.AddrPort]int
	most    int // runs of one endpoint at once
}

func newFakes() *fakes {
	return &fakes{result: make(map[netip.AddrPort]error), running: make(map[netip.AddrPort]int)}
}

func (f *fakes) set(t Target, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.result[t.Endpoint()] = err
}

func (f *fakes) probe(ctx context.Context, t Target) error {
	f.mu.Lock()
	f.starts = append(f.starts, time.Now())
	f.running[t.Endpoint()]++
	f.most = max(f.most, f.running[t.Endpoint()])
	took, deaf := f.took, f.deaf
	f.mu.Unlock()
	var err error
	select {
	case <-time.After(took):
	case <-ctx.Done():
		err = ctx.Err()
		time.Sleep(deaf)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.running[t.Endpoint()]--
	if err == nil {
		err = f.result[t.Endpoint()]
	}
	return err
}

func (f *fakes) runs() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.starts)
}

func (f *fakes) checker(t *testing.T) *Checker {
	t.Helper()
	c := newChecker(slog.New(slog.DiscardHandler), f.probe)
	t.Cleanup(c.Close)
	return c
}

// pass lets time pass in the bubble and what is due happen.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func status(t *testing.T, c *Checker, target Target) Status {
	t.Helper()
	s, ok := c.Status(target)
	if !ok {
		t.Fatalf("%v is not in the set", target)
	}
	return s
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

func TestRiseAndFall(t *testing.T) {
	for _, tt := range []struct {
		name       string
		rise, fall int
		results    string // s: success, f: failure, q: no answer, e: this node is out of files
		want       string // verdict after each: U up, D down, ? unknown
	}{
		{"first success decides", 2, 3, "s", "U"},
		{"first failure decides", 2, 3, "f", "D"},
		{"first silence decides when it lasts", 2, 3, "qqqs", "??DD"},
		{"first silence and a success", 2, 3, "qqsqqq", "??UUUD"},
		{"first silence and a refusal", 2, 3, "qf", "?D"},
		{"one silence is enough", 2, 1, "q", "D"},
		{"first silence counts for nothing more", 2, 3, "qqsff", "??UUU"},
		{"own errors do not break a silence", 2, 3, "qeqeq", "????D"},
		{"falls after three in a row", 2, 3, "sfffs", "UUUDD"},
		{"two failures do not count", 2, 3, "sffsffsfff", "UUUUUUUUUD"},
		{"rises after two in a row", 2, 3, "fsfssf", "DDDDUU"},
		{"first failure counts for nothing more", 2, 3, "fssff", "DDUUU"},
		{"rise and fall of one", 1, 1, "sfsff", "UDUDD"},
		{"rise and fall of zero are one", 0, 0, "sfsff", "UDUDD"},
		{"own errors decide nothing", 2, 2, "eesfefe", "??UUUDD"},
		{"own errors do not break a row", 2, 3, "fses", "DDDU"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, one := newFakes(), target(1)
				one.Probe.Rise, one.Probe.Fall = tt.rise, tt.fall
				errs := map[rune]error{'s': nil, 'f': errRefused, 'q': errNoAnswer, 'e': syscall.EMFILE}
				c := f.checker(t)
				var got strings.Builder
				for i, r := range tt.results {
					f.set(one, errs[r])
					if i == 0 {
						c.Set([]Target{one})
					}
					for f.runs() == i {
						pass(time.Millisecond)
					}
					synctest.Wait()
					got.WriteByte("?UD"[c.Verdict(one)])
				}
				if diff := cmp.Diff(tt.want, got.String()); diff != "" {
					t.Errorf("verdicts after %q (-want +got):\n%s", tt.results, diff)
				}
			})
		})
	}
}

// A target that is silent, and has no verdict yet, is probed again within a second or so,
// and from the verdict on as it is configured.
func TestUndecidedTargetsAreHurriedOn(t *testing.T) {
	for _, tt := range []struct {
		name    string
		results []error // the last one is of all that follow
		within  time.Duration
		want    Verdict
	}{
		{"it is dead", []error{errNoAnswer}, 3 * time.Second, Down},
		{"it is well", []error{nil}, time.Second, Up},
		{"it comes late", []error{errNoAnswer, errNoAnswer, nil}, 3 * time.Second, Up},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, slow := newFakes(), target(1)
				slow.Probe.Interval = 20 * time.Second
				c := f.checker(t)
				f.set(slow, tt.results[0])
				c.Set([]Target{slow})
				runs := 0
				for range tt.within / (10 * time.Millisecond) {
					pass(10 * time.Millisecond)
					if n := f.runs(); n > runs {
						runs = n
						f.set(slow, tt.results[min(n, len(tt.results)-1)])
						if n == 1 && tt.results[0] != nil && !isClosed(c.Changed()) {
							t.Error("nobody is told that it has failed")
						}
					}
				}
				if got := c.Verdict(slow); got != tt.want {
					t.Fatalf("after %v: %v, want %v", tt.within, got, tt.want)
				}
				before := f.runs()
				pass(time.Minute)
				if n := f.runs() - before; n < 2 || n > 4 {
					t.Errorf("%d runs in a minute after the verdict, every 20 s", n)
				}
			})
		})
	}
}

// What does not come back may be the way's fault; what does is the server's.
func TestUnreached(t *testing.T) {
	slow := lb.Probe{Type: lb.ProbeTCP, Interval: time.Second, Timeout: 200 * time.Millisecond, Rise: 2, Fall: 3}
	refusing := listen(t, "127.0.0.1:0")
	refusing.Close()
	for _, tt := range []struct {
		name string
		err  func(*testing.T) error
		want bool
	}{
		{"nobody listens", func(t *testing.T) error {
			return Run(t.Context(), Target{Address: addrPort(t, refusing.Addr()), Probe: slow})
		}, false},
		{"no answer", func(*testing.T) error { return errNoAnswer }, true},
		{"no way to a VIP there", func(t *testing.T) error {
			path := lb.ProbePath{VIP: netip.MustParseAddr("192.0.2.100"), Server: netip.MustParseAddr("192.0.2.11"), Forward: lb.DSR}
			_, err := prober{noWay{}}.ask(t.Context(), Target{Address: netip.MustParseAddrPort("192.0.2.11:80"), Probe: slow, Path: path})
			return err
		}, true},
		{"no route", func(*testing.T) error {
			return fmt.Errorf("connect: %w", os.NewSyscallError("connect", syscall.EHOSTUNREACH))
		}, true},
		{"the kernel has given up", func(*testing.T) error {
			return fmt.Errorf("connect: %w", os.NewSyscallError("connect", syscall.ETIMEDOUT))
		}, true},
		{"a wrong answer", func(*testing.T) error { return errors.New("status is 503") }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.err(t)
			if got := unreached(err); err == nil || got != tt.want {
				t.Errorf("%v: %v, want %v", err, got, tt.want)
			}
		})
	}
	r := newRunner(Target{Probe: lb.Probe{Type: lb.ProbeExec}}, func() {})
	if !r.unreached(errors.New("exit status 1")) {
		t.Error("a command that fails is taken for the server's answer")
	}
}

// noWay knows no way to any VIP.
type noWay struct{}

func (noWay) Find(context.Context, lb.ProbePath) (netip.Addr, error) {
	return netip.Addr{}, errors.New("192.0.2.11 does not answer ARP on eth0")
}

func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, one := newFakes(), target(1)
		f.took = 20 * time.Millisecond
		c := f.checker(t)
		if _, ok := c.Status(one); ok {
			t.Error("a target that was never set has a status")
		}
		c.Set([]Target{one})
		if diff := cmp.Diff(Status{Target: one}, status(t, c, one), compare); diff != "" {
			t.Errorf("before the first result (-want +got):\n%s", diff)
		}
		pass(150 * time.Millisecond)
		start := f.starts[0]
		up := Status{
			Target: one, Verdict: Up, Since: start.Add(f.took), Successes: 1, Checks: 1,
			LastRun: start, LastDuration: f.took,
		}
		if diff := cmp.Diff(up, status(t, c, one), compare); diff != "" {
			t.Errorf("after a success (-want +got):\n%s", diff)
		}
		f.set(one, errRefused)
		for f.runs() < 3 {
			pass(10 * time.Millisecond)
		}
		pass(f.took)
		failing := up
		failing.Successes, failing.Failures, failing.Checks = 0, 2, 3
		failing.LastRun, failing.LastError = f.starts[2], "connect: connection refused"
		if diff := cmp.Diff(failing, status(t, c, one), compare); diff != "" {
			t.Errorf("after two failures (-want +got):\n%s", diff)
		}
	})
}

var compare = cmp.Options{
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b *regexp.Regexp) bool { return a == b }),
}

func TestChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, one, two := newFakes(), target(1), target(2)
		c := f.checker(t)
		signalled := func() bool { return isClosed(c.Changed()) } // takes the signal
		c.Set([]Target{one, two})
		if signalled() {
			t.Error("signal by Set")
		}
		pass(100 * time.Millisecond)
		if !signalled() {
			t.Error("no signal after the first results")
		}
		if signalled() {
			t.Error("two signals for changes that nobody waited for")
		}
		pass(5 * time.Second)
		if signalled() {
			t.Error("signal without a change")
		}
		f.set(two, errRefused)
		pass(2 * time.Second)
		if signalled() {
			t.Error("signal after two failures of three")
		}
		pass(time.Second)
		if !signalled() || c.Verdict(two) != Down || c.Verdict(one) != Up {
			t.Errorf("verdicts after three failures of the second: %v, %v", c.Verdict(one), c.Verdict(two))
		}
	})
}

func TestReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, one, two := newFakes(), target(1), target(2)
		f.set(one, errRefused)
		c := f.checker(t)
		first := c.Ready()
		if isClosed(first) {
			t.Error("ready before the first Set")
		}
		f.took = 300 * time.Millisecond
		c.Set([]Target{one})
		pass(200 * time.Millisecond)
		if isClosed(first) {
			t.Error("ready before the first result")
		}
		pass(200 * time.Millisecond)
		if !isClosed(first) {
			t.Error("not ready though all have a result")
		}
		c.Set([]Target{one, two})
		if isClosed(c.Ready()) {
			t.Error("ready with a new target that has no result")
		}
		c.Set([]Target{one})
		if !isClosed(c.Ready()) {
			t.Error("not ready after the only target without a result has gone")
		}
		c.Set(nil)
		if !isClosed(c.Ready()) {
			t.Error("not ready without targets")
		}
		silent := target(3)
		f.set(silent, errNoAnswer)
		c.Set([]Target{silent})
		pass(200 * time.Millisecond)
		if isClosed(c.Ready()) {
			t.Error("ready before the first result of one that is silent")
		}
		pass(200 * time.Millisecond)
		if got := c.Verdict(silent); got != Unknown || !isClosed(c.Ready()) {
			t.Errorf("one has been silent once: %v, ready %v", got, isClosed(c.Ready()))
		}
	})
}

func TestStatusesSorted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := target(2)
		slow.Probe.Interval = time.Minute
		six := target(1)
		six.Address = netip.MustParseAddrPort("[2001:db8::1]:80")
		c := newFakes().checker(t)
		c.Set([]Target{six, target(10), slow, target(9), target(2)})
		var got []string
		for _, s := range c.Statuses() {
			got = append(got, fmt.Sprintf("%v %v", s.Target, s.Target.Probe.Interval))
		}
		want := []string{"tcp 192.0.2.2:80 1m0s", "tcp 192.0.2.2:80 1s", "tcp 192.0.2.9:80 1s", "tcp 192.0.2.10:80 1s", "tcp [2001:db8::1]:80 1s"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("targets (-want +got):\n%s", diff)
		}
	})
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakes()
		f.took, f.deaf = time.Hour, 200*time.Millisecond
		c := f.checker(t)
		c.Set([]Target{target(1), target(2), target(3)})
		pass(200 * time.Millisecond)
		c.Set([]Target{target(1)}) // two runs are broken off, one goes on
		began := time.Now()
		c.Close()
		if took := time.Since(began); took != f.deaf {
			t.Errorf("Close took %v, want the %v that the runs took to end", took, f.deaf)
		}
		for endpoint, n := range f.running {
			if n != 0 {
				t.Errorf("a run of %v outlives Close", endpoint)
			}
		}
		if got := status(t, c, target(1)); got.Checks != 0 {
			t.Errorf("the run that Close broke off counts: %+v", got)
		}
		runs := f.runs()
		c.Set([]Target{target(1), target(4)})
		c.Close()
		pass(time.Minute)
		if n := f.runs() - runs; n != 0 {
			t.Errorf("%d runs after Close", n)
		}
	})
}

func TestUncheckedTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, one := newFakes(), target(1)
		one.Probe.Interval, one.Probe.Timeout = 0, -time.Second
		f.took = time.Minute
		c := f.checker(t)
		c.Set([]Target{one})
		pass(5 * time.Second)
		got := status(t, c, one)
		if got.LastDuration != time.Second || got.Checks > 4 {
			t.Errorf("without interval and timeout: %d runs in 5s, the last one %v, want 1s each", got.Checks, got.LastDuration)
		}
	})
}

func TestLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, one := newFakes(), target(1)
		var out strings.Builder
		noTime := func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}
		c := newChecker(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: noTime})), f.probe)
		c.Set([]Target{one})
		for _, err := range []error{nil, errRefused, syscall.EMFILE, nil} {
			f.set(one, err)
			pass(10 * time.Second)
		}
		c.Close()
		want := `level=INFO msg="target is up" target="tcp 192.0.2.1:80"
level=WARN msg="target is down" target="tcp 192.0.2.1:80" error="connect: connection refused"
level=WARN msg="cannot probe" target="tcp 192.0.2.1:80" error="too many open files"
level=INFO msg="target is up" target="tcp 192.0.2.1:80"
`
		if diff := cmp.Diff(want, out.String()); diff != "" {
			t.Errorf("log (-want +got):\n%s", diff)
		}
	})
}

// The whole way, over real sockets: up, down after the server has gone.
func TestCheckerRealServer(t *testing.T) {
	l := listen(t, "127.0.0.1:0")
	one := Target{
		Address: addrPort(t, l.Addr()),
		Probe:   lb.Probe{Type: lb.ProbeTCP, Interval: 5 * time.Millisecond, Timeout: long, Rise: 2, Fall: 2},
	}
	c := NewChecker(slog.New(slog.DiscardHandler), nil)
	defer c.Close()
	c.Set([]Target{one})
	<-c.Ready()
	<-c.Changed()
	if got := c.Verdict(one); got != Up {
		t.Fatalf("verdict on a server that listens: %v", got)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	<-c.Changed()
	got := status(t, c, one)
	if got.Verdict != Down || !strings.HasPrefix(got.LastError, "connect: connection refused") {
		t.Errorf("after the server has gone: %v, %q", got.Verdict, got.LastError)
	}
}
