package loader

import (
	"fmt"
	"net/netip"
)

// A ServiceBackend is a backend of a service.
type ServiceBackend struct {
	Service string
	Address netip.AddrPort
}

// Traffic is what a backend was sent, and in nat has sent back, since the data plane was
// loaded. Bytes are those of IP packets, Flows SYNs that were forwarded.
type Traffic struct {
	Packets, Bytes, Flows, ReplyPackets, ReplyBytes uint64
}

// Traffic reads the counters of all backends of services that have a name. It costs less
// than Stats, and waits for nobody, as Stats.
func (d *Datapath) Traffic() (all map[ServiceBackend]Traffic, err error) {
	err = d.look(func(v *view) error {
		all = map[ServiceBackend]Traffic{}
		for n, b := range v.state.Backends {
			name := v.names[b.Service]
			if name == "" {
				continue
			}
			t, err := readTraffic(d.objects, n)
			if err != nil {
				return err
			}
			all[ServiceBackend{name, b.Address}] = t
		}
		return nil
	})
	return all, err
}

// readTraffic reads the counters of a backend, of all CPUs.
func readTraffic(m *kernelMaps, n uint32) (Traffic, error) {
	var sum Traffic
	var counted []lbCounters
	if err := m.Traffic.Lookup(n, &counted); err != nil {
		return sum, fmt.Errorf("read the counters of backend %d: %w", n, err)
	}
	for _, c := range counted {
		sum.Packets += c.Packets
		sum.Bytes += c.Bytes
		sum.Flows += c.Flows
		sum.ReplyPackets += c.ReplyPackets
		sum.ReplyBytes += c.ReplyBytes
	}
	return sum, nil
}
