package loader

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

// nodeBackend is another node of a service that is spread.
func nodeBackend(i int, mac [6]byte) lb.Backend {
	return lb.Backend{
		Address: netip.AddrPortFrom(backendAddr(i), 80), Weight: 1,
		NextHop: lb.NextHop{Interface: nicIndex, Destination: mac, Source: nicMAC},
	}
}

func hereBackend(i int) lb.Backend {
	b := nodeBackend(i, [6]byte{})
	b.NextHop = lb.Here
	return b
}

// The program knows the MAC addresses of all nodes that a service has been spread over,
// and one that stays is never out of its place. A later daemon reads them back.
func TestNodes(t *testing.T) {
	d := newDatapath(t)
	failed, lost := nodeBackend(3, nodeMAC(3)), nodeBackend(3, nodeMAC(3))
	failed.Failed, lost.NextHop = true, lb.NextHop{}
	for _, tt := range []struct {
		name    string
		forward lb.Forward
		nodes   []lb.Backend
		want    [2]uint64
	}{
		{"another mode", lb.DSR, []lb.Backend{nodeBackend(2, nodeMAC(2))}, [2]uint64{}},
		{"this node alone", lb.Proxy, []lb.Backend{hereBackend(1)}, [2]uint64{}},
		{"two others", lb.Proxy, []lb.Backend{hereBackend(1), nodeBackend(2, nodeMAC(2)), nodeBackend(3, nodeMAC(3))}, [2]uint64{macNumber(nodeMAC(2)), macNumber(nodeMAC(3))}},
		{"one of them fails", lb.Proxy, []lb.Backend{hereBackend(1), nodeBackend(2, nodeMAC(2)), failed}, [2]uint64{macNumber(nodeMAC(2)), macNumber(nodeMAC(3))}},
		{"no way to it is known", lb.Proxy, []lb.Backend{hereBackend(1), nodeBackend(2, nodeMAC(2)), lost}, [2]uint64{macNumber(nodeMAC(2)), macNumber(nodeMAC(3))}},
		{"the first has another MAC address", lb.Proxy, []lb.Backend{hereBackend(1), nodeBackend(2, nodeMAC(9)), failed}, [2]uint64{macNumber(nodeMAC(9)), macNumber(nodeMAC(3))}},
		{"both have one", lb.Proxy, []lb.Backend{hereBackend(1), nodeBackend(2, nodeMAC(3)), failed}, [2]uint64{0, macNumber(nodeMAC(3))}},
		{"none is left", lb.DSR, []lb.Backend{nodeBackend(2, nodeMAC(2))}, [2]uint64{}},
	} {
		apply(t, d, service("www", tt.forward, 80, tt.nodes))
		var want [lbLimitsMAX_NODES]uint64
		copy(want[:], tt.want[:])
		if diff := cmp.Diff(want, d.tables.arrays.Nodes); diff != "" {
			t.Errorf("%s: nodes (-want +got):\n%s", tt.name, diff)
		}
		s, err := d.tables.readState()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(d.state.Nodes, s.Nodes); diff != "" {
			t.Errorf("%s: read back (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestTooManyNodes(t *testing.T) {
	var all []lb.Backend
	for i := range int(lbLimitsMAX_NODES) + 1 {
		all = append(all, nodeBackend(i+1, nodeMAC(i+1)))
	}
	for n, want := range map[int]string{len(all) - 1: "", len(all): "no room for another node"} {
		_, _, err := plan(newState(), lb.Snapshot{Services: []lb.ServiceState{service("www", lb.Proxy, 80, all[:n])}},
			limits{slots: 2 * lb.DefaultTableSize, share: allPorts}, testTable)
		if err == nil && want != "" || err != nil && (want == "" || !strings.Contains(err.Error(), want)) {
			t.Errorf("%d nodes: %v, want %q", n, err, want)
		}
	}
}
