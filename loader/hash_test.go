package loader

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/maglev"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// The program sends every flow to the backend that Go's hash, slot and table name.
func TestProgramAgreesWithGo(t *testing.T) {
	for _, forward := range []lb.Forward{lb.DSR, lb.NAT} {
		t.Run(forward.String(), func(t *testing.T) {
			bs := backends(7, 80)
			var members []maglev.Backend
			for i := range bs {
				bs[i].Weight = 1 + i%3
				members = append(members, maglev.Backend{Key: bs[i].Address.String(), Weight: bs[i].Weight})
			}
			// A service before it, so that its slots are not the first ones.
			first := service("a", lb.DSR, 79, backends(3, 79))
			first.TableSize = 1009
			s := service("b", forward, 80, bs)
			s.TableSize = 4099
			table, err := maglev.Build(s.TableSize, members)
			if err != nil {
				t.Fatal(err)
			}
			d := newDatapath(t, first, s)
			r := rand.New(rand.NewPCG(3, 4))
			slots := map[uint32]bool{}
			for range 20000 {
				var a [4]byte
				binary.BigEndian.PutUint32(a[:], r.Uint32())
				client := netip.AddrPortFrom(netip.AddrFrom4(a), uint16(r.Uint32()))
				slot := Slot(FlowHash(client, vipPort, lb.TCP), uint32(s.TableSize))
				slots[slot] = true
				frame := toVIP(flags(testenv.SYN), func(f *testenv.Frame) { f.Src = client })
				verdict, out := send(t, d, frame.Bytes())
				if verdict != xdpTX {
					t.Fatalf("verdict %d", verdict)
				}
				want := backendMAC(int(table.Slots[slot]) + 1)
				if got := net.HardwareAddr(out[:6]); got.String() != hardware(want).String() {
					t.Fatalf("%v, slot %d: the program sends it to %v, want %v", client, slot, got, hardware(want))
				}
			}
			if len(slots) < s.TableSize*9/10 {
				t.Errorf("only %d of %d slots were tried", len(slots), s.TableSize)
			}
		})
	}
}

func TestSlot(t *testing.T) {
	tests := []struct {
		hash uint64
		size uint32
		want uint32
	}{
		{0, 65537, 0},
		{math.MaxUint64, 65537, 65536},
		{math.MaxUint64, 1, 0},
		{1 << 63, 65537, 32768},
		{1<<32 - 1, 65537, 0}, // the low half does not count
		{math.MaxUint64, 1 << 24, 1<<24 - 1},
	}
	for _, tc := range tests {
		if got := Slot(tc.hash, tc.size); got != tc.want {
			t.Errorf("Slot(%#x, %d) = %d, want %d", tc.hash, tc.size, got, tc.want)
		}
	}
}

// Clients as they come in practice spread over backends and over ranges of slots
// within four standard deviations of an even share.
func TestFlowHashSpreads(t *testing.T) {
	addr := func(base string, i int) netip.Addr {
		a := netip.MustParseAddr(base).As4()
		binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(a[:])+uint32(i))
		return netip.AddrFrom4(a)
	}
	// The i-th network of a /48, and the host in it.
	addr6 := func(network, host int) netip.Addr {
		a := v6Client.Addr().As16()
		binary.BigEndian.PutUint32(a[4:], binary.BigEndian.Uint32(a[4:])+uint32(network))
		binary.BigEndian.PutUint32(a[12:], uint32(host))
		return netip.AddrFrom16(a)
	}
	tests := []struct {
		name   string
		flows  int
		client func(i int) netip.AddrPort
	}{
		{"ports of one client in a row", 28000, func(i int) netip.AddrPort { return netip.AddrPortFrom(clientIP, uint16(32768+i)) }},
		{"every second port of one client", 14000, func(i int) netip.AddrPort { return netip.AddrPortFrom(clientIP, uint16(32768+2*i)) }},
		{"a thousand ports of one client", 1000, func(i int) netip.AddrPort { return netip.AddrPortFrom(clientIP, uint16(40000+i)) }},
		{"clients in a row, one port", 65536, func(i int) netip.AddrPort { return netip.AddrPortFrom(addr("198.18.0.0", i), 40000) }},
		{"the first of each network, one port", 65536, func(i int) netip.AddrPort { return netip.AddrPortFrom(addr("10.0.0.1", i<<8), 40000) }},
		{"a network's clients, some ports each", 25600, func(i int) netip.AddrPort {
			return netip.AddrPortFrom(addr("198.51.100.0", i%256), uint16(50000+i/256))
		}},
		{"four clients, many ports", 40000, func(i int) netip.AddrPort {
			return netip.AddrPortFrom(addr("198.51.100.4", i%4), uint16(10000+i/4))
		}},
		{"client and port go up together", 60000, func(i int) netip.AddrPort {
			return netip.AddrPortFrom(addr("198.18.0.0", i), uint16(1024+i))
		}},
		{"ipv6: ports of one client in a row", 28000, func(i int) netip.AddrPort { return netip.AddrPortFrom(v6Client.Addr(), uint16(32768+i)) }},
		{"ipv6: clients of a /64 in a row, one port", 65536, func(i int) netip.AddrPort { return netip.AddrPortFrom(addr6(0, i), 40000) }},
		{"ipv6: the first of each /64, one port", 65536, func(i int) netip.AddrPort { return netip.AddrPortFrom(addr6(i, 1), 40000) }},
		{"ipv6: prefix and client go up together", 65536, func(i int) netip.AddrPort { return netip.AddrPortFrom(addr6(i, i), 40000) }},
		{"ipv6: client and port go up together", 60000, func(i int) netip.AddrPort { return netip.AddrPortFrom(addr6(0, i), uint16(1024+i)) }},
	}
	const size = lb.DefaultTableSize
	for _, vips := range [][2]string{
		{"192.0.2.100:80", "[2001:db8::100]:80"}, {"192.0.2.101:443", "[2001:db8::101]:443"}, {"203.0.113.1:8080", "[2001:db8:1::1]:8080"},
	} {
		for _, groups := range []int{2, 3, 16, 64} {
			var members []maglev.Backend
			for i := range groups {
				members = append(members, maglev.Backend{Key: netip.AddrPortFrom(backendAddr(i), 80).String(), Weight: 1})
			}
			table, err := maglev.Build(size, members)
			if err != nil {
				t.Fatal(err)
			}
			for _, tc := range tests {
				vip := netip.MustParseAddrPort(vips[0])
				if tc.client(0).Addr().Is6() {
					vip = netip.MustParseAddrPort(vips[1])
				}
				byBackend, byRange := make([]int, groups), make([]int, groups)
				for i := range tc.flows {
					slot := Slot(FlowHash(tc.client(i), vip, lb.TCP), size)
					byBackend[table.Slots[slot]]++
					byRange[int(slot)*groups/size]++
				}
				for how, counts := range map[string][]int{"backend": byBackend, "range of slots": byRange} {
					if worst := deviation(counts, tc.flows); worst > 4 {
						t.Errorf("%s to %s: a %s of %d is %.1f standard deviations off", tc.name, vip, how, groups, worst)
					}
				}
			}
		}
	}
}

// deviation returns how far the worst of the counts is from an even share of the
// sum, in standard deviations of a random one.
func deviation(counts []int, sum int) float64 {
	n := float64(len(counts))
	mean := float64(sum) / n
	worst := 0.0
	for _, c := range counts {
		worst = max(worst, math.Abs(float64(c)-mean)/math.Sqrt(mean*(1-1/n)))
	}
	return worst
}

// Addresses in a row, the usual case, find room in the tables of VIPs and pairs
// near where they hash to.
func TestPlacesSpread(t *testing.T) {
	addr := func(i int) netip.Addr { return clientAddr(i).Addr() }
	t.Run("vips", func(t *testing.T) {
		used := map[uint32]bool{}
		for i := range int(lbLimitsMAX_VIPS) / 4 {
			index, err := place("vip", vipHash(addr(i)), uint32(lbLimitsMAX_VIPS), func(i uint32) bool { return used[i] })
			if err != nil {
				t.Fatalf("address %d: %v", i, err)
			}
			used[index] = true
		}
	})
	t.Run("pairs", func(t *testing.T) {
		used := map[uint32]bool{}
		for vip := range uint32(8) {
			for i := range int(lbLimitsMAX_PAIRS) / 8 {
				hash := pairHash(netip.AddrPortFrom(addr(i), 80), vip*511, lb.TCP)
				index, err := place("pair", hash, uint32(lbLimitsMAX_PAIR_KEYS), func(i uint32) bool { return used[i] })
				if err != nil {
					t.Fatalf("vip %d, backend %d: %v", vip, i, err)
				}
				used[index] = true
			}
		}
	})
}
