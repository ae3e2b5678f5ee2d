package main

import (
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/testenv"
)

const probeRoutes = 115 // protocol of the routes to probe addresses

// both is an interface with an address of each family.
func both(last string) []testenv.InterfaceSpec {
	return []testenv.InterfaceSpec{{Addresses: []netip.Prefix{prefix("192.0.2." + last + "/24"), prefix("2001:db8::" + last + "/64")}}}
}

// viaRig has nodes lb1 and lb2 and n backends with nginx; none has a VIP yet.
func viaRig(t *testing.T, n int) *rig {
	t.Helper()
	testenv.RequireRoot(t)
	testenv.RequireProgram(t, "nginx")
	spec := testenv.Spec{IPv6: true, Hosts: []testenv.HostSpec{
		{Name: "client", Interfaces: both("200")}, {Name: "lb1", Interfaces: both("1"), Node: true}, {Name: "lb2", Interfaces: both("2"), Node: true},
	}}
	for i := range n {
		spec.Hosts = append(spec.Hosts, testenv.HostSpec{Name: fmt.Sprintf("b%d", i+1), Interfaces: both(fmt.Sprint(11 + i)), Node: true})
	}
	r := newRig(t, spec)
	for i := range n {
		if _, err := testenv.StartNginx(t.Context(), r.host(fmt.Sprintf("b%d", i+1)), testenv.NginxConfig{IPv6: true}); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// lo adds a VIP to a backend's loopback, or takes it off.
func (r *rig) lo(on string, vip netip.Addr, there bool) {
	r.Helper()
	if there {
		if err := r.host(on).AddVIPOnLoopback(vip); err != nil {
			r.Fatal(err)
		}
		return
	}
	link, err := r.host(on).Netlink().LinkByName("lo")
	if err == nil {
		err = r.host(on).Netlink().AddrDel(link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(vip, vip.BitLen()).String())})
	}
	if err != nil {
		r.Fatal(err)
	}
}

// why is what the status of a node says about the first server of a service.
func (r *rig) why(on, service string) string {
	r.Helper()
	v, err := serviceOf(r.mustStatus(on), service)
	if err != nil {
		r.Fatal(err)
	}
	return v.Backends[0].Why
}

// probeTraces lists what probes have on a node's interface: routes, neighbours,
// filters, qdisc.
func (r *rig) probeTraces(on, iface string) []string {
	r.Helper()
	nl := r.host(on).Netlink()
	link, err := nl.LinkByName(iface)
	if err != nil {
		r.Fatal(err)
	}
	var traces []string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := nl.RouteListFiltered(family, &netlink.Route{Protocol: probeRoutes}, netlink.RT_FILTER_PROTOCOL)
		if err != nil {
			r.Fatal(err)
		}
		for _, route := range routes {
			traces = append(traces, "route "+route.Dst.IP.String())
		}
		neighbours, err := nl.NeighList(link.Attrs().Index, family)
		if err != nil {
			r.Fatal(err)
		}
		for _, n := range neighbours {
			if n.State&netlink.NUD_PERMANENT != 0 && !n.IP.IsMulticast() {
				traces = append(traces, "neighbour "+n.IP.String())
			}
		}
	}
	qdiscs, err := nl.QdiscList(link)
	if err != nil {
		r.Fatal(err)
	}
	for _, q := range qdiscs {
		if q.Type() == "clsact" {
			traces = append(traces, "clsact")
		}
	}
	filters, err := nl.FilterList(link, netlink.HANDLE_MIN_EGRESS)
	if err != nil {
		r.Fatal(err)
	}
	for _, f := range filters {
		if b, ok := f.(*netlink.BpfFilter); ok && b.Name != "" {
			traces = append(traces, "filter "+b.Name)
		} else {
			traces = append(traces, "filter "+f.Type())
		}
	}
	return traces
}

// tc runs a command of iproute2 on a host.
func (r *rig) tc(on string, args ...string) {
	r.Helper()
	var out []byte
	err := r.host(on).Do(func() error {
		var err error
		out, err = exec.Command("tc", args...).CombinedOutput()
		return err
	})
	if err != nil {
		r.Fatalf("tc %v: %v: %s", args, err, out)
	}
}

// wantTraces fails unless probes have left exactly this.
func (r *rig) wantTraces(on, iface string, want ...string) {
	r.Helper()
	if got := r.probeTraces(on, iface); strings.Join(got, ", ") != strings.Join(want, ", ") {
		r.Errorf("on %s %s there is\n%v\nwant\n%v", on, iface, got, want)
	}
}

// Services of the mixes of modes and families, all with the first backend alone.
const (
	viaHealth  = `health: {type: http, path: /, interval: 300ms, timeout: 300ms, rise: 2, fall: 3}`
	viaDSR     = `{name: dsr, address: "192.0.2.100:80", forward: dsr, backends: [{address: 192.0.2.11}], ` + viaHealth + `}`
	viaDSR6    = `{name: dsr6, address: "[2001:db8::100]:80", forward: dsr, backends: [{address: "2001:db8::11"}], ` + viaHealth + `}`
	viaTunnel  = `{name: tunnel, address: "192.0.2.101:80", forward: tunnel, backends: [{address: 192.0.2.11}], ` + viaHealth + `}`
	viaTunnel6 = `{name: tunnel6, address: "[2001:db8::101]:80", forward: tunnel, backends: [{address: 192.0.2.11}], ` + viaHealth + `}`
	viaVRRP    = `{name: VI_1, interface: eth0, virtual_router_id: 51, advertisement_interval: 200ms, addresses: [192.0.2.100/24, 192.0.2.101/32]}`
)

// A server that lacks the VIP is down, on the node that holds it and on the one
// that does not, and comes back with it; so is one that does not decapsulate.
func TestProbesGoThroughTheVIP(t *testing.T) {
	const up, down = control.ServerUp, control.ServerDown
	r := viaRig(t, 1)
	tunnelVIP, tunnelVIP6 := vip.Next(), vip6.Next()
	vips := map[string]netip.Addr{"dsr": vip, "dsr6": vip6, "tunnel": tunnelVIP, "tunnel6": tunnelVIP6}
	for _, a := range vips {
		r.lo("b1", a, true)
	}
	nodes := []string{"lb1", "lb2"}
	for _, node := range nodes {
		// As strict as it can be.
		for _, name := range []string{"all", "eth0"} {
			if err := r.host(node).Sysctl("net/ipv4/conf/"+name+"/rp_filter", "1"); err != nil {
				t.Fatal(err)
			}
		}
	}
	decap := r.startDecap("b1")
	file := r.file("sluice.yaml", roster, services(viaDSR, viaDSR6, viaTunnel, viaTunnel6), vrrps(viaVRRP))
	for _, node := range nodes {
		r.start(node, file)
	}
	r.waitVIP(soon, vip, "lb1", "lb2")
	for _, node := range nodes {
		for service := range vips {
			r.waitServers(node, service, soon, up)
		}
	}
	// Both nodes: the one that holds the VIP has it as a local address.
	for service, a := range vips {
		r.lo("b1", a, false)
		for _, node := range nodes {
			r.waitServers(node, service, soon, down)
			want := fmt.Sprintf("http %v at 192.0.2.11: ", netip.AddrPortFrom(a, 80))
			if service == "dsr6" {
				want = "http [2001:db8::100]:80 at 2001:db8::11: "
			}
			if why := r.why(node, service); !strings.HasPrefix(why, want) || !strings.Contains(why, "is the VIP on its lo") {
				t.Errorf("%s on %s says %q, want it to start with %q", service, node, why, want)
			}
			for other := range vips {
				if other != service {
					r.waitServers(node, other, soon, up)
				}
			}
		}
		r.lo("b1", a, true)
		for _, node := range nodes {
			r.waitServers(node, service, soon, up)
		}
	}
	r.stop(decap)
	for _, node := range nodes {
		for _, service := range []string{"tunnel", "tunnel6"} {
			r.waitServers(node, service, soon, down)
			if why := r.why(node, service); !strings.Contains(why, "does it decapsulate?") {
				t.Errorf("%s on %s says %q", service, node, why)
			}
		}
		r.waitServers(node, "dsr", soon, up)
		r.waitServers(node, "dsr6", soon, up)
	}
}

// startDecap starts `sluice decap` on a backend and waits until it is attached.
func (r *rig) startDecap(on string) *testenv.Process {
	r.Helper()
	p, err := r.host(on).Start("decap", sluice(r.host(on), "decap", "--interface", "eth0"))
	if err != nil {
		r.Fatal(err)
	}
	r.eventually(soon, "the program of decap on "+on, func() (bool, error) { return r.xdpProgram(on, "eth0") != 0, nil })
	return p
}

// A VIP that comes to a node and leaves it fails no probe: with fall: 1 a single
// one would show in the log.
func TestProbesOutliveAFailover(t *testing.T) {
	r := viaRig(t, 2)
	for _, b := range []string{"b1", "b2"} {
		r.lo(b, vip, true)
		r.lo(b, vip6, true)
	}
	lasting := r.file("lasting.yaml", roster, `
pools:
  - name: web
    health: {type: tcp, interval: 2s, timeout: 2s, rise: 1, fall: 1}
    servers: [{address: 192.0.2.11}, {address: 192.0.2.12}]
`, services(`{name: dsr, address: ["192.0.2.100:80", "[2001:db8::100]:80"], forward: dsr, pool: web}`), vrrps(viaVRRP))
	daemons := map[string]*testenv.Process{"lb1": r.start("lb1", lasting), "lb2": r.start("lb2", lasting)}
	r.waitVIP(soon, vip, "lb1", "lb2")
	for _, node := range []string{"lb1", "lb2"} {
		r.waitServers(node, "dsr", soon, control.ServerUp, control.ServerUp)
	}
	for range 3 {
		if err := r.host("lb1").LinkDown(); err != nil {
			t.Fatal(err)
		}
		r.waitVIP(soon, vip, "lb2", "lb1")
		// lb1's own probes fail now, as they should; lb2's must not.
		if err := r.host("lb1").LinkUp(); err != nil {
			t.Fatal(err)
		}
		r.waitVIP(soon, vip, "lb1", "lb2")
		r.waitServers("lb1", "dsr", soon, control.ServerUp, control.ServerUp)
	}
	if text := daemons["lb2"].Tail(1000); strings.Contains(text, "target is down") {
		t.Errorf("a probe of lb2 has failed while the VIP came and went:\n%s", text)
	}
}

// What probes need on a node goes with the daemon that stops, with `sluice detach`
// after one that was killed, and a new daemon takes it over; an operator's filters
// stay.
func TestProbesLeaveNothing(t *testing.T) {
	r := viaRig(t, 1)
	r.lo("b1", vip, true)
	r.lo("b1", vip6, true)
	file := r.file("sluice.yaml", roster, services(viaDSR, viaDSR6), vrrps(viaVRRP))
	all := []string{"route 198.18.0.1", "neighbour 198.18.0.1", "route 2001:2::1", "neighbour 2001:2::1", "clsact", "filter sluice_probe"}
	ready := func() {
		t.Helper()
		r.waitServers("lb1", "dsr", soon, control.ServerUp)
		r.waitServers("lb1", "dsr6", soon, control.ServerUp)
	}
	daemon := r.start("lb1", file)
	ready()
	r.wantTraces("lb1", "eth0", all...)
	r.stop(daemon)
	r.wantTraces("lb1", "eth0")

	daemon = r.start("lb1", file)
	ready()
	r.kill(daemon)
	r.wantTraces("lb1", "eth0", all...)
	// Another configuration: what is not needed any more goes.
	daemon = r.start("lb1", r.file("one.yaml", roster, services(viaDSR), vrrps(viaVRRP)))
	r.waitServers("lb1", "dsr", soon, control.ServerUp)
	r.wantTraces("lb1", "eth0", "route 198.18.0.1", "neighbour 198.18.0.1", "clsact", "filter sluice_probe")
	r.kill(daemon)
	r.wantRun(0, "lb1", "detach", "--force")
	r.wantTraces("lb1", "eth0")

	// An operator has filters of his own, and then the qdisc is his, too.
	nl := r.host("lb1").Netlink()
	link, err := nl.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	clsact := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
	if err := nl.QdiscAdd(clsact); err != nil {
		t.Fatal(err)
	}
	own := func() {
		t.Helper()
		// One that takes everything, in classic BPF.
		r.tc("lb1", "filter", "add", "dev", "eth0", "egress", "prio", "20", "bpf", "bytecode", "1,6 0 0 4294967295", "flowid", "1:1")
	}
	own()
	daemon = r.start("lb1", file)
	ready()
	r.wantTraces("lb1", "eth0", append(all, "filter bpf")...)
	r.stop(daemon)
	r.wantTraces("lb1", "eth0", "clsact", "filter bpf")
	if err := nl.QdiscDel(clsact); err != nil {
		t.Fatal(err)
	}
	// He comes later, and uses what sluice has made.
	daemon = r.start("lb1", file)
	ready()
	own()
	r.stop(daemon)
	r.wantTraces("lb1", "eth0", "clsact", "filter bpf")
	r.wantRun(0, "lb1", "detach", "--force")
}

// What somebody takes away comes back, and the paths follow the server's MAC
// address; a server without a next hop is down, with the reason.
func TestProbePathsFollow(t *testing.T) {
	r := viaRig(t, 2)
	for _, b := range []string{"b1", "b2"} {
		r.lo(b, vip, true)
	}
	if err := r.host("b1").Sysctl("net/ipv4/conf/eth0/arp_notify", "1"); err != nil {
		t.Fatal(err)
	}
	r.start("lb1", r.file("sluice.yaml", roster,
		`pools: [{name: web, `+viaHealth+`, servers: [{address: 192.0.2.11}, {address: 192.0.2.12}, {address: 192.0.2.99}]}]`,
		services(`{name: dsr, address: "192.0.2.100:80", forward: dsr, pool: web}`), vrrps(viaVRRP)))
	const up, down = control.ServerUp, control.ServerDown
	r.waitServers("lb1", "dsr", soon, up, up, down)
	v, err := serviceOf(r.mustStatus("lb1"), "dsr")
	if err != nil {
		t.Fatal(err)
	}
	if why := v.Backends[2].Why; !strings.HasPrefix(why, "http 192.0.2.100:80 at 192.0.2.99: 192.0.2.99 ") || !strings.Contains(why, "ARP on eth0") {
		t.Errorf("a server that does not exist is down because of %q", why)
	}
	after := []byte{0x02, 0x53, 0x4c, 0xff, 0, 2}
	r.setMAC("b1", "eth0", after)
	r.waitNextHopOf("lb1", "dsr", r.host("b1").Address(), fmt.Sprintf("%x", after))
	r.waitServers("lb1", "dsr", soon, up, up, down)

	nl := r.host("lb1").Netlink()
	link, err := nl.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if err := nl.LinkSetDown(link); err != nil {
		t.Fatal(err)
	}
	r.waitServers("lb1", "dsr", soon, down, down, down)
	if err := nl.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	r.waitServers("lb1", "dsr", 2*soon, up, up, down)
	if err := nl.QdiscDel(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}); err != nil {
		t.Fatal(err)
	}
	// At the loop's next look, at the latest.
	r.eventually(2*soon, "the filter again", func() (bool, error) {
		return slices.Contains(r.probeTraces("lb1", "eth0"), "filter sluice_probe"), nil
	})
	r.waitServers("lb1", "dsr", soon, up, up, down)
}

// waitNextHopOf waits until a node sends to a server by way of a MAC address.
func (r *rig) waitNextHopOf(on, service string, server netip.Addr, mac string) {
	r.Helper()
	r.waitStatus(on, soon, "another next hop", func(s control.Status) error {
		v, err := serviceOf(s, service)
		if err != nil {
			return err
		}
		for _, b := range v.Backends {
			if b.Address.Addr() == server && strings.ReplaceAll(b.NextHop, ":", "") != mac {
				return fmt.Errorf("%v is reached by way of %s", server, b.NextHop)
			}
		}
		return nil
	})
}

// With via: direct a server is up without the VIP, and the node needs nothing for
// that.
func TestProbesThatGoToTheServerItself(t *testing.T) {
	r := viaRig(t, 1)
	direct := strings.Replace(viaHealth, "type: http", "type: http, via: direct", 1)
	r.start("lb1", r.file("sluice.yaml", roster, services(
		`{name: dsr, address: "192.0.2.100:80", forward: dsr, backends: [{address: 192.0.2.11}], `+direct+`}`), vrrps(viaVRRP)))
	r.waitServers("lb1", "dsr", soon, control.ServerUp)
	r.wantTraces("lb1", "eth0")
}

// Many probes, of two VIPs at two servers that have one of them each, are never
// taken for each other.
func TestProbesAreNotMixedUp(t *testing.T) {
	r := viaRig(t, 2)
	other := vip.Next()
	r.lo("b1", vip, true)
	r.lo("b2", other, true)
	const fast = `health: {type: tcp, interval: 10ms, timeout: 10ms, rise: 1, fall: 3}`
	daemon := r.start("lb1", r.file("sluice.yaml", roster, `
pools:
  - {name: web, `+fast+`, servers: [{address: 192.0.2.11}, {address: 192.0.2.12}]}
`, services(`{name: first, address: "192.0.2.100:80", forward: dsr, pool: web}`,
		`{name: second, address: "192.0.2.101:80", forward: dsr, pool: web}`), vrrps(viaVRRP)))
	const up, down = control.ServerUp, control.ServerDown
	r.waitServers("lb1", "first", soon, up, down)
	r.waitServers("lb1", "second", soon, down, up)
	began := time.Now()
	r.eventually(soon, "thousands of probes", func() (bool, error) { return time.Since(began) > 3*time.Second, nil })
	for _, line := range strings.Split(daemon.Tail(2000), "\n") {
		if strings.Contains(line, "target is up") && (strings.Contains(line, "192.0.2.100:80 at 192.0.2.12") || strings.Contains(line, "192.0.2.101:80 at 192.0.2.11")) {
			t.Errorf("a server was up for a moment that lacks the VIP: %s", line)
		}
	}
}
