package config

import (
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

var checkSchema = schema{
	what: "a check",
	keys: []string{
		"name", "type", "interval", "timeout", "rise", "fall", "urls", "path", "port", "address", "host", "status", "body", "tls",
		"query", "send", "expect", "command", "user", "process", "pidfile", "recover",
	},
	hints: map[string]string{
		"script": "keepalived's script is \"command\", a list",
		"weight": "it stands where the check is tracked",
		"url":    "write urls: [...]",
	},
}

var recoverSchema = schema{what: "recover", keys: []string{"command", "wait", "attempts"}}

// checkTypes are the types of checks, in the order in which they are named.
var checkTypes = []string{"http", "https", "tcp", "dns", "udp", "exec", "process"}

// keysOfCheck says which keys are for which types of checks alone.
var keysOfCheck = map[lb.CheckType][]string{
	lb.CheckHTTP:    {"urls", "path", "port", "host", "status", "body", "tls"},
	lb.CheckHTTPS:   {"urls", "path", "port", "host", "status", "body", "tls"},
	lb.CheckTCP:     {"address", "port"},
	lb.CheckDNS:     {"address", "port", "query"},
	lb.CheckUDP:     {"address", "port", "send", "expect"},
	lb.CheckExec:    {"command", "user"},
	lb.CheckProcess: {"process", "pidfile"},
}

// Bounds of a recovery.
const (
	defaultRecoverWait = 3 * time.Second
	maxRecoverWait     = time.Hour
	maxAttempts        = 100
)

// local is where a check looks that names a port alone.
var local = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// checks decodes the section. A check whose name cannot be read is left out.
func (d *decoder) checks(items []*node) []lb.Check {
	var all []lb.Check
	names := map[string]*node{}
	for _, item := range items {
		f, ok := d.fields(item, &checkSchema)
		if !ok {
			d.incomplete = true
			continue
		}
		c := d.check(f)
		n := f.need("name")
		if n == nil {
			d.incomplete = true
			continue
		}
		name, ok := d.name(n, "check name")
		if !ok {
			d.incomplete = true
			continue
		}
		if first, dup := names[name]; dup {
			d.duplicate(n, item, first, "check")
			continue
		}
		names[name] = n
		c.Name = name
		if c.Type == lb.CheckProcess && c.Process == "" && c.PIDFile == "" {
			c.Process = name
		}
		all = append(all, c)
	}
	return all
}

func (d *decoder) check(f fields) lb.Check {
	var p lb.Probe
	p.Interval, p.Rise, p.Fall = time.Second, 2, 3
	var c lb.Check
	if n := f.need("type"); n != nil {
		if t, ok := d.oneOf(n, "type", checkTypes, nil); ok {
			c.Type = lb.CheckType(t)
		}
	}
	d.timing(f, &p)
	if f.own["timeout"] == nil {
		p.Timeout = p.Interval // a check is no one's traffic that waits
	}
	if n := f.own["rise"]; n != nil {
		p.Rise, _ = d.integer(n, "rise", 1, 255)
	}
	if n := f.own["fall"]; n != nil {
		p.Fall, _ = d.integer(n, "fall", 1, 255)
	}
	web := d.webSettings(f)
	c.Interval, c.Timeout, c.Rise, c.Fall = p.Interval, p.Timeout, p.Rise, p.Fall
	d.strangers(f, "checks", string(c.Type), checkTypes, func(t string) []string { return keysOfCheck[lb.CheckType(t)] })
	switch c.Type {
	case lb.CheckHTTP, lb.CheckHTTPS:
		c.Status, c.Body, c.TLS = web.status, web.body, d.tlsSettings(f.own["tls"])
		d.checkURLs(f, &c, web)
	case lb.CheckTCP:
		d.checkAddress(f, &c, 0)
	case lb.CheckUDP:
		d.checkAddress(f, &c, 0)
		c.Send, c.Expect = d.datagrams(f)
	case lb.CheckDNS:
		d.checkAddress(f, &c, portDNS)
		if n := f.need("query"); n != nil {
			c.Query, _ = d.query(n)
		}
	case lb.CheckExec:
		if n := f.need("command"); n != nil {
			c.Command = d.argv(n, "command")
		}
		c.User = d.user(f)
	case lb.CheckProcess:
		if n := f.own["process"]; n != nil {
			c.Process, _ = d.text(n, "process")
		}
		if n := f.own["pidfile"]; n != nil {
			c.PIDFile = d.absolute(n, "pidfile")
		}
	}
	if n := f.own["recover"]; n != nil {
		c.Recover = d.recovery(n)
	}
	return c
}

// checkURLs decodes what an HTTP check asks for: urls, or a path on this node.
func (d *decoder) checkURLs(f fields, c *lb.Check, web webProbe) {
	urls, path := f.own["urls"], f.own["path"]
	tls := c.Type == lb.CheckHTTPS
	switch {
	case urls == nil && path == nil:
		d.errorf(f.n, "missing key \"urls\": a check of type %s needs it, or \"path\" for one of this node", c.Type)
		return
	case urls != nil && (path != nil || f.own["port"] != nil):
		at := f.keys["path"]
		if at == nil {
			at = f.keys["port"]
		}
		d.errorf(at, "%s goes with no urls, which say it themselves", at.text)
		return
	case path != nil:
		u := lb.URL{TLS: tls, Address: netip.AddrPortFrom(local, defaultPort(tls)), Path: web.path, Host: local.String()}
		if n := f.own["port"]; n != nil {
			if i, ok := d.integer(n, "port", 1, 65535); ok {
				u.Address = netip.AddrPortFrom(local, uint16(i))
				u.Host = u.Address.String()
			}
		}
		c.URLs = []lb.URL{u}
	default:
		items, ok := d.list(urls, "urls")
		if ok && len(items) == 0 {
			d.errorf(urls, "urls is empty: name at least one")
		}
		for _, item := range items {
			if u, ok := d.url(item, tls); ok {
				c.URLs = append(c.URLs, u)
			}
		}
	}
	if web.host != "" {
		for i := range c.URLs {
			c.URLs[i].Host = web.host
		}
	}
	if at := f.keys["tls"]; at != nil && len(c.URLs) > 0 && !slices.ContainsFunc(c.URLs, func(u lb.URL) bool { return u.TLS }) {
		d.errorf(at, "tls is for https, and this check asks for nothing of that")
	}
}

func defaultPort(tls bool) uint16 {
	if tls {
		return 443
	}
	return 80
}

// url decodes what a check asks for, only with TLS if that is demanded. Its host is an
// address: a check that asks a name server first would fail with that.
func (d *decoder) url(n *node, demandTLS bool) (u lb.URL, ok bool) {
	s, ok := d.text(n, "url")
	if !ok {
		return u, false
	}
	parsed, err := url.Parse(s)
	switch {
	case err != nil || parsed.Host == "" || parsed.Opaque != "":
		d.errorf(n, "url must be like http://127.0.0.1:8080/path, not %q", s)
		return u, false
	case parsed.Scheme != "http" && parsed.Scheme != "https":
		d.errorf(n, "url must start with http:// or https://, not %q", parsed.Scheme+"://")
		return u, false
	case demandTLS && parsed.Scheme == "http":
		d.errorf(n, "url must start with https://, as the type of the check is https (type http takes both)")
		return u, false
	case parsed.User != nil || parsed.Fragment != "":
		d.errorf(n, "url must have no user and no fragment")
		return u, false
	}
	u.TLS = parsed.Scheme == "https"
	host, port := parsed.Hostname(), parsed.Port()
	if port == "" {
		port = strconv.Itoa(int(defaultPort(u.TLS)))
	}
	if !isPort(port) {
		d.errorf(n, "url %q: the port must be a number from 1 to 65535", s)
		return u, false
	}
	if host == "localhost" {
		host = local.String()
	}
	address, err := netip.ParseAddr(host)
	if err != nil {
		d.errorf(n, "url: %s must be an address or localhost (write host: %s beside urls for the Host header)", host, host)
		return u, false
	}
	number, _ := strconv.ParseUint(port, 10, 16) // isPort has seen it
	u.Address, u.Host, u.Path = netip.AddrPortFrom(address, uint16(number)), parsed.Host, parsed.RequestURI()
	return u, true
}

// portDNS is where name servers are.
const portDNS = 53

// checkAddress decodes what a check connects or sends to. A default of 0 is none.
func (d *decoder) checkAddress(f fields, c *lb.Check, defaultPort uint16) {
	address, port := f.own["address"], f.own["port"]
	switch {
	case address != nil && port != nil:
		d.errorf(f.keys["port"], "address and port are both set: write the port with the address, or leave the address out for this node")
	case address != nil:
		ap, ok := d.endpoint(address, "address", parseOwnAddr)
		switch {
		case ok && ap.Port() == 0 && defaultPort != 0:
			ap = netip.AddrPortFrom(ap.Addr(), defaultPort)
		case ok && ap.Port() == 0:
			d.errorf(address, "address %v has no port: write %q (with the port that is meant)", ap.Addr(), netip.AddrPortFrom(ap.Addr(), 80))
		}
		c.Address = ap
	case port != nil:
		if i, ok := d.integer(port, "port", 1, 65535); ok {
			c.Address = netip.AddrPortFrom(local, uint16(i))
		}
	case defaultPort != 0:
		c.Address = netip.AddrPortFrom(local, defaultPort)
	default:
		d.errorf(f.n, "missing key \"port\": a check of type %s needs it, or \"address\" for one of another host", c.Type)
	}
}

func (d *decoder) recovery(n *node) *lb.Recover {
	f, ok := d.fields(n, &recoverSchema)
	if !ok {
		return nil
	}
	r := &lb.Recover{Wait: defaultRecoverWait, Attempts: 1}
	if c := f.need("command"); c != nil {
		r.Command = d.argv(c, "command")
	}
	if w := f.own["wait"]; w != nil {
		r.Wait, _ = d.duration(w, "wait", 0, maxRecoverWait)
	}
	if a := f.own["attempts"]; a != nil {
		r.Attempts, _ = d.integer(a, "attempts", 1, maxAttempts)
	}
	return r
}

// argv decodes a program and its arguments. There is no shell, and no current
// folder.
func (d *decoder) argv(n *node, what string) []string {
	items, ok := d.list(n, what)
	if !ok {
		return nil
	}
	if len(items) == 0 {
		d.errorf(n, "%s is empty: name a program", what)
		return nil
	}
	var all []string
	for i, item := range items {
		s, ok := d.text(item, what)
		switch {
		case !ok:
			continue
		case i == 0 && strings.Contains(s, "/") && s[0] != '/':
			d.errorf(item, "%s: %q must be an absolute path, or a name to look for in PATH", what, s)
		case len(items) == 1 && strings.Contains(s, " "):
			d.errorf(item, "%s: there is no program %q: each argument is an item of its own, and there is no shell", what, s)
		}
		all = append(all, s)
	}
	return all
}

func (d *decoder) absolute(n *node, what string) string {
	path, ok := d.text(n, what)
	if ok && path[0] != '/' {
		d.errorf(n, "%s must be an absolute path, not %q", what, path)
	}
	return path
}
