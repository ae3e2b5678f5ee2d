package l7

import (
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

var loadTime = flag.Duration("load.time", 2*time.Second, "how long servers die under load")

// A mortal is a server that can be killed and started again at the same address. It
// remembers what it was asked to do once.
type mortal struct {
	at    netip.AddrPort
	s     *http.Server
	wg    sync.WaitGroup
	alive bool
	once  *sync.Map // posts that some server has seen
	twice *atomic.Int64
}

func (m *mortal) start(t *testing.T) {
	t.Helper()
	l, err := bind(m.at)
	if err != nil {
		t.Fatal(err)
	}
	m.s, m.alive = &http.Server{Handler: m}, true
	m.wg.Go(func() { _ = m.s.Serve(l) })
}

// ServeHTTP answers with what it has got.
func (m *mortal) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	if r.Method == http.MethodPost {
		if _, again := m.once.LoadOrStore(string(body), true); again {
			m.twice.Add(1)
		}
	}
	_, _ = w.Write(body)
}

// kill breaks off all connections.
func (m *mortal) kill() {
	_ = m.s.Close()
	m.wg.Wait()
	m.alive = false
}

// A worker asks again and again.
type worker struct {
	method string
	done   atomic.Int64 // answers
	failed int64        // posts that were not answered: they may not be repeated
}

func (w *worker) run(at netip.AddrPort, name string, stop <-chan struct{}) error {
	tr := &http.Transport{DisableKeepAlives: w.method == http.MethodGet} // or it would repeat what the proxy has broken off
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr, Timeout: time.Minute}
	for i := 0; ; i++ {
		select {
		case <-stop:
			return nil
		default:
		}
		body := ""
		if w.method != http.MethodGet {
			body = fmt.Sprintf("%s %d", name, i)
		}
		r, err := http.NewRequest(w.method, fmt.Sprintf("http://%v/", at), strings.NewReader(body))
		if err != nil {
			return err
		}
		res, err := client.Do(r)
		if err != nil {
			return fmt.Errorf("%s: %w", w.method, err)
		}
		got, err := io.ReadAll(res.Body)
		res.Body.Close()
		switch {
		case w.method == http.MethodPost && res.StatusCode == http.StatusBadGateway:
			w.failed++
		case err != nil || res.StatusCode != http.StatusOK || string(got) != body:
			return fmt.Errorf("%s: status %s, %q for %q, %w", w.method, res.Status, got, body, err)
		}
		w.done.Add(1)
	}
}

// While servers are killed and started at random, two of four at a time being alive at
// least, no request that may be repeated fails, and none that may not be is repeated.
func TestServersDieUnderLoad(t *testing.T) {
	servers := make([]*mortal, 4)
	var addresses []netip.AddrPort
	var once sync.Map
	var twice atomic.Int64
	for i := range servers {
		m := &mortal{at: freePort(t), once: &once, twice: &twice}
		servers[i] = m
		m.start(t)
		t.Cleanup(func() { m.kill() })
		addresses = append(addresses, m.at)
	}
	u := upstreamOf("u", addresses...)
	u.FailTimeout = 50 * time.Millisecond
	at := freePort(t)
	p := start(t, one(at, []lb.Upstream{u}, prefix("/", "u")))
	stop, fail := make(chan struct{}), make(chan error, 8)
	workers := []*worker{{method: http.MethodGet}, {method: http.MethodGet}, {method: http.MethodPut}, {method: http.MethodPost}}
	var all sync.WaitGroup
	for i, w := range workers {
		all.Go(func() {
			if err := w.run(at, fmt.Sprint("worker ", i), stop); err != nil {
				fail <- err
			}
		})
	}
	// more waits until each worker has had n answers more: a request meets few deaths.
	more := func(n int64) {
		for _, w := range workers {
			before := w.done.Load()
			testenv.Eventually(t, time.Minute, "more answers", func() (bool, error) {
				select {
				case err := <-fail:
					return false, fmt.Errorf("%w: a request failed: %w", testenv.ErrGiveUp, err)
				default:
					return w.done.Load() >= before+n, nil
				}
			})
		}
	}
	kills, alive := 0, len(servers)
	for end := time.Now().Add(*loadTime); time.Now().Before(end) || kills < 12; {
		switch m := servers[rand.IntN(len(servers))]; {
		case !m.alive:
			m.start(t)
			alive++
		case alive > 2:
			m.kill()
			alive--
			kills++
			more(2)
		}
		more(rand.Int64N(20))
	}
	close(stop)
	all.Wait()
	select {
	case err := <-fail:
		t.Error(err)
	default:
	}
	failures, done := uint64(0), int64(0)
	for _, s := range p.Status().Upstreams[0].Servers {
		failures += s.Failures
		if s.InFlight != 0 {
			t.Errorf("%v has %d requests in flight", s.Address, s.InFlight)
		}
	}
	for _, w := range workers {
		done += w.done.Load()
	}
	if failures == 0 {
		t.Error("no server has failed: nothing was tried")
	}
	if n := twice.Load(); n > 0 {
		t.Errorf("%d posts were sent twice", n)
	}
	t.Logf("%d requests, %d deaths, %d failures of servers, %d posts without an answer", done, kills, failures, workers[3].failed)
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
