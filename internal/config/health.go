package config

import (
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

var healthSchema = schema{
	what: "health",
	keys: []string{"type", "interval", "timeout", "rise", "fall", "port", "path", "host", "status", "body", "via"},
	later: []string{
		"urls", "tls", "command", "user", "name", "pidfile", "query", "check",
	},
	hints: map[string]string{
		"delay_loop":      "keepalived's delay_loop is \"interval\"",
		"connect_timeout": "keepalived's connect_timeout is \"timeout\"",
		"retry":           "the number of failures is \"fall\"",
		"url":             "the path of the probe is \"path\"",
	},
}

// httpOnly are the keys that mean something to an http probe only.
var httpOnly = []string{"path", "host", "status", "body"}

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
	f.defaults = def
	f.need("type")
	p := d.probeSettings(f)
	if p.Type == lb.ProbeTCP {
		for _, key := range httpOnly { // set here: a default may be meant for other pools
			if at := f.keys[key]; at != nil {
				d.errorf(at, "%s is for probes of type http, this one's type is tcp", key)
			}
		}
	}
	return p
}

// probeSettings decodes the keys of a probe, each of which may be missing.
func (d *decoder) probeSettings(f fields) *lb.Probe {
	p := &lb.Probe{Interval: time.Second, Rise: 2, Fall: 3, ViaVIP: true, Path: "/", Status: []lb.StatusRange{{First: 200, Last: 399}}}
	if n := f.get("type"); n != nil {
		t, ok := d.oneOf(n, "type", []string{"tcp", "http"}, []string{"https", "exec", "process", "dns", "udp"})
		if ok {
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
	if n := f.get("via"); n != nil {
		if w, ok := d.oneOf(n, "via", []string{"vip", "direct"}, nil); ok {
			p.ViaVIP = w == "vip"
		}
	}
	d.httpSettings(f, p)
	if p.Type == lb.ProbeTCP {
		p.Path, p.Host, p.Status, p.Body = "", "", nil, nil
	}
	return p
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

func (d *decoder) httpSettings(f fields, p *lb.Probe) {
	if n := f.get("path"); n != nil {
		s, ok := d.text(n, "path")
		switch {
		case !ok:
		case s[0] != '/':
			d.errorf(n, "path must start with /, not %q", s)
		case strings.Contains(s, " "):
			d.errorf(n, "path must have no space in it (write %%20)")
		default:
			p.Path = s
		}
	}
	if n := f.get("host"); n != nil {
		s, ok := d.text(n, "host")
		switch {
		case !ok:
		case strings.ContainsAny(s, "/ @"):
			d.errorf(n, "host must be a host name with an optional port, not %q", s)
		default:
			p.Host = s
		}
	}
	if n := f.get("status"); n != nil {
		if r, ok := d.statusRanges(n); ok {
			p.Status = r
		}
	}
	if n := f.get("body"); n != nil {
		if s, ok := d.text(n, "body"); ok {
			re, err := regexp.Compile(s)
			if err != nil {
				d.errorf(n, "body is not a regular expression: %s", strings.TrimPrefix(err.Error(), "error parsing regexp: "))
			}
			p.Body = re
		}
	}
}

// statusRanges decodes [200, 300-399], or one such item without a list.
func (d *decoder) statusRanges(n *node) ([]lb.StatusRange, bool) {
	items := []*node{n}
	if n.kind != scalar {
		var ok bool
		if items, ok = d.list(n, "status"); !ok {
			return nil, false
		}
		if len(items) == 0 {
			d.errorf(n, "status is empty: no answer would do")
			return nil, false
		}
	}
	var ranges []lb.StatusRange
	good := true
	for _, item := range items {
		s, ok := d.text(item, "status")
		if !ok {
			good = false
			continue
		}
		first, last, two := strings.Cut(s, "-")
		if !two {
			last = first
		}
		a, errA := strconv.Atoi(first)
		b, errB := strconv.Atoi(last)
		if errA != nil || errB != nil || a < 100 || b > 599 || a > b {
			d.errorf(item, "status must be a code or a range of codes from 100 to 599, such as 200-399, not %q", s)
			good = false
			continue
		}
		ranges = append(ranges, lb.StatusRange{First: a, Last: b})
	}
	return ranges, good
}
