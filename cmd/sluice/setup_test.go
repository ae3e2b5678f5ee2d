package main

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// The addresses of services. DSR backends have vip on lo, and what comes from
// there cannot come from elsewhere: nat services have an address of their own.
var (
	vip        = testenv.VIP
	natVIP     = vip.Next()
	dsrService = netip.AddrPortFrom(vip, 80)
	natService = netip.AddrPortFrom(natVIP, 80)
)

// Sections of configuration files.
const (
	roster = `
nodes:
  - {name: lb1, address: 192.0.2.1, priority: 100}
  - {name: lb2, address: 192.0.2.2, priority: 99}
datapath: {interfaces: [eth0], max_flows: 20000}
`
	// probes that a busy test machine does not fail by being slow.
	probes = `health: {type: tcp, interval: 300ms, timeout: 300ms, rise: 2, fall: 3}`

	webPool = `
pools:
  - name: web
    ` + probes + `
    servers:
      - {address: 192.0.2.11, weight: 1}
      - {address: 192.0.2.12, weight: 2}
      - {address: 192.0.2.13, weight: 1}
`
	dsr = `{name: dsr, address: "192.0.2.100:80", forward: dsr, pool: web}`
	nat = `{name: nat, address: "192.0.2.101:80", forward: nat, pool: web}`

	// pair is the instance of both VIPs. With its interval a Backup takes over
	// after 0.73 s.
	pair = `{name: VI_1, interface: eth0, virtual_router_id: 51, advertisement_interval: 200ms,
     addresses: [192.0.2.100/24, 192.0.2.101/24]}`
)

func services(items ...string) string {
	return "services:\n  - " + strings.Join(items, "\n  - ") + "\n"
}
func vrrps(items ...string) string { return "vrrp:\n  - " + strings.Join(items, "\n  - ") + "\n" }

// usual is the configuration of most tests.
func (r *rig) usual() string {
	return r.file("sluice.yaml", roster, webPool, services(dsr, nat), vrrps(pair))
}

// web is the default topology with n backends that serve their names on port 80
// and are ready for dsr.
func webRig(t *testing.T, n int) *rig {
	t.Helper()
	r := newRig(t, testenv.Default(n))
	for i := range n {
		name := fmt.Sprintf("b%d", i+1)
		if err := r.host(name).AddVIPOnLoopback(vip); err != nil {
			r.Fatal(err)
		}
		r.serve(name, r.host(name).NameHandler())
	}
	return r
}

// serve starts an HTTP server on port 80 of a host.
func (r *rig) serve(on string, handler http.Handler) *testenv.HTTPServer {
	r.Helper()
	s, err := r.host(on).StartHTTP(netip.AddrPortFrom(netip.IPv4Unspecified(), 80), handler)
	if err != nil {
		r.Fatal(err)
	}
	return s
}

// waitReady waits until a node is Active and every service has all its servers.
func (r *rig) waitReady(on string) control.Status {
	r.Helper()
	return r.waitStatus(on, soon, "services and VIPs", func(s control.Status) error {
		for _, i := range s.VRRP {
			if i.State != "active" || len(i.Present) != len(i.Addresses) {
				return fmt.Errorf("instance %s is %s with %v: %s", i.Name, i.State, i.Present, i.Reason)
			}
		}
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
}

// answers sends count requests from a host; none may fail. It returns how many
// each backend has answered.
func (r *rig) answers(from string, to netip.AddrPort, count int) map[string]int {
	r.Helper()
	got, err := r.host(from).Probe(to, count)
	if err != nil {
		r.Fatal(err)
	}
	if got.Failed > 0 {
		r.Fatalf("%d of %d requests from %s to %v failed: %v", got.Failed, got.Sent, from, to, got.Errors)
	}
	return got.Bodies
}

// names are the keys of answers, sorted.
func names(answers map[string]int) []string {
	var all []string
	for name := range answers {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

// burst is how many requests tell who serves: one that has a quarter of the
// slots is missed by all of them once in 10^12 times.
const burst = 100

// wantServing fails unless exactly these backends answer, without a failure.
func (r *rig) wantServing(to netip.AddrPort, want ...string) {
	r.Helper()
	if got := names(r.answers("client", to, burst)); !slices.Equal(got, want) {
		r.Errorf("%v is served by %v, want %v", to, got, want)
	}
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// deleteAddress removes an address of a host, as an operator would.
func deleteAddress(h *testenv.Host, iface string, a netip.Addr) error {
	link, err := h.Netlink().LinkByName(iface)
	if err != nil {
		return err
	}
	addresses, err := h.Netlink().AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	for _, other := range addresses {
		if ip, ok := netip.AddrFromSlice(other.IP); ok && ip.Unmap() == a {
			return h.Netlink().AddrDel(link, &other)
		}
	}
	return fmt.Errorf("%s has no %v", iface, a)
}
