package l7

import (
	"bufio"
	"io"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
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
