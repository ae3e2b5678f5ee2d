package l7

import (
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A virtualHost is a server as requests find it.
type virtualHost struct {
	config    *lb.HTTPServer
	locations locations
	otherwise *location // of requests that none of them is for
	stats     *serverStats
	log       *accessLog // nil: none
}

// routes are the servers of one listen. They are never changed.
type routes struct {
	exact     map[string]*virtualHost
	wildcards map[string]*virtualHost // ".example.com" for "*.example.com"
	byDefault *virtualHost
	tls       *certificates // nil: plain HTTP
	proxied   bool          // trusted proxies begin with the PROXY protocol
}

// find returns the server for what a client calls the host: the exact name, the
// longest "*.name", or the default server.
func (r *routes) find(host string) *virtualHost {
	name := hostName(host)
	if v := r.exact[name]; v != nil {
		return v
	}
	if len(r.wildcards) > 0 {
		for rest := name; ; {
			i := strings.IndexByte(rest, '.')
			if i < 0 {
				break
			}
			// A wildcard stands for one label at least.
			if v := r.wildcards[rest[i:]]; v != nil && (i > 0 || len(rest) < len(name)) {
				return v
			}
			rest = rest[i+1:]
		}
	}
	return r.byDefault
}

// hostName is a Host header without its port, in lower case; an IPv6 address in brackets
// is as lb.HostLiteral has it.
func hostName(host string) string {
	if strings.HasPrefix(host, "[") {
		if name, ok := lb.HostLiteral(host[:strings.IndexByte(host, ']')+1]); ok {
			return name
		}
	}
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.TrimSuffix(strings.ToLower(host), ".")
}

// isHost tells whether a Host header is a name or an address, with a port or without, and
// can be read in one way only.
func isHost(host string) bool {
	port := ""
	if strings.HasPrefix(host, "[") {
		end := strings.IndexByte(host, ']') + 1
		if _, ok := lb.HostLiteral(host[:end]); !ok {
			return false
		}
		port = host[end:]
	} else {
		if i := strings.IndexByte(host, ':'); i >= 0 {
			port = host[i:]
		}
		if strings.ContainsAny(host, "[]") {
			return false
		}
	}
	return port == "" || port[0] == ':' && strings.Trim(port[1:], "0123456789") == ""
}

// routesOf sorts the servers of a configuration by where they listen.
func routesOf(hosts []*virtualHost) map[netip.AddrPort]*routes {
	all := map[netip.AddrPort]*routes{}
	explicit := map[netip.AddrPort]bool{}
	for _, v := range hosts {
		for _, l := range v.config.Listen {
			r := all[l.Address]
			if r == nil {
				r = &routes{exact: map[string]*virtualHost{}, wildcards: map[string]*virtualHost{}, byDefault: v}
				all[l.Address] = r
			}
			if v.config.Default && !explicit[l.Address] {
				r.byDefault, explicit[l.Address] = v, true
			}
			r.proxied = r.proxied || l.ProxyProtocol
			for _, name := range v.config.Names {
				into := r.exact
				if suffix, ok := strings.CutPrefix(name, "*"); ok {
					into, name = r.wildcards, suffix
				}
				if into[name] == nil {
					into[name] = v
				}
			}
		}
	}
	return all
}

// A location is what is done with a request, ready to be done.
type location struct {
	config   *lb.Location
	upstream *upstream // of Upstream, or of a redirect to a server; nil: neither
	access   access
	limit    *limiter   // nil: none
	proxy    *forwarder // nil: it is not Upstream
}

// locations are those of one server, in the order that they are looked at.
type locations struct {
	exact    map[string]*location
	slashed  map[string]bool // paths to which a slash is to be added
	prefixes []*location     // longest first
	regexes  []*location     // in the order of the file
}

func newLocations(all []*location) locations {
	ls := locations{exact: map[string]*location{}, slashed: map[string]bool{}}
	for _, l := range all {
		if p, ok := strings.CutSuffix(l.config.Path, "/"); ok && p != "" && l.config.Upstream != "" {
			ls.slashed[p] = true
		}
		switch l.config.Kind {
		case lb.LocationExact:
			ls.exact[l.config.Path] = l
		case lb.LocationRegex:
			ls.regexes = append(ls.regexes, l)
		default:
			ls.prefixes = append(ls.prefixes, l)
		}
	}
	slices.SortStableFunc(ls.prefixes, func(a, b *location) int { return len(b.config.Path) - len(a.config.Path) })
	return ls
}

// find returns the location of a normalized path, with nginx's precedence: an exact
// one; the longest prefix, if it says that no regex is to be tried; the first regex
// that matches; the longest prefix. Nil: there is none.
//
// As in nginx, slash tells that path lacks the slash that a location for proxying ends
// with, and is no location itself: the client is sent there.
func (ls *locations) find(path string) (found *location, slash bool) {
	if l := ls.exact[path]; l != nil {
		return l, false
	}
	longest := ls.longest(path)
	if (longest == nil || longest.config.Path != path) && ls.slashed[path] {
		return nil, true
	}
	if longest != nil && longest.config.NoRegex {
		return longest, false
	}
	for _, l := range ls.regexes {
		if l.config.Regex.MatchString(path) {
			return l, false
		}
	}
	return longest, false
}

func (ls *locations) longest(path string) *location {
	for _, l := range ls.prefixes {
		if strings.HasPrefix(path, l.config.Path) {
			return l
		}
	}
	return nil
}

// all are the locations, each once.
func (ls *locations) all() []*location {
	all := slices.Concat(ls.prefixes, ls.regexes)
	for _, l := range ls.exact {
		all = append(all, l)
	}
	return all
}
