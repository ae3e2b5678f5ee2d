package config

import (
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"net/textproto"
	"slices"
	"strings"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// What clients may do where the configuration does not say.
const (
	defaultHeaderTimeout    = 30 * time.Second
	defaultBodyTimeout      = 60 * time.Second
	defaultMinBodyRate      = 100
	defaultSendTimeout      = 60 * time.Second
	defaultKeepaliveTimeout = 75 * time.Second
	defaultMaxHeader        = 32 << 10
	maxHTTPTimeout          = 24 * time.Hour
)

var httpSchema = schema{
	what: "http",
	keys: append([]string{
		"upstreams", "servers", "trusted_proxies", "access_log", "request_id", "client_header_timeout", "client_body_timeout",
		"client_min_body_rate", "client_max_header_size", "send_timeout", "keepalive_timeout", "max_connections",
	}, inheritedKeys...),
	hints: withNginxHints(map[string]string{
		"server":                      "virtual hosts are a list under \"servers\"",
		"upstream":                    "upstreams are a list under \"upstreams\"",
		"set_real_ip_from":            "nginx's set_real_ip_from is \"trusted_proxies\"",
		"log_format":                  "the format stands in access_log: {path: FILE, format: combined}",
		"large_client_header_buffers": "all of a head is bounded by \"client_max_header_size\"",
		"worker_connections":          "it is called \"max_connections\" here, and counts those of clients alone",
	}),
}

var accessLogSchema = schema{what: "access_log", keys: []string{"path", "format"}}

// An httpDef is the section with the places that later checks point at.
type httpDef struct {
	lb.HTTP
	listens []listenDef
	broken  bool // not all upstreams can be read
}

// http decodes the section.
func (d *decoder) http(n *node, files fileSystem, pools []*poolDef, def defaults) *httpDef {
	h := &httpDef{}
	if n == nil {
		return h
	}
	f, ok := d.fields(n, &httpSchema)
	if !ok {
		return h
	}
	h.Client = d.clientLimits(f)
	if n := f.own["trusted_proxies"]; n != nil {
		d.rules(n, "trusted_proxies", func(p netip.Prefix, _ *node) { h.TrustedProxies = append(h.TrustedProxies, p) })
	}
	if n := f.own["access_log"]; n != nil {
		h.AccessLog = d.accessLog(n)
	}
	if n := f.own["request_id"]; n != nil {
		if n.kind == scalar && !n.quoted && (n.text == "true" || n.text == "false") {
			d.errorf(n, "request_id is the name of a header, such as X-Request-Id; without it requests have none")
		} else {
			h.RequestID, _ = d.headerName(n, "request_id")
		}
	}
	if n := f.own["max_connections"]; n != nil {
		h.MaxConnections, _ = d.integer(n, "max_connections", 1, 1<<24)
	}
	base := d.inherited(f, defaultInherited(), files)
	upstreams, whole := map[string]*lb.Upstream{}, true
	if n := f.own["upstreams"]; n != nil {
		whole = d.upstreams(n, h, files, pools, def, upstreams)
		h.broken = !whole
	}
	if n := f.need("servers"); n != nil {
		d.httpServers(n, h, files, base, func(n *node) *lb.Upstream { return d.upstreamOf(n, upstreams, whole) })
	}
	d.checkListens(h)
	return h
}

// clientLimits decodes what clients may take their time for.
func (d *decoder) clientLimits(f fields) lb.ClientLimits {
	l := lb.ClientLimits{
		HeaderTimeout: defaultHeaderTimeout, BodyTimeout: defaultBodyTimeout, MinBodyRate: defaultMinBodyRate,
		SendTimeout: defaultSendTimeout, KeepaliveTimeout: defaultKeepaliveTimeout, MaxHeader: defaultMaxHeader,
	}
	for key, into := range map[string]*time.Duration{
		"client_header_timeout": &l.HeaderTimeout, "client_body_timeout": &l.BodyTimeout,
		"send_timeout": &l.SendTimeout, "keepalive_timeout": &l.KeepaliveTimeout,
	} {
		if n := f.own[key]; n != nil {
			if v, ok := d.duration(n, key, 10*time.Millisecond, maxHTTPTimeout); ok {
				*into = v
			}
		}
	}
	if n := f.own["client_min_body_rate"]; n != nil {
		if v, ok := d.size(n, "client_min_body_rate", 0, 1<<30); ok {
			l.MinBodyRate = int(v)
		}
	}
	if n := f.own["client_max_header_size"]; n != nil {
		if v, ok := d.size(n, "client_max_header_size", 1<<10, 1<<20); ok {
			l.MaxHeader = int(v)
		}
	}
	return l
}

func (d *decoder) accessLog(n *node) (l lb.AccessLog) {
	l.Format = lb.LogCombined
	f, ok := d.fields(n, &accessLogSchema)
	if !ok {
		return lb.AccessLog{}
	}
	if n := f.need("path"); n != nil {
		l.Path = d.absolute(n, "path")
	}
	if n := f.own["format"]; n != nil {
		if w, ok := d.oneOf(n, "format", []string{string(lb.LogCombined), string(lb.LogJSON)}, nil); ok {
			l.Format = lb.AccessLogFormat(w)
		}
	}
	return l
}

// upstreamOf resolves a reference to an upstream; one without a name: there is none.
func (d *decoder) upstreamOf(n *node, all map[string]*lb.Upstream, whole bool) *lb.Upstream {
	name, ok := d.text(n, "upstream")
	if !ok {
		return &lb.Upstream{}
	}
	if u := all[name]; u != nil {
		return u
	}
	if whole && !d.incomplete {
		hint := ""
		if near := nearest(name, slices.Sorted(maps.Keys(all))); near != "" {
			hint = fmt.Sprintf("; did you mean %q?", near)
		} else if strings.ContainsAny(name, ":/") {
			hint = `: this is its name, and its servers stand in upstreams: [{name: NAME, servers: [{address: "192.0.2.1:80"}]}]`
		}
		d.errorf(n, "there is no upstream %q%s", name, hint)
	}
	return &lb.Upstream{}
}

// headerName decodes the name of a header.
func (d *decoder) headerName(n *node, what string) (string, bool) {
	s, ok := d.text(n, what)
	switch {
	case !ok:
		return "", false
	case strings.Contains(s, "_"):
		d.errorf(n, "%s: header %q has an underscore: such headers are dropped, since servers may take them for others; write %s", what, s, strings.ReplaceAll(s, "_", "-"))
		return "", false
	case !isHeaderName(s):
		d.errorf(n, "%s: %q is no name of a header", what, s)
		return "", false
	}
	return textproto.CanonicalMIMEHeaderKey(s), true
}

func isHeaderName(s string) bool {
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("!#$%&'*+-.^`|~", r) {
			return false
		}
	}
	return s != ""
}

// variables decodes a text that may have variables.
func (d *decoder) variables(n *node, what string) (string, bool) {
	if n.kind == scalar && n.text == "" && n.quoted {
		return "", true // as in nginx: nothing is set
	}
	s, ok := d.text(n, what)
	if !ok {
		return "", false
	}
	for _, p := range lb.TextParts(s) {
		if p.Variable == "" || slices.Contains(lb.Variables, p.Variable) {
			continue
		}
		hint := ""
		if near := nearest(p.Variable, lb.Variables); near != "" {
			hint = fmt.Sprintf("; did you mean $%s?", near)
		} else if of := nginxVariables[p.Variable]; of != "" {
			hint = fmt.Sprintf("; nginx's $%s is $%s", p.Variable, of)
		}
		d.errorf(n, "%s: there is no variable $%s%s ($$ is a dollar sign)", what, p.Variable, hint)
		return "", false
	}
	return s, true
}

// nginxVariables are those of nginx that are called otherwise here.
var nginxVariables = map[string]string{
	"remote_addr": "client_address", "remote_port": "client_port", "http_host": "host", "request_method": "method", "uri": "path",
	"args": "query", "query_string": "query", "server_addr": "server_address",
}

// requestKey decodes what of a request tells it from others.
func (d *decoder) requestKey(n *node, what string) lb.RequestKey {
	s, ok := d.text(n, what)
	if !ok {
		return lb.RequestKey{}
	}
	kind, name, has := strings.Cut(s, ":")
	k := lb.RequestKey{Kind: lb.RequestKeyKind(kind), Name: name}
	switch k.Kind {
	case lb.KeyClient, lb.KeyURI, lb.KeyPath, lb.KeyHost:
		if !has {
			return k
		}
	case lb.KeyHeader:
		if strings.EqualFold(name, "host") {
			d.errorf(n, "%s: the host is no header here: write host, not %q", what, s)
			return lb.RequestKey{}
		}
		if isHeaderName(name) {
			k.Name = textproto.CanonicalMIMEHeaderKey(name)
			return k
		}
	case lb.KeyCookie, lb.KeyQuery:
		if name != "" {
			return k
		}
	}
	d.errorf(n, "%s must be client, uri, path, host, header:NAME, cookie:NAME or query:NAME, not %q", what, s)
	return lb.RequestKey{}
}

// answerStatus decodes one status of an answer.
func (d *decoder) answerStatus(n *node, what string, lo, hi int) (int, bool) {
	i, ok := d.integer(n, what, lo, hi)
	if ok && http.StatusText(i) == "" {
		d.errorf(n, "%s: HTTP has no status %d", what, i)
		return 0, false
	}
	return i, ok
}
