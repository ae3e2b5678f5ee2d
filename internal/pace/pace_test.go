// SPDX-License-Identifier: Apache-2.0

package pace

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// actAsEngine in the environment makes this test binary an engine's process.
const actAsEngine = "TEST_BINARY_IS_ENGINE"

func TestMain(m *testing.M) {
	if os.Getenv(actAsEngine) != "" {
		if err := Main(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	testenv.Main(m)
}

const soon = 15 * time.Second

// engines are the two ways to run one.
var engines = map[string]Start{"thread": Thread, "process": ownProcess}

func ownProcess(control int) (func() error, error) {
	if err := os.Setenv(actAsEngine, "1"); err != nil {
		return nil, err
	}
	return Process("/proc/self/exe")(control)
}

// A wire is a connection of UDP over loopback, and the conn to send on.
type wire struct {
	t        *testing.T
	listener *net.UDPConn
	sender   *net.UDPConn
}

func newWire(t *testing.T) *wire {
	t.Helper()
	l, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	s, err := net.DialUDP("udp4", nil, l.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); s.Close() })
	return &wire{t, l, s}
}

func (w *wire) conn() syscall.RawConn {
	w.t.Helper()
	c, err := w.sender.SyscallConn()
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// next returns the next message.
func (w *wire) next() []byte {
	w.t.Helper()
	buf := make([]byte, 2048)
	if err := w.listener.SetReadDeadline(time.Now().Add(soon)); err != nil {
		w.t.Fatal(err)
	}
	n, err := w.listener.Read(buf)
	if err != nil {
		w.t.Fatal(err)
	}
	return buf[:n]
}

// waitSilence waits until nothing has come for a while.
func (w *wire) waitSilence(while time.Duration) {
	w.t.Helper()
	buf := make([]byte, 2048)
	for end := time.Now().Add(soon); time.Now().Before(end); {
		if err := w.listener.SetReadDeadline(time.Now().Add(while)); err != nil {
			w.t.Fatal(err)
		}
		if _, err := w.listener.Read(buf); err != nil {
			return
		}
	}
	w.t.Fatal("it never fell silent")
}

// A log keeps lines.
type testLog struct {
	mu    sync.Mutex
	lines []byte
}

func (l *testLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, b...)
	return len(b), nil
}

func (l *testLog) has(s string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(string(l.lines), s)
}

func newPacer(t *testing.T, start Start) (*Pacer, *testLog) {
	t.Helper()
	log := &testLog{}
	p := New(start, slog.New(slog.NewTextHandler(log, nil)))
	t.Cleanup(p.Close)
	return p, log
}

func hello(text string) Job {
	return Job{Interval: 5 * time.Millisecond, Lease: time.Minute, Now: true, Parcels: []Parcel{{Payload: []byte(text)}}}
}

func TestPacer(t *testing.T) {
	for name, start := range engines {
		t.Run(name, func(t *testing.T) {
			w := newWire(t)
			p, log := newPacer(t, start)
			s := p.Slot("hello")
			if s.Renew() {
				t.Error("a slot without a job is renewed")
			}
			if !s.Set(w.conn(), hello("one")) {
				t.Fatal("the job is refused")
			}
			for range 10 {
				if got := string(w.next()); got != "one" {
					t.Fatalf("got %q", got)
				}
			}
			s.Set(w.conn(), hello("two"))
			testenv.Eventually(t, soon, "the new message", func() (bool, error) { return string(w.next()) == "two", nil })
			for range 10 {
				if got := string(w.next()); got != "two" {
					t.Fatalf("got %q after the new message", got)
				}
			}
			s.Stop()
			w.waitSilence(100 * time.Millisecond)
			if s.Renew() {
				t.Error("a slot is renewed that was cleared")
			}
			p.Close()
			if log.has("ERROR") {
				t.Errorf("the log says %s", log.lines)
			}
		})
	}
}

func TestLease(t *testing.T) {
	w := newWire(t)
	p, _ := newPacer(t, Thread)
	s := p.Slot("hello")
	j := hello("one")
	j.Lease = 50 * time.Millisecond
	s.Set(w.conn(), j)
	w.next()
	w.waitSilence(100 * time.Millisecond) // nobody has renewed it
	testenv.Eventually(t, soon, "the job to go on", func() (bool, error) { return s.Renew(), nil })
	w.next()
}

func TestStamp(t *testing.T) {
	w := newWire(t)
	p, _ := newPacer(t, Thread)
	s := p.Slot("hello")
	j := hello(strings.Repeat("x", 80))
	j.Stamp = &Stamp{Key: [32]byte{1, 2, 3}, At: 16}
	last := uint64(0)
	for range 3 {
		s.Set(w.conn(), j)
		for range 5 {
			b := w.next()
			mac := hmac.New(sha256.New, j.Stamp.Key[:])
			mac.Write(b[:48])
			if !hmac.Equal(mac.Sum(nil), b[48:]) {
				t.Fatalf("the signature of %q is wrong", b)
			}
			n := binary.BigEndian.Uint64(b[16:])
			if n <= last {
				t.Fatalf("number %d after %d", n, last)
			}
			last = n
		}
	}
}

// An engine that dies is started again, with the jobs that there are.
func TestEngineIsStartedAgain(t *testing.T) {
	w := newWire(t)
	var pids []int
	var mu sync.Mutex
	p, log := newPacer(t, func(control int) (func() error, error) {
		mu.Lock()
		defer mu.Unlock()
		wait, err := ownProcess(control)
		pids = append(pids, childOf(t))
		return wait, err
	})
	s := p.Slot("hello")
	s.Set(w.conn(), hello("one"))
	w.next()
	mu.Lock()
	pid := pids[0]
	mu.Unlock()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, soon, "another engine", func() (bool, error) {
		mu.Lock()
		defer mu.Unlock()
		return len(pids) > 1 && pids[1] != pid, nil
	})
	w.waitSilence(0)
	w.next()
	if !log.has("starting another") {
		t.Errorf("the log says %s", log.lines)
	}
}

// An engine that stands still, as a stopped process does, is one that is gone: another
// takes its place, and nothing waits for it.
func TestEngineThatStandsStill(t *testing.T) {
	w := newWire(t)
	started := make(chan int, 16)
	p, _ := newPacer(t, func(control int) (func() error, error) {
		wait, err := ownProcess(control)
		started <- childOf(t)
		return wait, err
	})
	stop := func(pid int) {
		t.Helper()
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) }) // gone, if all is well
	}
	s := p.Slot("hello")
	j := hello("one")
	j.Lease = 400 * time.Millisecond
	s.Set(w.conn(), j)
	w.next()
	stop(<-started)
	w.waitSilence(100 * time.Millisecond)
	testenv.Eventually(t, soon, "another engine", func() (bool, error) {
		s.Renew()
		return len(started) > 0, nil
	})
	w.next()
	stop(<-started)
	ended := make(chan struct{})
	go func() { defer close(ended); p.Close() }()
	select {
	case <-ended:
	case <-time.After(soon):
		t.Error("Close waits for it for ever")
	}
}

// childOf returns the child process that was started last.
func childOf(t *testing.T) int {
	var b []byte
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Error(err)
	}
	for _, task := range tasks {
		more, err := os.ReadFile("/proc/self/task/" + task.Name() + "/children")
		if err == nil {
			b = append(append(b, ' '), more...)
		}
	}
	pid := 0
	for _, word := range strings.Fields(string(b)) {
		if _, err := fmt.Sscan(word, &pid); err != nil {
			t.Error(err)
		}
	}
	return pid
}

// An engine that hangs takes no jobs. Once it goes on it is given what it could not take:
// until then it says what was true before.
func TestJobThatCouldNotBeTaken(t *testing.T) {
	gate := make(chan struct{})
	goOn := sync.OnceFunc(func() { close(gate) })
	p, _ := newPacer(t, func(control int) (func() error, error) {
		ended := make(chan error, 1)
		go func() {
			<-gate
			ended <- errors.Join(Run(control), unix.Close(control))
		}()
		return func() error { return <-ended }, nil
	})
	t.Cleanup(goOn)
	w, other := newWire(t), newWire(t)
	fill, late := p.Slot("fill"), p.Slot("late")
	for n := 0; fill.Set(other.conn(), hello("fill")); n++ {
		if n > 1<<20 {
			t.Fatal("its queue is never full")
		}
	}
	if late.Set(w.conn(), hello("late")) || late.Renew() {
		t.Fatal("an engine that hangs has taken a job")
	}
	goOn()
	testenv.Eventually(t, soon, "the job is taken", func() (bool, error) { return late.Renew(), nil })
	if got := string(w.next()); got != "late" {
		t.Errorf("got %q, want late", got)
	}
}

func TestFailuresAreTold(t *testing.T) {
	w := newWire(t)
	p, log := newPacer(t, Thread)
	s := p.Slot("hello")
	j := hello("one")
	// A connected socket sends nowhere else; this address is of another family.
	j.Parcels[0].Address = make([]byte, unix.SizeofSockaddrInet6)
	j.Parcels[0].Address[0] = unix.AF_INET6
	s.Set(w.conn(), j)
	testenv.Eventually(t, soon, "a report", func() (bool, error) { return s.Failed() > 0 && log.has("hello"), nil })
}

// What a message of ICMP has told of an earlier packet, true or forged, is handed to
// whoever sends the next one, and must not keep that from being sent.
func TestErrorsOfEarlierPacketsStopNothing(t *testing.T) {
	w := newWire(t)
	at := w.listener.LocalAddr().(*net.UDPAddr)
	w.listener.Close()
	e := newEngine(-1)
	err := w.conn().Control(func(fd uintptr) {
		work := e.begin(request{op: opSet, job: hello("one")}, int(fd), nil)
		work.send() // to nobody
		testenv.Eventually(t, soon, "the error", func() (bool, error) {
			fds := []unix.PollFd{{Fd: int32(fd)}}
			_, err := unix.Poll(fds, 0)
			return fds[0].Revents&unix.POLLERR != 0, err
		})
		l, err := net.ListenUDP("udp4", at)
		if err != nil {
			t.Error(err)
			return
		}
		w.listener = l
		work.send()
		if work.failed.count > 0 {
			t.Errorf("%d packets count as not sent", work.failed.count)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer w.listener.Close()
	if got := string(w.next()); got != "one" {
		t.Errorf("got %q", got)
	}
}

func TestRequests(t *testing.T) {
	for _, tc := range []struct {
		name string
		r    request
	}{
		{"renew", request{op: opRenew, slot: 7}},
		{"clear", request{op: opClear, slot: 65535}},
		{"set", request{op: opSet, slot: 1, first: 1 << 40, job: Job{
			Interval: 5 * time.Millisecond, Lease: time.Second, Now: true,
			Parcels: []Parcel{{Address: []byte{1, 2}, Control: []byte{3}, Payload: []byte("a")}, {Address: []byte{}, Control: []byte{}, Payload: []byte("b")}},
		}}},
		{"set with a stamp", request{op: opSet, first: 9, job: Job{
			Interval: time.Hour, Lease: time.Hour, Stamp: &Stamp{Key: [32]byte{9}, At: 3},
			Parcels: []Parcel{{Address: []byte{}, Control: []byte{}, Payload: make([]byte, 43)}},
		}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := tc.r.append(nil)
			got, err := readRequest(b)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.r, got, cmp.AllowUnexported(request{})); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
			for n := range b {
				if _, err := readRequest(b[:n]); err == nil {
					t.Errorf("the first %d of %d bytes are a request", n, len(b))
				}
			}
			if _, err := readRequest(append(b, 0)); err == nil {
				t.Error("a byte more is a request")
			}
		})
	}
}

func TestJobsThatCannotBeDone(t *testing.T) {
	good := Job{Interval: time.Second, Lease: time.Second, Parcels: []Parcel{{Payload: []byte("x")}}}
	for _, tc := range []struct {
		name   string
		change func(*Job)
	}{
		{"no message", func(j *Job) { j.Parcels = nil }},
		{"an empty message", func(j *Job) { j.Parcels = []Parcel{{}} }},
		{"no interval", func(j *Job) { j.Interval = 0 }},
		{"a lease that ends before the first message", func(j *Job) { j.Lease = j.Interval - 1 }},
		{"no room for the stamp", func(j *Job) { j.Stamp = &Stamp{} }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			j := good
			if !j.valid() {
				t.Fatal("a good job is refused")
			}
			if tc.change(&j); j.valid() {
				t.Error("it is taken")
			}
		})
	}
}

// A job that fits into no request is its caller's to do, and ends nobody else's.
func TestAJobThatIsTooLarge(t *testing.T) {
	w := newWire(t)
	p, log := newPacer(t, Thread)
	p.Slot("hello").Set(w.conn(), hello("one"))
	w.next()
	j := hello("")
	j.Parcels = nil
	for range 70 {
		j.Parcels = append(j.Parcels, Parcel{Payload: make([]byte, 1000)})
	}
	if p.Slot("large").Set(w.conn(), j) {
		t.Error("it is taken")
	}
	w.waitSilence(0)
	for range 100 {
		w.next()
		if log.has("starting another") {
			t.Fatalf("the log says %s", log.lines)
		}
	}
}

func TestRenewDoesNotAllocate(t *testing.T) {
	w := newWire(t)
	p, _ := newPacer(t, Thread)
	s := p.Slot("hello")
	j := hello("one")
	j.Lease = 5 * time.Millisecond // so that every other call asks the engine
	s.Set(w.conn(), j)
	if n := testing.AllocsPerRun(1000, func() { s.Renew() }); n > 0 {
		t.Errorf("a renewal allocates %v times", n)
	}
}

// What is sent by the caller after Stop is the last word.
func TestNothingIsSentAfterStop(t *testing.T) {
	w := newWire(t)
	p, _ := newPacer(t, Thread)
	s := p.Slot("hello")
	j := hello("one")
	j.Interval = time.Millisecond
	for range 50 {
		s.Set(w.conn(), j)
		w.next()
		began := time.Now()
		s.Stop()
		if time.Since(began) >= stopTime {
			continue // the machine is busy: it has waited as long as it may
		}
		if _, err := w.sender.Write([]byte("goodbye")); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, soon, "the goodbye", func() (bool, error) { return string(w.next()) == "goodbye", nil })
		w.waitSilence(5 * time.Millisecond)
	}
}

// The engine's loop allocates nothing for what it sends: its process collects no
// garbage.
func TestSendingDoesNotAllocate(t *testing.T) {
	w := newWire(t)
	e := newEngine(-1)
	j := hello(strings.Repeat("x", 80))
	j.Stamp = &Stamp{}
	err := w.conn().Control(func(fd uintptr) {
		e.slots[0] = e.begin(request{op: opSet, job: j}, int(fd), nil)
		if n := testing.AllocsPerRun(100, func() {
			e.slots[0].due = 0
			e.plan()
			e.work()
		}); n > 0 {
			t.Errorf("sending allocates %v times", n)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}
