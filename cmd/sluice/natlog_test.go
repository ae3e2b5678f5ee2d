package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// A natConn is a client's connection, which knows how the backend sees it.
type natConn struct {
	net.Conn
	source string
}

// dialNAT connects to the nat service of a rig whose backend tells who it sees.
func dialNAT(r *rig) natConn {
	r.Helper()
	c, err := r.host("client").Dial(r.Context(), "tcp", natService.String())
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { c.Close() }) // its fate is the test's subject
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		r.Fatal(err)
	}
	seen, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		r.Fatal(err)
	}
	return natConn{c, strings.TrimSpace(seen)}
}

// line is what the log says of a connection.
func (c natConn) line(event string) *regexp.Regexp {
	return regexp.MustCompile(`(?m)^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z ` + regexp.QuoteMeta(fmt.Sprintf(
		"%s proto=tcp client=%v vip=%v source=%s backend=192.0.2.11:80 service=nat", event, c.LocalAddr(), natService, c.source)) + `$`)
}

// waitLine waits for a line in a file.
func (r *rig) waitLine(path string, want *regexp.Regexp) {
	r.Helper()
	r.eventually(soon, fmt.Sprintf("%v in %s", want, filepath.Base(path)), func() (bool, error) {
		all, err := os.ReadFile(path)
		return want.Match(all), err
	})
}

func TestTranslationLog(t *testing.T) {
	r := newRig(t, testenv.Default(1))
	backend := r.host("b1")
	if _, err := backend.StartTCP(netip.AddrPortFrom(backend.Address(), 80), func(c net.Conn) {
		if _, err := fmt.Fprintln(c, c.RemoteAddr()); err == nil {
			_, _ = io.Copy(io.Discard, c) // until the client closes
		}
	}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "logs", "nat.log")
	config := func(name, datapath string) string {
		return r.file(name, strings.Replace(roster, "max_flows", datapath+"max_flows", 1), pool("{address: 192.0.2.11}"),
			services(nat), vrrps(pair))
	}
	on, off := config("on.yaml", "nat: {log: "+path+"}, "), config("off.yaml", "")

	daemon := r.start("lb1", on)
	r.waitReady("lb1")
	first := dialNAT(r)
	r.waitLine(path, first.line("begin"))

	// logrotate, and an operator who asks.
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	r.waitLine(path, first.line("held"))
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	if err := daemon.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	r.waitLine(path, first.line("held"))

	// Off, over what is pinned: connections go on, and nothing is written.
	r.stop(daemon)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	daemon = r.start("lb1", off)
	r.waitReady("lb1")
	second := dialNAT(r)
	r.stop(daemon)
	if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
		t.Errorf("with the log off the file has become\n%s%v", after, err)
	}

	// On again: what began meanwhile is held.
	r.start("lb1", on)
	r.waitReady("lb1")
	r.waitLine(path, first.line("held"))
	r.waitLine(path, second.line("held"))
	third := dialNAT(r)
	r.waitLine(path, third.line("begin"))
	if s := r.mustStatus("lb1"); len(s.Problems) > 0 {
		t.Errorf("problems: %v", s.Problems)
	}

	// Flows of a backend that has failed are void: the next packet ends one.
	r.wantRun(0, "lb1", "backend", "disable", "nat", "192.0.2.11")
	r.eventually(soon, "the end of a connection", func() (bool, error) {
		_, err := io.WriteString(first, "x")
		return err != nil, nil
	})
	r.waitLine(path, first.line("end"))
}
