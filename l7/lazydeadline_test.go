package l7

import (
	"errors"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// A counted connection counts the deadlines that are set, and reads.
type counted struct {
	net.Conn
	deadlines, reads int
}

func (c *counted) Read(p []byte) (int, error) {
	c.reads++
	return c.Conn.Read(p)
}

func (c *counted) SetReadDeadline(t time.Time) error {
	c.deadlines++
	return c.Conn.SetReadDeadline(t)
}

// Reads end when they are to, however the deadline came to be what it is.
func TestLazyDeadlines(t *testing.T) {
	const (
		far   = time.Hour
		abort = -1 // as net/http does
	)
	for _, tt := range []struct {
		name string
		do   func(set func(time.Duration)) // before the read; 0: no deadline
		then func(set func(time.Duration)) // while it waits; nil: nothing
		want time.Duration                 // when it ends; 0: with what comes after two hours
	}{
		{"none", func(func(time.Duration)) {}, nil, 0},
		{"one", func(set func(time.Duration)) { set(time.Minute) }, nil, time.Minute},
		{"taken back", func(set func(time.Duration)) { set(time.Minute); set(0) }, nil, 0},
		{"later", func(set func(time.Duration)) { set(time.Minute); set(far) }, nil, far},
		{"nearer", func(set func(time.Duration)) { set(far); set(time.Minute) }, nil, time.Minute},
		{"past", func(set func(time.Duration)) { set(-time.Second) }, nil, time.Nanosecond},
		{"past, after another", func(set func(time.Duration)) { set(far); set(-time.Second) }, nil, time.Nanosecond},
		{"past, taken back", func(set func(time.Duration)) { set(-time.Second); set(0) }, nil, 0},
		{"past, then another", func(set func(time.Duration)) { set(-time.Second); set(far) }, nil, far},
		{"ended", func(set func(time.Duration)) { set(abort) }, nil, time.Nanosecond},
		{"ended, then another", func(set func(time.Duration)) { set(abort); set(far) }, nil, far},
		{"ended, then none", func(set func(time.Duration)) { set(far); set(abort); set(0) }, nil, 0},
		{"ended meanwhile", func(func(time.Duration)) {}, func(set func(time.Duration)) { set(abort) }, time.Nanosecond},
		{"ended meanwhile, after another", func(set func(time.Duration)) { set(far) }, func(set func(time.Duration)) { set(abort) }, time.Nanosecond},
		{"broken off", func(func(time.Duration)) {}, func(set func(time.Duration)) { set(-time.Second) }, time.Nanosecond},
		{"nearer meanwhile", func(set func(time.Duration)) { set(far) }, func(set func(time.Duration)) { set(time.Minute) }, time.Minute},
		{"later meanwhile", func(set func(time.Duration)) { set(time.Minute) }, func(set func(time.Duration)) { set(far) }, far},
		{"taken back meanwhile", func(set func(time.Duration)) { set(time.Minute) }, func(set func(time.Duration)) { set(0) }, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				here, there := net.Pipe()
				defer here.Close()
				defer there.Close()
				c := &lazyConn{Conn: here}
				set := func(d time.Duration) {
					var at time.Time
					switch {
					case d == abort:
						at = time.Unix(1, 0)
					case d != 0:
						at = time.Now().Add(d)
					}
					if err := c.SetReadDeadline(at); err != nil {
						t.Error(err)
					}
				}
				began := time.Now()
				tt.do(set)
				go func() {
					time.Sleep(2 * far)
					_, _ = there.Write([]byte{'x'})
				}()
				done := make(chan error)
				go func() {
					n, err := c.Read(make([]byte, 2))
					if n == 1 {
						err = nil
					}
					done <- err
				}()
				synctest.Wait()
				if tt.then != nil {
					tt.then(set)
				}
				err := <-done
				took := time.Since(began)
				switch {
				case tt.want == 0:
					if err != nil || took != 2*far {
						t.Errorf("error %v after %v, want what is sent", err, took)
					}
				case !errors.Is(err, os.ErrDeadlineExceeded) || took.Round(time.Second) != tt.want.Round(time.Second):
					t.Errorf("error %v after %v, want a timeout after %v", err, took, tt.want)
				}
				there.Close()
				synctest.Wait()
				time.Sleep(2 * far) // the writer ends
			})
		})
	}
}

// What net/http does for each request sets one deadline, and not seven, and reads once.
func TestFewDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		defer here.Close()
		defer there.Close()
		raw := &counted{Conn: here}
		c := &lazyConn{Conn: raw}
		set := func(d time.Duration) {
			var at time.Time
			if d != 0 {
				at = time.Now().Add(d)
			}
			if err := c.SetReadDeadline(at); err != nil {
				t.Fatal(err)
			}
		}
		const requests = 10
		for i := range requests {
			set(time.Minute) // idle
			go func() { _, _ = there.Write([]byte("xy")) }()
			if n, err := c.Read(make([]byte, 4096)); n != 2 || err != nil {
				t.Fatalf("%d bytes, %v", n, err)
			}
			set(0)
			set(time.Minute) // for the head
			set(0)
			set(0)
			watched := watch1(c)
			if i%2 == 0 {
				synctest.Wait() // both before the watch begins, and after
			}
			time.Sleep(watchAfter - 1) // the request
			if err := c.SetReadDeadline(time.Unix(1, 0)); err != nil {
				t.Fatal(err)
			}
			if err := <-watched; !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
			set(0)
		}
		if raw.deadlines > requests || raw.reads != requests {
			t.Errorf("%d deadlines and %d reads for %d requests", raw.deadlines, raw.reads, requests)
		}
		here.Close()
		time.Sleep(2 * watchAfter) // the timer ends
	})
}
