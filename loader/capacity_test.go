package loader

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/sluice-lb/sluice/internal/lb"
)

func TestFits(t *testing.T) {
	vip := netip.MustParseAddr("192.0.2.100")
	make := func(services, servers, sources int, forward lb.Forward) []lb.Service {
		var out []lb.Service
		next := netip.MustParseAddr("198.18.0.1")
		for i := range services {
			s := lb.Service{
				Name: fmt.Sprint(i), Forward: forward, Protocol: lb.TCP,
				Addresses: []lb.Frontend{lb.FrontendOf(netip.AddrPortFrom(vip, uint16(i+1)))},
			}
			source := vip
			for range sources {
				s.SourceAddresses = append(s.SourceAddresses, source)
				source = source.Next()
			}
			for range servers {
				s.Pool.Servers = append(s.Pool.Servers, lb.Server{Address: next, Weight: 1})
				next = next.Next()
			}
			out = append(out, s)
		}
		return out
	}
	vips := func(n int) []lb.Service {
		s := make(1, 1, 0, lb.DSR)
		a := netip.MustParseAddr("198.18.0.1")
		for range n - 1 {
			s[0].Addresses = append(s[0].Addresses, lb.FrontendOf(netip.AddrPortFrom(a, 80)))
			a = a.Next()
		}
		return s
	}
	tests := []struct {
		name     string
		services []lb.Service
		want     string // "": fits
	}{
		{"a usual one", make(10, 20, 1, lb.NAT), ""},
		{"nat without source NAT", make(10, 20, 0, lb.DNAT), ""},
		{"as many services as there can be", make(4095, 1, 0, lb.DSR), ""},
		{"one service too many", make(4096, 1, 0, lb.DSR), "4096 services: there is room for 4095"},
		{"as many backends as there can be", make(1, 16383, 0, lb.DSR), ""},
		{"one backend too many", make(1, 16384, 0, lb.DSR), "16384 backends of all services together: there is room for 16383"},
		{"as many pairs as there can be", make(1, 8191, 1, lb.NAT), ""},
		{"one pair too many", make(2, 4096, 1, lb.NAT), "8192 pairs of a nat server and a source address: there is room for 8191"},
		{"one VIP too many", vips(256), "256 VIPs with services, by protocol: there is room for 255"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			err := Fits(tc.services)
			if tc.want == "" && err != nil {
				t.Errorf("got %v, want that it fits", err)
			}
			if tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}
