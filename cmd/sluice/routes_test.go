package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

// Routes and rules come and go with the VIP; what a killed daemon has left goes when
// the next one starts with a file that does not name it.
func TestRoutesComeAndGoWithTheVIP(t *testing.T) {
	t.Parallel() // most of it is waiting
	r := newRig(t, lab1())
	const instance = `name: VI_1
    interface: eth0
    virtual_router_id: 51
    advertisement_interval: 200ms
    addresses: [192.0.2.100/24]
`
	with := r.file("with.yaml", vrrps(instance+`    routes: [{to: default, via: 192.0.2.254, table: 100, source: 192.0.2.100}, {to: 198.51.100.0/24, via: 203.0.113.1}]
    rules: [{from: 192.0.2.100, table: 100}]`))
	// there is what of it the kernel has.
	there := func() (all []string) {
		t.Helper()
		nl := r.host("lb1").Netlink()
		routes, err := nl.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: 100}, netlink.RT_FILTER_TABLE)
		if err != nil {
			t.Fatal(err)
		}
		for _, route := range routes {
			all = append(all, fmt.Sprintf("%v via %v src %v", route.Dst, route.Gw, route.Src))
		}
		rules, err := nl.RuleList(netlink.FAMILY_V4)
		if err != nil {
			t.Fatal(err)
		}
		for _, rule := range rules {
			if rule.Table == 100 {
				all = append(all, fmt.Sprintf("from %v", rule.Src))
			}
		}
		return all
	}
	wantThere := func(when string, want ...string) {
		t.Helper()
		r.eventually(soon, when, func() (bool, error) {
			if got := there(); !slices.Equal(got, want) {
				return false, fmt.Errorf("got %v, want %v", got, want)
			}
			return true, nil
		})
	}
	daemon := r.start("lb1", with)
	wantThere("routes of the active node", "0.0.0.0/0 via 192.0.2.254 src 192.0.2.100", "from 192.0.2.100/32")
	// One of them leads nowhere: that is a problem, and no more.
	r.eventually(soon, "the problem of the other route", func() (bool, error) {
		s, err := r.status("lb1")
		if err != nil {
			return false, err
		}
		i, err := instanceOf(s, "VI_1")
		const want = "vrrp instance VI_1: routes are not as configured: add route to 198.51.100.0/24 via 203.0.113.1 in table 254: network is unreachable"
		return i.State == "active" && slices.Contains(s.Problems, want), err
	})
	r.kill(daemon)
	if got := there(); len(got) != 2 {
		t.Errorf("a killed daemon leaves %v, want all of it", got)
	}
	daemon = r.start("lb1", r.file("without.yaml", vrrps(strings.TrimSpace(instance))))
	wantThere("what is not configured any more to go")
	r.kill(daemon)
	daemon = r.start("lb1", with)
	wantThere("routes of the active node", "0.0.0.0/0 via 192.0.2.254 src 192.0.2.100", "from 192.0.2.100/32")
	r.kill(daemon)
	r.wantRun(0, "lb1", "detach", "--force")
	wantThere("nothing after detach")
}
