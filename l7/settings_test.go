package l7

import (
	"bufio"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// The settings of a virtual host count where no location is found, too: pages, access, limits,
// and whether there is a line in the log.
func TestWhereNoLocationIs(t *testing.T) {
	pages := []lb.ErrorPage{{Status: []lb.StatusRange{{First: 400, Last: 499}}, Body: []byte("page"), ContentType: "text/html"}}
	const asked = "GET /b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
	for _, tt := range []struct {
		name, request string
		settings      lb.Location
		want          []string // of the same request again and again
	}{
		{"nothing", asked, lb.Location{}, []string{"404 404 Not Found\n"}},
		{"a page", asked, lb.Location{ErrorPages: pages}, []string{"404 page"}},
		{"a page of another status", asked, lb.Location{ErrorPages: []lb.ErrorPage{{Status: pages[0].Status, As: 410, Body: []byte("gone")}}}, []string{"410 gone"}},
		{"a page for what is no path", "GET /../b HTTP/1.1\r\nHost: a\r\n\r\n", lb.Location{ErrorPages: pages}, []string{"400 page"}},
		{"a page for a request for no path", "OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", lb.Location{ErrorPages: pages}, []string{"400 page"}},
		{"a page for a method", "TRACE /a HTTP/1.1\r\nHost: a\r\n\r\n", lb.Location{ErrorPages: pages}, []string{"405 page"}},
		{"who may not", asked, lb.Location{Rules: []lb.Rule{{Prefix: netip.MustParsePrefix("127.0.0.0/8")}}}, []string{"403 403 Forbidden\n"}},
		{"too often", asked, lb.Location{RateLimit: &lb.RateLimit{Key: lb.RequestKey{Kind: lb.KeyClient}, Rate: 1e-3, Status: 429}},
			[]string{"404 404 Not Found\n", "429 429 Too Many Requests\n"}},
		{"a location that there is", "GET /a HTTP/1.1\r\nHost: a\r\n\r\n", lb.Location{ErrorPages: pages}, []string{"403 403 Forbidden\n"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			at := freePort(t)
			l := prefix("/a", "")
			l.Return, l.AllowOnly = &lb.Return{Status: http.StatusOK}, true
			c := one(at, nil, l)
			c.Servers[0].Otherwise = tt.settings
			start(t, c)
			for _, want := range tt.want {
				res, body := raw(t, at, tt.request)
				if diff := cmp.Diff(want, fmt.Sprint(res.StatusCode, " ", body)); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			}
		})
	}
}

// A log has no line of a virtual host that wants none, and of a compressed answer the
// bytes that were sent.
func TestWhatIsLogged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	at := freePort(t)
	zipped := prefix("/", "")
	zipped.Return = &lb.Return{Status: http.StatusOK, Body: strings.Repeat("a", 5000), ContentType: "text/plain"}
	zipped.Gzip = &lb.Gzip{Level: 5, MinLength: 100, Types: []string{"text/*"}}
	c := one(at, nil, zipped)
	c.Servers[0].Names = []string{"a"}
	c.Servers = append(c.Servers, lb.HTTPServer{Listen: c.Servers[0].Listen, Names: []string{"quiet"}, Otherwise: lb.Location{NoLog: true}})
	c.AccessLog = lb.AccessLog{Path: path, Format: lb.LogCombined}
	p := start(t, c)
	get(t, at, "quiet", "/none")
	_, body := raw(t, at, "GET /zipped HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n")
	_, plain := get(t, at, "a", "/plain")
	want := []string{
		fmt.Sprintf("\"GET /zipped HTTP/1.1\" 200 %d ", len(body)), fmt.Sprintf("\"GET /plain HTTP/1.1\" 200 %d ", len(plain)),
	}
	var lines []string
	testenv.Eventually(t, time.Minute, "two lines", func() (bool, error) {
		b, err := os.ReadFile(path)
		lines = strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
		return strings.Count(string(b), "\n") >= len(want), err
	})
	if len(lines) != len(want) {
		t.Fatalf("lines %q", lines)
	}
	for i := range want {
		if !strings.Contains(lines[i], want[i]) {
			t.Errorf("line %q, want %q in it", lines[i], want[i])
		}
	}
	testenv.Eventually(t, time.Minute, "all that was sent to be counted", func() (bool, error) {
		return p.Status().Servers[0].Sent == uint64(len(body)+len(plain)), nil
	})
}

// A page takes the place of what a server has answered, also as a status that has no body: the
// connection goes on.
func TestPagesInPlaceOfAnswers(t *testing.T) {
	status := map[string]int{"/404": 404, "/500": 500, "/304": 304, "/200": 200}
	server := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		w.Header().Set("Etag", `"1"`)
		w.WriteHeader(status[r.URL.Path])
		if status[r.URL.Path] != 304 {
			fmt.Fprint(w, "the server's")
		}
	})
	page := func(status, as int) lb.ErrorPage {
		return lb.ErrorPage{Status: []lb.StatusRange{{First: status, Last: status}}, As: as, Body: []byte("page"), ContentType: "text/html"}
	}
	l := prefix("/", "u")
	l.InterceptErrors, l.ErrorPages = true, []lb.ErrorPage{page(404, 204), page(500, 200), page(304, 0)}
	at := freePort(t)
	start(t, one(at, []lb.Upstream{upstreamOf("u", server)}, l))
	c := dial(t, at)
	in := bufio.NewReader(c)
	for _, tt := range []struct{ method, path, want string }{
		{"GET", "/404", "204 [] [] "}, {"GET", "/500", "200 [text/html] [4] page"}, {"HEAD", "/500", "200 [text/html] [4] "}, {"HEAD", "/404", "204 [] [] "},
		{"GET", "/304", "304 [] [] "}, {"GET", "/200", "200 [text/plain] [12] the server's"},
	} {
		fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: a\r\n\r\n", tt.method, tt.path)
		res, body := readAnswer(t, in, tt.method == "HEAD")
		got := fmt.Sprint(res.StatusCode, " ", res.Header["Content-Type"], " ", res.Header["Content-Length"], " ", body)
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s %s (-want +got):\n%s", tt.method, tt.path, diff)
		}
	}
}
