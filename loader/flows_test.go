package loader

import (
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// flowsOf returns the flows of a data plane, without their times.
func flowsOf(t *testing.T, d *Datapath) []Flow {
	t.Helper()
	var all []Flow
	p := Pinned{maps: *d.objects, tables: d.tables, state: d.state}
	if err := p.Flows(func(f Flow) error {
		if f.Idle < 0 || f.Left < 0 || f.Idle+f.Left < Seconds(5*time.Second-tick) {
			t.Errorf("%v is idle for %v, and has %v left", f, f.Idle, f.Left)
		}
		f.Idle, f.Left = 0, 0
		all = append(all, f)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestFlows(t *testing.T) {
	w := newWorld(t)
	at := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(vipIP, port) }
	number := func(port uint16) uint16 { return w.d.state.service(w.d.state.VIPs[vipIP].Tables[tcpTable], port) }
	sip := w.d.state.service(w.d.state.VIPs[vipIP].Tables[portTable(17)], worldSIP)
	b := func(i int, port uint16) netip.AddrPort { return netip.AddrPortFrom(backendAddr(i), port) }
	want := []Flow{
		{Kind: FlowHandshake, Number: number(worldDSR), Protocol: "tcp", Client: w.moved[1].addr, VIP: vipPort, Backend: b(2, 80)},
		{Kind: FlowPinned, State: "open", Number: number(worldDSR), Protocol: "tcp", Client: w.moved[0].addr, VIP: vipPort, Backend: b(2, 80)},
		{Kind: FlowStraggler, State: "open", Number: number(worldDSR), Protocol: "tcp", Client: w.moved[2].addr, VIP: vipPort, Backend: b(1, 80)},
		{Kind: FlowUDP, State: "lasting", Number: sip, Protocol: "udp", Client: w.udp, VIP: at(worldSIP), Backend: netip.AddrPortFrom(owner(w.d, w.udp, worldSIP), worldSIP)},
		{Kind: FlowUDP, State: "new", Number: sip, Protocol: "udp", Client: clientAddr(1), VIP: at(worldSIP), Backend: netip.AddrPortFrom(owner(w.d, clientAddr(1), worldSIP), worldSIP)},
		{Kind: FlowNAT, State: "established", Number: number(worldNAT), Protocol: "tcp", Client: w.nat.client, VIP: at(worldNAT), Backend: w.nat.backend, Source: w.nat.source},
	}
	w.moved[1].syn(t) // handshakes are forgotten soon
	full := 0
	got := slices.DeleteFunc(flowsOf(t, w.d), func(f Flow) bool {
		if f.VIP == at(worldFull) && f.Kind == FlowNAT && f.State == "established" && f.Backend == b(1, 8088) && f.Source.Addr() == vipIP {
			full++
			return true
		}
		return f.VIP == at(worldLimit) // that nobody has answered, and is forgotten soon
	})
	if diff := cmp.Diff(want, got, equateAddrs); diff != "" {
		t.Errorf("flows (-want +got):\n%s", diff)
	}
	if full != 64 {
		t.Errorf("%d flows of the full service, want 64", full)
	}

	t.Run("an error ends it", func(t *testing.T) {
		p := Pinned{maps: *w.d.objects, tables: w.d.tables, state: w.d.state}
		enough := errors.New("enough")
		for _, n := range []int{1, 3, len(want) + 20} {
			seen := 0
			err := p.Flows(func(Flow) error {
				if seen++; seen == n {
					return enough
				}
				return nil
			})
			if !errors.Is(err, enough) || seen != n {
				t.Errorf("it went on to flow %d with %v, want it to end at %d", seen, err, n)
			}
		}
	})
	t.Run("FIN shortens", func(t *testing.T) {
		w.moved[2].send(t, 0x11, 1, "")
		for _, f := range flowsOf(t, w.d) {
			if f.Kind == FlowStraggler && f.State != "ending" {
				t.Errorf("a straggler that has sent FIN is %s", f.State)
			}
		}
	})
	t.Run("what is idle is not there", func(t *testing.T) {
		for n, pair := range w.d.state.Pairs {
			if pair.Address == b(1, 8088) {
				viewPair(t, w.d, n).ageAll(125 * time.Minute)
			}
		}
		for _, f := range flowsOf(t, w.d) {
			if f.VIP == at(worldFull) {
				t.Fatalf("%v has been idle for longer than it may", f)
			}
		}
	})
	t.Run("what is void is not there", func(t *testing.T) {
		services := worldServices(0)
		for i := range services {
			for j := range services[i].Backends {
				services[i].Backends[j].Failed = true
			}
		}
		apply(t, w.d, services...)
		if got := flowsOf(t, w.d); len(got) > 0 {
			t.Errorf("flows of backends that have failed: %v", got)
		}
	})
}

func TestFlowJSON(t *testing.T) {
	f := Flow{
		Kind: FlowNAT, State: "established", Service: "web", Protocol: "tcp", Client: clientPort, VIP: vipPort,
		Backend: v4Backend, Source: netip.MustParseAddrPort("192.0.2.100:1024"),
		Idle: Seconds(1500 * time.Millisecond), Left: Seconds(2 * time.Minute),
	}
	text, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"kind":"nat","state":"established","service":"web","protocol":"tcp","client":"198.51.100.7:40000","vip":"192.0.2.100:80",` +
		`"backend":"192.0.2.11:80","source":"192.0.2.100:1024","idle_seconds":1.500,"left_seconds":120.000}`
	if diff := cmp.Diff(want, string(text)); diff != "" {
		t.Errorf("JSON (-want +got):\n%s", diff)
	}
	f.Source = netip.AddrPort{}
	if text, err = json.Marshal(f); err != nil || strings.Contains(string(text), "source") {
		t.Errorf("a flow that is not translated: %s, %v", text, err)
	}
}
