package config

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sluice-lb/sluice/internal/lb"
)

// http finds what differs on layer 7. All of it can change while the daemon runs.
func (d *Difference) http(before, after lb.HTTP) {
	named(d, "upstream", before.Upstreams, after.Upstreams, func(u lb.Upstream) string { return u.Name }, func(a, b lb.Upstream) {
		parts := poolsThatDiffer(a.Pool, b.Pool)
		a.Pool, b.Pool = lb.Pool{}, lb.Pool{}
		if parts = append(parts, fieldsThatDiffer(a, b)...); len(parts) > 0 {
			d.change("upstream %s: %s", b.Name, strings.Join(parts, ", "))
		}
	})
	named(d, "http server", numbered(before.Servers), numbered(after.Servers), func(s numberedServer) string { return s.name }, func(a, b numberedServer) {
		parts := fieldsThatDiffer(a.HTTPServer, b.HTTPServer)
		if i := slices.Index(parts, "otherwise"); i >= 0 { // which is no key
			parts[i] = "settings where no location is"
			if slices.Contains(parts, "locations") { // that says it already
				parts = slices.Delete(parts, i, i+1)
			}
		}
		if len(parts) > 0 {
			d.change("http server %s: %s", b.name, strings.Join(parts, ", "))
		}
	})
	before.Upstreams, before.Servers, after.Upstreams, after.Servers = nil, nil, nil, nil
	if parts := fieldsThatDiffer(before, after); len(parts) > 0 {
		d.change("http: %s", strings.Join(parts, ", "))
	}
}

// A numberedServer is a virtual host with a name that no other one has.
type numberedServer struct {
	lb.HTTPServer
	name string
}

// numbered gives virtual hosts names: those that are called alike are counted.
func numbered(all []lb.HTTPServer) (out []numberedServer) {
	seen := map[string]int{}
	for _, s := range all {
		name := "without a listen"
		if len(s.Names) > 0 || len(s.Listen) > 0 {
			name = s.Name()
		}
		if seen[name]++; seen[name] > 1 {
			name = fmt.Sprintf("%s (%d)", name, seen[name])
		}
		out = append(out, numberedServer{s, name})
	}
	return out
}
