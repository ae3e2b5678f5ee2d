package loader

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

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
	much := func(service int, text string) []lb.Misfit {
		return []lb.Misfit{{Service: service, Message: "too much for the data plane: " + text}}
	}
	tests := []struct {
		name     string
		services []lb.Service
		want     []lb.Misfit
	}{
		{"a usual one", make(10, 20, 1, lb.NAT), nil},
		{"nat without source NAT", make(10, 20, 0, lb.DNAT), nil},
		{"as many services as there can be", make(4095, 1, 0, lb.DSR), nil},
		{"one service too many", make(4096, 1, 0, lb.DSR), much(4095, "4096 services, there is room for 4095")},
		{"as many backends as there can be", make(1, 16383, 0, lb.DSR), nil},
		{"one backend too many", make(1, 16384, 0, lb.DSR), much(0, "16384 backends of all services together, there is room for 16383")},
		{"as many pairs as there can be", make(1, 8191, 1, lb.NAT), nil},
		{"one pair too many", make(2, 4096, 1, lb.NAT), much(1, "8192 pairs of a nat server and a source address, there is room for 8191")},
		{"too many, and more after that", make(4200, 1, 0, lb.DSR), much(4095, "4200 services, there is room for 4095")},
		{"two limits", make(4, 4096, 1, lb.NAT), append(much(3, "16384 backends of all services together, there is room for 16383"),
			much(1, "16384 pairs of a nat server and a source address, there is room for 8191")...)},
		{"a limit of connections of UDP", []lb.Service{{Protocol: lb.TCP}, {Protocol: lb.UDP, SourceLimit: lb.SourceLimit{Rate: 1}}},
			[]lb.Misfit{{Service: 1, Message: "source_limit counts new connections, and UDP has none: leave it out"}}},
		{"one VIP too many", vips(256), much(0, "256 VIPs with services, by protocol, there is room for 255")},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, Fits(tc.services)); diff != "" {
				t.Errorf("misfits (-want +got):\n%s", diff)
			}
		})
	}
}
