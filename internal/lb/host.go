package lb

import (
	"net/netip"
	"strings"
)

// HostLiteral is an IPv6 address in brackets, as a host is called, in the one way in
// which it is compared: RFC 5952's. False: s is no such thing.
func HostLiteral(s string) (string, bool) {
	inner, open := strings.CutPrefix(s, "[")
	inner, closed := strings.CutSuffix(inner, "]")
	if !open || !closed {
		return "", false
	}
	a, err := netip.ParseAddr(inner)
	if err != nil || !a.Is6() || a.Zone() != "" {
		return "", false
	}
	return "[" + a.String() + "]", true
}
