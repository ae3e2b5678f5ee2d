package config

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/sluice-lb/sluice/internal/lb"
)

var datapathSchema = schema{
	what: "datapath",
	keys: []string{"interfaces", "mode", "max_flows", "nat", "tunnel", "probe_addresses"},
}

var tunnelSchema = schema{what: "tunnel", keys: []string{"source_ipv4", "source_ipv6"}}

var natSchema = schema{what: "nat", keys: []string{"ports", "log"}}

// Bounds of max_flows: below, a table is not worth its name; above, it would
// take more memory than machines have.
const (
	minFlows     = 1024
	maxFlows     = 1 << 26
	defaultFlows = 1000000
)

// defaultPorts leaves out the ports below 1024: a service that trusts those is
// not to be fooled by a client.
var defaultPorts = lb.PortRange{First: 1024, Last: 65535}

// Where the outer source addresses of tunnels come from: a private prefix (RFC
// 1918) and the discard-only one (RFC 6666), to which nothing is sent back.
var (
	defaultTunnelSource4 = netip.MustParsePrefix("172.16.0.0/16")
	defaultTunnelSource6 = netip.MustParsePrefix("100::/64")
)

// Bounds of these prefixes' lengths: that of the smallest blocks that anyone
// holds.
const (
	minTunnelBits4 = 8
	minTunnelBits6 = 32
)

func (d *decoder) datapath(doc *document, nodes []nodeDef, s self) Datapath {
	dp := Datapath{
		Mode: ModeAuto, MaxFlows: defaultFlows, Ports: defaultPorts,
		TunnelSource4: defaultTunnelSource4, TunnelSource6: defaultTunnelSource6,
		ProbeAddresses4: defaultProbeAddresses4, ProbeAddresses6: defaultProbeAddresses6,
	}
	interfacesSet := false
	if n := doc.set["datapath"]; n != nil {
		f, ok := d.fields(n, &datapathSchema)
		interfacesSet = !ok // then it may be there: not a second mistake
		if n := f.own["interfaces"]; n != nil {
			interfacesSet = true
			dp.Interfaces, _ = d.interfaceNames(n, "interfaces")
		}
		if n := f.own["mode"]; n != nil {
			if m, ok := d.oneOf(n, "mode", []string{"auto", "native", "generic"}, nil); ok {
				dp.Mode = Mode(m)
			}
		}
		if n := f.own["max_flows"]; n != nil {
			if i, ok := d.integer(n, "max_flows", minFlows, maxFlows); ok {
				dp.MaxFlows = i
			}
		}
		if n := f.own["nat"]; n != nil {
			d.nat(n, &dp)
		}
		if n := f.own["tunnel"]; n != nil {
			d.tunnelSources(n, &dp)
		}
		if n := f.own["probe_addresses"]; n != nil {
			d.probeAddresses(n, &dp)
		}
	}
	if !interfacesSet && slices.ContainsFunc(doc.items["services"], func(n *node) bool { return !n.saysProxy() || n.saysSpread() }) {
		d.needInterfaces(doc, nodes)
	}
	if s.def != nil && s.def.Interfaces != nil {
		dp.Interfaces = s.def.Interfaces
	}
	return dp
}

func (d *decoder) nat(n *node, dp *Datapath) {
	f, ok := d.fields(n, &natSchema)
	if !ok {
		return
	}
	if n := f.own["ports"]; n != nil {
		if r, ok := d.portRange(n, "ports"); ok {
			dp.Ports = r
		}
	}
	if n := f.own["log"]; n != nil {
		path, ok := d.text(n, "log")
		switch {
		case !ok:
		case path[0] != '/' || path[len(path)-1] == '/':
			d.errorf(n, "log must be the absolute path of a file, not %q", path)
		default:
			dp.NATLog = path
		}
	}
}

func (d *decoder) tunnelSources(n *node, dp *Datapath) {
	f, ok := d.fields(n, &tunnelSchema)
	if !ok {
		return
	}
	for _, key := range []struct {
		name        string
		into        *netip.Prefix
		least, most int
	}{
		{"source_ipv4", &dp.TunnelSource4, minTunnelBits4, 32},
		{"source_ipv6", &dp.TunnelSource6, minTunnelBits6, 128},
	} {
		n := f.own[key.name]
		if n == nil {
			continue
		}
		p, ok := d.sources(n, key.name)
		if !ok {
			continue
		}
		switch {
		case p.Addr().BitLen() != key.most:
			d.errorf(n, "%s must be an %s prefix, %v is %s", key.name, familyOf(key.into.Addr()), p, familyOf(p.Addr()))
		case p.Bits() < key.least:
			d.errorf(n, "%s must have a length from %d to %d, not %v", key.name, key.least, key.most, p)
		default:
			if problem := hostProblem(p.Addr()); problem != "" {
				d.errorf(n, "%s %v cannot be a source: %s", key.name, p, problem)
				continue
			}
			*key.into = p
		}
	}
}

// needInterfaces reports nodes that have services and no interface that their
// traffic could come in by.
func (d *decoder) needInterfaces(doc *document, nodes []nodeDef) {
	var without []nodeDef
	for _, n := range nodes {
		if n.Interfaces == nil {
			without = append(without, n)
		}
	}
	if len(nodes) > 0 && len(without) < len(nodes) {
		for _, n := range without {
			d.errorf(n.nameAt, "node %q has no interfaces: its services need \"interfaces\" here or in datapath", n.Name)
		}
		return
	}
	at := doc.keys["datapath"]
	if at == nil {
		at = doc.keys["services"]
	}
	d.errorf(at, "missing \"interfaces\" in datapath: services need to know where their traffic comes in, such as datapath: {interfaces: [eth0]}")
}

// portRange decodes "FIRST-LAST".
func (d *decoder) portRange(n *node, what string) (lb.PortRange, bool) {
	s, ok := d.text(n, what)
	if !ok {
		return lb.PortRange{}, false
	}
	first, last, two := strings.Cut(strings.ReplaceAll(s, " ", ""), "-")
	if !two || !isPort(first) || !isPort(last) {
		d.errorf(n, "%s must be a range of ports such as 1024-65535, not %q", what, s)
		return lb.PortRange{}, false
	}
	a, _ := strconv.ParseUint(first, 10, 16)
	b, _ := strconv.ParseUint(last, 10, 16)
	if a > b {
		d.errorf(n, "%s %s: the first port is above the last one", what, s)
		return lb.PortRange{}, false
	}
	return lb.PortRange{First: uint16(a), Last: uint16(b)}, true
}
