package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// The VIPs of IPv6: VRRP does not move them yet, so they are put on the node by
// hand.
var (
	vip6    = netip.MustParseAddr("2001:db8::100")
	natVIP6 = vip6.Next()
)

// A forwardMode is one of the ways to a backend, with the VIPs of its services.
type forwardMode struct {
	name     string
	vip, v6  netip.Addr
	hasLocal bool // backends have the VIPs on lo
}

var forwardModes = []forwardMode{
	{"dsr", vip, vip6, true},
	{"nat", natVIP, natVIP6, false},
	{"tunnel", vip, vip6, true},
}

// dnatMode is nat that keeps the client's address: the backends' gateway is lb1.
var dnatMode = forwardMode{"dnat", natVIP, natVIP6, false}

// service is a service of the configuration on port 80 of a VIP.
func (m forwardMode) service(name string, on netip.Addr, pool string) string {
	forward := m.name
	if m == dnatMode {
		forward = "nat, source_nat: false"
	}
	return fmt.Sprintf("{name: %s, address: %q, forward: %s, pool: %s, track_window: 30m}",
		name, netip.AddrPortFrom(on, 80), forward, pool)
}

// newModeRig builds a lab for a mode: its backends have the VIPs where it wants
// them, and lb1 has those of IPv6.
func newModeRig(t *testing.T, m forwardMode, spec testenv.Spec) *rig {
	t.Helper()
	r := newElectingModeRig(t, m, spec)
	if spec.IPv6 {
		r.addDeprecated("lb1", m.v6)
	}
	return r
}

// newElectingModeRig is the same without VIPs on nodes.
func newElectingModeRig(t *testing.T, m forwardMode, spec testenv.Spec) *rig {
	t.Helper()
	for i := range spec.Hosts {
		// Decapsulation is pinned.
		h := &spec.Hosts[i]
		h.Node = h.Node || strings.HasPrefix(h.Name, "b")
	}
	if spec.IPv6 { // what probes of an IPv6 VIP come from
		withAddresses(spec, "lb1", prefix("192.0.2.1/24"), prefix("2001:db8::1/64"))
	}
	r := newRig(t, spec)
	vips := []netip.Addr{m.vip}
	if spec.IPv6 {
		vips = append(vips, m.v6)
	}
	for _, h := range r.lab.Hosts() {
		if !strings.HasPrefix(h.Name, "b") || !m.hasLocal {
			continue
		}
		for _, v := range vips {
			if err := h.AddVIPOnLoopback(v); err != nil {
				t.Fatal(err)
			}
		}
		if m.name == "tunnel" {
			r.decapsulate(h.Name)
		}
	}
	return r
}

// addDeprecated gives a node an address that it takes for none of its own
// connections: its probes must not come from a VIP that the backends have, too.
func (r *rig) addDeprecated(on string, a netip.Addr) {
	r.Helper()
	nl := r.host(on).Netlink()
	link, err := nl.LinkByName("eth0")
	if err == nil {
		err = nl.AddrAdd(link, &netlink.Addr{
			IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(64, 128)}, Flags: unix.IFA_F_NODAD, ValidLft: math.MaxUint32, PreferedLft: 0,
		})
	}
	if err != nil {
		r.Fatalf("add %v to %s: %v", a, on, err)
	}
}

// decapsulate starts `sluice decap` on a backend and waits for it.
func (r *rig) decapsulate(on string) {
	r.Helper()
	p, err := r.host(on).Start("decap", sluice(r.host(on), "decap", "--interface", "eth0"))
	if err != nil {
		r.Fatal(err)
	}
	r.eventually(soon, "sluice decap on "+on, func() (bool, error) {
		select {
		case <-p.Done():
			return false, fmt.Errorf("%w: it has ended: %s", testenv.ErrGiveUp, p.Tail(10))
		default:
		}
		got := r.runSluice(on, "decap", "--status", "--json")
		if got.code != 0 {
			return false, errors.New(got.stderr)
		}
		var s decapStatus
		err := json.Unmarshal([]byte(got.stdout), &s)
		return err == nil && s.Running && len(s.Interfaces) == 1, err
	})
}

// withAddresses gives a host of a spec these addresses on its first interface
// instead of its own.
func withAddresses(spec testenv.Spec, host string, addresses ...netip.Prefix) testenv.Spec {
	for i := range spec.Hosts {
		if spec.Hosts[i].Name == host {
			spec.Hosts[i].Interfaces[0].Addresses = addresses
		}
	}
	return spec
}
