package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// generic is the roster with generic XDP. The driver of veth tells the kernel whose a
// frame is before native XDP changes that.
var generic = strings.Replace(roster, "interfaces: [eth0],", "interfaces: [eth0], mode: generic,", 1)

const (
	virtualMAC  = "00:00:5e:00:01:33"
	virtualPair = `{name: VI_1, interface: eth0, virtual_router_id: 51, advertisement_interval: 200ms, virtual_mac: true,
     addresses: [192.0.2.100/24, 192.0.2.101/24]}`
)

// filters tells whether a node's NIC takes frames to the virtual MAC address.
func (r *rig) filters(node string) bool {
	r.Helper()
	var all []netlink.Neigh
	if err := r.host(node).Do(func() (err error) {
		all, err = netlink.NeighList(r.linkIndex(node), unix.AF_BRIDGE)
		return err
	}); err != nil {
		r.Fatal(err)
	}
	return slices.ContainsFunc(all, func(n netlink.Neigh) bool { return n.HardwareAddr.String() == virtualMAC })
}

// neighbour is the MAC address that a host knows for an address.
func (r *rig) neighbour(on string, a netip.Addr) string {
	r.Helper()
	all, err := r.host(on).Netlink().NeighList(r.linkIndex(on), unix.AF_INET)
	if err != nil {
		r.Fatal(err)
	}
	for _, n := range all {
		if n.IP.Equal(net.IP(a.AsSlice())) {
			return n.HardwareAddr.String()
		}
	}
	return ""
}

// refuses fails unless the node that has a VIP refuses a connection to it: its kernel
// gets what no service takes.
func (r *rig) refuses(from string, a netip.Addr) {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), atOnce)
	defer cancel()
	conn, err := r.host(from).Dial(ctx, "tcp", netip.AddrPortFrom(a, 9).String())
	if err == nil {
		conn.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		r.Errorf("a connection to %v: %v, want that it is refused", a, err)
	}
}

// A pair whose VIPs are at a virtual MAC address: clients know that one alone, services of
// every kind and the node itself are reached by it, and it moves with the VIPs. What is
// pinned goes on without the daemon, and detach leaves nothing.
func TestVirtualMACPair(t *testing.T) {
	r := webRig(t, 3)
	file := r.file("virtual.yaml", generic, webPool, services(dsr, nat), vrrps(virtualPair))
	daemons := r.startPair(file)
	check := func(node string) {
		t.Helper()
		r.answers("client", dsrService, 10)
		r.answers("client", natService, 10)
		r.refuses("client", vip)
		for _, a := range []netip.Addr{vip, natVIP} {
			if got := r.neighbour("client", a); got != virtualMAC {
				t.Errorf("%v is at %s for the client, want %s", a, got, virtualMAC)
			}
		}
		// The switch knows where it is.
		if got, err := r.lab.LearntAt(net.HardwareAddr{0, 0, 0x5e, 0, 1, 51}); err != nil || !slices.Equal(got, []string{node}) {
			t.Errorf("the switch has it at %v, want %s: %v", got, node, err)
		}
	}
	ask := r.asker("client")
	r.eventually(soon, "an answer", func() (bool, error) {
		return slices.Equal(ask.answers(vip), []string{virtualMAC}), nil
	})
	check("lb1")
	if got := r.wantRun(0, "lb1", "status", "-c", file, "--node", "lb1").stdout; !strings.Contains(got, "virtual MAC address "+virtualMAC) {
		t.Errorf("status does not say it:\n%s", got)
	}
	if i, err := instanceOf(r.mustStatus("lb2"), "VI_1"); err != nil || i.VirtualMAC != virtualMAC || len(i.Dropped) > 0 || len(i.Alarms) > 0 {
		t.Errorf("instance of lb2: %+v, %v", i, err)
	}

	// A daemon that dies with the link up.
	r.kill(daemons["lb1"])
	r.eventually(soon, "the VIP on lb2", func() (bool, error) { return r.has("lb2", vip), nil })
	check("lb2")
	if !r.has("lb1", vip) || !r.filters("lb1") {
		t.Fatal("lb1 has no VIP any more, or takes no frames to it: nothing is shown here")
	}
	r.eventually(soon, "lb1 fenced", func() (bool, error) {
		ask.answers(vip)
		return strings.Contains(r.leftOn("lb1", file), "fenced: "), nil
	})
	daemons["lb1"] = r.start("lb1", file)
	r.waitVIP(soon, vip, "lb1", "lb2")
	check("lb1")

	// A planned stop, and a hand-back.
	if err := daemons["lb1"].Stop(); err != nil {
		t.Fatal(err)
	}
	r.waitVIP(soon, vip, "lb2", "lb1")
	check("lb2")
	if r.filters("lb1") {
		t.Error("lb1 takes frames to the virtual MAC address, though it has stopped and has no VIP")
	}
	r.start("lb1", file)
	r.waitVIP(soon, vip, "lb1", "lb2")
	check("lb1")
}

// Without a peer VIP and forwarding outlive the daemon, and with them the filter.
func TestVirtualMACOutlivesTheDaemon(t *testing.T) {
	r := webRig(t, 1)
	alone := `{name: VI_1, interface: eth0, virtual_router_id: 51, advertisement_interval: 100ms, virtual_mac: true, addresses: [192.0.2.100/24]}`
	file := r.file("alone.yaml", generic, pool("{address: 192.0.2.11}"), services(dsr), vrrps(alone))
	daemon := r.start("lb1", file)
	r.waitReady("lb1")
	r.answers("client", dsrService, 10)
	if err := daemon.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := r.host("client").Netlink().NeighDel(&netlink.Neigh{LinkIndex: r.linkIndex("client"), IP: vip.AsSlice()}); err != nil {
		t.Fatal(err)
	}
	r.answers("client", dsrService, 10)
	r.refuses("client", vip)
	if got := r.neighbour("client", vip); got != virtualMAC || !r.filters("lb1") {
		t.Errorf("the VIP is at %s, the filter is there: %v", got, r.filters("lb1"))
	}
	r.wantRun(0, "lb1", "detach", "--force")
	if r.filters("lb1") {
		t.Error("detach has left the filter")
	}

	// Another configuration takes it away while the daemon runs.
	r.start("lb1", file)
	r.waitReady("lb1")
	r.file("alone.yaml", generic, pool("{address: 192.0.2.11}"), services(dsr), vrrps(strings.Replace(alone, "virtual_mac: true, ", "", 1)))
	r.wantRun(0, "lb1", "reload", "-c", file)
	mac := r.host("lb1").MAC("eth0").String()
	r.eventually(soon, "the VIP at the NIC's own address", func() (bool, error) {
		return r.neighbour("client", vip) == mac, nil
	})
	r.answers("client", dsrService, 10)
	r.eventually(soon, "no filter", func() (bool, error) { return !r.filters("lb1"), nil })
}

// A NIC that the program is not on: an instance that says so.
func TestVirtualMACWithoutTheProgram(t *testing.T) {
	spec := testenv.Default(1)
	lb1 := &spec.Hosts[slices.IndexFunc(spec.Hosts, func(h testenv.HostSpec) bool { return h.Name == "lb1" })]
	lb1.Interfaces = append(lb1.Interfaces, testenv.InterfaceSpec{
		Name: "eth1", Segment: "other", Addresses: []netip.Prefix{netip.MustParsePrefix("198.51.100.1/24")},
	})
	r := newRig(t, spec)
	r.start("lb1", r.file("other.yaml", roster, pool("{address: 192.0.2.11}"), services(dsr), vrrps(
		`{name: VI_2, interface: eth1, virtual_router_id: 52, advertisement_interval: 100ms, virtual_mac: true, addresses: [198.51.100.100/24]}`)))
	r.waitStatus("lb1", soon, "the fault", func(s control.Status) error {
		i, err := instanceOf(s, "VI_2")
		if want := "nobody answers for the virtual MAC address: the XDP program is not on eth1: name it in datapath.interfaces"; err == nil && (i.State != "fault" || i.Reason != want) {
			err = fmt.Errorf("%s: %s", i.State, i.Reason)
		}
		return err
	})
}

// The same beside a keepalived with use_vmac, in both roles: clients see one MAC address,
// whichever of the two has the VIP.
func TestVirtualMACBesideKeepalived(t *testing.T) {
	testenv.RequireRoot(t)
	testenv.RequireProgram(t, "keepalived")
	for _, d := range dialects {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel() // most of it is waiting
			r := webRig(t, 1)
			file := r.file("sluice.yaml", generic, pool("{address: 192.0.2.11}"), services(dsr), fmt.Sprintf(
				"vrrp:\n  - {name: VI_1, interface: eth0, virtual_router_id: 51, virtual_mac: true, %s, addresses: [192.0.2.100/24]}\n", d.sluice))
			vmac := d
			vmac.instance += "\n    use_vmac vrrp.51"
			daemon := r.start("lb1", file)
			r.waitReady("lb1")
			peer := r.startKeepalived("lb2", vmac, 99)
			r.waitTakesPart("lb2", peer)
			ask := r.asker("client")
			at := func(node string) {
				t.Helper()
				r.eventually(soon, "the VIP at the virtual MAC address, at "+node, func() (bool, error) {
					got := ask.answers(vip)
					port, err := r.lab.LearntAt(net.HardwareAddr{0, 0, 0x5e, 0, 1, 51})
					if !slices.Equal(got, []string{virtualMAC}) || !slices.Equal(port, []string{node}) {
						return false, fmt.Errorf("%v answer, the switch has it at %v: %w", got, port, err)
					}
					return true, err
				})
			}
			r.waitVIP(soon, vip, "lb1", "lb2")
			at("lb1")
			r.answers("client", dsrService, 5)
			if err := daemon.Stop(); err != nil {
				t.Fatal(err)
			}
			r.waitVIP(soon, vip, "lb2", "lb1")
			at("lb2")
			// sluice starts as Backup beside it, and takes the VIP back.
			r.start("lb1", file)
			r.waitVIP(soon, vip, "lb1", "lb2")
			at("lb1")
			r.answers("client", dsrService, 5)
			if i, err := instanceOf(r.mustStatus("lb1"), "VI_1"); err != nil || i.Received == 0 || len(i.Dropped) > 0 || len(i.Alarms) > 0 {
				t.Errorf("instance %+v, %v", i, err)
			}
		})
	}
}
