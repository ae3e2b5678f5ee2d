package main

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// parcel is many segments, and more than fits into a first window.
const parcel = 200000

// sendParcels is a backend that sends noise of its own for each line that asks for it,
// and then, for each line, one with its name and the size of its segments.
func sendParcels(name string) func(net.Conn) {
	noise := strings.Repeat(name, parcel/len(name)+1)[:parcel]
	return func(c net.Conn) {
		lines := bufio.NewReader(c)
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				return // the client sees what goes wrong
			}
			if line == "send\n" {
				if _, err := io.WriteString(c, noise); err != nil {
					return
				}
			}
			size, err := testenv.SegmentSize(c)
			if err != nil {
				return
			}
			if _, err := fmt.Fprintf(c, "%s %d\n", name, size); err != nil {
				return
			}
		}
	}
}

// A customer is one client's connection that downloads parcels.
type customer struct {
	net.Conn
	from    *bufio.Reader
	backend string
	segment int // as large as the backend's are now
}

// fetch downloads a parcel, all of it from one backend.
func (c *customer) fetch() error {
	if err := c.SetDeadline(time.Now().Add(2 * soon)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, "send\n"); err != nil {
		return err
	}
	body := make([]byte, parcel)
	if n, err := io.ReadFull(c.from, body); err != nil {
		return fmt.Errorf("%v: after %d of %d bytes from %s: %w", c.LocalAddr(), n, parcel, c.backend, err)
	}
	if err := c.ask(); err != nil {
		return err
	}
	if want := strings.Repeat(c.backend, parcel)[:parcel]; sha256.Sum256(body) != sha256.Sum256([]byte(want)) {
		return fmt.Errorf("%v: other bytes than %s has sent", c.LocalAddr(), c.backend)
	}
	// What the segments are like when all of them have arrived.
	if _, err := io.WriteString(c, "what now?\n"); err != nil {
		return err
	}
	return c.ask()
}

// send uploads a parcel. The client's segments are as large as its way allows then.
func (c *customer) send() (segment int, err error) {
	if err := c.SetDeadline(time.Now().Add(2 * soon)); err != nil {
		return 0, err
	}
	if _, err := io.WriteString(c, strings.Repeat("x", parcel)+"\n"); err != nil {
		return 0, err
	}
	if err := c.ask(); err != nil {
		return 0, err
	}
	return testenv.SegmentSize(c.Conn)
}

// ask reads what the backend says of itself.
func (c *customer) ask() error {
	var backend string
	line, err := c.from.ReadString('\n')
	if err == nil {
		_, err = fmt.Sscan(line, &backend, &c.segment)
	}
	if err == nil && c.backend != "" && c.backend != backend {
		err = errMoved
	}
	if err != nil {
		return fmt.Errorf("%v: %s says %q: %w", c.LocalAddr(), c.backend, line, err)
	}
	c.backend = backend
	return nil
}

// icmpErrors reads how many ICMP errors a host has got, and how many of them were
// about no connection of its own.
func (r *rig) icmpErrors(on string, ipv6 bool) (all, stray int) {
	r.Helper()
	err := r.host(on).Do(func() (err error) {
		const snmp = "/proc/thread-self/net/snmp"
		if ipv6 {
			if all, err = counter6("Icmp6InPktTooBigs"); err == nil {
				stray, err = counter6("Icmp6InErrors")
			}
			return err
		}
		if all, err = tcpCounter(snmp, "Icmp:", "InDestUnreachs"); err == nil {
			stray, err = tcpCounter(snmp, "Icmp:", "InErrors")
		}
		return err
	})
	if err != nil {
		r.Fatal(err)
	}
	return all, stray
}

// behindRouter is a lab with clients of many addresses behind a router. What the backends
// send leaves by the router, or by lb1.
func behindRouter(clients []netip.Prefix, byNode bool) testenv.Spec {
	both := func(segment, v4, v6 string) testenv.InterfaceSpec {
		in := on(segment, v4)
		in.Addresses = append(in.Addresses, prefix(v6))
		return in
	}
	far := both("far", "198.51.100.1/24", "2001:db8:1::1/64")
	far.Name = "eth1"
	routes := []testenv.RouteSpec{to("", "192.0.2.254"), to("", "2001:db8::fe")}
	spec := testenv.Spec{IPv6: true, Hosts: []testenv.HostSpec{
		{Name: "client", Interfaces: interfaces(testenv.InterfaceSpec{Segment: "far", Addresses: clients}),
			Routes: []testenv.RouteSpec{to("", "198.51.100.1"), to("", "2001:db8:1::1")}},
		{Name: "router", Forward: true, Interfaces: interfaces(both("lan", "192.0.2.254/24", "2001:db8::fe/64"), far)},
		{Name: "lb1", Node: true, Forward: byNode, Interfaces: interfaces(both("lan", "192.0.2.1/24", "2001:db8::1/64")), Routes: routes},
	}}
	if byNode {
		routes = []testenv.RouteSpec{to("", "192.0.2.1"), to("", "2001:db8::1")}
	}
	for i := 1; i <= 3; i++ {
		spec.Hosts = append(spec.Hosts, testenv.HostSpec{Name: fmt.Sprintf("b%d", i), Routes: routes,
			Interfaces: interfaces(both("lan", fmt.Sprintf("192.0.2.1%d/24", i), fmt.Sprintf("2001:db8::1%d/64", i)))})
	}
	return spec
}

// shrink makes the way to all clients narrower; each goes on downloading, in
// segments that are as large as the way allows.
func (r *rig) shrink(all []*customer, mtu int) {
	r.Helper()
	if err := r.host("router").SetMTU("eth1", mtu); err != nil {
		r.Fatal(err)
	}
	began := time.Now()
	if err := each(len(all), func(i int) error { return all[i].fetch() }); err != nil {
		r.Fatalf("after the way has shrunk to %d: %v", mtu, err)
	}
	took := time.Since(began).Round(time.Millisecond)
	served := map[string]int{}
	for _, c := range all {
		// Headers of TCP and IP, and TCP's time stamps.
		want := mtu - 20 - 20 - 12
		if c.LocalAddr().(*net.TCPAddr).IP.To4() == nil {
			want -= 20
		}
		if c.segment != want {
			r.Errorf("%v: segments of %d bytes, want %d", c.LocalAddr(), c.segment, want)
		}
		served[c.backend]++
	}
	r.Logf("MTU %d: %d downloads went on, done in %v: %v", mtu, len(all), took, served)
}

// wantUploads has all customers upload. Through a tunnel there is less room than on the
// clients' own way, and the node tells them.
func (m forwardMode) wantUploads(r *rig, all []*customer) {
	r.Helper()
	segments := make([]int, len(all))
	if err := each(len(all), func(i int) (err error) { segments[i], err = all[i].send(); return err }); err != nil {
		r.Fatalf("uploads: %v", err)
	}
	for i, c := range all {
		// Headers of TCP and IP, TCP's time stamps, and the outer header.
		want, outer := 1500-20-20-12, 20
		if c.LocalAddr().(*net.TCPAddr).IP.To4() == nil {
			want, outer = want-20, 40
		}
		if m.name == "tunnel" {
			want -= outer
		}
		if segments[i] != want {
			r.Errorf("%v: the client's segments have %d bytes, want %d", c.LocalAddr(), segments[i], want)
		}
	}
}

// A way to clients that shrinks while they download blocks nobody: the router's
// ICMP errors go to the VIP, and from there to the backend of the connection that
// they are about, and to no other. Each connection is from an address of its own,
// since a host remembers the MTU for an address.
func TestPathMTUShrinks(t *testing.T) {
	const count = 40
	for _, m := range append(slices.Clone(forwardModes), dnatMode) {
		t.Run(m.name, func(t *testing.T) {
			clients := append(testenv.Addresses(prefix("198.51.100.10/24"), count), testenv.Addresses(prefix("2001:db8:1::10/64"), count)...)
			r := newModeRig(t, m, behindRouter(clients, m == dnatMode))
			for i := range 3 {
				name := fmt.Sprintf("b%d", i+1)
				if _, err := r.host(name).StartTCP(netip.AddrPortFrom(netip.IPv6Unspecified(), 80), sendParcels(name)); err != nil {
					t.Fatal(err)
				}
			}
			r.start("lb1", r.file("sluice.yaml", roster, "pools:\n"+
				"  - {name: web, "+patientProbes+", servers: [{address: 192.0.2.11}, {address: 192.0.2.12}, {address: 192.0.2.13}]}\n"+
				"  - {name: web6, "+patientProbes+", servers: [{address: \"2001:db8::11\"}, {address: \"2001:db8::12\"}, {address: \"2001:db8::13\"}]}\n",
				services(m.service("ipv4", m.vip, "web"), m.service("ipv6", m.v6, "web6")), vrrps(pair)))
			r.waitReady("lb1")

			all := make([]*customer, len(clients))
			if err := each(len(clients), func(i int) error {
				from := clients[i].Addr()
				service := netip.AddrPortFrom(m.vip, 80)
				if from.Is6() {
					service = netip.AddrPortFrom(m.v6, 80)
				}
				c, err := r.host("client").DialFrom(t.Context(), netip.AddrPortFrom(from, 20000), service)
				if err != nil {
					return err
				}
				t.Cleanup(func() { _ = c.Close() }) // the test is over
				all[i] = &customer{Conn: c, from: bufio.NewReader(c)}
				if _, err := io.WriteString(c, "hello\n"); err != nil {
					return err
				}
				if err := all[i].ask(); err != nil {
					return err
				}
				return all[i].fetch()
			}); err != nil {
				t.Fatalf("before the way shrinks: %v", err)
			}
			for _, a := range []netip.Addr{m.vip, m.v6} {
				if err := r.ping("client", a); err != nil {
					t.Errorf("an echo request to the VIP: %v", err)
				}
			}
			m.wantUploads(r, all)
			for _, c := range all {
				if c.segment < 1400 {
					t.Errorf("%v: segments of %d bytes before the way shrinks", c.LocalAddr(), c.segment)
				}
			}

			r.shrink(all, 1300)
			// And where the slots of a drained backend have other owners by now.
			for _, pool := range []string{"web", "web6"} {
				drained := "192.0.2.11"
				if pool == "web6" {
					drained = "2001:db8::11"
				}
				r.wantRun(0, "lb1", "backend", "drain", pool, drained)
			}
			r.waitStatus("lb1", soon, "slots without b1", func(s control.Status) error {
				for _, v := range s.Services {
					if v.Backends[0].Slots > 0 {
						return fmt.Errorf("%s: b1 has %d slots", v.Name, v.Backends[0].Slots)
					}
				}
				return nil
			})
			r.shrink(all, 1280)
			for i := range 3 {
				name := fmt.Sprintf("b%d", i+1)
				for _, ipv6 := range []bool{false, true} {
					got, stray := r.icmpErrors(name, ipv6)
					t.Logf("%s has got %d ICMP errors, IPv6 %v", name, got, ipv6)
					if got == 0 || stray > 0 {
						t.Errorf("%s has got %d ICMP errors, IPv6 %v, %d of them about no connection of its own", name, got, ipv6, stray)
					}
				}
			}
		})
	}
}

// counter6 reads a counter of IPv6 in this thread's namespace.
func counter6(name string) (int, error) {
	text, err := os.ReadFile("/proc/thread-self/net/snmp6")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) == 2 && fields[0] == name {
			return strconv.Atoi(fields[1])
		}
	}
	return 0, fmt.Errorf("there is no counter %s", name)
}
