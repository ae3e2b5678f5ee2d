package loader

import "github.com/cilium/ebpf"

// A FlowTable is a table of single flows, and how full it is.
type FlowTable struct {
	Name string `json:"name"`
	// Used are the entries that count, as of the last look through the table while
	// any did; -1: not counted yet.
	Used int `json:"used"`
	Size int `json:"size"` // how many there is room for
}

// flowTables describes the tables of single flows. Used is what a scan has counted
// in them; idle as in sourcePorts.
func (t *tables) flowTables(s *State, used map[string]int, idle map[uint32]int) []FlowTable {
	var all []FlowTable
	for _, m := range []struct {
		name string
		m    *ebpf.Map
	}{
		{"handshakes", t.objects.Handshakes}, {"pins", t.objects.Pins},
		{"stragglers", t.objects.Stragglers}, {"udp_flows", t.objects.UdpFlows},
	} {
		n := -1
		if used != nil {
			n = used[m.name]
		}
		all = append(all, FlowTable{m.name, n, int(m.m.MaxEntries())})
	}
	// A translation has a source port, which it shares with none.
	nat := FlowTable{Name: "nat_flows", Size: int(t.objects.NatBuckets.MaxEntries()) * int(lbLimitsNAT_WAYS) / 4}
	for n, e := range s.Pairs {
		nat.Used += max(0, t.portUse(s, n, e).Used-idle[n])
	}
	return append(all, nat)
}
