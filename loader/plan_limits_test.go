package loader

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/sluice-lb/sluice/internal/lb"
)

// diffStates compares two states; an empty map is as good as none.
func diffStates(want, got *State) string {
	return cmp.Diff(want, got, equateAddrs, cmpopts.EquateEmpty(), cmp.AllowUnexported(State{}))
}

// manyServices returns n services, each with an address or port of its own.
func manyServices(n int, address func(i int) netip.AddrPort) lb.Snapshot {
	var s lb.Snapshot
	for i := range n {
		s.Services = append(s.Services, lb.ServiceState{Service: lb.Service{
			Name: fmt.Sprintf("s%05d", i), Addresses: []lb.Frontend{lb.FrontendOf(address(i))}, Forward: lb.DSR, TableSize: 1,
		}})
	}
	return s
}

// What does not fit is refused whole: the error says what there is no room for,
// and the state stays.
func TestPlanLimits(t *testing.T) {
	port := func(i int) netip.AddrPort { return netip.AddrPortFrom(vipIP, uint16(i+1)) }
	address := func(i int) netip.AddrPort { return netip.AddrPortFrom(clientAddr(i).Addr(), 80) }
	manyBackends := func(n int, forward lb.Forward, sources int) lb.Snapshot {
		s := manyServices(1, port)
		s.Services[0].Forward = forward
		for i := range sources {
			s.Services[0].SourceAddresses = append(s.Services[0].SourceAddresses, clientAddr(100000+i).Addr())
		}
		for i := range n {
			s.Services[0].Backends = append(s.Services[0].Backends, lb.Backend{Address: address(i), Weight: 1})
		}
		return s
	}
	tests := []struct {
		name  string
		fits  lb.Snapshot
		over  lb.Snapshot
		error string
	}{
		{"services", manyServices(4095, port), manyServices(4096, port), "no room for another service"},
		{"vips", manyServices(255, address), manyServices(256, address), "no room for another address with services"},
		{"backends", manyBackends(16383, lb.DSR, 0), manyBackends(16384, lb.DSR, 0), "no room for another backend"},
		{"pairs", manyBackends(1000, lb.NAT, 8), manyBackends(1024, lb.NAT, 8), "no room for another pair"},
		{"slots", func() lb.Snapshot { s := manyServices(2, port); s.Services[1].TableSize = 99_999; return s }(),
			func() lb.Snapshot { s := manyServices(2, port); s.Services[1].TableSize = 100_000; return s }(),
			"no room for the slots of service s00001"},
		{"sources of nat", manyBackends(1, lb.NAT, 1), manyBackends(1, lb.NAT, 0), "nat needs a source address"},
	}
	lim := limits{slots: 100_000, share: lb.PortRange{First: 1024, Last: 65535}}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			_, have, err := plan(newState(), tc.fits, lim, testTable)
			if err != nil {
				t.Fatalf("what fits: %v", err)
			}
			kept := have.clone()
			_, _, err = plan(newState(), tc.over, lim, testTable)
			if err == nil || !strings.Contains(err.Error(), tc.error) {
				t.Fatalf("error %v, want one with %q", err, tc.error)
			}
			_, next, err := plan(have, tc.over, lim, testTable)
			if err == nil || next != nil {
				t.Errorf("starting from what fits: error %v", err)
			}
			if diff := diffStates(kept, have); diff != "" {
				t.Errorf("the state has changed (-before +after):\n%s", diff)
			}
		})
	}
}

// A data plane that has refused a snapshot goes on with the one before.
func TestApplyRefuses(t *testing.T) {
	d := newDatapath(t, service("web", lb.DSR, 80, backends(1, 80)))
	before := d.state.clone()
	err := d.Apply(manyServices(256, func(i int) netip.AddrPort { return netip.AddrPortFrom(clientAddr(i).Addr(), 80) }))
	if err == nil {
		t.Fatal("256 VIPs were accepted")
	}
	if diff := diffStates(before, d.state); diff != "" {
		t.Errorf("state (-before +after):\n%s", diff)
	}
	read, err := d.tables.readState()
	if err != nil {
		t.Fatal(err)
	}
	if diff := diffStates(before, read); diff != "" {
		t.Errorf("tables (-before +after):\n%s", diff)
	}
	if got := try(t, d, toVIP().Bytes()); got.Outcome != "sent" {
		t.Errorf("outcome %s", got.Outcome)
	}
}
