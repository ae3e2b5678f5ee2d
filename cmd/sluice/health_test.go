package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// sorryPool has two primaries and a backup.
const sorryPool = `
pools:
  - name: web
    ` + probes + `
    servers:
      - {address: 192.0.2.11}
      - {address: 192.0.2.12, weight: 2}
      - {address: 192.0.2.13, backup: true}
`

// noBackend is how many packets of a service were dropped because no server can
// serve it.
func (r *rig) noBackend(on, service string) uint64 {
	r.Helper()
	v, err := serviceOf(r.mustStatus(on), service)
	if err != nil {
		r.Fatal(err)
	}
	return v.Losses.NoBackend
}

// What servers do is followed: one that is stopped leaves the table and comes
// back to it, the backup serves while no primary does, and when all are down the
// packets are dropped, counted and reported.
func TestServersComeAndGo(t *testing.T) {
	const up, down = control.ServerUp, control.ServerDown
	r := newRig(t, testenv.Default(3))
	servers := map[string]*testenv.HTTPServer{}
	for _, name := range []string{"b1", "b2", "b3"} {
		if err := r.host(name).AddVIPOnLoopback(vip); err != nil {
			t.Fatal(err)
		}
		servers[name] = r.serve(name, r.host(name).NameHandler())
	}
	r.start("lb1", r.file("sluice.yaml", roster, sorryPool, services(dsr, nat), vrrps(pair)))
	r.waitReady("lb1")
	for _, step := range []struct {
		name   string
		change func() error
		states []control.ServerState
		serve  []string
	}{
		{"the backup has nothing to do", func() error { return nil },
			[]control.ServerState{up, up, up}, []string{"b1", "b2"}},
		{"a primary is stopped", func() error { return servers["b2"].Close() },
			[]control.ServerState{up, down, up}, []string{"b1"}},
		{"the last primary is stopped", func() error { return servers["b1"].Close() },
			[]control.ServerState{down, down, up}, []string{"b3"}},
		{"a primary is back", func() error { servers["b2"] = r.serve("b2", r.host("b2").NameHandler()); return nil },
			[]control.ServerState{down, up, up}, []string{"b2"}},
		{"both primaries are back", func() error { servers["b1"] = r.serve("b1", r.host("b1").NameHandler()); return nil },
			[]control.ServerState{up, up, up}, []string{"b1", "b2"}},
	} {
		if err := step.change(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		for _, service := range []string{"dsr", "nat"} {
			r.waitServers("lb1", service, soon, step.states...)
		}
		for _, to := range []netip.AddrPort{dsrService, natService} {
			if got := names(r.answers("client", to, burst)); strings.Join(got, " ") != strings.Join(step.serve, " ") {
				t.Errorf("%s: %v is served by %v, want %v", step.name, to, got, step.serve)
			}
		}
	}

	for _, name := range []string{"b1", "b2", "b3"} {
		if err := servers[name].Close(); err != nil {
			t.Fatal(err)
		}
	}
	s := r.waitStatus("lb1", soon, "both services down", func(s control.Status) error {
		for _, name := range []string{"dsr", "nat"} {
			if v, err := serviceOf(s, name); err != nil || v.State != control.ServiceDown {
				return fmt.Errorf("service %s is %s, %w", name, v.State, err)
			}
		}
		return nil
	})
	if text := strings.Join(s.Problems, "\n"); !strings.Contains(text, "service dsr is down") || !strings.Contains(text, "service nat is down") {
		t.Errorf("the problems do not name the services: %v", s.Problems)
	}
	if text := r.wantRun(0, "lb1", "status").stdout; !strings.Contains(text, "service nat: down") {
		t.Errorf("status does not say that a service is down:\n%s", text)
	}
	for name, to := range map[string]netip.AddrPort{"dsr": dsrService, "nat": natService} {
		before := r.noBackend("lb1", name)
		p, err := r.host("client").StartProber(testenv.ProbeConfig{Target: to, Count: 10, Timeout: 300 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		got, err := p.Wait()
		if err != nil {
			t.Fatal(err)
		}
		if got.Errors["connect: timeout"] != 10 {
			t.Errorf("%s: of 10 requests %d failed: %v, want all without any answer", name, got.Failed, got.Errors)
		}
		if n := r.noBackend("lb1", name) - before; n != 10 {
			t.Errorf("%s: %d packets were counted as dropped, want 10", name, n)
		}
	}
	// The VIP stays: a fault that all nodes share must not take it away.
	if !r.has("lb1", vip) {
		t.Error("the VIP is gone")
	}
	r.serve("b3", r.host("b3").NameHandler())
	r.waitServers("lb1", "nat", soon, down, down, up)
	r.waitServers("lb1", "dsr", soon, down, down, up)
	r.wantServing(natService, "b3")
	r.wantServing(dsrService, "b3")
}

// A connection to a backend that has died gets an answer to its next packet, so
// that the client need not wait for a timeout.
func TestConnectionsOfADeadBackendAreReset(t *testing.T) {
	r := newRig(t, testenv.Default(3))
	for _, name := range []string{"b1", "b2", "b3"} {
		if err := r.host(name).AddVIPOnLoopback(vip); err != nil {
			t.Fatal(err)
		}
		_, err := r.host(name).StartTCP(netip.AddrPortFrom(netip.IPv4Unspecified(), 80), func(c net.Conn) {
			if _, err := io.WriteString(c, name+"\n"); err == nil {
				testenv.Echo(c)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	r.start("lb1", r.usual())
	r.waitReady("lb1")

	// connectTo connects until a given backend answers.
	connectTo := func(to netip.AddrPort, backend string) (net.Conn, *bufio.Reader) {
		t.Helper()
		for range 200 {
			c, err := r.host("client").Dial(t.Context(), "tcp", to.String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = c.Close() }) // reset, or with nothing left to say
			reader := bufio.NewReader(c)
			name, err := reader.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if name == backend+"\n" {
				return c, reader
			}
		}
		t.Fatalf("%s has answered none of 200 connections to %v", backend, to)
		return nil, nil
	}
	say := func(c net.Conn, from *bufio.Reader) error {
		if err := c.SetDeadline(time.Now().Add(atOnce)); err != nil {
			return err
		}
		if _, err := io.WriteString(c, "are you there?\n"); err != nil {
			return err
		}
		_, err := from.ReadString('\n')
		return err
	}
	type conn struct {
		name string
		c    net.Conn
		from *bufio.Reader
	}
	var dead []conn
	for _, to := range []netip.AddrPort{dsrService, natService} {
		c, from := connectTo(to, "b2")
		dead = append(dead, conn{to.String(), c, from})
	}
	// Of nat alone: a slot of dsr may move from one healthy backend to another.
	c, from := connectTo(natService, "b1")
	alive := []conn{{natService.String(), c, from}}
	// The machine is gone: it does not even refuse.
	if err := r.host("b2").LinkDown(); err != nil {
		t.Fatal(err)
	}
	for _, service := range []string{"dsr", "nat"} {
		r.waitServers("lb1", service, soon, control.ServerUp, control.ServerDown, control.ServerUp)
	}
	for _, k := range dead {
		if err := say(k.c, k.from); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: a connection of the dead backend ends with %v, want %v", k.name, err, syscall.ECONNRESET)
		}
	}
	for _, k := range alive {
		if err := say(k.c, k.from); err != nil {
			t.Errorf("%s: a connection of another backend: %v", k.name, err)
		}
	}
}
