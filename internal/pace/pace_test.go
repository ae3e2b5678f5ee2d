// SPDX-License-Identifier: Apache-2.0

package pace

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

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
	if os.Getenv(actAsSession) != "" {
		fmt.Print(tellSession())
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
		work.send(0) // to nobody
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
		if failed, _ := work.send(0); failed > 0 {
			t.Errorf("%d packets count as not sent", failed)
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
			e.mu.Lock()
			e.work(0)
			e.mu.Unlock()
		}); n > 0 {
			t.Errorf("sending allocates %v times", n)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The kernel holds up a hand in the middle of sending: another one sends what comes next,
// and what the first one holds is its own until it goes on.
func TestAHandThatIsHeldUpDelaysNoOther(t *testing.T) {
	w := newWire(t)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { unix.Close(pair[0]); unix.Close(pair[1]) }()
	told := func() bool {
		n, err := unix.Read(pair[0], make([]byte, 64))
		return err == nil && n == clearedLen
	}
	e := newEngine(pair[1])
	j := hello(strings.Repeat("x", 80))
	j.Stamp = &Stamp{}
	err = w.conn().Control(func(fd uintptr) {
		own, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
			return
		}
		e.obey(request{op: opSet, slot: 7, job: j}, own)
		held := e.take(0)
		if held == nil {
			t.Error("nothing is due")
			return
		}
		e.slots[7].due = 0
		e.plan()
		e.mu.Lock()
		e.work(1)
		e.mu.Unlock()
		if got := binary.BigEndian.Uint64(w.next()); got != 2 {
			t.Errorf("number %d was sent, want 2: the hand that is held up has 1", got)
		}

		e.obey(request{op: opClear, slot: 7}, -1)
		if _, err := unix.FcntlInt(uintptr(own), unix.F_GETFD, 0); err != nil || told() {
			t.Error("the job is said to be over, and its socket closed, while a hand sends on it")
		}
		count, errno := held.send(0)
		e.sent(held, count, errno)
		if got := binary.BigEndian.Uint64(w.next()); count > 0 || got != 1 {
			t.Errorf("%d could not be sent, and number %d was, want 1", count, got)
		}
		if _, err := unix.FcntlInt(uintptr(own), unix.F_GETFD, 0); err != unix.EBADF || !told() {
			t.Errorf("the job is over, and it is not told, or its socket is open: %v", err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// An engine that gets no processor says by how much it was late, where that matters.
func TestLatenessIsTold(t *testing.T) {
	w := newWire(t)
	e := newEngine(-1)
	err := w.conn().Control(func(fd uintptr) {
		work := e.begin(request{op: opSet, job: hello("one")}, int(fd), nil)
		e.slots[0] = work
		for _, tc := range []struct {
			name string
			late time.Duration
			told bool
		}{{"on time", 0, false}, {"late", 50 * time.Millisecond, true}, {"late by days", 72 * time.Hour, true}} {
			e.began = time.Now().Add(-100 * time.Hour)
			work.due, work.expires, work.said = e.now()-tc.late, never, report{}
			work.reported = never // it is not sent on
			e.plan()
			e.mu.Lock()
			e.work(0)
			e.mu.Unlock()
			got := time.Duration(work.said.late) * time.Microsecond
			if tc.told && got < min(tc.late, maxLate) {
				t.Errorf("%s: it says that it was late by %v, want %v", tc.name, got, tc.late)
			}
			if !tc.told && got >= time.Second { // the machine may be busy
				t.Errorf("%s: it says that it was late by %v", tc.name, got)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	log := &testLog{}
	p := &Pacer{log: slog.New(slog.NewTextHandler(log, nil))}
	s := p.Slot("hello")
	r, ok := readReport(report{slot: s.index, late: 46000}.append(nil))
	if p.report(r); !ok || !log.has("were late") || !log.has("what=hello late=46ms") || log.has("could not be sent") {
		t.Errorf("the log says %s", log.lines)
	}
}
