package l7

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A patient is what health says of servers, which a test changes.
type patient struct {
	mu    sync.Mutex
	known map[netip.AddrPort]State
}

func (h *patient) set(p *Proxy, at netip.AddrPort, s State) {
	h.mu.Lock()
	h.known[at] = s
	h.mu.Unlock()
	p.Refresh()
}

func (h *patient) health(u *lb.Upstream, s lb.Server) Standing {
	h.mu.Lock()
	defer h.mu.Unlock()
	state := h.known[u.Endpoint(s)]
	if state == "" {
		state = StateUp
	}
	return Standing{State: state, Weight: s.Weight}
}

// A browser is a client that keeps the cookie of a test.
type browser struct {
	at     netip.AddrPort
	cookie string
	set    *http.Cookie // what the last answer has said
}

// get returns who has answered.
func (b *browser) get(t *testing.T, header ...string) string {
	t.Helper()
	text := "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + strings.Join(header, "\r\n")
	if len(header) > 0 {
		text += "\r\n"
	}
	if b.cookie != "" {
		text += "Cookie: other=1; srv=" + b.cookie + "\r\n"
	}
	res, body := raw(t, b.at, text+"\r\n")
	b.set = nil
	for _, c := range res.Cookies() {
		if c.Name == "srv" {
			b.set, b.cookie = c, c.Value
		}
	}
	name, _, _ := strings.Cut(body, " ")
	return name
}

func stickyUpstream(servers ...netip.AddrPort) lb.Upstream {
	u := upstreamOf("u", servers...)
	u.Sticky = &lb.Sticky{Cookie: "srv", Path: "/", SameSite: lb.SameSiteLax, Keys: [][]byte{[]byte("secret")}}
	return u
}

// A client stays with its server while that is there: over reloads, restarts, on another
// node, and while the server is drained. It gets another one, and the cookie of that, when
// its own has failed or was disabled.
func TestSticky(t *testing.T) {
	a, b, c := named(t, "a"), named(t, "b"), named(t, "c")
	addresses := map[string]netip.AddrPort{"a": a, "b": b, "c": c}
	at := freePort(t)
	health := &patient{known: map[netip.AddrPort]State{}}
	config := one(at, []lb.Upstream{stickyUpstream(a, b, c)}, prefix("/", "u"))
	begin := func(config lb.HTTP) *Proxy {
		p := New(Options{Log: quiet, Health: health.health})
		if err := p.Apply(config); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close(t.Context()) })
		return p
	}
	p := begin(config)
	client := &browser{at: at}
	mine := client.get(t)
	if client.set == nil {
		t.Fatal("no cookie")
	}
	stays := func(why string) {
		t.Helper()
		for range 4 {
			if got := client.get(t); got != mine || client.set != nil {
				t.Errorf("%s: %s has answered, want %s; cookie %v", why, got, mine, client.set)
			}
		}
	}
	moves := func(why string) {
		t.Helper()
		before := client.cookie
		got := client.get(t)
		if got == mine || client.set == nil || client.cookie == before {
			t.Fatalf("%s: %s has answered, as before %s; cookie %v", why, got, mine, client.set)
		}
		mine = got
		stays(why + ", with the new one")
	}
	stays("at first")
	others := map[string]bool{}
	for range 6 {
		others[(&browser{at: at}).get(t)] = true
	}
	if len(others) != 3 {
		t.Errorf("clients without a cookie went to %v", others)
	}

	next := one(at, []lb.Upstream{stickyUpstream(c, b, a)}, prefix("/", "u"))
	next.Upstreams[0].Policy = lb.LeastConn
	if err := p.Apply(next); err != nil {
		t.Fatal(err)
	}
	stays("after a reload")
	p.Close(t.Context())
	p = begin(config)
	stays("after a restart")

	health.set(p, addresses[mine], StateDrained)
	stays("while it is drained")
	for range 6 {
		if got := (&browser{at: at}).get(t); got == mine {
			t.Error("who comes first goes to the drained server")
		}
	}
	health.set(p, addresses[mine], StateDown)
	moves("when it is down")
	client.cookie = "nobody"
	client.get(t)
	if client.set == nil {
		t.Error("a cookie that names nobody is left")
	}
	if s := p.Status().Upstreams[0].Sticky; s == nil || s.Cookie != "srv" || s.Moved != 1 {
		t.Errorf("status %+v, want one that has moved", s)
	}
}

// Who keys change for stays as long as the old key counts.
func TestStickyKeys(t *testing.T) {
	servers := []*server{{text: "192.0.2.1:80"}, {text: "192.0.2.2:80"}}
	config := stickyUpstream()
	with := func(name string, keys ...string) *sticky {
		c := config
		c.Name, c.Sticky = name, &lb.Sticky{Cookie: "srv"}
		for _, k := range keys {
			c.Sticky.Keys = append(c.Sticky.Keys, []byte(k))
		}
		return newSticky(&c, servers)
	}
	request := func(s *sticky) *http.Request {
		return &http.Request{Header: http.Header{"Cookie": {"srv=" + s.tokens[servers[1]]}}}
	}
	before := with("u", "old")
	for _, tt := range []struct {
		name string
		s    *sticky
		want *server
	}{
		{"the same", with("u", "old"), servers[1]}, {"both keys", with("u", "new", "old"), servers[1]},
		{"another key", with("u", "new"), nil}, {"another upstream", with("v", "old"), nil}, {"no key", with("u"), nil},
	} {
		if got := tt.s.server(request(before)); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
	if s := with("u", "new", "old"); s.server(request(with("u", "new"))) != servers[1] || s.tokens[servers[1]] != with("u", "new").tokens[servers[1]] {
		t.Error("new cookies are not of the first key")
	}
	if token := before.tokens[servers[1]]; len(token) != 16 || strings.Contains(token, "192") {
		t.Errorf("token %q", token)
	}
}

// A backup has a client only as long as no primary is there.
func TestStickyBackup(t *testing.T) {
	a, b := named(t, "a"), named(t, "b")
	at := freePort(t)
	u := stickyUpstream(a, b)
	u.Pool.Servers[1].Backup = true
	health := &patient{known: map[netip.AddrPort]State{a: StateDown}}
	p := New(Options{Log: quiet, Health: health.health})
	if err := p.Apply(one(at, []lb.Upstream{u}, prefix("/", "u"))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close(t.Context()) })
	client := &browser{at: at}
	got := client.get(t) + client.get(t)
	health.set(p, a, StateUp)
	if got += client.get(t) + client.get(t); got != "bbaa" {
		t.Errorf("went to %s, want bbaa", got)
	}
}

func TestStickyCookie(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*lb.Sticky)
		tls    bool
		header []string
		again  bool // a second answer sets it, too
		want   string
	}{
		{"plain", nil, false, nil, false, "srv=TOKEN; Path=/; HttpOnly; SameSite=Lax"},
		{"TLS", nil, true, nil, false, "srv=TOKEN; Path=/; HttpOnly; Secure; SameSite=Lax"},
		{"TLS in front", nil, false, []string{"X-Forwarded-Proto: https"}, false, "srv=TOKEN; Path=/; HttpOnly; Secure; SameSite=Lax"},
		{"for other sites", func(s *lb.Sticky) { s.SameSite = lb.SameSiteNone }, false, nil, false, "srv=TOKEN; Path=/; HttpOnly; Secure; SameSite=None"},
		{"for a while", func(s *lb.Sticky) {
			s.TTL, s.Path, s.Domain, s.SameSite = time.Hour, "/app", "example.com", lb.SameSiteStrict
		}, false, nil, true,
			"srv=TOKEN; Path=/app; Domain=example.com; Max-Age=3600; HttpOnly; SameSite=Strict"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			at := freePort(t)
			u := stickyUpstream(named(t, "a"))
			if tt.change != nil {
				tt.change(u.Sticky)
			}
			c := one(at, []lb.Upstream{u}, prefix("/", "u"))
			c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
			client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
			defer client.CloseIdleConnections()
			url := fmt.Sprintf("http://%v/", at)
			if tt.tls {
				files := tlsFiles(t, "a.example")
				c.Servers[0].Listen[0].TLS = &files
				url = fmt.Sprintf("https://%v/", at)
			}
			start(t, c)
			ask := func(cookie string) string {
				r, err := http.NewRequest(http.MethodGet, url, nil)
				if err != nil {
					t.Fatal(err)
				}
				for _, h := range tt.header {
					name, value, _ := strings.Cut(h, ": ")
					r.Header.Set(name, value)
				}
				if cookie != "" {
					r.Header.Set("Cookie", "srv="+cookie)
				}
				res, err := client.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				res.Body.Close()
				return strings.Join(res.Header["Set-Cookie"], "\n")
			}
			token := token([]byte("secret"), "u", u.Endpoint(u.Pool.Servers[0]).String())
			want := strings.Replace(tt.want, "TOKEN", token, 1)
			if diff := cmp.Diff(want, ask("")); diff != "" {
				t.Errorf("first (-want +got):\n%s", diff)
			}
			if !tt.again {
				want = ""
			}
			if diff := cmp.Diff(want, ask(token)); diff != "" {
				t.Errorf("second (-want +got):\n%s", diff)
			}
		})
	}
}

// Redirects to servers, and upgraded connections, stay with the server, too.
func TestStickyElsewhere(t *testing.T) {
	at := freePort(t)
	switches := func(name string) netip.AddrPort {
		return backend(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Upgrade", "websocket")
			w.Header().Set("Connection", "Upgrade")
			w.Header().Set("X-Name", name)
			w.WriteHeader(http.StatusSwitchingProtocols)
		})
	}
	to := prefix("/to", "")
	to.Redirect = &lb.Redirect{Status: http.StatusFound, Upstream: "u"}
	start(t, one(at, []lb.Upstream{stickyUpstream(switches("a"), switches("b"))}, prefix("/", "u"), to))
	for _, tt := range []struct{ name, request, header string }{
		{"redirect", "GET /to HTTP/1.1\r\nHost: a\r\n", "Location"},
		{"upgrade", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-Websocket-Key: x\r\n", "X-Name"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			cookie := ""
			for range 4 {
				conn := dial(t, at)
				if _, err := io.WriteString(conn, tt.request+cookie+"\r\n"); err != nil {
					t.Fatal(err)
				}
				res, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, res.Header.Get(tt.header))
				if set := res.Cookies(); len(set) > 0 {
					cookie = "Cookie: srv=" + set[0].Value + "\r\n"
				}
				conn.Close()
			}
			if cookie == "" || got[0] == "" || len(slices.Compact(got)) != 1 {
				t.Errorf("cookie %q, went to %q", cookie, got)
			}
		})
	}
}
