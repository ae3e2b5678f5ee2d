// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"encoding/binary"
	"log/slog"
	"net"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/pace"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// actAsEngine in the environment makes this test binary a process that sends on
// time.
const actAsEngine = "TEST_BINARY_IS_ENGINE"

// slotPacer is a Pacer with an engine of its own.
type slotPacer struct{ *pace.Slot }

func (p slotPacer) Repeat(socket syscall.RawConn, interval time.Duration, messages []Parcel) bool {
	j := pace.Job{Interval: interval, Lease: max(3*time.Second, 3*interval)}
	for _, m := range messages {
		j.Parcels = append(j.Parcels, pace.Parcel(m))
	}
	return p.Set(socket, j)
}

// newPacer starts an engine. It ends with the test.
func newPacer(t testing.TB, start pace.Start) Pacer {
	t.Helper()
	p := pace.New(start, slog.New(testWriter{t}))
	t.Cleanup(p.Close)
	return slotPacer{p.Slot("advertisements")}
}

func process(t testing.TB) pace.Start {
	t.Setenv(actAsEngine, "1")
	return pace.Process("/proc/self/exe")
}

// A recorder is a socket that keeps advertisements, with the time at which the
// kernel got each: how late a reader is does not matter.
type recorder struct {
	t  testing.TB
	fd int
}

func (ns *namespace) record() *recorder {
	ns.t.Helper()
	r := &recorder{t: ns.t}
	ns.do(func() (err error) {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		link := Link{Name: ifi.Name, Index: ifi.Index, Source: addr("192.0.2.2")}
		r.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, Protocol)
		if err != nil {
			return err
		}
		for option, value := range map[int]int{unix.SO_TIMESTAMPNS: 1, unix.SO_RCVBUFFORCE: 16 << 20} {
			if err := unix.SetsockoptInt(r.fd, unix.SOL_SOCKET, option, value); err != nil {
				return err
			}
		}
		return setupIPv4(r.fd, link, true)
	})
	ns.t.Cleanup(func() { unix.Close(r.fd) })
	return r
}

// times returns when each advertisement came that is not read yet.
func (r *recorder) times() (all []time.Duration) {
	r.t.Helper()
	buf, oob := make([]byte, 256), make([]byte, 256)
	for {
		_, n, _, _, err := unix.Recvmsg(r.fd, buf, oob, 0)
		if err == unix.EAGAIN {
			return all
		}
		if err != nil {
			r.t.Fatal(err)
		}
		messages, err := unix.ParseSocketControlMessage(oob[:n])
		if err != nil {
			r.t.Fatal(err)
		}
		for _, m := range messages {
			if m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= 16 {
				all = append(all, time.Duration(int64(binary.NativeEndian.Uint64(m.Data))*int64(time.Second)+int64(binary.NativeEndian.Uint64(m.Data[8:]))))
			}
		}
	}
}

// lateness is by how much more than the interval one advertisement came after the
// one before: the median, of a hundred the latest, and the latest of all.
func lateness(times []time.Duration, interval time.Duration) (median, high, most time.Duration) {
	var all []time.Duration
	for i := range times[1:] {
		all = append(all, times[i+1]-times[i]-interval)
	}
	slices.Sort(all)
	return all[len(all)/2], all[len(all)*99/100], all[len(all)-1]
}

// loads are what else the machine and the process do.
var loads = []struct {
	name  string
	begin func(t testing.TB)
}{
	{"rest", func(testing.TB) {}},
	{"garbage", testenv.Churn},
	{"busy", func(t testing.TB) { testenv.Busy(t, 40) }},
	{"both", func(t testing.TB) { testenv.Busy(t, 40); testenv.Churn(t) }},
}

// BenchmarkLateness tells how late advertisements at 10 ms are, sent by the daemon
// itself, by a thread of it with real-time priority, and by a process of its own.
func BenchmarkLateness(b *testing.B) {
	const interval, length = 10 * time.Millisecond, 3 * time.Second
	for _, sender := range []struct {
		name  string
		pacer func(b *testing.B) Pacer
	}{
		{"daemon", func(*testing.B) Pacer { return nil }},
		{"thread", func(b *testing.B) Pacer { return newPacer(b, pace.Thread) }},
		{"process", func(b *testing.B) Pacer { return newPacer(b, process(b)) }},
	} {
		for _, load := range loads {
			b.Run(sender.name+"/"+load.name, func(b *testing.B) {
				here, there := cable(b)
				cfg := fast(100)
				cfg.Interval = interval
				r, _ := here.startPaced(cfg, b.TempDir(), sender.pacer(b))
				eventually(b, "it is active", func() bool { return r.Status().State == Active })
				record := there.record()
				load.begin(b)
				for b.Loop() {
					record.times()
					time.Sleep(length)
					times := record.times()
					if len(times) < 10 {
						b.Fatalf("%d advertisements came in %v", len(times), length)
					}
					median, high, most := lateness(times, interval)
					b.ReportMetric(float64(median.Microseconds())/1000, "ms-median")
					b.ReportMetric(float64(high.Microseconds())/1000, "ms-p99")
					b.ReportMetric(float64(most.Microseconds())/1000, "ms-max")
				}
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// At 10 ms nobody takes over from a node that is at work, while 40 processes never
// rest and the daemon's heap is full of garbage: neither is the sender so late, nor
// does a Backup take for silence what it has not read yet.
func TestNoFalseTakeoverUnderLoad(t *testing.T) {
	const length = 4 * time.Second
	a, b := cable(t)
	cfg := fast(100)
	cfg.Interval = 10 * time.Millisecond
	ra, _ := a.startPaced(cfg, t.TempDir(), newPacer(t, process(t)))
	eventually(t, "the first is active", func() bool { return ra.Status().State == Active })
	cfg.Priority = 99
	rb, _ := b.startPaced(cfg, t.TempDir(), newPacer(t, process(t)))
	eventually(t, "the second is backup", func() bool {
		s := rb.Status()
		return s.State == Backup && s.Peer.Address.IsValid()
	})
	since := rb.Status().Since
	testenv.Busy(t, 40)
	testenv.Churn(t)
	before := rb.Status().Received
	time.Sleep(length) // what is tested is that nothing happens meanwhile
	s := rb.Status()
	if s.State != Backup || s.Since != since {
		t.Errorf("the second node is %v since %v: %s", s.State, s.Since.Sub(since), s.Reason)
	}
	got := s.Received - before
	t.Logf("%d advertisements were read in %v", got, length)
	if got == 0 {
		t.Error("it has read no advertisement: nothing is shown here")
	}
}
