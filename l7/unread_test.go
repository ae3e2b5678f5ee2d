package l7

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// A body that nobody asks for has its time, too: a client that does not send it is
// answered, and has its connection no longer.
func TestBodyThatNobodyReads(t *testing.T) {
	at := freePort(t)
	own := func(path string) lb.Location { return lb.Location{Kind: lb.LocationPrefix, Path: path} }
	returns, redirects, denied, limited, small := own("/return/"), own("/redirect/"), prefix("/denied/", "u"), own("/limited/"), prefix("/small/", "u")
	returns.Return = &lb.Return{Status: http.StatusOK, Body: "ok"}
	redirects.Redirect = &lb.Redirect{Status: http.StatusMovedPermanently, To: "https://new.example/"}
	denied.Rules = []lb.Rule{{Prefix: netip.MustParsePrefix("127.0.0.0/8")}}
	limited.Return = returns.Return
	limited.RateLimit = &lb.RateLimit{Key: lb.RequestKey{Kind: lb.KeyHeader, Name: "X-Key"}, Rate: 0.001, Burst: 0, Status: 429}
	small.MaxBody = 10
	c := one(at, []lb.Upstream{upstreamOf("u", named(t, "s"))}, returns, redirects, denied, limited, small)
	c.Client.BodyTimeout = 300 * time.Millisecond
	start(t, c)
	get(t, at, "a", "/limited/") // has no key
	raw(t, at, "GET /limited/ HTTP/1.1\r\nHost: a\r\nX-Key: 1\r\nConnection: close\r\n\r\n")
	for _, tt := range []struct {
		request string
		status  int
	}{
		{"POST /return/", 200}, {"POST /redirect/", 301}, {"POST /denied/", 403}, {"POST /limited/", 429}, {"POST /small/", 413},
		{"POST /nowhere", 404}, {"POST /return/../../", 400}, {"TRACE /return/", 405},
	} {
		t.Run(tt.request, func(t *testing.T) {
			c := dial(t, at)
			send(t, c, tt.request+" HTTP/1.1\r\nHost: a\r\nX-Key: 1\r\nContent-Length: 100\r\n\r\n")
			r := bufio.NewReader(c)
			if res, _ := readAnswer(t, r, false); res.StatusCode != tt.status || !res.Close {
				t.Errorf("got %s, close %v; want %d, and that it is the last answer", res.Status, res.Close, tt.status)
			}
			if rest, err := io.ReadAll(r); len(rest) > 0 || err != nil {
				t.Errorf("then %q, %v", rest, err)
			}
		})
	}
}

// An answer comes while the request's body is still on its way, and before it was read;
// what comes of the body then is no request.
func TestAnswerBeforeTheBody(t *testing.T) {
	for _, tt := range []struct {
		name, framing, rest string
		patience            time.Duration
	}{
		{"all of it comes", "Content-Length: 41", "GET /evil HTTP/1.1\r\nHost: a\r\n\r\n", time.Minute},
		{"it is long", "Content-Length: 1000000", "GET /evil HTTP/1.1\r\nHost: a\r\n\r\n", time.Minute},
		{"nothing more comes", "Content-Length: 1000", "", time.Second},
		{"chunks", "Transfer-Encoding: chunked", "0\r\n\r\nGET /evil HTTP/1.1\r\nHost: a\r\n\r\n", time.Minute},
		{"no more chunks", "Transfer-Encoding: chunked", "", time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server, seen := scripted(t, "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
			at := freePort(t)
			l := prefix("/", "u")
			l.RequestBuffering = false
			config := one(at, []lb.Upstream{upstreamOf("u", server)}, l)
			config.Client.BodyTimeout = tt.patience
			p := start(t, config)
			c := dial(t, at)
			send(t, c, "POST / HTTP/1.1\r\nHost: a\r\nX-Unread: 1\r\n"+tt.framing+"\r\n\r\n5\r\nhello\r\n")
			r := bufio.NewReader(c)
			if res, body := readAnswer(t, r, false); res.StatusCode != 413 || body != "no" || !res.Close {
				t.Errorf("got %s %q, close %v", res.Status, body, res.Close)
			}
			_, _ = io.WriteString(c, tt.rest)                                                        // the connection may be closed by now
			if rest, err := io.ReadAll(r); len(rest) > 0 || errors.Is(err, os.ErrDeadlineExceeded) { // a reset is an end, too
				t.Errorf("then %q, %v", rest, err)
			}
			if n := seen.Load(); n != 1 {
				t.Errorf("the server has had %d requests", n)
			}
			if s := p.Status().Upstreams[0].Servers[0]; s.Failures != 0 || s.InFlight != 0 {
				t.Errorf("the server: %+v", s)
			}
		})
	}
}

// A server that answers while a body comes gets all of that, and in order, and the client
// all of the answer.
func TestAnswerBesideTheBody(t *testing.T) {
	sent := make([]byte, 700_000)
	for i := range sent {
		sent[i] = byte(rand.N(256))
	}
	for _, tt := range []struct {
		name         string
		chunked, tls bool
	}{{"chunks", true, false}, {"a length", false, false}, {"chunks, TLS", true, true}, {"a length, TLS", false, true}} {
		t.Run(tt.name, func(t *testing.T) {
			at := freePort(t)
			start(t, one(at, []lb.Upstream{echoing(t, tt.tls)}, prefix("/", "u")))
			c := dial(t, at)
			framing := fmt.Sprint("Content-Length: ", len(sent))
			if tt.chunked {
				framing = "Transfer-Encoding: chunked"
			}
			send(t, c, "POST / HTTP/1.1\r\nHost: a\r\n"+framing+"\r\n\r\n")
			say := func(p []byte) {
				if !tt.chunked {
					_, _ = c.Write(p)
					return
				}
				fmt.Fprintf(c, "%x\r\n%s\r\n", len(p), p) // what does not arrive is missed
			}
			const first = 100_000 // more than is read ahead
			say(sent[:first])
			res, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				for rest := sent[first:]; len(rest) > 0; {
					n := min(len(rest), 1+rand.N(30_000))
					say(rest[:n])
					rest = rest[n:]
				}
				if tt.chunked {
					_, _ = io.WriteString(c, "0\r\n\r\n")
				}
			}()
			got, err := io.ReadAll(res.Body)
			if err != nil || !bytes.Equal(got, sent) {
				t.Errorf("of %d bytes %d came back, the same ones: %v; error %v", len(sent), len(got), bytes.Equal(got, sent), err)
			}
		})
	}
}

// echoing is an upstream of a server that answers at once, and with what it gets.
func echoing(t *testing.T, tls bool) lb.Upstream {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := http.NewResponseController(w)
		if c.EnableFullDuplex() != nil || c.Flush() != nil {
			return
		}
		if _, err := io.Copy(w, r.Body); err != nil {
			panic(http.ErrAbortHandler) // or the answer would end as a whole one
		}
	}))
	t.Cleanup(s.Close)
	if tls {
		s.StartTLS()
	} else {
		s.Start()
	}
	u := upstreamOf("u", netip.MustParseAddrPort(s.Listener.Addr().String()))
	if tls {
		u.TLS = &lb.UpstreamTLS{}
	}
	return u
}

// What is wrong with a body is not the server's failure, also when that has begun to
// answer.
func TestBadBodyBehindTheAnswersHead(t *testing.T) {
	for _, tt := range []struct {
		name, bad string
		tls       bool
	}{
		{"no chunk", "no chunk\r\n", false}, {"no chunk, TLS", "no chunk\r\n", true},
		{"too long", "6\r\nsecond\r\n", false}, {"too long, TLS", "6\r\nsecond\r\n", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			at := freePort(t)
			l := prefix("/", "u")
			l.RequestBuffering, l.MaxBody = false, 10
			p := start(t, one(at, []lb.Upstream{echoing(t, tt.tls)}, l))
			c := dial(t, at)
			send(t, c, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
			res, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			send(t, c, tt.bad)
			if body, err := io.ReadAll(res.Body); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("got %q, %v, want that it breaks off", body, err)
			}
			testenv.Eventually(t, time.Minute, "the request is over", func() (bool, error) { return p.Status().Servers[0].InFlight == 0, nil })
			if s := p.Status().Upstreams[0].Servers[0]; s.Failures != 0 || s.InFlight != 0 {
				t.Errorf("the server: %+v", s)
			}
		})
	}
}
