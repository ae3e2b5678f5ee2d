package testenv

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
)

// attachVerdict attaches a program that says the same of every packet.
func attachVerdict(t *testing.T, h *Host, verdict int32) {
	t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, verdict), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = prog.Close() }() // the interface holds it
	err = h.Do(func() error {
		nic, err := netlink.LinkByName(DefaultInterface)
		if err != nil {
			return err
		}
		return netlink.LinkSetXdpFd(nic, prog.FD())
	})
	if err != nil {
		t.Fatal(err)
	}
}

var floodOfVIP = FloodConfig{
	Target: netip.AddrPortFrom(VIP, 80), Sources: netip.MustParsePrefix("203.0.113.0/24"), Rate: 100000,
}

var floodOfVIP6 = FloodConfig{
	Target: netip.MustParseAddrPort("[2001:db8::100]:80"), Sources: netip.MustParsePrefix("2001:db8:1::/120"), Rate: 100000,
}

// What is sent back is dropped at the switch and counted; nobody else hears it.
func TestFloodIsDroppedAtTheSwitch(t *testing.T) {
	for name, cfg := range map[string]FloodConfig{"IPv4": floodOfVIP, "IPv6": floodOfVIP6} {
		t.Run(name, func(t *testing.T) { wantDropped(t, cfg) })
	}
}

func wantDropped(t *testing.T, cfg FloodConfig) {
	t.Helper()
	lab := New(t, Default(1))
	const xdpTX = 3
	attachVerdict(t, lab.Host("lb1"), xdpTX)
	f, err := lab.Host("lb1").StartFlood(cfg)
	if err != nil {
		t.Fatal(err)
	}
	const enough = 50000
	Eventually(t, 20*time.Second, "a flood", func() (bool, error) {
		r, err := f.Result()
		return r.Passed >= enough, err
	})
	r, err := f.Stop()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d sent, %d arrived, %d sent back in %v: %.0f a second", r.Sent, r.Arrived, r.Passed, r.Length, r.Rate())
	if r.Arrived < enough || r.Passed > r.Arrived {
		t.Errorf("%d arrived and %d were sent back, want %d or more, and no more than arrived", r.Arrived, r.Passed, enough)
	}
	heard, err := lab.Host("b1").received(DefaultInterface)
	if err != nil {
		t.Fatal(err)
	}
	if heard > enough/10 {
		t.Errorf("b1 has received %d packets", heard)
	}
	if again, err := f.Stop(); err != nil || again != r {
		t.Errorf("stopped again: %+v, %v; want %+v", again, err, r)
	}
}

// The packets are valid, from many sources, with either kind of flags.
func TestFloodPackets(t *testing.T) {
	const count = 400
	spec := Default(1)
	spec.IPv6 = true
	lab := New(t, spec)
	h := lab.Host("lb1")
	const xdpPass = 2
	attachVerdict(t, h, xdpPass)
	one := FloodConfig{
		Target: floodOfVIP.Target, Sources: netip.MustParsePrefix("192.0.2.200/32"), Flags: [2]TCPFlags{RST, RST | ACK}, SrcMAC: lab.Host("client").MAC("eth0"),
	}
	udp := func(cfg FloodConfig) FloodConfig { cfg.UDP = true; return cfg }
	for _, tc := range []struct {
		name      string
		cfg       FloodConfig
		flags     []TCPFlags
		addresses int // at least
	}{
		// Of 256 addresses 400 packets miss 54, give or take 5.
		{"IPv4", floodOfVIP, []TCPFlags{SYN, ACK}, 150},
		{"IPv6", floodOfVIP6, []TCPFlags{SYN, ACK}, 150},
		{"resets of one host", one, []TCPFlags{RST, RST | ACK}, 1},
		{"datagrams", udp(floodOfVIP), []TCPFlags{0}, 150},
		{"datagrams of IPv6", udp(floodOfVIP6), []TCPFlags{0}, 150},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.cfg.Rate = 20000
			from, protocol := tc.cfg.SrcMAC, uint8(ProtocolTCP)
			if from == nil {
				from = bridgeAddr(0)
			}
			if tc.cfg.UDP {
				protocol = ProtocolUDP
			}
			flags, sources, hosts, values := map[TCPFlags]int{}, map[netip.AddrPort]bool{}, map[netip.Addr]bool{}, map[string]bool{}
			for _, frame := range hearFlood(t, h, tc.cfg, count) {
				f, err := ParseFrame(frame)
				if err != nil {
					t.Fatal(err)
				}
				if err := VerifyChecksums(frame); err != nil {
					t.Fatalf("%+v: %v", f, err)
				}
				if f.Dst != tc.cfg.Target || f.DstMAC.String() != h.MAC(DefaultInterface).String() || f.SrcMAC.String() != from.String() ||
					!tc.cfg.Sources.Contains(f.Src.Addr()) || f.Protocol != protocol {
					t.Fatalf("got %+v", f)
				}
				flags[f.Flags]++
				sources[f.Src], hosts[f.Src.Addr()], values[fmt.Sprintf("%d %x", f.Seq, f.Payload)] = true, true, true
			}
			for _, want := range tc.flags {
				// Half of 400, within five standard deviations.
				if flags[want] < 150 {
					t.Errorf("flags %v, want as many of each of %v", flags, tc.flags)
				}
			}
			if len(flags) != len(tc.flags) {
				t.Errorf("flags %v, want %v", flags, tc.flags)
			}
			if len(sources) < count*98/100 || len(values) < count*99/100 || len(hosts) < tc.addresses {
				t.Errorf("%d sources on %d addresses with %d sequence numbers in %d packets", len(sources), len(hosts), len(values), count)
			}
		})
	}
}

// hearFlood floods a host and returns some of what it hears.
func hearFlood(t *testing.T, h *Host, cfg FloodConfig, count int) [][]byte {
	t.Helper()
	etherType := EtherTypeIPv4
	if cfg.Target.Addr().Is6() {
		etherType = EtherTypeIPv6
	}
	var conn *packet.Conn
	err := h.Do(func() error {
		nic, err := net.InterfaceByName(DefaultInterface)
		if err != nil {
			return err
		}
		conn, err = packet.Listen(nic, packet.Raw, etherType, nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }() // nothing of it is needed
	flood, err := h.StartFlood(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var heard [][]byte
	buf := make([]byte, 2048)
	for len(heard) < count {
		n, _, err := conn.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		if f, err := ParseFrame(buf[:n]); err == nil && f.TOS == FloodMark {
			heard = append(heard, slices.Clone(buf[:n]))
		}
	}
	if _, err := flood.Stop(); err != nil {
		t.Fatal(err)
	}
	return heard
}

func TestFloodThatCannotStart(t *testing.T) {
	lab := New(t, Default(1))
	for name, change := range map[string]func(*FloodConfig){
		"two families":     func(c *FloodConfig) { c.Target = netip.MustParseAddrPort("[2001:db8::100]:80") },
		"no target":        func(c *FloodConfig) { c.Target = netip.AddrPort{} },
		"too many sources": func(c *FloodConfig) { c.Sources = netip.MustParsePrefix("203.0.113.0/23") },
		"no rate":          func(c *FloodConfig) { c.Rate = 0 },
	} {
		cfg := floodOfVIP
		change(&cfg)
		if _, err := lab.Host("lb1").StartFlood(cfg); err == nil {
			t.Errorf("%s: it starts", name)
		}
	}
}
