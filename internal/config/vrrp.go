package config

import (
	"bytes"
	"net/netip"
	"path/filepath"
	"strings"
	"time"
)

// An instanceDef is a VRRP instance with the places that later checks point at.
type instanceDef struct {
	Instance
	vridAt    *node
	addresses []*node // parallel to Addresses
	peers     []*node // parallel to Peers; the key unicast for each of the roster's
	tracked   []*node // parallel to Track
	routesAt  []*node // parallel to Routes
	rulesAt   []*node // parallel to Rules

	virtualAt              *node // the key of VirtualMAC
	acceptAt               *node // that of Accept
	priorityAt, syncWaitAt *node // nil: not set here

	heartbeatAt    *node   // nil: there is none
	heartbeatPeers []*node // parallel to Heartbeat.Peers; the key heartbeat for each of the roster's
}

var instanceSchema = schema{
	what: "a VRRP instance",
	keys: []string{
		"name", "interface", "virtual_router_id", "priority", "version", "advertisement_interval",
		"authentication", "preempt", "preempt_delay", "sync_wait", "start_timeout", "addresses",
		"unicast", "unicast_peers", "track", "group", "notify", "routes", "rules", "heartbeat",
		"virtual_mac", "accept", "checksum",
	},
	hints: map[string]string{
		"advert_int":        "keepalived's advert_int is \"advertisement_interval\"",
		"virtual_ipaddress": "keepalived's virtual_ipaddress is \"addresses\"",
		"vips":              "did you mean \"addresses\"?",
		"vrid":              "did you mean \"virtual_router_id\"?",
		"auth_pass":         "write authentication: {type: pass, password: \"...\"}",
		"password":          "write authentication: {type: pass, password: \"...\"}",
		"nopreempt":         "write preempt: false",
		"state":             "the priority decides, every node starts as Backup",
		"track_script":      "write track: [{check: NAME, weight: -2}]",
		"track_interface":   "write track: [{interface: NAME}]",
		"notify_master":     "write notify: {active: [PROGRAM, ARGUMENT]}",
		"unicast_peer":      "keepalived's unicast_peer is \"unicast_peers\"",
		"unicast_src_ip":    "the node's address in nodes is its source",
		"vrrp_version":      "did you mean \"version\"?",
		"virtual_routes":    "keepalived's virtual_routes is \"routes\"",
		"virtual_rules":     "keepalived's virtual_rules is \"rules\"",
		"no_accept":         "write accept: false",
		"use_vmac":          "write virtual_mac: true",
		"vrrp_sync_group":   "write group: NAME in each of its instances",
	},
}

var authenticationSchema = schema{
	what: "authentication",
	keys: []string{"type", "password", "password_file"},
	hints: map[string]string{
		"auth_type": "keepalived's auth_type is \"type\"",
		"auth_pass": "keepalived's auth_pass is \"password\"",
	},
}

// Limits of the protocol: RFC 3768, 5.3.7 and 5.3.10, for version 2 (whole
// seconds in 8 bits; 8 bytes of password); RFC 9568, 5.2.7, for version 3
// (centiseconds in 12 bits); both count addresses in 8 bits.
const (
	minIntervalV2 = time.Second
	maxIntervalV2 = 255 * time.Second
	minIntervalV3 = 10 * time.Millisecond
	maxIntervalV3 = 4095 * 10 * time.Millisecond
	maxPassword   = 8
	maxAddresses  = 255
	maxDelay      = 24 * time.Hour
)

// instances decodes the section.
func (d *decoder) instances(items []*node, files fileSystem, roster []nodeDef, s self) []*instanceDef {
	var all []*instanceDef
	names := map[string]*node{}
	for _, item := range items {
		f, ok := d.fields(item, &instanceSchema)
		if !ok {
			continue
		}
		i := d.instance(f, files, roster, s)
		if n := f.need("name"); n != nil {
			if name, ok := d.name(n, "instance name"); ok {
				if first, dup := names[name]; dup {
					d.duplicate(n, item, first, "VRRP instance")
				} else {
					names[name] = n
				}
				i.Name = name
			}
		}
		all = append(all, i)
	}
	return all
}

func (d *decoder) instance(f fields, files fileSystem, roster []nodeDef, s self) *instanceDef {
	i := &instanceDef{Instance: Instance{
		Priority: uint8(s.priority), Version: 3, Interval: time.Second,
		Preempt: true, StartTimeout: 10 * time.Second, Accept: true, Checksum: checksumAuto,
	}}
	if n := f.need("interface"); n != nil {
		i.Interface, _ = d.interfaceName(n, "interface")
	}
	if n := f.need("virtual_router_id"); n != nil {
		if id, ok := d.integer(n, "virtual_router_id", 1, 255); ok {
			i.VRID, i.vridAt = uint8(id), n
		}
	}
	if n := f.own["priority"]; n != nil {
		i.priorityAt = n
		if p, ok := d.integer(n, "priority", 1, 255); ok {
			i.Priority = uint8(p)
		}
	}
	if n := f.own["version"]; n != nil {
		i.Version = 0 // not known: nothing that depends on it is checked
		if v, ok := d.integer(n, "version", 2, 3); ok {
			i.Version = uint8(v)
		}
	}
	if n := f.own["advertisement_interval"]; n != nil {
		d.advertisementInterval(n, i)
	}
	if n := f.own["authentication"]; n != nil {
		d.authentication(n, f, files, i)
	}
	if n := f.own["preempt"]; n != nil {
		if on, ok := d.boolean(n, "preempt"); ok {
			i.Preempt = on
		}
	}
	if n := f.own["preempt_delay"]; n != nil {
		i.PreemptDelay, _ = d.duration(n, "preempt_delay", 0, maxDelay)
	}
	if n := f.own["sync_wait"]; n != nil {
		i.SyncWait, _ = d.duration(n, "sync_wait", 0, maxDelay)
		i.syncWaitAt = n
	}
	if n := f.own["start_timeout"]; n != nil {
		i.StartTimeout, _ = d.duration(n, "start_timeout", 0, maxDelay)
	}
	if n := f.need("addresses"); n != nil {
		d.instanceAddresses(n, i)
	}
	if n := f.own["checksum"]; n != nil {
		d.checksum(n, i)
	}
	d.unicast(f, i, roster, s)
	if n := f.own["heartbeat"]; n != nil {
		d.heartbeat(n, i, roster, s)
	}
	if n := f.own["virtual_mac"]; n != nil {
		d.virtualMAC(n, i)
	}
	if n := f.own["accept"]; n != nil {
		d.accept(n, i)
	}
	d.routes(f, i)
	if n := f.own["track"]; n != nil {
		d.track(n, i)
	}
	if n := f.own["group"]; n != nil {
		i.Group, _ = d.name(n, "group")
	}
	if n := f.own["notify"]; n != nil {
		i.Notify = d.notify(n)
	}
	return i
}

func (d *decoder) advertisementInterval(n *node, i *instanceDef) {
	const what = "advertisement_interval"
	switch i.Version {
	case 2:
		v, ok := d.duration(n, what, minIntervalV2, maxIntervalV2)
		if ok && v%time.Second != 0 {
			d.errorf(n, "%s must be whole seconds in version 2, not %s", what, n.text)
			return
		}
		i.Interval = v
	case 3:
		v, ok := d.duration(n, what, minIntervalV3, maxIntervalV3)
		if ok && v%minIntervalV3 != 0 {
			d.errorf(n, "%s must be a multiple of 10ms in version 3, not %s", what, n.text)
			return
		}
		i.Interval = v
	default:
		d.duration(n, what, minIntervalV3, maxIntervalV2)
	}
}

func (d *decoder) authentication(n *node, f fields, files fileSystem, i *instanceDef) {
	switch {
	case i.Version == 3 && f.own["version"] == nil:
		d.errorf(f.keys["authentication"], "authentication needs version: 2 (version 3, the default, has none)")
	case i.Version == 3:
		d.errorf(f.keys["authentication"], "version 3 has no authentication (RFC 9568): remove it, or use version: 2")
	}
	af, ok := d.fields(n, &authenticationSchema)
	if !ok {
		return
	}
	if t := af.need("type"); t != nil {
		d.oneOf(t, "type", []string{"pass"}, nil)
	}
	inline, file := af.own["password"], af.own["password_file"]
	switch {
	case inline != nil && file != nil:
		d.errorf(af.keys["password_file"], "password and password_file are both set: take one of them")
	case inline != nil:
		if s, ok := d.text(inline, "password"); ok {
			d.password(inline, i, s)
		}
	case file != nil:
		d.passwordFile(file, files, i)
	default:
		d.errorf(n, "missing key \"password\": authentication needs it, or \"password_file\"")
	}
}

func (d *decoder) password(n *node, i *instanceDef, s string) {
	if len(s) > maxPassword {
		d.errorf(n, "password has %d bytes: VRRP carries %d (other implementations cut the rest off)", len(s), maxPassword)
		return
	}
	i.Password = s
}

// passwordFile reads a password. The name is relative to the folder of the file
// that names it; a line break at the end is not part of the password.
func (d *decoder) passwordFile(n *node, files fileSystem, i *instanceDef) {
	path, ok := d.text(n, "password_file")
	if !ok {
		return
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(filepath.Dir(n.src.name), path)
	}
	content, err := files.ReadFile(path)
	if err != nil {
		d.errorf(n, "password_file: cannot read %s: %s", path, reason(err))
		d.errs[len(d.errs)-1].cause = err
		return
	}
	s := strings.TrimSuffix(strings.TrimSuffix(string(content), "\n"), "\r")
	switch {
	case s == "":
		d.errorf(n, "password_file: %s is empty", path)
	case bytes.ContainsAny([]byte(s), "\x00\r\n"):
		d.errorf(n, "password_file: %s must hold one line of text", path)
	default:
		d.password(n, i, s)
	}
}

func (d *decoder) instanceAddresses(n *node, i *instanceDef) {
	items, ok := d.list(n, "addresses")
	if !ok {
		return
	}
	switch {
	case len(items) == 0:
		d.errorf(n, "addresses is empty: an instance needs one at least")
		return
	case len(items) > maxAddresses:
		d.errorf(n, "%d addresses are more than the %d that an advertisement can carry", len(items), maxAddresses)
		return
	}
	for _, item := range items {
		if p, ok := d.prefix(item, "address"); ok && d.fitsInstance(item, p.Addr(), i) {
			i.Addresses = append(i.Addresses, p)
			i.addresses = append(i.addresses, item)
		}
	}
	if len(i.Addresses) > 0 && i.Addresses[0].Addr().Is6() && i.Version == 2 {
		d.errorf(i.addresses[0], "VIP %v: version 2 has IPv4 only (RFC 3768): use version: 3", i.Addresses[0].Addr())
	}
}

// fitsInstance tells whether an advertisement can carry the address behind those
// that the instance has already (RFC 9568, 5.2.9).
func (d *decoder) fitsInstance(at *node, a netip.Addr, i *instanceDef) bool {
	if len(i.Addresses) == 0 {
		return true
	}
	first := i.Addresses[0].Addr()
	switch {
	case first.Is4() != a.Is4():
		d.errorf(at, "VIP %v is %s and %v is %s: an instance has one family, make two instances", a, familyOf(a), first, familyOf(first))
		return false
	case a.Is6() && a.IsLinkLocalUnicast():
		d.errorf(at, "VIP %v is link-local: it must be the first address, and the only link-local one (RFC 9568)", a)
		return false
	}
	return true
}
