package l7

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A request that is under way when the proxy is closed gets its answer, if that comes in
// time.
func TestCloseWaits(t *testing.T) {
	for _, inTime := range []bool{true, false} {
		entered, release := make(chan struct{}), make(chan struct{})
		at := freePort(t)
		server := backend(t, func(w http.ResponseWriter, r *http.Request) {
			close(entered)
			select {
			case <-release:
			case <-r.Context().Done():
			}
			_, _ = io.WriteString(w, "done")
		})
		p := start(t, one(at, []lb.Upstream{upstreamOf("u", server)}, prefix("/", "u")))
		c := dial(t, at)
		send(t, c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		<-entered
		ctx, cancel := context.WithCancel(t.Context())
		closed := make(chan struct{})
		go func() { p.Close(ctx); close(closed) }()
		// It accepts nothing more as soon as it begins to close.
		for {
			other, err := net.Dial("tcp", at.String())
			if err != nil {
				break
			}
			other.Close()
			runtime.Gosched()
		}
		if inTime {
			close(release)
			if res, body := readAnswer(t, bufio.NewReader(c), false); res.StatusCode != 200 || body != "done" || !res.Close {
				t.Errorf("got %s %q, close %v", res.Status, body, res.Close)
			}
			<-closed
		} else {
			cancel()
			<-closed
			if b, err := io.ReadAll(c); len(b) > 0 {
				t.Errorf("after its time: %q, %v", b, err)
			}
			close(release)
		}
		cancel()
		if err := p.Apply(lb.HTTP{}); err == nil {
			t.Error("a closed proxy takes a configuration")
		}
	}
}

// What a connection that is idle costs is bounded, whatever it has asked before.
func TestIdleConnectionsAreSmall(t *testing.T) {
	const connections, most = 500, 48 << 10
	at, _ := proxyTo(t, named2, nil)
	in := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapInuse + m.StackInuse)
	}
	ask := func() net.Conn {
		c := dial(t, at)
		send(t, c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		readAnswer(t, bufio.NewReaderSize(c, 16), false)
		return c
	}
	ask()
	before := in()
	for range connections {
		ask()
	}
	each := (in() - before) / connections
	t.Logf("%d bytes for each idle connection, of client and proxy together", each)
	if each > most {
		t.Errorf("%d bytes for each idle connection, want at most %d", each, most)
	}
}

// A panic is told as the error that it is; what net/http says of clients is not.
func TestPanicsAreErrors(t *testing.T) {
	var out bytes.Buffer
	l := serverLog{slog.New(slog.NewTextHandler(&out, nil))}
	for _, text := range []string{"http: panic serving 192.0.2.1:4711: boom\n", "http2: server: error reading preface from client 192.0.2.1:4711: EOF\n"} {
		if n, err := l.Write([]byte(text)); n != len(text) || err != nil {
			t.Errorf("wrote %d, %v", n, err)
		}
	}
	if got := out.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "level=ERROR") || !strings.Contains(got, "boom") {
		t.Errorf("log %q", got)
	}
}
