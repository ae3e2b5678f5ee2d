package l7

import (
	"net/netip"
	"slices"

	"github.com/sluice-lb/sluice/internal/lb"
)

// An access says whose requests are served. The zero value is everybody's.
type access struct {
	rules     []lb.Rule // longest prefix first, of equal ones those that deny
	allowOnly bool
}

func newAccess(rules []lb.Rule, allowOnly bool) access {
	sorted := slices.Clone(rules)
	slices.SortStableFunc(sorted, func(a, b lb.Rule) int {
		switch {
		case a.Prefix.Bits() != b.Prefix.Bits():
			return b.Prefix.Bits() - a.Prefix.Bits()
		case a.Allow == b.Allow:
			return 0
		case b.Allow:
			return -1
		}
		return 1
	})
	return access{sorted, allowOnly}
}

// allows tells whether a client's requests are served: the longest prefix counts.
func (a *access) allows(client netip.Addr) bool {
	for _, r := range a.rules {
		if r.Prefix.Contains(client) {
			return r.Allow
		}
	}
	return !a.allowOnly
}

// contains tells whether one of prefixes holds an address.
func contains(prefixes []netip.Prefix, a netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
