package l7

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

func TestDivide(t *testing.T) {
	for _, tt := range []struct {
		name          string
		files, wanted int
		want          division
	}{
		{"what a shell gives", 1024, 0, division{768, 576, 192}}, {"what systemd gives", 524288, 0, division{520192, 390144, 130048}},
		{"fewer clients", 1024, 100, division{768, 100, 192}}, {"more than there can be", 1024, 5000, division{768, 576, 192}},
		{"next to nothing", 64, 0, division{64, 48, 16}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := divide(tt.files, tt.wanted); got != tt.want {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
		})
	}
}

// Clients and servers have what the others leave, and servers a part that clients never
// have.
func TestRoomForBoth(t *testing.T) {
	r := newRoom(func() {})
	r.resize(division{all: 8, clients: 6, servers: 2})
	ended, end := context.WithCancel(t.Context())
	end()
	take := func() bool { return r.servers.take(ended) == nil }
	enter := func() bool { return r.enter(&socket{room: r}, func() bool { return true }) }
	for _, tt := range []struct {
		do   func() bool
		want string
	}{{take, "yyyyy"}, {enter, "yyyn"}, {take, "n"}} {
		for i, want := range tt.want {
			if got := tt.do(); got != (want == 'y') {
				t.Errorf("%v, number %d: %v, want %c", tt.want, i, got, want)
			}
		}
	}
	for range 5 {
		r.servers.giveBack()
	}
	got := ""
	for _, do := range []func() bool{enter, enter, enter, enter, take, take, take} {
		if do() {
			got += "y"
		} else {
			got += "n"
		}
	}
	if want := "yyynyyn"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// Who waits for a connection to a server gets it in turn; one of them at a time looks for
// what is idle, and not too often. Who gives up is passed over.
func TestWhoWaitsForServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		looks := 0 // not guarded: two at a time are a race
		b := &budget{makeRoom: func() { looks++; time.Sleep(lookForIdle / 10) }}
		b.resize(division{servers: 1})
		if err := b.take(t.Context()); err != nil {
			t.Fatal(err)
		}
		const all = 20
		var got []int
		impatient, giveUp := context.WithCancel(t.Context())
		for i := range all {
			ctx := t.Context()
			if i == 3 {
				ctx = impatient
			}
			go func() {
				n := i
				if b.take(ctx) != nil {
					n = -i
				}
				got = append(got, n) // one at a time: there is one connection
			}()
			synctest.Wait()
		}
		time.Sleep(10*lookForIdle + lookForIdle/20) // then nobody looks
		synctest.Wait()
		if looks < 5 || looks > 11 {
			t.Errorf("%d looks in the time of ten", looks)
		}
		giveUp()
		synctest.Wait()
		want := []int{-3}
		for i := range all {
			if i == 3 {
				continue
			}
			began := time.Now()
			b.giveBack()
			synctest.Wait()
			if want = append(want, i); !slices.Equal(got, want) || time.Since(began) != 0 {
				t.Fatalf("after %v got %d, want %d", time.Since(began), got, want)
			}
		}
		if b.giveBack(); b.used.Load() != 0 || b.waits() {
			t.Errorf("at the end %d are used, somebody waits: %v", b.used.Load(), b.waits())
		}
	})
}

// A client that finds no room has connections to servers closed that nothing uses, before
// those of other clients.
func TestIdleServersMakeRoomFirst(t *testing.T) {
	for _, tt := range []struct {
		name    string
		idle    int // connections to servers that nothing uses
		evicted uint64
	}{{"some are idle", 2, 0}, {"none is", 0, 1}} {
		t.Run(tt.name, func(t *testing.T) {
			var r *room
			r = newRoom(func() {
				for ; tt.idle > 0; tt.idle-- {
					r.servers.giveBack()
				}
			})
			r.resize(division{all: 8, clients: 6, servers: 2})
			for range 5 {
				if err := r.servers.take(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			never := func() bool { return false }
			for range 4 {
				here, there := net.Pipe()
				defer there.Close()
				s := &socket{Conn: here, room: r} // since the epoch, but for a nanosecond
				s.quietSince.Store(1)
				if !r.enter(s, never) {
					t.Fatal("no room")
				}
			}
			if r.closed != tt.evicted {
				t.Errorf("%d connections of clients were closed, want %d", r.closed, tt.evicted)
			}
		})
	}
}

// held is a server that answers when the test lets it.
func held(t *testing.T) (h http.HandlerFunc, let chan struct{}) {
	let = make(chan struct{})
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/held" {
			select {
			case <-let:
			case <-r.Context().Done():
			}
		}
		_, _ = io.WriteString(w, "ok")
	}, let
}

func waiting(t *testing.T, p *Proxy, n int) {
	t.Helper()
	testenv.Eventually(t, time.Minute, fmt.Sprintf("%d listeners that wait", n), func() (bool, error) {
		return p.Status().Connections.Waiting == n, nil
	})
}

// resting waits for n connections that are idle.
func resting(t *testing.T, p *Proxy, n int) {
	t.Helper()
	testenv.Eventually(t, time.Minute, fmt.Sprintf("%d connections that are idle", n), func() (bool, error) {
		p.room.mu.Lock()
		defer p.room.mu.Unlock()
		idle := 0
		for s := range p.room.open {
			if since := s.quietSince.Load(); since != 0 && since <= time.Now().UnixNano() {
				idle++
			}
		}
		return idle == n, nil
	})
}

func ask(t *testing.T, c net.Conn, path string) {
	t.Helper()
	send(t, c, "GET "+path+" HTTP/1.1\r\nHost: a\r\n\r\n")
}

// The connections that have been idle for longest make room for new ones; where all are
// busy new ones wait until one is not, and none is lost.
func TestMaxConnections(t *testing.T) {
	h, let := held(t)
	at, p := proxyTo(t, h, func(c *lb.HTTP) { c.MaxConnections = 3 })
	var conns []net.Conn
	var readers []*bufio.Reader
	open := func() (net.Conn, *bufio.Reader) {
		c := dial(t, at)
		conns, readers = append(conns, c), append(readers, bufio.NewReader(c))
		return c, readers[len(readers)-1]
	}
	good := func(r *bufio.Reader) *http.Response {
		t.Helper()
		res, body := readAnswer(t, r, false)
		if res.StatusCode != http.StatusOK || body != "ok" {
			t.Fatalf("got %s %q", res.Status, body)
		}
		return res
	}
	for i := range 3 {
		c, r := open()
		ask(t, c, "/")
		good(r)
		resting(t, p, i+1)
	}
	c, r := open()
	ask(t, c, "/")
	good(r)
	if _, err := readers[0].ReadByte(); err != io.EOF {
		t.Errorf("the one that was idle for longest: %v", err)
	}
	ask(t, conns[1], "/") // not this one
	good(readers[1])
	for _, i := range []int{1, 2, 3} {
		ask(t, conns[i], "/held")
	}
	testenv.Eventually(t, time.Minute, "three that are busy", func() (bool, error) {
		return p.Status().Upstreams[0].Servers[0].InFlight == 3, nil
	})
	c, r = open()
	ask(t, c, "/")
	waiting(t, p, 1)
	s := p.Status()
	if got := s.Connections; got.Open != 3 || got.Max != 3 || got.Waited != 2 || got.Closed != 1 || got.Servers != 3 {
		t.Errorf("%+v", got)
	}
	if len(s.Problems) > 0 {
		t.Errorf("after a moment: %q", s.Problems)
	}
	testenv.Eventually(t, time.Minute, "that it is told", func() (bool, error) {
		all := p.Status().Problems
		return len(all) == 1 && strings.Contains(all[0], "new ones wait"), nil
	})
	close(let)
	last := 0 // answers that say that there are no more
	for _, i := range []int{1, 2, 3} {
		if good(readers[i]).Close {
			last++
		}
	}
	if last == 0 {
		t.Error("no answer says that it is the last one")
	}
	good(r)
	waiting(t, p, 0)
	conns = append(conns, c)
	for _, c := range conns {
		c.Close()
	}
	testenv.Eventually(t, time.Minute, "no connections", func() (bool, error) { return p.Status().Connections.Open == 0, nil })
}

// Who says nothing does not keep others out, in the middle of a handshake either; and an
// upgraded connection has its place as long as it lasts.
func TestWhoHasAPlace(t *testing.T) {
	h, _ := held(t)
	for _, tt := range []struct {
		name string
		tls  bool
		say  string
	}{
		{"nothing", false, ""}, {"half a head", false, "GET / HT"}, {"no handshake", true, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			at, p := proxyTo(t, h, func(c *lb.HTTP) {
				c.MaxConnections = 2
				if tt.tls {
					files := tlsFiles(t, "a.example")
					c.Servers[0].Listen[0].TLS = &files
				}
			})
			for range 4 {
				c := dial(t, at)
				if tt.say != "" {
					send(t, c, tt.say)
				}
			}
			testenv.Eventually(t, time.Minute, "that two have made room", func() (bool, error) {
				return p.Status().Connections.Closed >= 2, nil
			})
		})
	}
	t.Run("upgraded", func(t *testing.T) {
		at, p := proxyTo(t, func(w http.ResponseWriter, _ *http.Request) {
			c, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				defer c.Close()
				_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
				_, _ = io.Copy(c, c)
			}
		}, nil)
		c := dial(t, at)
		send(t, c, "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n")
		r := bufio.NewReader(c)
		if res, err := http.ReadResponse(r, nil); err != nil || res.StatusCode != http.StatusSwitchingProtocols {
			t.Fatal(res, err)
		}
		send(t, c, "hello")
		echo := make([]byte, 5)
		if _, err := io.ReadFull(r, echo); err != nil || string(echo) != "hello" {
			t.Fatalf("%q, %v", echo, err)
		}
		if got := p.Status().Connections; got.Open != 1 || got.Servers != 1 {
			t.Errorf("while it lasts: %+v", got)
		}
		c.Close()
		testenv.Eventually(t, time.Minute, "no connections", func() (bool, error) {
			got := p.Status().Connections
			return got.Open == 0 && got.Servers == 0, nil
		})
	})
}

// More than the limit of open files is good for cannot be had, which is said; a reload
// changes how many there may be, and closes none.
func TestMaxConnectionsOverReload(t *testing.T) {
	at := freePort(t)
	config := func(most int) lb.HTTP {
		c := one(at, []lb.Upstream{upstreamOf("u", named(t, "a"))}, prefix("/", "u"))
		c.MaxConnections = most
		return c
	}
	p := start(t, config(4))
	c := dial(t, at)
	r := bufio.NewReader(c)
	for _, tt := range []struct{ most, want, problems int }{{4, 4, 0}, {1, 1, 0}, {1 << 24, 0, 1}, {0, 0, 0}} {
		if err := p.Apply(config(tt.most)); err != nil {
			t.Fatal(err)
		}
		if tt.want == 0 {
			tt.want = divide(openFiles(), 0).clients
		}
		s := p.Status()
		if diff := cmp.Diff([]int{tt.want, tt.problems}, []int{s.Connections.Max, len(s.Problems)}); diff != "" {
			t.Errorf("%d (-want +got):\n%s\n%q", tt.most, diff, s.Problems)
		}
		ask(t, c, "/")
		readAnswer(t, r, false)
	}
}

// Where no more connections to servers may be, idle ones make room; and a request that
// gets none is no failure of a server.
func TestBudgetOfServers(t *testing.T) {
	h, let := held(t)
	at := freePort(t)
	a, b := backend(t, h), backend(t, h)
	one, two := upstreamOf("one", a), upstreamOf("two", b)
	two.ConnectTimeout = time.Second
	config := lb.HTTP{Client: testLimits, Upstreams: []lb.Upstream{one, two}, Servers: []lb.HTTPServer{{
		Listen: []lb.HTTPListen{{Address: at}}, Locations: []lb.Location{prefix("/", "one"), prefix("/two", "two")},
	}}}
	p := start(t, config)
	p.room.servers.resize(division{servers: 1})
	for _, path := range []string{"/", "/two", "/"} {
		if status, _ := get(t, at, "a", path); status != http.StatusOK {
			t.Fatalf("%s: %d", path, status)
		}
	}
	c := dial(t, at)
	ask(t, c, "/held")
	testenv.Eventually(t, time.Minute, "a request", func() (bool, error) {
		return p.Status().Upstreams[0].Servers[0].InFlight == 1, nil
	})
	if status, _ := get(t, at, "a", "/two"); status != http.StatusServiceUnavailable {
		t.Errorf("with no room: %d", status)
	}
	close(let)
	readAnswer(t, bufio.NewReader(c), false)
	s := p.Status()
	for _, u := range s.Upstreams {
		if u.Servers[0].Failures != 0 || u.Servers[0].State == StateFailing {
			t.Errorf("%s: %+v", u.Name, u.Servers[0])
		}
	}
	if s.Connections.Servers > 1 || s.Connections.MaxServers != 1 {
		t.Errorf("%+v", s.Connections)
	}
}
