package l7

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// lineOf waits for a line about a path in a log.
func lineOf(t *testing.T, log, path string) {
	t.Helper()
	testenv.Eventually(t, time.Minute, "a line about "+path+" in "+filepath.Base(log), func() (bool, error) {
		b, err := os.ReadFile(log)
		return strings.Contains(string(b), "GET "+path+" "), err
	})
}

// A request that is under way when the configuration changes has its line: in the log that
// there was when it came.
func TestLinesOverReload(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(c *lb.HTTP, dir string)
		after  string // where lines go then; "": nowhere
	}{
		{"the log stays", func(c *lb.HTTP, _ string) { c.Client.MaxHeader *= 2 }, "first"},
		{"another log", func(c *lb.HTTP, dir string) { c.AccessLog.Path = filepath.Join(dir, "second") }, "second"},
		{"another format", func(c *lb.HTTP, _ string) { c.AccessLog.Format = lb.LogCombined }, "first"},
		{"no log", func(c *lb.HTTP, _ string) { c.AccessLog = lb.AccessLog{} }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			h, let := held(t)
			config := one(freePort(t), []lb.Upstream{upstreamOf("u", backend(t, h))}, prefix("/", "u"))
			config.AccessLog = lb.AccessLog{Path: filepath.Join(dir, "first")}
			at := config.Servers[0].Listen[0].Address
			p := start(t, config)
			c := dial(t, at)
			ask(t, c, "/held")
			testenv.Eventually(t, time.Minute, "a request", func() (bool, error) {
				return p.Status().Servers[0].InFlight == 1, nil
			})
			next := config
			tt.change(&next, dir)
			for range 2 { // the second time nothing is left of the first log but the request
				if err := p.Apply(next); err != nil {
					t.Fatal(err)
				}
			}
			if status, _ := get(t, at, "a", "/after"); status != http.StatusOK {
				t.Errorf("got %d", status)
			}
			if tt.after != "" {
				lineOf(t, filepath.Join(dir, tt.after), "/after")
			}
			close(let)
			readAnswer(t, bufio.NewReader(c), false)
			lineOf(t, filepath.Join(dir, "first"), "/held")
			testenv.Eventually(t, time.Minute, "the old log to end", func() (bool, error) {
				if err := p.Apply(next); err != nil {
					return false, err
				}
				return len(p.oldLogs) == 0, nil
			})
			if n := p.Status().LogDropped; n != 0 {
				t.Errorf("%d lines are lost", n)
			}
		})
	}
}

// When the daemon stops, connections that are no HTTP any more end, and have their lines.
func TestLineOfWhatTheEndCutsOff(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	up := make(chan struct{})
	at, p := proxyTo(t, func(w http.ResponseWriter, r *http.Request) {
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		close(up)
		_, _ = bufio.NewReader(c).ReadByte()
	}, func(c *lb.HTTP) { c.AccessLog = lb.AccessLog{Path: log} })
	c := dial(t, at)
	send(t, c, "GET /socket HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n")
	<-up
	if res, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(res, err)
	}
	p.Close(t.Context())
	b, err := os.ReadFile(log)
	if err != nil || !strings.Contains(string(b), "GET /socket ") {
		t.Errorf("%q, %v", b, err)
	}
}
