package config

import (
	"strings"

	"github.com/sluice-lb/sluice/internal/lb"
)

// dns finds what differs in DNS. All of it can change while the daemon runs.
func (d *Difference) dns(before, after lb.DNS) {
	named(d, "dns zone", before.Zones, after.Zones, func(z lb.DNSZone) string { return z.Name }, func(a, b lb.DNSZone) {
		if parts := fieldsThatDiffer(a, b); len(parts) > 0 {
			d.change("dns zone %s: %s", b.Name, strings.Join(parts, ", "))
		}
	})
	named(d, "dns record", before.Records, after.Records, func(r lb.DNSRecord) string { return r.Name }, func(a, b lb.DNSRecord) {
		parts := poolsThatDiffer(a.Pool, b.Pool)
		a.Pool, b.Pool = lb.Pool{}, lb.Pool{}
		if parts = append(parts, fieldsThatDiffer(a, b)...); len(parts) > 0 {
			d.change("dns record %s: %s", b.Name, strings.Join(parts, ", "))
		}
	})
	before.Zones, before.Records, after.Zones, after.Records = nil, nil, nil, nil
	if parts := fieldsThatDiffer(before, after); len(parts) > 0 {
		d.change("dns: %s", strings.Join(parts, ", "))
	}
}
