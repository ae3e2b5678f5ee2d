package l7

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// A mortal is a server that can be killed and started again at the same address.
type mortal struct {
	at netip.AddrPort
	s  *http.Server
	wg sync.WaitGroup
}

func (m *mortal) start(t *testing.T) {
	t.Helper()
	l, err := bind(m.at)
	if err != nil {
		t.Fatal(err)
	}
	m.s = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })}
	m.wg.Go(func() { _ = m.s.Serve(l) })
}

// kill breaks off all connections.
func (m *mortal) kill() {
	_ = m.s.Close()
	m.wg.Wait()
}

// While servers die in the middle of requests and come back, no request that may be
// repeated fails.
func TestServersDieUnderLoad(t *testing.T) {
	servers := make([]*mortal, 3)
	var addresses []netip.AddrPort
	for i := range servers {
		servers[i] = &mortal{at: freePort(t)}
		servers[i].start(t)
		t.Cleanup(servers[i].kill)
		addresses = append(addresses, servers[i].at)
	}
	u := upstreamOf("u", addresses...)
	u.FailTimeout = 50 * time.Millisecond
	at := freePort(t)
	p := start(t, one(at, []lb.Upstream{u}, prefix("/", "u")))
	stop, fail := make(chan struct{}), make(chan error, 8)
	var done atomic.Int64
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			tr := &http.Transport{}
			defer tr.CloseIdleConnections()
			client := &http.Client{Transport: tr, Timeout: time.Minute}
			for {
				select {
				case <-stop:
					return
				default:
				}
				res, err := client.Get(fmt.Sprintf("http://%v/", at))
				if err == nil {
					_, err = io.Copy(io.Discard, res.Body)
					res.Body.Close()
					if err == nil && res.StatusCode != http.StatusOK {
						err = fmt.Errorf("status %s", res.Status)
					}
				}
				if err != nil {
					fail <- err
					return
				}
				done.Add(1)
			}
		})
	}
	more := func(n int64) {
		before := done.Load()
		testenv.Eventually(t, time.Minute, "more answers", func() (bool, error) {
			select {
			case err := <-fail:
				return false, fmt.Errorf("%w: a request failed: %w", testenv.ErrGiveUp, err)
			default:
				return done.Load() >= before+n, nil
			}
		})
	}
	for i := range 24 {
		m := servers[i%len(servers)]
		m.kill()
		more(50)
		m.start(t)
		more(50)
	}
	close(stop)
	all.Wait()
	failures := uint64(0)
	for _, s := range p.Status().Upstreams[0].Servers {
		failures += s.Failures
		if s.InFlight != 0 {
			t.Errorf("%v has %d requests in flight", s.Address, s.InFlight)
		}
	}
	if failures == 0 {
		t.Error("no server has failed: nothing was tried")
	}
	t.Logf("%d requests, %d failures of servers that nobody saw", done.Load(), failures)
}

// Clients that send a byte now and then keep nobody else from an answer. They have what a
// connection needs, and nothing else: no connection to a server, no goroutine more.
func TestManySlowClients(t *testing.T) {
	const clients, mostBytes, mostGoroutines = 500, 64 << 10, 2
	var asked atomic.Int64
	at, p := proxyTo(t, func(w http.ResponseWriter, r *http.Request) { asked.Add(1); named2(w, r) }, nil)
	if status, _ := get(t, at, "a", "/"); status != 200 {
		t.Fatalf("got %d", status)
	}
	memory := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	before, goroutines := memory(), runtime.NumGoroutine()
	for i := range clients {
		c, err := net.Dial("tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		half := "GET / HTTP/1.1\r\nHost: a\r\nX: "
		if i%2 == 0 {
			half = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nhalf"
		}
		send(t, c, half)
		send(t, c, "x")
	}
	testenv.Eventually(t, time.Minute, "the beginnings of all requests", func() (bool, error) {
		s := p.Status()
		return s.Servers[0].InFlight == clients/2 && s.Listeners[0].Accepted >= clients, nil
	})
	each := int64(memory()-before) / clients
	t.Logf("%d bytes for each slow client, and %d goroutines in all", each, runtime.NumGoroutine()-goroutines)
	if each > mostBytes {
		t.Errorf("%d bytes for each slow client, want at most %d", each, mostBytes)
	}
	if n := runtime.NumGoroutine() - goroutines; n > mostGoroutines*clients {
		t.Errorf("%d goroutines for %d slow clients, want at most %d each", n, clients, mostGoroutines)
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("the server has had %d requests, want the one that was whole", n)
	}
	for range 50 {
		if status, body := get(t, at, "a", "/"); status != 200 || body != "ok" {
			t.Fatalf("got %d %q", status, body)
		}
	}
}
