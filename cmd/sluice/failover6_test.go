package main

import (
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// link6 is the link-local VIP that stands before vip6.
var link6 = netip.MustParseAddr("fe80::100")

// pair6 is a pair of nodes with a service over IPv6 alone: VRRP too.
const pair6 = `
nodes:
  - {name: lb1, address: "2001:db8::1", priority: 100}
  - {name: lb2, address: "2001:db8::2", priority: 99}
datapath: {interfaces: [eth0], max_flows: 20000}
pools:
  - name: web
    ` + probes + `
    servers: [{address: "2001:db8::11"}, {address: "2001:db8::12"}]
services:
  - {name: six, address: "[2001:db8::100]:80", forward: dsr, pool: web}
`

// An IPv6 VIP moves when its node is killed and cut off, and comes back with it.
// So it does over unicast.
func TestIPv6VIPMoves(t *testing.T) {
	for _, tt := range []struct{ name, keys string }{
		{"multicast", `addresses: ["fe80::100/64", "2001:db8::100/64"]`},
		{"unicast", `addresses: ["fe80::100/64", "2001:db8::100/64"], unicast: true`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := viaRig(t, 2)
			for _, name := range []string{"b1", "b2"} {
				r.lo(name, vip6, true)
			}
			file := r.file("six.yaml", pair6, vrrps(
				`{name: VI_1, interface: eth0, virtual_router_id: 51, advertisement_interval: 200ms, `+tt.keys+`}`))
			daemons := map[string]*testenv.Process{"lb1": r.start("lb1", file), "lb2": r.start("lb2", file)}
			r.waitReady("lb1")
			r.waitBackup("lb2")
			onOne := func(on, other string) {
				t.Helper()
				for _, a := range []netip.Addr{vip6, link6} {
					r.waitVIP(soon, a, on, other)
				}
			}
			onOne("lb1", "lb2")
			service := netip.AddrPortFrom(vip6, 80)
			r.wantServing(service, "b1", "b2")
			prober := r.prober(service)
			r.answersMore(prober, 50)

			cut := time.Now()
			if err := r.host("lb1").LinkDown(); err != nil {
				t.Fatal(err)
			}
			r.kill(daemons["lb1"])
			r.waitVIP(soon, vip6, "lb2")
			r.answersMore(prober, 100)
			silence, _ := prober.Result().LongestSilenceBetween(cut, time.Now())
			t.Logf("longest silence %v, of which %v is the protocol's", silence.Round(time.Millisecond), takeover)
			if silence < takeover/2 {
				t.Errorf("the client's longest silence is %v: was lb1 Active at all?", silence)
			}

			if err := r.host("lb1").LinkUp(); err != nil {
				t.Fatal(err)
			}
			daemons["lb1"] = r.start("lb1", file)
			r.waitReady("lb1")
			onOne("lb1", "lb2")
			r.answersMore(prober, 100)

			// A planned stop.
			r.stop(daemons["lb1"])
			onOne("lb2", "lb1")
			r.answersMore(prober, 100)
			// What is lost on the way is sent again and answered.
			r.wantNoFailure(prober)
			for _, node := range []string{"lb1", "lb2"} {
				if !r.has(node, netip.MustParseAddr(map[string]string{"lb1": "2001:db8::1", "lb2": "2001:db8::2"}[node])) {
					t.Errorf("%s has lost its own address", node)
				}
			}
		})
	}
}
