package config

import (
	"strings"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

var stickySchema = schema{
	what: "sticky",
	keys: []string{"cookie", "ttl", "path", "domain", "same_site", "key_file"},
	hints: map[string]string{
		"name":     "the cookie's name is \"cookie\"",
		"expires":  "nginx's expires is \"ttl\"",
		"httponly": "it always is",
		"samesite": "it is called \"same_site\" here",
		"secure":   "it is where the client speaks TLS",
	},
}

// maxStickyTTL is as long as browsers keep a cookie.
const maxStickyTTL = 400 * 24 * time.Hour

// sticky decodes how clients stay with a server.
func (d *decoder) sticky(n *node, files fileSystem) *lb.Sticky {
	s := &lb.Sticky{Path: "/", SameSite: lb.SameSiteLax}
	f, ok := d.fields(n, &stickySchema)
	if !ok {
		return nil
	}
	if n := f.need("cookie"); n != nil {
		switch name, ok := d.text(n, "cookie"); {
		case ok && !isHeaderName(strings.ReplaceAll(name, "_", "-")): // the same letters, and that one
			d.errorf(n, "cookie: %q is no name of a cookie", name)
		case ok:
			s.Cookie = name
		}
	}
	if n := f.own["ttl"]; n != nil {
		ttl, ok := d.duration(n, "ttl", 0, maxStickyTTL)
		if ok && ttl%time.Second != 0 {
			d.errorf(n, "ttl must be whole seconds, which browsers count by, not %s", n.text)
		}
		s.TTL = ttl
	}
	if n := f.own["path"]; n != nil {
		switch path, ok := d.text(n, "path"); {
		case ok && (path[0] != '/' || strings.ContainsFunc(path, notInCookies)):
			d.errorf(n, "path of a cookie must start with / and have neither ; nor spaces, not %q", path)
		case ok:
			s.Path = path
		}
	}
	if n := f.own["domain"]; n != nil {
		switch domain, ok := d.text(n, "domain"); {
		case ok && !hostPattern.MatchString(strings.TrimPrefix(domain, ".")):
			d.errorf(n, "domain must be the name of a host, or the end of one, not %q", domain)
		case ok:
			s.Domain = strings.ToLower(strings.TrimPrefix(domain, "."))
		}
	}
	if strings.HasPrefix(s.Cookie, "__Host-") && (s.Path != "/" || s.Domain != "") {
		d.errorf(f.own["cookie"], "cookie %q: browsers take such a name only with path / and without domain", s.Cookie)
	}
	if n := f.own["same_site"]; n != nil {
		words := []string{string(lb.SameSiteLax), string(lb.SameSiteStrict), string(lb.SameSiteNone)}
		if w, ok := d.oneOf(n, "same_site", words, nil); ok {
			s.SameSite = lb.SameSite(w)
		}
	}
	if n := f.own["key_file"]; n != nil {
		if k, ok := d.keyFile(n, "key_file", files); ok {
			s.Keys = [][]byte{k[:]}
		}
	}
	return s
}

// notInCookies tells whether a rune may not be in a value of Set-Cookie.
func notInCookies(r rune) bool { return r <= ' ' || r == ';' || r > '~' }

// shareKeys has cookies that name servers made with the nodes' key, where they have none
// of their own: so a client's server is the same on all nodes.
func (h *httpDef) shareKeys(sync Sync) {
	for i := range h.Upstreams {
		s := h.Upstreams[i].Sticky
		if s == nil || s.Keys != nil {
			continue
		}
		for _, k := range sync.Keys {
			s.Keys = append(s.Keys, k[:])
		}
	}
}
