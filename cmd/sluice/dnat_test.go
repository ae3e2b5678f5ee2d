package main

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// In the tests of nat that keeps the client's address the nodes stand between
// their clients (eth0) and the backends (eth1), whose gateway they are.
var (
	dnatVIP     = netip.MustParseAddr("198.51.100.100")
	dnatVIP6    = netip.MustParseAddr("2001:db8:c::100")
	dnatGateway = netip.MustParseAddr("192.0.2.254")
	dnatWeb     = netip.AddrPortFrom(dnatVIP, 80)   // nginx
	dnatWho     = netip.AddrPortFrom(dnatVIP, 8080) // who tells what it knows of its client
)

const (
	dnatRoster = `
nodes:
  - {name: lb1, address: 192.0.2.1, priority: 100}
  - {name: lb2, address: 192.0.2.2, priority: 99}
datapath: {interfaces: [eth0, eth1], max_flows: 20000}
defaults: {service: {source_nat: false}}
`
	dnatFront = `{name: VI_front, interface: eth0, virtual_router_id: 51, advertisement_interval: 200ms, addresses: [198.51.100.100/24]}`
	dnatBack  = `{name: VI_back, interface: eth1, virtual_router_id: 52, advertisement_interval: 200ms, addresses: [192.0.2.254/24]}`
)

// A download that outlasts two restarts of the daemon on a busy machine.
var sixteenSeconds = testenv.NginxConfig{DownloadSize: 32 << 20, DownloadRate: 2 << 20}

// dnatFile is a configuration with these servers, by the last byte of their
// addresses.
func (r *rig) dnatFile(servers ...int) string {
	list := func(format, probe string) string {
		var all []string
		for _, s := range servers {
			all = append(all, fmt.Sprintf("{address: "+format+"}", s))
		}
		return "{" + probe + ", servers: [" + strings.Join(all, ", ") + "]"
	}
	return r.file("sluice.yaml", dnatRoster,
		"pools:\n  - "+list("192.0.2.%d", probes)+", name: web}\n  - "+list(`"192.0.2.%d:8081"`, probes)+", name: who}\n  - "+
			list(`"[2001:db8:b::%d]:8081"`, probes)+", name: who6}\n  - "+list("192.0.2.%d", strings.Replace(probes, "tcp,", "tcp, port: 8081,", 1))+", name: names}\n",
		services(
			`{name: web, address: "198.51.100.100:80", pool: web}`,
			`{name: who, address: "198.51.100.100:8080", pool: who}`,
			`{name: who6, address: "[2001:db8:c::100]:8080", pool: who6}`,
			`{name: names, address: "198.51.100.100:5300-5310", protocol: udp, affinity: flow, pool: names}`,
		), vrrps(dnatFront, dnatBack))
}

// dnatRig has a client on the nodes' own segment, one behind a router, and
// backends that send everything by the nodes.
func dnatRig(t *testing.T, backends int) *rig {
	t.Helper()
	testenv.RequireRoot(t)
	testenv.RequireProgram(t, "nginx")
	both := func(name, segment, v4, v6 string) testenv.InterfaceSpec {
		return testenv.InterfaceSpec{Name: name, Segment: segment, Addresses: []netip.Prefix{prefix(v4), prefix(v6)}}
	}
	node := func(name string, last int) testenv.HostSpec {
		return testenv.HostSpec{
			Name: name, Node: true, Forward: true,
			Interfaces: interfaces(
				both("eth0", "front", fmt.Sprintf("198.51.100.%d/24", last), fmt.Sprintf("2001:db8:c::%d/64", last)),
				both("eth1", "back", fmt.Sprintf("192.0.2.%d/24", last), fmt.Sprintf("2001:db8:b::%d/64", last))),
			Routes: []testenv.RouteSpec{to("", "198.51.100.254"), to("", "2001:db8:c::254")},
		}
	}
	spec := testenv.Spec{IPv6: true, Hosts: []testenv.HostSpec{
		{Name: "client", Interfaces: interfaces(both("eth0", "front", "198.51.100.200/24", "2001:db8:c::200/64"))},
		node("lb1", 1), node("lb2", 2),
		{Name: "gw", Forward: true, Interfaces: interfaces(
			both("eth0", "front", "198.51.100.254/24", "2001:db8:c::254/64"),
			both("eth1", "far", "203.0.113.1/24", "2001:db8:f::1/64"))},
		{Name: "far", Interfaces: interfaces(both("eth0", "far", "203.0.113.200/24", "2001:db8:f::200/64")),
			Routes: []testenv.RouteSpec{to("", "203.0.113.1"), to("", "2001:db8:f::1")}},
	}}
	for i := 1; i <= backends; i++ {
		spec.Hosts = append(spec.Hosts, testenv.HostSpec{
			Name:       fmt.Sprintf("b%d", i),
			Interfaces: interfaces(both("eth0", "back", fmt.Sprintf("192.0.2.%d/24", 10+i), fmt.Sprintf("2001:db8:b::%d/64", 10+i))),
			Routes:     []testenv.RouteSpec{to("", dnatGateway.String()), to("", "2001:db8:b::1")},
		})
	}
	r := newRig(t, spec)
	// VRRP brings no IPv6 VIP yet.
	if err := r.host("lb1").AddAddress("eth0", netip.PrefixFrom(dnatVIP6, 64)); err != nil {
		t.Fatal(err)
	}
	for i := 1; i <= backends; i++ {
		name := fmt.Sprintf("b%d", i)
		if _, err := testenv.StartNginx(t.Context(), r.host(name), sixteenSeconds); err != nil {
			t.Fatal(err)
		}
		r.serveWho(name)
		r.serveNames(name, 5305)
	}
	return r
}

// serveWho answers every request with a backend's name and the address that it
// knows the client by.
func (r *rig) serveWho(on string) {
	r.Helper()
	_, err := r.host(on).StartHTTP(netip.AddrPortFrom(netip.IPv6Unspecified(), 8081), http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		client := netip.MustParseAddrPort(q.RemoteAddr).Addr()
		fmt.Fprintf(w, "%s %v\n", on, client.Unmap()) // the client sees what goes wrong
	}))
	if err != nil {
		r.Fatal(err)
	}
}

// serveNames answers every datagram with itself, behind the backend's name and
// the client's address.
func (r *rig) serveNames(on string, port uint16) {
	r.Helper()
	var c net.PacketConn
	err := r.host(on).Do(func() (err error) {
		c, err = net.ListenPacket("udp4", netip.AddrPortFrom(netip.IPv4Unspecified(), port).String())
		return err
	})
	if err != nil {
		r.Fatal(err)
	}
	done := make(chan struct{})
	r.Cleanup(func() {
		c.Close() // nothing was written that could be lost
		<-done
	})
	go func() {
		defer close(done)
		buf := make([]byte, 64<<10)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return // closed
			}
			answer := append([]byte(on+" "+from.(*net.UDPAddr).AddrPort().Addr().String()+" "), buf[:n]...)
			_, _ = c.WriteTo(answer, from) // the client asks again
		}
	}()
}

// datagram sends one until it is answered, and returns who has answered.
func (r *rig) datagram(from string, to netip.AddrPort, payload string) string {
	r.Helper()
	c, err := r.host(from).Dial(r.Context(), "udp", to.String())
	if err != nil {
		r.Fatal(err)
	}
	defer c.Close()
	var answer string
	r.eventually(soon, "an answer by UDP", func() (bool, error) {
		if _, err := c.Write([]byte(payload)); err != nil {
			return false, err
		}
		if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return false, err
		}
		buf := make([]byte, 64<<10)
		n, err := c.Read(buf)
		answer = string(buf[:n])
		return err == nil, err
	})
	who, ok := strings.CutSuffix(answer, " "+payload)
	if !ok {
		r.Fatalf("the answer has %d bytes, and is not the question", len(answer))
	}
	return who
}

// The backends see their clients as they are, on the segment of the nodes and
// behind a router, over IPv4 and IPv6, TCP and UDP, in fragments too.
func TestDNATShowsTheClient(t *testing.T) {
	r := dnatRig(t, 2)
	daemon := r.start("lb1", r.dnatFile(11, 12))
	r.waitReady("lb1")
	for _, tc := range []struct {
		client, address string
		service         netip.AddrPort
	}{
		{"client", "198.51.100.200", dnatWho},
		{"far", "203.0.113.200", dnatWho},
		{"client", "2001:db8:c::200", netip.AddrPortFrom(dnatVIP6, 8080)},
		{"far", "2001:db8:f::200", netip.AddrPortFrom(dnatVIP6, 8080)},
	} {
		want := []string{"b1 " + tc.address, "b2 " + tc.address}
		if got := names(r.answers(tc.client, tc.service, burst)); !slices.Equal(got, want) {
			t.Errorf("%s at %v hears from %v, want %v", tc.client, tc.service, got, want)
		}
	}
	names := netip.AddrPortFrom(dnatVIP, 5305)
	for client, address := range map[string]string{"client": "198.51.100.200", "far": "203.0.113.200"} {
		for _, size := range []int{10, 6000} {
			got := r.datagram(client, names, strings.Repeat("x", size))
			if got != "b1 "+address && got != "b2 "+address {
				t.Errorf("%d bytes of %s are answered by %q, want b1 or b2 with %s", size, client, got, address)
			}
		}
	}
	// Both ways are explained, though nothing of a connection is kept.
	for _, tc := range []struct {
		args []string
		want []string
	}{
		{[]string{"--src", "198.51.100.200:4000", "--dst", "198.51.100.100:80", "--interface", "eth0"},
			[]string{"service web: tcp 198.51.100.100:80", "slot ", "rewrite 198.51.100.200:4000 > 198.51.100.100:80 to 198.51.100.200:4000 > 192.0.2.1", "verdict sent by eth1"}},
		{[]string{"--src", "192.0.2.11:80", "--dst", "198.51.100.200:4000", "--tcp-flags", "ack", "--interface", "eth1"},
			[]string{"vip no: an answer to a client", "service web: tcp 198.51.100.100:80", "flow none: ", "backend 192.0.2.11:80",
				"rewrite 192.0.2.11:80 > 198.51.100.200:4000 to 198.51.100.100:80 > 198.51.100.200:4000", "verdict sent by eth0"}},
	} {
		text := strings.Join(strings.Fields(r.explained(tc.args...)), " ")
		for _, want := range tc.want {
			if !strings.Contains(text, want) {
				t.Errorf("explain %v does not say %q: %s", tc.args, want, text)
			}
		}
	}
	// Probes have their answers, too, and status counts both ways.
	s := r.waitReady("lb1")
	for _, name := range []string{"who", "who6", "names"} {
		v, err := serviceOf(s, name)
		if err != nil {
			t.Fatal(err)
		}
		var packets, replies uint64
		for _, b := range v.Backends {
			packets, replies = packets+b.Packets, replies+b.ReplyPackets
		}
		if packets == 0 || replies == 0 {
			t.Errorf("service %s has counted %d packets and %d replies", name, packets, replies)
		}
	}
	for _, o := range s.Outcomes {
		if o.Dropped && o.Packets > 0 {
			t.Errorf("%d packets were dropped: %s", o.Packets, o)
		}
	}
	r.stop(daemon)
}

// A node whose kernel does not forward says so, and serves when it does.
func TestDNATNeedsForwarding(t *testing.T) {
	r := dnatRig(t, 1)
	if err := r.host("lb1").Sysctl("net/ipv4/ip_forward", "0"); err != nil {
		t.Fatal(err)
	}
	r.start("lb1", r.dnatFile(11))
	r.waitReady("lb1") // probes have their answers
	problem := func(want bool) func(control.Status) error {
		return func(s control.Status) error {
			has := slices.ContainsFunc(s.Problems, func(p string) bool { return strings.Contains(p, "net/ipv4/conf/eth1/forwarding is 0") })
			if has != want {
				return fmt.Errorf("problems: %v", s.Problems)
			}
			return nil
		}
	}
	r.waitStatus("lb1", 2*soon, "the problem", problem(true))
	p, err := r.host("client").StartProber(testenv.ProbeConfig{Target: dnatWho, Count: 1, Timeout: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := p.Wait(); err != nil || got.Failed != 1 {
		t.Errorf("a client of a node that does not forward: %+v, %v, want no answer", got, err)
	}
	if err := r.host("lb1").Sysctl("net/ipv4/ip_forward", "1"); err != nil {
		t.Fatal(err)
	}
	if got := names(r.answers("client", dnatWho, burst)); !slices.Equal(got, []string{"b1 198.51.100.200"}) {
		t.Errorf("client hears from %v", got)
	}
	r.waitStatus("lb1", 2*soon, "no problem", problem(false))
}

// Nothing that the operator does breaks a connection: a backend is added, one is
// drained and then removed, the daemon is killed and comes back.
func TestDNATKeepsDownloads(t *testing.T) {
	r := dnatRig(t, 3)
	daemon := r.start("lb1", r.dnatFile(11, 12))
	r.waitReady("lb1")
	downloads := []*download{r.download(dnatWeb, sixteenSeconds.DownloadSize), r.download(dnatWeb, sixteenSeconds.DownloadSize)}
	prober := r.prober(dnatWho)
	r.answersMore(prober, 50)
	restart := func(servers ...int) {
		r.Helper()
		r.kill(daemon)
		r.answersMore(prober, 50)
		daemon = r.start("lb1", r.dnatFile(servers...))
		r.waitReady("lb1")
	}
	restart(11, 12, 13)
	r.answersMore(prober, 50)
	serves := map[string]int{"b1": 11, "b2": 12}[downloads[0].backend]
	r.wantRun(0, "lb1", "backend", "drain", "web", fmt.Sprintf("192.0.2.%d", serves))
	r.waitStatus("lb1", soon, "the drained backend without slots", func(s control.Status) error {
		v, err := serviceOf(s, "web")
		if err == nil && v.Backends[serves-11].Slots != 0 {
			err = fmt.Errorf("it has %d", v.Backends[serves-11].Slots)
		}
		return err
	})
	downloads[0].mustGoOn(r, "after its backend was drained")
	restart(slices.DeleteFunc([]int{11, 12, 13}, func(s int) bool { return s == serves })...)
	r.answersMore(prober, 50)
	downloads[0].mustGoOn(r, "after its backend was removed")
	for _, d := range downloads {
		d.finish(r)
	}
	r.wantNoFailure(prober)
	r.stop(daemon)
}

// Another node that takes over goes on with the connections, though it has never
// heard of the clients: no flow has an entry.
func TestDNATOutlivesItsNode(t *testing.T) {
	r := dnatRig(t, 2)
	file := r.dnatFile(11, 12)
	daemon := r.start("lb1", file)
	r.waitReady("lb1")
	r.start("lb2", file)
	r.waitStatus("lb2", soon, "servers", func(s control.Status) error {
		for _, v := range s.Services {
			for _, b := range v.Backends {
				if b.State != control.ServerUp {
					return fmt.Errorf("service %s: server %v is %s: %s", v.Name, b.Address, b.State, b.Why)
				}
			}
		}
		if len(s.Services) == 0 {
			return fmt.Errorf("no service yet")
		}
		return nil
	})
	d := r.download(dnatWeb, sixteenSeconds.DownloadSize)
	if err := r.host("lb1").LinkDown(); err != nil {
		t.Fatal(err)
	}
	r.kill(daemon)
	r.waitVIP(soon, dnatVIP, "lb2")
	d.mustGoOn(r, "during the takeover")
	d.finish(r)
	if got := names(r.answers("far", dnatWho, burst)); !slices.Equal(got, []string{"b1 203.0.113.200", "b2 203.0.113.200"}) {
		t.Errorf("far hears from %v", got)
	}
}
