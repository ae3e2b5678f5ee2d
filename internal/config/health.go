package config

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

var healthSchema = schema{
	what: "health",
	keys: []string{"type", "interval", "timeout", "rise", "fall", "port", "path", "urls", "host", "status", "body", "tls", "query", "send", "expect", "command", "user", "via", "check"},
	hints: map[string]string{
		"misc_path":       "keepalived's misc_path is \"command\", a list, of type exec",
		"delay_loop":      "keepalived's delay_loop is \"interval\"",
		"connect_port":    "keepalived's connect_port is \"port\"",
		"connect_timeout": "keepalived's connect_timeout is \"timeout\"",
		"retry":           "the number of failures is \"fall\"",
		"url":             "the path of the probe is \"path\", several are \"urls\"",
	},
}

// probeTypes are the types of probes, in the order in which they are named.
var probeTypes = []string{"tcp", "http", "https", "dns", "udp", "exec"}

// keysOfProbe says which keys are for some types of probes alone.
var keysOfProbe = map[lb.ProbeType][]string{
	lb.ProbeHTTP:  {"path", "urls", "host", "status", "body"},
	lb.ProbeHTTPS: {"path", "urls", "host", "status", "body", "tls"},
	lb.ProbeDNS:   {"query"},
	lb.ProbeUDP:   {"send", "expect"},
	lb.ProbeExec:  {"command", "user"},
}

// Bounds of a probe.
const (
	minProbeInterval = 10 * time.Millisecond
	maxProbeInterval = 24 * time.Hour
	minProbeTimeout  = time.Millisecond
)

// health decodes a probe. n is nil where the pool has none of its own: then
// the defaults are its probe if they name a type, and without it the pool is
// not probed.
func (d *decoder) health(n *node, def map[string]*node) *lb.Probe {
	if n == nil {
		if def["type"] == nil {
			return nil
		}
		return d.probeSettings(fields{d: d, what: "health", own: def})
	}
	f, ok := d.fields(n, &healthSchema)
	if !ok {
		return nil
	}
	if f.own["check"] != nil {
		return d.healthByCheck(f)
	}
	f.defaults = def
	f.need("type")
	p := d.probeSettings(f)
	d.strangers(f, "probes", string(p.Type), probeTypes, func(t string) []string { return keysOfProbe[lb.ProbeType(t)] })
	return p
}

// healthByCheck decodes a health that is the verdict on a check.
func (d *decoder) healthByCheck(f fields) *lb.Probe {
	for _, e := range f.n.entries {
		if e.key.text != "check" && f.own[e.key.text] != nil {
			d.errorf(e.key, "%s goes with no check, which says it itself", e.key.text)
		}
	}
	n := f.own["check"]
	name, ok := d.text(n, "check")
	if ok {
		d.healthChecks = append(d.healthChecks, n)
	}
	return &lb.Probe{Type: lb.ProbeCheck, Check: name}
}

// resolveHealth finds checks of health that are not there.
func (d *decoder) resolveHealth(checks []lb.Check) {
	var names []string
	for _, c := range checks {
		names = append(names, c.Name)
	}
	for _, n := range d.healthChecks {
		if slices.Contains(names, n.text) || d.incomplete {
			continue
		}
		hint := ""
		if near := nearest(n.text, names); near != "" {
			hint = fmt.Sprintf("; did you mean %q?", near)
		}
		d.errorf(n, "there is no check %q%s", n.text, hint)
	}
}

// strangers finds keys that the mapping itself sets, and that are for other types of
// what it is: a default may be meant for others.
func (d *decoder) strangers(f fields, what, t string, types []string, keysOf func(string) []string) {
	if t == "" {
		return
	}
	for _, e := range f.n.entries {
		var of []string
		for _, other := range types {
			if slices.Contains(keysOf(other), e.key.text) {
				of = append(of, other)
			}
		}
		if len(of) > 0 && !slices.Contains(of, t) {
			d.errorf(e.key, "%s is for %s of type %s, this one's type is %s", e.key.text, what, alternatives(of), t)
		}
	}
}

// alternatives joins words as in "a, b or c".
func alternatives(words []string) string {
	last := len(words) - 1
	if last == 0 {
		return words[0]
	}
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// probeSettings decodes the keys of a probe, each of which may be missing.
func (d *decoder) probeSettings(f fields) *lb.Probe {
	p := &lb.Probe{Interval: time.Second, Rise: 2, Fall: 3, ViaVIP: true}
	if n := f.get("type"); n != nil {
		if n.kind == scalar && n.text == string(lb.CheckProcess) {
			d.errorf(n, "type: a process runs on this node: make it a check, and write health: {check: NAME}")
		} else if t, ok := d.oneOf(n, "type", probeTypes, nil); ok {
			p.Type = lb.ProbeType(t)
		}
	}
	d.timing(f, p)
	if n := f.get("rise"); n != nil {
		p.Rise, _ = d.integer(n, "rise", 1, 255)
	}
	if n := f.get("fall"); n != nil {
		p.Fall, _ = d.integer(n, "fall", 1, 255)
	}
	if n := f.get("port"); n != nil {
		if i, ok := d.integer(n, "port", 1, 65535); ok {
			p.Port = uint16(i)
		}
	}
	d.via(f, p)
	d.settingsOfType(f, p)
	return p
}

// via decodes whether probes go to the VIP at a server. The way there is for TCP
// alone; a default of vip is meant for probes that can.
func (d *decoder) via(f fields, p *lb.Probe) {
	if n := f.get("via"); n != nil {
		w, ok := d.oneOf(n, "via", []string{"vip", "direct"}, nil)
		p.ViaVIP = !ok || w == "vip"
		if p.ViaVIP && ok && p.Type != "" && !p.Type.OverTCP() && f.own["via"] != nil {
			d.errorf(n, "via: vip is for probes over TCP (tcp, http, https): one of type %s does not go there", p.Type)
		}
	}
	p.ViaVIP = p.ViaVIP && (p.Type == "" || p.Type.OverTCP())
}

// settingsOfType decodes what is for some types of probes alone. In a section of
// defaults without a type it decodes what there is, to find mistakes.
func (d *decoder) settingsOfType(f fields, p *lb.Probe) {
	web, tls := d.webSettings(f), d.tlsSettings(f.get("tls"))
	switch p.Type {
	case lb.ProbeHTTP, lb.ProbeHTTPS:
		p.Status, p.Body = web.status, web.body
		p.Pages = d.pages(f, web, p.Type)
		if p.Type == lb.ProbeHTTPS {
			p.TLS = tls
		}
	case lb.ProbeDNS:
		if n := d.needed(f, "query", p.Type); n != nil {
			p.Query, _ = d.query(n)
		}
	case lb.ProbeUDP:
		p.Send, p.Expect = d.datagrams(f)
	case lb.ProbeExec:
		if n := d.needed(f, "command", p.Type); n != nil {
			p.Command = d.argv(n, "command")
		}
		p.User = d.user(f)
	case "":
		d.pages(f, web, "")
		if n := f.get("query"); n != nil {
			d.query(n)
		}
		d.datagrams(f)
		if n := f.get("command"); n != nil {
			d.argv(n, "command")
		}
		d.user(f)
	}
}

// user decodes who runs a command; "": the daemon's own user.
func (d *decoder) user(f fields) (name string) {
	if n := f.get("user"); n != nil {
		name, _ = d.text(n, "user")
	}
	return name
}

// needed is need for a key without which a probe of the type makes no sense; in a
// section of defaults it may be missing.
func (d *decoder) needed(f fields, key string, t lb.ProbeType) *node {
	n := f.get(key)
	if n == nil && !f.partial {
		at := f.n
		if at == nil { // all of it is a default
			at = f.get("type")
		}
		d.errorf(at, "missing key %q: a probe of type %s needs it", key, t)
	}
	return n
}

// timing decodes interval and timeout. The timeout is half the interval where
// it is not set.
func (d *decoder) timing(f fields, p *lb.Probe) {
	intervalAt, timeoutAt := f.get("interval"), f.get("timeout")
	intervalOK := true
	if intervalAt != nil {
		v, ok := d.duration(intervalAt, "interval", minProbeInterval, maxProbeInterval)
		if ok {
			p.Interval = v
		}
		intervalOK = ok
	}
	p.Timeout = p.Interval / 2
	if timeoutAt == nil {
		return
	}
	v, ok := d.duration(timeoutAt, "timeout", minProbeTimeout, maxProbeInterval)
	if !ok {
		return
	}
	p.Timeout = v
	if f.partial && intervalAt == nil {
		return
	}
	if intervalOK && p.Timeout > p.Interval {
		at := timeoutAt
		if f.own["timeout"] == nil && f.own["interval"] != nil {
			at = intervalAt // the timeout is a default: what is set here does not go with it
		}
		d.errorf(at, "timeout %s is longer than the interval %s", short(p.Timeout), short(p.Interval))
	}
}
