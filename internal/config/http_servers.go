package config

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/sluice-lb/sluice/internal/lb"
)

var httpServerSchema = schema{
	what: "a server of http",
	keys: append([]string{"listen", "names", "default", "locations"}, inheritedKeys...),
	hints: withNginxHints(map[string]string{
		"access_log":             "it stands in http: write log: false for no line",
		"ssl_protocols":          "TLS is 1.2 or later",
		"ssl_ciphers":            "those of Go: they are not chosen here",
		"ssl_client_certificate": "certificates of clients are not supported",
		"server_name":            "nginx's server_name is \"names\", a list",
		"name":                   "write names: [...]",
		"location":               "locations are a list under \"locations\"",
		"ssl_certificate":        "write it with the listen: {address: \"192.0.2.100:443\", tls: {certificate: FILE, key: FILE}}",
		"ssl_certificate_key":    "write it with the listen: {address: \"192.0.2.100:443\", tls: {certificate: FILE, key: FILE}}",
		"return":                 "it stands in a location: locations: [{path: /, return: {status: 200}}]",
	}),
}

var listenSchema = schema{
	what: "a listen",
	keys: []string{"address", "tls", "proxy_protocol"},
	hints: map[string]string{
		"ssl":     "write tls: {certificate: FILE, key: FILE}",
		"port":    "write it with the address: \"192.0.2.100:80\", or \":80\" for all addresses",
		"default": "default: true stands beside the listen",
	},
}

var serverTLSSchema = schema{
	what: "tls of a listen",
	keys: []string{"certificate", "key", "http2"},
}

// A listenDef is where a server listens, with its place.
type listenDef struct {
	lb.HTTPListen
	at        *node
	server    int  // its place in the list
	named     bool // the server has names, or should
	isDefault bool
}

// httpServers decodes the virtual hosts.
func (d *decoder) httpServers(n *node, h *httpDef, files fileSystem, base inherited, upstream func(*node) *lb.Upstream) {
	items, ok := d.mappings(n, "servers")
	if !ok {
		return
	}
	if len(items) == 0 {
		d.errorf(n, "servers is empty: without one nothing is served")
	}
	for _, item := range items {
		f, ok := d.fields(item, &httpServerSchema)
		if !ok {
			continue
		}
		s := lb.HTTPServer{}
		if n := f.own["default"]; n != nil {
			s.Default, _ = d.boolean(n, "default")
		}
		if n := f.need("listen"); n != nil {
			for _, l := range d.listens(n, files) {
				s.Listen = append(s.Listen, l.HTTPListen)
				l.server, l.isDefault, l.named = len(h.Servers), s.Default, f.own["names"] != nil
				h.listens = append(h.listens, l)
			}
		}
		if n := f.own["names"]; n != nil {
			s.Names = d.serverNames(n)
		}
		settings := d.inherited(f, base, files)
		settings.into(&s.Otherwise)
		if n := f.need("locations"); n != nil {
			s.Locations = d.locations(n, settings, files, upstream)
		}
		h.Servers = append(h.Servers, s)
	}
}

// listens decodes one address, or a list.
func (d *decoder) listens(n *node, files fileSystem) (all []listenDef) {
	items := []*node{n}
	if n.kind == list {
		if items = n.items; len(items) == 0 {
			d.errorf(n, "listen is empty: a server needs one address at least")
		}
	}
	for _, item := range items {
		l, at := lb.HTTPListen{}, item
		if item.kind == mapping {
			f, ok := d.fields(item, &listenSchema)
			if !ok {
				continue
			}
			if n := f.own["tls"]; n != nil {
				l.TLS = d.serverTLS(n, files)
			}
			if n := f.own["proxy_protocol"]; n != nil {
				l.ProxyProtocol, _ = d.boolean(n, "proxy_protocol")
			}
			if at = f.need("address"); at == nil {
				continue
			}
		}
		for _, a := range d.listenAddresses(at, 80) {
			l.Address = a
			all = append(all, listenDef{HTTPListen: l, at: at})
		}
	}
	return all
}

// listenAddresses decodes "ip:port", or ":port" for all addresses of both families. Usual
// is a port for messages.
func (d *decoder) listenAddresses(n *node, usual int) []netip.AddrPort {
	s, ok := d.addressText(n, "listen", fmt.Sprintf("\"192.0.2.100:%d\"", usual))
	if !ok {
		return nil
	}
	if port, all := strings.CutPrefix(s, ":"); all && isPort(port) {
		p, _ := strconv.ParseUint(port, 10, 16)
		return []netip.AddrPort{netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(p)), netip.AddrPortFrom(netip.IPv6Unspecified(), uint16(p))}
	}
	a, err := netip.ParseAddrPort(s)
	switch {
	case err != nil || a.Port() == 0:
		hint := ""
		if s := strings.TrimPrefix(s, "*:"); isPort(s) {
			hint = ": write \":" + s + "\" for all addresses"
		}
		d.errorf(n, "listen must be an address with a port, such as \"192.0.2.100:%d\" or \"[2001:db8::100]:%[1]d\", or \":%[1]d\" for all addresses, not %[2]q%[3]s", usual, s, hint)
		return nil
	case a.Addr().Zone() != "" || a.Addr().Is4In6() || a.Addr().IsMulticast():
		d.errorf(n, "listen: %v is no address to listen on", a.Addr())
		return nil
	}
	return []netip.AddrPort{a}
}

// serverTLS decodes a certificate and its key, which must fit together.
func (d *decoder) serverTLS(n *node, files fileSystem) *lb.ServerTLS {
	t := &lb.ServerTLS{HTTP2: true}
	f, ok := d.fields(n, &serverTLSSchema)
	if !ok {
		return t
	}
	if n := f.own["http2"]; n != nil {
		t.HTTP2, _ = d.boolean(n, "http2")
	}
	certificate, key := f.need("certificate"), f.need("key")
	if certificate == nil || key == nil {
		return t
	}
	certText, ok1 := d.file(certificate, "certificate", files)
	keyText, ok2 := d.file(key, "key", files)
	if !ok1 || !ok2 {
		return t
	}
	if _, err := tls.X509KeyPair(certText, keyText); err != nil {
		d.errorf(certificate, "certificate and key do not fit together: %s", strings.TrimPrefix(err.Error(), "tls: "))
	}
	t.Certificate, _ = d.path(certificate, "certificate")
	t.Key, _ = d.path(key, "key")
	for _, p := range []*string{&t.Certificate, &t.Key} {
		if abs, err := filepath.Abs(*p); err == nil {
			*p = abs
		}
	}
	return t
}

var serverName = regexp.MustCompile(`^(\*\.)?[0-9a-z_]([0-9a-z_-]*[0-9a-z_])?(\.[0-9a-z_]([0-9a-z_-]*[0-9a-z_])?)*$`)

// serverNames decodes names of hosts, in lower case, or "*." and a name.
func (d *decoder) serverNames(n *node) (names []string) {
	items, ok := d.list(n, "names")
	if !ok {
		return nil
	}
	for _, item := range items {
		s, ok := d.text(item, "name")
		if !ok {
			continue
		}
		s = strings.TrimSuffix(strings.ToLower(s), ".")
		literal, isLiteral := lb.HostLiteral(s)
		if !isLiteral {
			literal, isLiteral = lb.HostLiteral("[" + s + "]")
		}
		if isLiteral {
			s = literal
		}
		switch {
		case strings.HasPrefix(s, "."):
			d.errorf(item, "name %q: write both, %q and %q", s, s[1:], "*"+s)
		case s == "_" || s == "*":
			d.errorf(item, "name %q: for all names leave names out, and set default: true", s)
		case strings.ContainsFunc(s, func(r rune) bool { return r > 127 }):
			d.errorf(item, "name %q must be written as clients send it, in ASCII (xn--...)", s)
		case !isLiteral && !serverName.MatchString(s):
			d.errorf(item, "name %q must be the name of a host, or *. and one, or an address, without a port", s)
		case slices.Contains(names, s):
			d.errorf(item, "name %q is there twice", s)
		default:
			names = append(names, s)
		}
	}
	return names
}

// checkListens finds what does not go together between the servers of one listen.
func (d *decoder) checkListens(h *httpDef) {
	first := map[netip.AddrPort]listenDef{}
	byDefault := map[netip.AddrPort]listenDef{}
	names := map[netip.AddrPort]map[string]*node{}
	for _, l := range h.listens {
		f, again := first[l.Address]
		switch {
		case !again:
			first[l.Address] = l
			names[l.Address] = map[string]*node{}
		case f.server == l.server:
			d.errorf(l.at, "listen %v is there twice: %s", l.Address, f.at.elsewhere(l.at))
			continue
		case (f.TLS == nil) != (l.TLS == nil):
			d.errorf(l.at, "listen %v has tls in one server and none in another: %s", l.Address, f.at.elsewhere(l.at))
		case f.TLS != nil && f.TLS.HTTP2 != l.TLS.HTTP2:
			d.errorf(l.at, "listen %v has http2 in one server and not in another: %s", l.Address, f.at.elsewhere(l.at))
		case f.ProxyProtocol != l.ProxyProtocol:
			d.errorf(l.at, "listen %v has proxy_protocol in one server and not in another: %s", l.Address, f.at.elsewhere(l.at))
		}
		if l.isDefault {
			if other, dup := byDefault[l.Address]; dup {
				d.errorf(l.at, "listen %v has two servers with default: true: %s", l.Address, other.at.elsewhere(l.at))
			}
			byDefault[l.Address] = l
		}
		if l.ProxyProtocol && len(h.TrustedProxies) == 0 {
			d.errorf(l.at, "listen %v has proxy_protocol, and nobody is trusted: name the proxies in trusted_proxies", l.Address)
		}
		for _, name := range h.Servers[l.server].Names {
			if other := names[l.Address][name]; other != nil {
				d.errorf(l.at, "name %q is that of two servers of listen %v: %s", name, l.Address, other.elsewhere(l.at))
				continue
			}
			names[l.Address][name] = l.at
		}
	}
	d.checkReachable(h, first, byDefault)
}

// checkReachable finds servers that get no request of a listen: they have no names, and
// another one is the default.
func (d *decoder) checkReachable(h *httpDef, first, byDefault map[netip.AddrPort]listenDef) {
	said := map[*node]bool{} // ":80" is two listens
	for _, l := range h.listens {
		of, explicit := byDefault[l.Address]
		if !explicit {
			of = first[l.Address]
		}
		if l.named || of.server == l.server || l.isDefault || said[l.at] {
			continue
		}
		said[l.at] = true
		d.errorf(l.at, "no request of listen %v is for this server: it has no names, and is not the first one there, nor its default: %s", l.Address, of.at.elsewhere(l.at))
	}
}
