package main

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// crowdRoster has room for the flows of a crowd.
var crowdRoster = strings.Replace(roster, "max_flows: 20000", "max_flows: 60000", 1)

// patientProbes find a server healthy that a flood keeps from answering for a while.
const patientProbes = `health: {type: tcp, interval: 1s, timeout: 1s, rise: 1, fall: 5}`

const (
	crowdSize   = 10000
	crowdGrowth = 1000 // after each change
)

// A changingRig is a crowd of connections through lb1 to backends that change.
type changingRig struct {
	*rig
	mode     forwardMode
	daemon   *testenv.Process
	crowd    *crowd
	services []netip.AddrPort
}

// newChangingRig opens the crowd to b1, b2 and b3; b4 waits. Those of tunnel have
// an IPv6 service, too.
func newChangingRig(t *testing.T, m forwardMode) *changingRig {
	t.Helper()
	testenv.RequireRoot(t)
	needDescriptors(t, crowdSize+5*crowdGrowth)
	clients := testenv.Addresses(prefix("192.0.2.200/24"), 20)
	spec := testenv.Default(4)
	spec.IPv6 = m.name == "tunnel"
	if spec.IPv6 {
		clients = append(clients, testenv.Addresses(prefix("2001:db8::200/64"), 20)...)
		for i := range 4 {
			withAddresses(spec, fmt.Sprintf("b%d", i+1),
				netip.PrefixFrom(serverAddress(i+1), 24), prefix(fmt.Sprintf("2001:db8::1%d/64", i+1)))
		}
	}
	r := &changingRig{rig: newModeRig(t, m, withAddresses(spec, "client", clients...)), mode: m}
	for i := range 4 {
		r.startEcho(fmt.Sprintf("b%d", i+1))
	}
	r.services = append(r.services, netip.AddrPortFrom(m.vip, 80))
	if spec.IPv6 {
		r.services = append(r.services, netip.AddrPortFrom(m.v6, 80))
	}
	r.daemon = r.start("lb1", r.serving("b1", "b2", "b3"))
	r.waitReady("lb1")
	r.crowd = r.rig.crowd("client", clients...)
	began := time.Now()
	fresh := r.crowd.mustOpen(r.services, crowdSize)
	t.Logf("%d connections opened in %v: %v", len(fresh), time.Since(began).Round(time.Millisecond), backends(fresh))
	return r
}

func serverAddress(n int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(10 + n)}) }

// serving is the configuration with these servers; b4 has weight 2, the others 1.
func (r *changingRig) serving(names ...string) string {
	var servers []string
	for _, name := range names {
		weight := 1
		if name == "b4" {
			weight = 2
		}
		servers = append(servers, fmt.Sprintf("{address: %v, weight: %d}", r.host(name).Address(), weight))
	}
	list := []string{r.mode.service("crowd", r.mode.vip, "web")}
	if len(r.services) > 1 {
		list = append(list, r.mode.service("crowd6", r.mode.v6, "web"))
	}
	return r.file("sluice.yaml", crowdRoster,
		"pools:\n  - {name: web, "+patientProbes+", servers: ["+strings.Join(servers, ", ")+"]}\n", services(list...), vrrps(pair))
}

// restart replaces the daemon by one with these servers.
func (r *changingRig) restart(names ...string) {
	r.Helper()
	r.kill(r.daemon)
	r.daemon = r.start("lb1", r.serving(names...))
}

func (r *changingRig) backend(args ...string) {
	r.Helper()
	r.wantRun(0, "lb1", append([]string{"backend"}, args...)...)
}

// waitSlots waits until the slots of all services follow the weights exactly: to
// one slot, all of them.
func (r *changingRig) waitSlots(weights map[string]int) {
	r.Helper()
	sum := 0
	for _, w := range weights {
		sum += w
	}
	r.eventually(2*soon, fmt.Sprintf("slots by %v", weights), func() (bool, error) {
		s, err := r.status("lb1")
		if err != nil {
			return false, err
		}
		if len(s.Services) != len(r.services) {
			return false, fmt.Errorf("there are %d services", len(s.Services))
		}
		for _, v := range s.Services {
			slots := 0
			for _, b := range v.Backends {
				w := weights[fmt.Sprintf("b%d", b.Address.Addr().As4()[3]-10)]
				low := lb.DefaultTableSize * w / sum
				if b.Slots < low || b.Slots > low+1 || w == 0 && b.Slots > 0 {
					return false, fmt.Errorf("%s: %v has %d slots, want %d or one more", v.Name, b.Address, b.Slots, low)
				}
				slots += b.Slots
			}
			if slots != lb.DefaultTableSize {
				return false, fmt.Errorf("%s: %d slots of %d have an owner", v.Name, slots, lb.DefaultTableSize)
			}
		}
		return true, nil
	})
}

// A backendChange is a planned one, and the weights after it.
type backendChange struct {
	name    string
	do      func(*changingRig)
	weights map[string]int
}

// fiveChanges are made one after another, inside one window.
var fiveChanges = []backendChange{
	{"a backend is added", func(r *changingRig) { r.restart("b1", "b2", "b3", "b4") },
		map[string]int{"b1": 1, "b2": 1, "b3": 1, "b4": 2}},
	{"a weight is changed", func(r *changingRig) { r.backend("weight", "web", serverAddress(2).String(), "3") },
		map[string]int{"b1": 1, "b2": 3, "b3": 1, "b4": 2}},
	{"one is drained", func(r *changingRig) { r.backend("drain", "web", serverAddress(1).String()) },
		map[string]int{"b2": 3, "b3": 1, "b4": 2}},
	{"it is removed", func(r *changingRig) { r.restart("b2", "b3", "b4") },
		map[string]int{"b2": 3, "b3": 1, "b4": 2}},
	{"the weight is reset", func(r *changingRig) { r.backend("reset", "web", serverAddress(2).String()) },
		map[string]int{"b2": 1, "b3": 1, "b4": 2}},
}

// Ten thousand connections outlive five planned changes in one window: backends
// are added, get other weights, drain and go. None breaks, none moves, slots
// follow the weights exactly, and new connections follow the slots.
func TestPlannedChangesMoveNoConnection(t *testing.T) {
	for _, m := range forwardModes {
		t.Run(m.name, func(t *testing.T) {
			r := newChangingRig(t, m)
			began := time.Now()
			r.crowd.talk("before any change")
			for _, change := range fiveChanges {
				change.do(r)
				r.crowd.talk("while " + change.name)
				r.waitSlots(change.weights)
				fresh := r.crowd.mustOpen(r.services, crowdGrowth)
				r.wantSpread("after "+change.name, backends(fresh), change.weights)
				r.crowd.talk("after " + change.name)
				t.Logf("%v: %s: %d connections go on, new ones are with %v", time.Since(began).Round(time.Millisecond),
					change.name, len(r.crowd.members), backends(fresh))
			}
			if n := backends(r.crowd.members)["b1"]; n < crowdSize/4 {
				t.Errorf("%d connections are with the backend that was removed, want a third of %d", n, crowdSize)
			}
			r.stop(r.daemon)
		})
	}
}
