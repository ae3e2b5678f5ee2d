package l7

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// The configuration changes again and again under load, limits and upstreams and
// locations, and no request fails.
func TestReloadUnderLoad(t *testing.T) {
	at := freePort(t)
	a, b := named(t, "a"), named(t, "b")
	config := func(i int) lb.HTTP {
		servers := [][]netip.AddrPort{{a}, {b}, {a, b}}[i%3]
		u := upstreamOf("u", servers...)
		u.Keepalive = 4 + i%2
		c := one(at, []lb.Upstream{u}, prefix("/", "u"))
		if i%2 == 1 {
			c.Servers[0].Locations = append(c.Servers[0].Locations, prefix("/more/", "u"))
		}
		if i%5 == 4 {
			c.Client.MaxHeader += i
		}
		return c
	}
	p := start(t, config(0))
	stop := make(chan struct{})
	var done atomic.Int64
	var all sync.WaitGroup
	fail := make(chan error, 8)
	for w := range 4 {
		all.Go(func() {
			tr := &http.Transport{DisableKeepAlives: w == 0}
			defer tr.CloseIdleConnections()
			client := &http.Client{Transport: tr, Timeout: time.Minute}
			for {
				select {
				case <-stop:
					return
				default:
				}
				// A POST is not repeated by the client: what is lost shows.
				res, err := client.Post(fmt.Sprintf("http://%v/x", at), "text/plain", strings.NewReader("body"))
				if err == nil {
					var body []byte
					body, err = io.ReadAll(res.Body)
					res.Body.Close()
					if err == nil && (res.StatusCode != 200 || !strings.HasSuffix(string(body), " /x")) {
						err = fmt.Errorf("%s %q", res.Status, body)
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
	const reloads = 40
	for i := 1; i <= reloads; i++ {
		before := done.Load()
		if err := p.Apply(config(i)); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, time.Minute, "more answers", func() (bool, error) {
			select {
			case err := <-fail:
				return false, fmt.Errorf("%w: a request failed: %w", testenv.ErrGiveUp, err)
			default:
				return done.Load() >= before+20, nil
			}
		})
	}
	close(stop)
	all.Wait()
	select {
	case err := <-fail:
		t.Error(err)
	default:
	}
	t.Logf("%d requests over %d reloads", done.Load(), reloads)
}

// What cannot be done leaves everything as it is.
func TestApplyThatFails(t *testing.T) {
	at, other := freePort(t), freePort(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	good := one(at, []lb.Upstream{upstreamOf("u", named(t, "a"))}, prefix("/", "u"))
	p := start(t, good)
	for _, tt := range []struct {
		name   string
		change func(*lb.HTTP)
		want   string
	}{
		{"a port that another program has", func(c *lb.HTTP) {
			c.Servers[0].Listen = append(c.Servers[0].Listen, lb.HTTPListen{Address: other}, lb.HTTPListen{Address: netip.MustParseAddrPort(taken.Addr().String())})
		}, "another program listens there"},
		{"no certificate", func(c *lb.HTTP) {
			c.Servers[0].Listen[0].TLS = &lb.ServerTLS{Certificate: "/nonexistent/cert.pem", Key: "/nonexistent/key.pem"}
		}, "no such file"},
		{"a log that cannot be", func(c *lb.HTTP) { c.AccessLog = lb.AccessLog{Path: "/nonexistent/log"} }, "open the access log"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bad := one(at, []lb.Upstream{upstreamOf("u", named(t, "b"))}, prefix("/", "u"))
			tt.change(&bad)
			if err := p.Apply(bad); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error %v", err)
			}
			if _, body := get(t, at, "x", "/"); body != "a /" {
				t.Errorf("after that: %q", body)
			}
			if c, err := net.Dial("tcp", other.String()); err == nil {
				c.Close()
				t.Error("a listener of it is left")
			}
		})
	}
}

// A connection that is idle when its listener goes is not cut off under a request: the
// answer to the next one says that it was the last.
func TestListenerGoesAfterTheNextAnswer(t *testing.T) {
	at := freePort(t)
	p := start(t, one(at, []lb.Upstream{upstreamOf("u", named(t, "a"))}, prefix("/", "u")))
	c := dial(t, at)
	r := bufio.NewReader(c)
	ask := func() *http.Response {
		send(t, c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
		res, _ := readAnswer(t, r, false)
		return res
	}
	if res := ask(); res.StatusCode != 200 || res.Close {
		t.Fatalf("first %s, close %v", res.Status, res.Close)
	}
	changed := one(at, []lb.Upstream{upstreamOf("u", named(t, "b"))}, prefix("/", "u"))
	changed.Client.MaxHeader *= 2
	if err := p.Apply(changed); err != nil {
		t.Fatal(err)
	}
	if res := ask(); res.StatusCode != 200 || !res.Close {
		t.Errorf("after the reload %s, close %v", res.Status, res.Close)
	}
	if err := p.Apply(lb.HTTP{Client: testLimits}); err != nil {
		t.Fatal(err)
	}
	if c, err := net.Dial("tcp", at.String()); err == nil {
		c.Close()
		t.Error("the listener is left")
	}
}

// What is known of servers stays over a reload.
func TestServersOutliveReload(t *testing.T) {
	at := freePort(t)
	dead, good := refusing(t), named(t, "a")
	config := func(keepalive int) lb.HTTP {
		u := upstreamOf("u", dead, good)
		u.Keepalive, u.FailTimeout = keepalive, time.Hour
		return one(at, []lb.Upstream{u}, prefix("/", "u"))
	}
	p := start(t, config(1))
	for i := range 6 {
		if _, body := get(t, at, "x", "/"); body != "a /" {
			t.Fatal(body)
		}
		if err := p.Apply(config(i)); err != nil {
			t.Fatal(err)
		}
	}
	s := p.Status()
	if got := s.Upstreams[0].Servers; got[0].Failures != 1 || got[0].State != StateFailing || got[1].Requests != 6 {
		t.Errorf("servers %+v", got)
	}
	if got := s.Servers[0]; got.Requests != 6 || got.Answers["2xx"] != 6 || got.InFlight != 0 {
		t.Errorf("virtual host %+v", got)
	}
}

func TestAccessLog(t *testing.T) {
	dir := t.TempDir()
	paths := map[lb.AccessLogFormat]string{lb.LogCombined: filepath.Join(dir, "combined.log"), lb.LogJSON: filepath.Join(dir, "json.log")}
	for format, path := range paths {
		at, _ := proxyTo(t, named2, func(c *lb.HTTP) {
			c.AccessLog = lb.AccessLog{Path: path, Format: format}
			c.Upstreams[0].Pool.Servers = append([]lb.Server{{Address: refusing(t).Addr(), Port: refusing(t).Port(), Weight: 1}}, c.Upstreams[0].Pool.Servers...)
			quietly := prefix("/quiet", "u")
			quietly.NoLog = true
			c.Servers[0].Locations = append(c.Servers[0].Locations, quietly)
		})
		raw(t, at, "GET /a?b=\xc3\xa4\" HTTP/1.1\r\nHost: a.example\r\nUser-Agent: x\"y\\z\r\nReferer: http://r/\r\nAuthorization: Basic am9lOnNlY3JldA==\r\n\r\n")
		get(t, at, "a", "/quiet")
		read := func() string {
			var text string
			testenv.Eventually(t, time.Minute, "a line", func() (bool, error) {
				b, err := os.ReadFile(path)
				text = string(b)
				return strings.Contains(text, "\n"), err
			})
			return text
		}
		line := read()
		switch format {
		case lb.LogCombined:
			want := `^127\.0\.0\.1 - joe \[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] "GET /a\?b=\\xC3\\xA4\\x22 HTTP/1\.1" 200 2 "http://r/" "x\\x22y\\x5Cz"\n$`
			if !regexp.MustCompile(want).MatchString(line) {
				t.Errorf("line %q", line)
			}
		default:
			var got struct {
				Client, Method, URI, Host, Server string
				Status, Bytes                     int
				UserAgent                         string `json:"user_agent"`
				Attempts                          []struct{ Upstream, Server, Error string }
			}
			if err := json.Unmarshal([]byte(line), &got); err != nil {
				t.Fatalf("%v: %s", err, line)
			}
			if len(got.Attempts) != 2 || got.Attempts[0].Error == "" || got.Attempts[1].Error != "" || got.Attempts[0].Upstream != "u" {
				t.Errorf("attempts %+v", got.Attempts)
			}
			got.Attempts, got.Server = nil, ""
			want := got
			want.Client, want.Method, want.URI, want.Host, want.Status, want.Bytes, want.UserAgent = "127.0.0.1", "GET", "/a?b=\xc3\xa4\"", "a.example", 200, 2, `x"y\z`
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("line (-want +got):\n%s", diff)
			}
		}
		// logrotate moves the file away.
		if err := os.Rename(path, path+".1"); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, time.Minute, "a new file", func() (bool, error) {
			_, err := os.Stat(path)
			return err == nil, nil
		})
		get(t, at, "a", "/after")
		if line := read(); !strings.Contains(line, "/after") {
			t.Errorf("after the rotation %q", line)
		}
	}
}

func named2(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }

// A disk that hangs costs lines, not requests.
func TestAccessLogNeverWaits(t *testing.T) {
	r, err := http.NewRequest(http.MethodGet, "/", nil)
	if err != nil {
		t.Fatal(err)
	}
	x := &exchange{request: r, writer: &response{}}
	line := len(appendCombined(nil, x, 200, time.Now()))
	l := &accessLog{backlog: 2*line + line/2, dropped: new(atomic.Uint64)} // nobody writes
	for range 5 {
		l.put(x, 200, 0)
	}
	if n := l.dropped.Load(); n != 3 {
		t.Errorf("%d lines dropped of 5, with room for 2", n)
	}
	if l.count != 2 || len(l.waiting) != 2*line {
		t.Errorf("%d lines of %d bytes wait, want 2 of %d", l.count, len(l.waiting), 2*line)
	}
}

// Clients that take their time have it taken away.
func TestSlowClients(t *testing.T) {
	at, _ := proxyTo(t, named2, func(c *lb.HTTP) {
		c.Client.HeaderTimeout, c.Client.BodyTimeout = 300*time.Millisecond, 300*time.Millisecond
		c.Client.KeepaliveTimeout = 300 * time.Millisecond
	})
	for _, tt := range []struct {
		name, say string
		status    int // 0: the connection is closed without a word
	}{
		{"says nothing", "", 0},
		{"half a head", "GET / HTTP/1.1\r\nHost: a\r\n", 0},
		{"half a body", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab", http.StatusRequestTimeout},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := dial(t, at)
			send(t, c, tt.say)
			if tt.status != 0 {
				if res, _ := readAnswer(t, bufio.NewReader(c), false); res.StatusCode != tt.status {
					t.Errorf("got %s", res.Status)
				}
				return
			}
			if b, err := io.ReadAll(c); len(b) > 0 || err != nil && errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("got %q, %v", b, err)
			}
		})
	}
}

// A body that always moves, but too slowly, is given up: the time that it has grows by
// what has come.
func TestMinimumBodyRate(t *testing.T) {
	limits := testLimits
	limits.HeaderTimeout, limits.BodyTimeout, limits.MinBodyRate = 10*time.Second, 5*time.Second, 100
	began := time.Now()
	b := &clientBody{limits: &limits, began: began}
	for _, tt := range []struct {
		after time.Duration
		read  int64
		want  time.Duration // since the beginning
	}{
		{0, 0, 5 * time.Second}, {9 * time.Second, 0, 10 * time.Second}, {9 * time.Second, 200, 12 * time.Second}, {9 * time.Second, 10_000, 14 * time.Second},
	} {
		b.read = tt.read
		if got := b.patience(began.Add(tt.after)).Sub(began); got != tt.want {
			t.Errorf("after %v with %d bytes: until %v, want %v", tt.after, tt.read, got, tt.want)
		}
	}
}

// A Backup listens before it has the address; one address goes before all.
func TestListensOnWhatIsNotThere(t *testing.T) {
	at := freePort(t)
	all := netip.AddrPortFrom(netip.IPv4Unspecified(), at.Port())
	c := one(netip.AddrPortFrom(netip.MustParseAddr("192.0.2.100"), at.Port()), []lb.Upstream{upstreamOf("u", named(t, "s"))}, prefix("/vip", "u"))
	every := c.Servers[0]
	every.Listen, every.Locations = []lb.HTTPListen{{Address: all}}, []lb.Location{prefix("/all", "u")}
	mine := every
	mine.Listen, mine.Locations = []lb.HTTPListen{{Address: at}}, []lb.Location{prefix("/mine", "u")}
	c.Servers = append(c.Servers, every, mine)
	start(t, c)
	if status, _ := get(t, at, "a", "/mine"); status != 200 {
		t.Errorf("the address itself: %d", status)
	}
	second := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), at.Port())
	if status, _ := get(t, second, "a", "/all"); status != 200 {
		t.Errorf("another address: %d", status)
	}
}
