package config

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A Difference is what leads from one configuration to another.
type Difference struct {
	Changes []string // in words, one each
	// Refused is what a daemon that runs cannot change, and what to do instead, in
	// words. It is none of Changes.
	Refused []string
	// Anew are the names of instances that are there before and after, and cannot
	// become what they are to be while they run.
	Anew []string
}

// Compare finds out what differs between two configurations of one node. Neither is
// changed.
func Compare(before, after *Config) Difference {
	d := &Difference{}
	d.refuse(before, after)
	d.interfaces(before.Datapath.Interfaces, after.Datapath.Interfaces)
	d.services(before.Services, after.Services)
	d.checks(before.Checks, after.Checks)
	d.instances(before.VRRP, after.VRRP)
	d.http(before.HTTP, after.HTTP)
	d.dns(before.DNS, after.DNS)
	if a, b := before.Admin.Listen, after.Admin.Listen; a != b {
		d.change("admin.listen: %s -> %s", listenText(a), listenText(b))
	}
	return *d
}

func (d *Difference) change(format string, args ...any) {
	d.Changes = append(d.Changes, fmt.Sprintf(format, args...))
}

// What to do where a daemon that runs cannot change something.
const (
	byRestart = "needs a restart, which loses nothing"
	byMode    = "needs a restart, which takes the program off for a moment: connections may break"
	byDetach  = "the tables keep their size over a restart: it counts after `sluice detach`, which breaks connections"
)

// refuse finds what is set when the data plane is loaded, or the daemon started.
func (d *Difference) refuse(before, after *Config) {
	a, b := before.Datapath, after.Datapath
	for _, v := range []struct {
		what          string
		before, after any
		advice        string
	}{
		{"node", before.Node, after.Node, byRestart},
		{"datapath.mode", a.Mode, b.Mode, byMode},
		{"datapath.max_flows", a.MaxFlows, b.MaxFlows, byDetach},
		{"source ports of nat (datapath.nat.ports, or how many nodes there are)", before.PortShare, after.PortShare, byRestart},
		{"datapath.nat.log", quoteNone(a.NATLog), quoteNone(b.NATLog), byRestart},
		{"datapath.tunnel.source_ipv4", a.TunnelSource4, b.TunnelSource4, byRestart},
		{"datapath.tunnel.source_ipv6", a.TunnelSource6, b.TunnelSource6, byRestart},
		{"datapath.probe_addresses of IPv4", a.ProbeAddresses4, b.ProbeAddresses4, byRestart},
		{"datapath.probe_addresses of IPv6", a.ProbeAddresses6, b.ProbeAddresses6, byRestart},
		{"admin.socket", before.Admin.Socket, after.Admin.Socket, byRestart},
	} {
		if v.before != v.after {
			d.Refused = append(d.Refused, fmt.Sprintf("%s: %v -> %v: %s", v.what, v.before, v.after, v.advice))
		}
	}
	d.refuseOthers(*before, *after, "", "Datapath", "Admin", "File", "Files", "Node", "Nodes", "ShareIndex", "ShareCount", "PortShare", "Services", "Pools", "Checks", "VRRP", "HTTP", "DNS")
	d.refuseOthers(a, b, "datapath.", "Interfaces", "Mode", "MaxFlows", "Ports", "NATLog", "TunnelSource4", "TunnelSource6", "ProbeAddresses4", "ProbeAddresses6")
	d.refuseOthers(before.Admin, after.Admin, "admin.", "Socket", "Listen")
	if !reflect.DeepEqual(heartbeats(before), heartbeats(after)) {
		d.Refused = append(d.Refused, "vrrp.heartbeat, or an instance that has one: "+byRestart)
	}
	if len(before.Sync.Keys) > 0 && !reflect.DeepEqual(addressesOf(before.Nodes), addressesOf(after.Nodes)) {
		d.Refused = append(d.Refused, "nodes that share their state, or their addresses: "+byRestart)
	}
	switch was, is := len(before.Services) > 0, len(after.Services) > 0; {
	case is && !was:
		d.Refused = append(d.Refused, "the first service: "+byRestart)
	case was && !is:
		d.Refused = append(d.Refused, "no service any more: needs a restart, which ends forwarding")
	}
}

// addressesOf are those of nodes, by name.
func addressesOf(nodes []Node) map[string]netip.Addr {
	all := map[string]netip.Addr{}
	for _, n := range nodes {
		all[n.Name] = n.Address
	}
	return all
}

// Carried is what heartbeats carry for an instance.
type carried struct {
	vrid      uint8
	addresses []netip.Prefix
	heartbeat Heartbeat
}

// heartbeats are the instances that have heartbeats.
func heartbeats(c *Config) map[string]carried {
	all := map[string]carried{}
	for _, i := range c.VRRP {
		if i.Heartbeat.Interval > 0 {
			all[i.Name] = carried{i.VRID, i.Addresses, i.Heartbeat}
		}
	}
	return all
}

// refuseOthers refuses a change of all fields that are not known here: better a
// restart than a change that nobody has made.
func (d *Difference) refuseOthers(before, after any, section string, known ...string) {
	x, y := reflect.ValueOf(before), reflect.ValueOf(after)
	for i := range x.NumField() {
		name := x.Type().Field(i).Name
		if !slices.Contains(known, name) && !reflect.DeepEqual(x.Field(i).Interface(), y.Field(i).Interface()) {
			d.Refused = append(d.Refused, fmt.Sprintf("%s%s: %s", section, keyOf(name), byRestart))
		}
	}
}

func quoteNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func listenText(a netip.AddrPort) string {
	if !a.IsValid() {
		return "none"
	}
	return a.String()
}

func (d *Difference) interfaces(before, after []string) {
	for _, name := range after {
		if !slices.Contains(before, name) {
			d.change("interface %s: added", name)
		}
	}
	for _, name := range before {
		if !slices.Contains(after, name) {
			d.change("interface %s: removed", name)
		}
	}
}

// named tells of elements with a name that come and go, and calls both for those
// that stay.
func named[T any](d *Difference, what string, before, after []T, name func(T) string, both func(before, after T)) {
	for _, e := range after {
		i := slices.IndexFunc(before, func(o T) bool { return name(o) == name(e) })
		if i < 0 {
			d.change("%s %s: added", what, name(e))
		} else {
			both(before[i], e)
		}
	}
	for _, e := range before {
		if !slices.ContainsFunc(after, func(o T) bool { return name(o) == name(e) }) {
			d.change("%s %s: removed", what, name(e))
		}
	}
}

func (d *Difference) services(before, after []lb.Service) {
	named(d, "service", before, after, func(s lb.Service) string { return s.Name }, func(a, b lb.Service) {
		parts := poolsThatDiffer(a.Pool, b.Pool)
		kept := a.KeepsPorts != b.KeepsPorts && a.Forward == b.Forward
		a.Pool, b.Pool, a.KeepsPorts, b.KeepsPorts = lb.Pool{}, lb.Pool{}, false, false
		parts = append(parts, fieldsThatDiffer(a, b)...)
		if kept {
			parts = append(parts, "its servers get other ports: its connections break")
		}
		if len(parts) > 0 {
			d.change("service %s: %s", b.Name, strings.Join(parts, ", "))
		}
	})
}

// poolsThatDiffer says what differs between two pools.
func poolsThatDiffer(before, after lb.Pool) []string {
	parts := servers(before.Servers, after.Servers)
	if before.Name != after.Name {
		parts = append(parts, "pool")
	}
	if !reflect.DeepEqual(before.Probe, after.Probe) {
		parts = append(parts, "health")
	}
	return parts
}

// servers says what differs between the servers of two pools.
func servers(before, after []lb.Server) (parts []string) {
	at := func(s lb.Server) string {
		if s.Port == 0 {
			return s.Address.String()
		}
		return netip.AddrPortFrom(s.Address, s.Port).String()
	}
	find := func(all []lb.Server, s lb.Server) int {
		return slices.IndexFunc(all, func(o lb.Server) bool { return at(o) == at(s) })
	}
	for _, b := range after {
		i := find(before, b)
		if i < 0 {
			parts = append(parts, fmt.Sprintf("%s added", at(b)))
			continue
		}
		if a := before[i]; a.Weight != b.Weight {
			parts = append(parts, fmt.Sprintf("%s weight %d -> %d", at(b), a.Weight, b.Weight))
		}
		if before[i].Backup != b.Backup {
			parts = append(parts, fmt.Sprintf("%s backup %v -> %v", at(b), before[i].Backup, b.Backup))
		}
	}
	for _, a := range before {
		if find(after, a) < 0 {
			parts = append(parts, fmt.Sprintf("%s removed", at(a)))
		}
	}
	return parts
}

func (d *Difference) checks(before, after []lb.Check) {
	named(d, "check", before, after, func(c lb.Check) string { return c.Name }, func(a, b lb.Check) {
		if parts := fieldsThatDiffer(a, b); len(parts) > 0 {
			d.change("check %s: %s", b.Name, strings.Join(parts, ", "))
		}
	})
}

func (d *Difference) instances(before, after []Instance) {
	groups := groupsThatDiffer(before, after)
	named(d, "vrrp", before, after, func(i Instance) string { return i.Name }, func(a, b Instance) {
		parts := fieldsThatDiffer(a, b)
		switch {
		case groups[a.Group] || groups[b.Group]:
			parts = append(parts, "its group")
			d.Anew = append(d.Anew, b.Name)
			d.change("vrrp %s: %s: begins anew, its VIPs stay or are handed over", b.Name, strings.Join(parts, ", "))
		case len(parts) == 0:
		case reflect.DeepEqual(a.still(b), a):
			d.change("vrrp %s: %s", b.Name, strings.Join(parts, ", "))
		default:
			d.Anew = append(d.Anew, b.Name)
			d.change("vrrp %s: %s: begins anew, its VIPs stay or are handed over", b.Name, strings.Join(parts, ", "))
		}
	})
}

// groupsThatDiffer are the groups with an instance that comes, goes or begins anew.
// Instances are given their group when they are made, so all of them begin anew.
func groupsThatDiffer(before, after []Instance) map[string]bool {
	groups := map[string]bool{}
	find := func(all []Instance, name string) (Instance, bool) {
		i := slices.IndexFunc(all, func(i Instance) bool { return i.Name == name })
		if i < 0 {
			return Instance{}, false
		}
		return all[i], true
	}
	for _, pair := range [][2][]Instance{{before, after}, {after, before}} {
		for _, i := range pair[0] {
			if other, ok := find(pair[1], i.Name); !ok || !reflect.DeepEqual(i.still(other), i) {
				groups[i.Group] = true
			}
		}
	}
	delete(groups, "")
	return groups
}

// owner is the priority of who has the VIPs as its own addresses.
const owner = 255

// still returns b with what an instance can change while it runs as it is in i.
func (i Instance) still(b Instance) Instance {
	b.Track, b.Notify, b.StartTimeout = i.Track, i.Notify, i.StartTimeout
	if i.Priority != owner && b.Priority != owner {
		b.Priority = i.Priority
	}
	return b
}

// fieldsThatDiffer names the fields in which two structs differ, as keys are
// written.
func fieldsThatDiffer(a, b any) (names []string) {
	x, y := reflect.ValueOf(a), reflect.ValueOf(b)
	for i := range x.NumField() {
		if !reflect.DeepEqual(x.Field(i).Interface(), y.Field(i).Interface()) {
			names = append(names, keyOf(x.Type().Field(i).Name))
		}
	}
	return names
}

// keyOf writes TrackWindow as track_window, VirtualMAC as virtual_mac, URLs as urls
// and PIDFile as pidfile.
func keyOf(field string) string {
	var b strings.Builder
	lower := false
	for _, r := range field {
		if r >= 'A' && r <= 'Z' {
			if lower {
				b.WriteByte('_')
			}
			b.WriteRune(r - 'A' + 'a')
			lower = false
			continue
		}
		b.WriteRune(r)
		lower = true
	}
	return b.String()
}
