package l7

import (
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A counting is a backend that counts its requests.
type counting struct {
	at netip.AddrPort
	n  atomic.Int64
}

// What a server says of a request, and what no server could be sent, is no failure of the
// server: it goes on to serve others.
func TestWhatIsNoServersFailure(t *testing.T) {
	says := func(name string, status int) *counting {
		c := &counting{}
		c.at = backend(t, func(w http.ResponseWriter, r *http.Request) {
			c.n.Add(1)
			if r.URL.Path == "/nope" {
				w.WriteHeader(status)
			}
			fmt.Fprint(w, name)
		})
		return c
	}
	for _, tt := range []struct {
		name, request string
		status        int
		tried         int64 // servers that have seen it
	}{
		{"404 goes to the next one", "GET /nope HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", http.StatusNotFound, 2},
		{"a header that no server could be sent", "GET /%0aX:1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", http.StatusBadRequest, 0},
		{"a trailer's name that is none", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: foo bar\r\nConnection: close\r\n\r\n1\r\na\r\n0\r\n\r\n", http.StatusBadRequest, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			first, second := says("first", http.StatusNotFound), says("second", http.StatusNotFound)
			u := upstreamOf("u", first.at, second.at)
			u.Next.Status = []int{http.StatusForbidden, http.StatusNotFound}
			at := freePort(t)
			l := prefix("/", "u")
			l.RequestHeaders.Set = []lb.Header{{Name: "X-Path", Value: "$path"}}
			p := start(t, one(at, []lb.Upstream{u}, l))
			res, _ := raw(t, at, tt.request)
			if res.StatusCode != tt.status {
				t.Errorf("got %d, want %d", res.StatusCode, tt.status)
			}
			if got := first.n.Load() + second.n.Load(); got != tt.tried {
				t.Errorf("%d servers have seen it, want %d", got, tt.tried)
			}
			for _, s := range p.Status().Upstreams[0].Servers {
				if s.State == StateFailing {
					t.Errorf("%v is %s: %s", s.Address, s.State, s.Why)
				}
			}
		})
	}
}

// A limit by a header is not for those who have none.
func TestRequestsWithoutAKey(t *testing.T) {
	limited := exact("/", "")
	limited.Return = &lb.Return{Status: http.StatusOK, Body: "ok"}
	limited.RateLimit = &lb.RateLimit{Key: lb.RequestKey{Kind: lb.KeyHeader, Name: "X-Key"}, Rate: 0.001, Burst: 1, Status: 429}
	at := freePort(t)
	start(t, one(at, nil, limited))
	for i := range 5 {
		if res, _ := raw(t, at, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"); res.StatusCode != http.StatusOK {
			t.Fatalf("request %d without a key is answered with %d", i, res.StatusCode)
		}
	}
}

// A pipe that is full and read by nobody holds up neither a reload nor the end; one that
// nobody has open is a mistake, and what was there serves on.
func TestFullPipeHoldsUpNothing(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(*Proxy, lb.HTTP) error
	}{
		{"reload", func(p *Proxy, other lb.HTTP) error { return p.Apply(other) }},
		{"close", func(p *Proxy, _ lb.HTTP) error { p.Close(t.Context()); return nil }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "log")
			if err := unix.Mkfifo(path, 0o600); err != nil {
				t.Fatal(err)
			}
			at := freePort(t)
			without := one(at, []lb.Upstream{upstreamOf("u", named(t, "s"))}, prefix("/", "u"))
			with := without
			with.AccessLog = lb.AccessLog{Path: path}
			p := start(t, without)
			if err := p.Apply(with); err == nil {
				t.Error("a pipe that nobody reads is taken")
			}
			fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd) // the writer ends
			if err := p.Apply(with); err != nil {
				t.Fatal(err)
			}
			for err == nil {
				_, err = unix.Write(fd, make([]byte, 4<<10))
			}
			if err != unix.EAGAIN {
				t.Fatal(err)
			}
			if status, _ := get(t, at, "a", "/"); status != http.StatusOK {
				t.Errorf("got %d", status)
			}
			done := make(chan error, 1)
			go func() { done <- tt.end(p, without) }()
			select {
			case err := <-done:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(20 * closeWait):
				t.Error("it waits for the reader")
			}
		})
	}
}

// A body that is read on when its handler has returned sets no deadline: over HTTP/2 there
// is no stream any more.
func TestDeadlineAfterTheHandler(t *testing.T) {
	calls := 0
	b := newClientBody(http.NoBody, &testLimits, 0, time.Now())
	b.deadline = func(time.Time) error { calls++; return nil }
	body := &requestBody{rest: b}
	if _, err := b.Read(make([]byte, 1)); err != io.EOF || calls != 2 {
		t.Errorf("at its end: %v, %d deadlines, want EOF and 2", err, calls)
	}
	body.close()
	if _, err := b.Read(make([]byte, 1)); err == nil || calls != 2 {
		t.Errorf("after the handler: error %v, %d deadlines more", err, calls-2)
	}
}

// A status that sends a request to the next server is a failure of the first one, unless
// it is about what was asked for.
func TestStatusThatIsAFailure(t *testing.T) {
	for _, tt := range []struct {
		status   int
		failures uint64
	}{{http.StatusForbidden, 0}, {http.StatusNotFound, 0}, {http.StatusServiceUnavailable, 1}} {
		t.Run(http.StatusText(tt.status), func(t *testing.T) {
			bad := backend(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(tt.status) })
			u := upstreamOf("u", bad, named(t, "good"))
			u.Next.Status = []int{tt.status}
			at := freePort(t)
			p := start(t, one(at, []lb.Upstream{u}, prefix("/", "u")))
			if status, body := get(t, at, "a", "/"); status != http.StatusOK || body != "good /" {
				t.Errorf("got %d %q", status, body)
			}
			if s := p.Status().Upstreams[0].Servers[0]; s.Requests != 1 || s.Failures != tt.failures || (s.State == StateFailing) != (tt.failures > 0) {
				t.Errorf("the server: %+v", s)
			}
		})
	}
}

// A body goes to one server alone, from where nobody keeps it: also when its upload gets
// there while the next server is chosen.
func TestBodyIsReadByOne(t *testing.T) {
	body := func() *requestBody {
		return &requestBody{start: []byte("a"), rest: newClientBody(io.NopCloser(strings.NewReader("bc")), &testLimits, 0, time.Now())}
	}
	b := body()
	first := b.open()
	if got, err := io.ReadAll(io.LimitReader(first, 1)); string(got) != "a" || err != nil || !b.repeatable() || !first.yield() {
		t.Errorf("who has read %q, %v, does not yield", got, err)
	}
	if got, err := io.ReadAll(first); len(got) > 0 || err != errReaderClosed {
		t.Errorf("who has yielded reads %q, %v", got, err)
	}
	if got, err := io.ReadAll(b.open()); string(got) != "abc" || err != nil {
		t.Errorf("the next one reads %q, %v", got, err)
	}
	b = body()
	first = b.open()
	if got, err := io.ReadAll(io.LimitReader(first, 2)); string(got) != "ab" || err != nil || first.yield() {
		t.Errorf("who has read %q, %v, yields", got, err)
	}
	if got, err := io.ReadAll(first); string(got) != "c" || err != nil {
		t.Errorf("then it reads %q, %v", got, err)
	}
	whole := (&requestBody{start: []byte("a")}).open()
	if got, err := io.ReadAll(whole); string(got) != "a" || err != nil || !whole.yield() || !(&requestBody{}).open().yield() {
		t.Errorf("of a body that is kept, or none, the reader of %q, %v, does not yield", got, err)
	}
}
