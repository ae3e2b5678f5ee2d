package loader

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/sluice-lb/sluice/internal/lb"
)

// Places in vipEntry.Tables.
const (
	tcpTable = 0
	udpTable = 1
)

// portTable is the place of the port table of a protocol in vipEntry.Tables.
func portTable(p lb.Protocol) int {
	if p == lb.UDP {
		return udpTable
	}
	return tcpTable
}

type listening struct {
	vip   netip.Addr
	table int // place in vipEntry.Tables
}

// vips plans addresses and their ports.
func (p *planner) vips(want lb.Snapshot, numbers []uint16) error {
	wantSource := map[netip.Addr]bool{}
	wantPorts := map[listening][]portRun{}
	addresses := map[netip.Addr]bool{}
	for i, s := range want.Services {
		for _, a := range s.Addresses {
			l := listening{a.VIP, portTable(s.Protocol)}
			wantPorts[l] = append(wantPorts[l], portRun{a.Ports.First, a.Ports.Last, numbers[i]})
			addresses[a.VIP] = true
		}
		if s.Forward == lb.NAT {
			for _, a := range s.SourceAddresses {
				wantSource[a] = true
				addresses[a] = true
			}
		}
	}

	places := map[uint32]bool{}
	tables := map[uint32]bool{}
	free := numbering{limit: uint32(lbLimitsMAX_PORT_TABLES)}
	for _, v := range p.have.VIPs {
		places[v.Index] = true
		for _, t := range v.Tables {
			tables[t] = true
		}
	}
	var setVIPs, openPorts, clearPorts, narrowVIPs, clearVIPs []step
	for _, a := range slices.SortedFunc(maps.Keys(addresses), netip.Addr.Compare) {
		old, ok := p.have.VIPs[a]
		v := old
		if !ok {
			index, err := place("address "+a.String(), vipHash(a), uint32(lbLimitsMAX_VIPS),
				func(i uint32) bool { return places[i] })
			if err != nil {
				return err
			}
			v.Index = index
			places[index] = true
		}
		v.Source = wantSource[a]
		for i := range v.Tables {
			runs := mergeRuns(wantPorts[listening{a, i}])
			if len(runs) > 0 && v.Tables[i] == 0 {
				t, err := freeNumber("address with services", &free, tables)
				if err != nil {
					return err
				}
				tables[t] = true
				v.Tables[i] = t
			}
			if v.Tables[i] == 0 {
				continue
			}
			table, have := v.Tables[i], p.have.Ports[v.Tables[i]]
			for _, r := range runs {
				if !slices.Contains(have, r) {
					openPorts = append(openPorts, setPortsOf(table, r, have)...)
				}
			}
			for _, r := range have {
				for _, gone := range subtractRuns(r, runs) {
					gone.Service = 0
					clearPorts = append(clearPorts, setPorts{table, gone})
				}
			}
			delete(p.next.Ports, table)
			if len(runs) > 0 {
				p.next.Ports[table] = runs
			}
		}
		p.next.VIPs[a] = v
		// Replies come to a source address as long as its services are there.
		wide := v
		wide.Source = v.Source || old.Source
		if !ok || wide != old {
			setVIPs = append(setVIPs, setVIP{a, wide})
		}
		if wide != v {
			narrowVIPs = append(narrowVIPs, setVIP{a, v})
		}
	}
	for _, a := range slices.SortedFunc(maps.Keys(p.have.VIPs), netip.Addr.Compare) {
		v := p.have.VIPs[a]
		if addresses[a] {
			continue
		}
		for _, table := range v.Tables {
			for _, r := range p.have.Ports[table] {
				r.Service = 0
				clearPorts = append(clearPorts, setPorts{table, r})
			}
			delete(p.next.Ports, table)
		}
		delete(p.next.VIPs, a)
		clearVIPs = append(clearVIPs, clearVIP{a, v.Index})
	}
	p.add = append(p.add, setVIPs...)
	p.open = append(p.open, openPorts...)
	p.close = slices.Concat(p.close, clearPorts, narrowVIPs, clearVIPs)
	return nil
}

// setPortsOf sets those ports of a run that are not its service's already.
func setPortsOf(table uint32, r portRun, have []portRun) []step {
	var same []portRun
	for _, h := range have {
		if h.Service == r.Service {
			same = append(same, h)
		}
	}
	var steps []step
	for _, rest := range subtractRuns(r, same) {
		steps = append(steps, setPorts{table, rest})
	}
	return steps
}

// mergeRuns sorts runs that do not overlap and joins those that touch and are
// one service's.
func mergeRuns(runs []portRun) []portRun {
	slices.SortFunc(runs, func(a, b portRun) int { return cmp.Compare(a.First, b.First) })
	var merged []portRun
	for _, r := range runs {
		if n := len(merged); n > 0 && merged[n-1].Service == r.Service && int(merged[n-1].Last)+1 == int(r.First) {
			merged[n-1].Last = r.Last
		} else {
			merged = append(merged, r)
		}
	}
	return merged
}

// subtractRuns returns the parts of a run that none of the others, which are in
// order, has.
func subtractRuns(r portRun, others []portRun) []portRun {
	var rest []portRun
	first := int(r.First)
	for _, o := range others {
		if o.Last < r.First || o.First > r.Last {
			continue
		}
		if first < int(o.First) {
			rest = append(rest, portRun{uint16(first), o.First - 1, r.Service})
		}
		first = max(first, int(o.Last)+1)
	}
	if first <= int(r.Last) {
		rest = append(rest, portRun{uint16(first), r.Last, r.Service})
	}
	return rest
}
