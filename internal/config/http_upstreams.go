package config

import (
	"crypto/x509"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/sluice-lb/sluice/internal/lb"
)

var upstreamSchema = schema{
	what: "an upstream",
	keys: []string{
		"name", "pool", "servers", "health", "port", "policy", "key", "sticky", "host", "tls", "http2", "proxy_protocol", "keepalive",
		"connect_timeout", "send_timeout", "read_timeout", "next_upstream", "next_upstream_tries", "max_fails", "fail_timeout", "max_conns",
		"slow_start",
	},
	hints: map[string]string{
		"server":                "servers are listed under \"servers\", or in a pool",
		"backends":              "in an upstream they are called \"servers\"",
		"ip_hash":               "write policy: ip_hash",
		"least_conn":            "write policy: least_conn",
		"hash":                  "write policy: hash, and key",
		"random":                "write policy: random_two",
		"proxy_connect_timeout": "it is called \"connect_timeout\" here",
		"proxy_read_timeout":    "it is called \"read_timeout\" here",
		"proxy_send_timeout":    "it is called \"send_timeout\" here",
		"proxy_next_upstream":   "it is called \"next_upstream\" here",
	},
}

var upstreamTLSSchema = schema{
	what: "tls of an upstream",
	keys: []string{"ca", "server_name", "verify"},
	hints: map[string]string{
		"certificate": "certificates of clients are not supported",
	},
}

// What an upstream does where the configuration does not say.
const (
	defaultKeepalive      = 64
	defaultConnectTimeout = 5 * time.Second
	defaultUpstreamWait   = 60 * time.Second
	defaultFailTimeout    = 10 * time.Second
)

// upstreams decodes the list into h and byName. False: some of it cannot be read.
func (d *decoder) upstreams(n *node, h *httpDef, files fileSystem, pools []*poolDef, def defaults, byName map[string]*lb.Upstream) (whole bool) {
	items, ok := d.mappings(n, "upstreams")
	if !ok {
		return false
	}
	byPool := map[string]*poolDef{}
	for _, p := range pools {
		byPool[p.Name] = p
	}
	whole = true
	names := map[string]*node{}
	for _, item := range items {
		f, ok := d.fields(item, &upstreamSchema)
		if !ok {
			whole = false
			continue
		}
		u := d.upstream(f, files, byPool, def)
		n := f.need("name")
		if n == nil {
			whole = false
			continue
		}
		name, ok := d.name(n, "upstream name")
		if !ok {
			whole = false
			continue
		}
		if first, dup := names[name]; dup {
			d.duplicate(n, item, first, "upstream")
			continue
		}
		names[name] = n
		u.Name = name
		byName[name] = u
		h.Upstreams = append(h.Upstreams, *u)
	}
	return whole
}

func (d *decoder) upstream(f fields, files fileSystem, pools map[string]*poolDef, def defaults) *lb.Upstream {
	u := &lb.Upstream{
		Policy: lb.RoundRobin, Host: lb.HostClient, Keepalive: defaultKeepalive, ConnectTimeout: defaultConnectTimeout,
		SendTimeout: defaultUpstreamWait, ReadTimeout: defaultUpstreamWait, MaxFails: 1, FailTimeout: defaultFailTimeout,
		Next: lb.NextUpstream{Error: true, Timeout: true}, Port: 80,
	}
	d.upstreamPolicy(f, u)
	if n := f.own["sticky"]; n != nil {
		u.Sticky = d.sticky(n, files)
	}
	if n := f.own["host"]; n != nil {
		s, ok := d.text(n, "host")
		switch {
		case ok && strings.Contains(s, "$"):
			d.errorf(n, "host has no variables: write client for what the client has asked for, which is nginx's $host, not %q", s)
		case ok && strings.ContainsFunc(s, func(r rune) bool { return r > unicode.MaxASCII }):
			d.errorf(n, "host must be in ASCII, as it is sent (xn--...), not %q", s)
		case ok && !isAuthority(s):
			d.errorf(n, "host must be client, upstream or a host name with an optional port, not %q", s)
		case ok:
			u.Host = s
		}
	}
	if n := f.own["tls"]; n != nil {
		u.TLS, u.Port = d.upstreamTLS(n, files), 443
	}
	if n := f.own["port"]; n != nil {
		if i, ok := d.integer(n, "port", 1, 65535); ok {
			u.Port = uint16(i)
		}
	}
	if n := f.own["http2"]; n != nil {
		u.HTTP2, _ = d.boolean(n, "http2")
	}
	for _, each := range []struct {
		key    string
		into   *int
		lo, hi int
	}{
		{"proxy_protocol", &u.ProxyProtocol, 1, 2}, {"keepalive", &u.Keepalive, 0, 65535}, {"max_fails", &u.MaxFails, 0, 65535},
		{"max_conns", &u.MaxConns, 0, 1 << 20}, {"next_upstream_tries", &u.Next.Tries, 0, 65535},
	} {
		if n := f.own[each.key]; n != nil {
			if i, ok := d.integer(n, each.key, each.lo, each.hi); ok {
				*each.into = i
			}
		}
	}
	for _, each := range []struct {
		key  string
		into *time.Duration
	}{
		{"connect_timeout", &u.ConnectTimeout}, {"send_timeout", &u.SendTimeout}, {"read_timeout", &u.ReadTimeout}, {"fail_timeout", &u.FailTimeout},
	} {
		if n := f.own[each.key]; n != nil {
			if v, ok := d.duration(n, each.key, 10*time.Millisecond, maxHTTPTimeout); ok {
				*each.into = v
			}
		}
	}
	if n := f.own["slow_start"]; n != nil {
		u.SlowStart, _ = d.duration(n, "slow_start", 0, maxSlowStart)
	}
	if n := f.own["next_upstream"]; n != nil {
		tries := u.Next.Tries
		u.Next = d.nextUpstream(n)
		u.Next.Tries = tries
	}
	if u.HTTP2 && u.ProxyProtocol != 0 {
		d.errorf(f.keys["http2"], "http2 shares a connection between clients, and proxy_protocol tells of one: leave one of them out")
	}
	d.upstreamServers(f, u, pools, def)
	return u
}

// isAuthority tells whether s is the name or the address of a host, with a port or without.
func isAuthority(s string) bool {
	host := s
	if h, port, err := net.SplitHostPort(s); err == nil {
		if host = h; !isPort(port) {
			return false
		}
		if strings.Contains(h, ":") {
			host = "[" + h + "]"
		}
	}
	_, literal := lb.HostLiteral(host)
	return literal || hostPattern.MatchString(strings.TrimSuffix(host, "."))
}

func (d *decoder) upstreamPolicy(f fields, u *lb.Upstream) {
	if n := f.own["policy"]; n != nil {
		words := []string{string(lb.RoundRobin), string(lb.LeastConn), string(lb.IPHash), string(lb.Hash), string(lb.RandomTwo)}
		if w, ok := d.oneOf(n, "policy", words, nil); ok {
			u.Policy = lb.Policy(w)
		}
	}
	switch n := f.own["key"]; {
	case u.Policy == lb.Hash && n == nil:
		d.errorf(f.n, "missing key \"key\": policy hash needs it, such as key: uri")
	case u.Policy == lb.Hash:
		u.Key = d.requestKey(n, "key")
	case n != nil:
		d.errorf(f.keys["key"], "key is for policy: hash, this one's policy is %s", u.Policy)
	}
}

// upstreamServers decodes who serves: a pool, or servers of the upstream's own.
func (d *decoder) upstreamServers(f fields, u *lb.Upstream, pools map[string]*poolDef, def defaults) {
	p, pool, servers := &poolDef{}, f.own["pool"], f.own["servers"]
	switch {
	case pool != nil && servers != nil:
		d.errorf(f.keys["servers"], "pool and servers are both set: an upstream has one or the other")
		d.servers(servers, "servers", &poolDef{own: true})
		return
	case servers != nil:
		p.own = true
		p.Probe = d.health(f.own["health"], def.health)
		d.servers(servers, "servers", p)
	case pool != nil:
		if p = d.poolOf(f, pool, pools); p == nil {
			return
		}
		if n := f.own["health"]; n != nil {
			d.errorf(f.keys["health"], "health belongs into the pool: an upstream has it only with servers of its own")
		}
	default:
		d.errorf(f.n, "missing key \"pool\": an upstream needs it, or \"servers\"")
		return
	}
	u.Pool = p.Pool
	d.checkUpstreamProbe(f, u)
	seen := map[string]*node{}
	for _, s := range p.servers {
		at := u.Endpoint(s.Server).String()
		if first := seen[at]; first != nil {
			d.errorf(f.n, "server %s is there twice on port %d: %s", at, u.Port, first.elsewhere(f.n))
			return
		}
		seen[at] = s.at
	}
}

// checkUpstreamProbe finds a probe of the upstream's own servers that speaks TLS where these
// do not, at the same port, or the other way round: it would fail for ever.
func (d *decoder) checkUpstreamProbe(f fields, u *lb.Upstream) {
	p := u.Pool.Probe
	switch {
	case p == nil || p.Port != 0 || u.Pool.Name != "": // a pool is probed as others need it, too
	case u.TLS != nil && p.Type == lb.ProbeHTTP:
		d.errorf(f.keys["tls"], "servers speak TLS, and their health is of type http, which does not: write type: https, or give health a port of its own")
	case u.TLS == nil && p.Type == lb.ProbeHTTPS:
		d.errorf(f.n, "servers are spoken to without TLS, and their health is of type https: write tls here, or give health a port of its own")
	}
}

func (d *decoder) upstreamTLS(n *node, files fileSystem) *lb.UpstreamTLS {
	t := &lb.UpstreamTLS{Verify: true}
	f, ok := d.fields(n, &upstreamTLSSchema)
	if !ok {
		return t
	}
	if n := f.own["verify"]; n != nil {
		t.Verify, _ = d.boolean(n, "verify")
	}
	if n := f.own["server_name"]; n != nil {
		t.ServerName, _ = d.text(n, "server_name")
	}
	if n := f.own["ca"]; n != nil {
		if text, ok := d.file(n, "ca", files); ok {
			if !x509.NewCertPool().AppendCertsFromPEM(text) {
				d.errorf(n, "ca: %s holds no certificate in PEM", n.text)
			}
			t.CA = text
		}
	}
	return t
}

// nextUpstream decodes after what a request goes to another server, in nginx's words.
func (d *decoder) nextUpstream(n *node) (next lb.NextUpstream) {
	items, ok := d.list(n, "next_upstream")
	if !ok {
		return next
	}
	words := []string{"error", "timeout", "non_idempotent", "http_403", "http_404", "http_429", "http_500", "http_502", "http_503", "http_504", "none"}
	for _, item := range items {
		w, ok := d.oneOf(item, "next_upstream", words, nil)
		switch {
		case !ok:
		case w == "error":
			next.Error = true
		case w == "timeout":
			next.Timeout = true
		case w == "non_idempotent":
			next.NonIdempotent = true
		case w == "none" && len(items) > 1:
			d.errorf(item, "next_upstream: none stands alone")
		case w == "none":
		default:
			var status int
			for _, c := range w[len("http_"):] {
				status = 10*status + int(c-'0')
			}
			if !slices.Contains(next.Status, status) {
				next.Status = append(next.Status, status)
			}
		}
	}
	return next
}

// file reads a file that the configuration names, relative to the folder of the file
// that names it.
func (d *decoder) file(n *node, what string, files fileSystem) ([]byte, bool) {
	path, ok := d.path(n, what)
	if !ok {
		return nil, false
	}
	text, err := files.ReadFile(path)
	if err != nil {
		d.errorf(n, "%s: cannot read %s: %s", what, path, reason(err))
		d.errs[len(d.errs)-1].cause = err
		return nil, false
	}
	return text, true
}

// path returns the name of a file, which may be relative to the folder of the file that
// names it.
func (d *decoder) path(n *node, what string) (string, bool) {
	path, ok := d.text(n, what)
	if ok && !filepath.IsAbs(path) {
		path = filepath.Join(filepath.Dir(n.src.name), path)
	}
	return path, ok
}
