package testenv

import (
	"net"
	"net/netip"
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

// What is sent back is dropped at the switch and counted; nobody else hears it.
func TestFloodIsDroppedAtTheSwitch(t *testing.T) {
	lab := New(t, Default(1))
	const xdpTX = 3
	attachVerdict(t, lab.Host("lb1"), xdpTX)
	f, err := lab.Host("lb1").StartFlood(floodOfVIP)
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

// The packets are valid, from many sources, SYNs and ACKs.
func TestFloodPackets(t *testing.T) {
	lab := New(t, Default(1))
	h := lab.Host("lb1")
	const xdpPass = 2
	attachVerdict(t, h, xdpPass)
	var conn *packet.Conn
	err := h.Do(func() error {
		nic, err := net.InterfaceByName(DefaultInterface)
		if err != nil {
			return err
		}
		conn, err = packet.Listen(nic, packet.Raw, EtherTypeIPv4, nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }() // nothing of it is needed
	cfg := floodOfVIP
	cfg.Rate = 20000
	if _, err := h.StartFlood(cfg); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	const count = 400
	buf := make([]byte, 2048)
	flags, sources, hosts, sequences := map[TCPFlags]int{}, map[netip.AddrPort]bool{}, map[netip.Addr]bool{}, map[uint32]bool{}
	for range count {
		n, _, err := conn.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		frame := buf[:n]
		f, err := ParseFrame(frame)
		if err != nil {
			t.Fatal(err)
		}
		if err := VerifyChecksums(frame); err != nil {
			t.Fatalf("%+v: %v", f, err)
		}
		if f.Dst != cfg.Target || f.TOS != FloodMark || f.DstMAC.String() != h.MAC(DefaultInterface).String() || !cfg.Sources.Contains(f.Src.Addr()) {
			t.Fatalf("got %+v", f)
		}
		flags[f.Flags]++
		sources[f.Src], hosts[f.Src.Addr()], sequences[f.Seq] = true, true, true
	}
	// Half of 400, within five standard deviations.
	if flags[SYN]+flags[ACK] != count || flags[SYN] < 150 || flags[ACK] < 150 {
		t.Errorf("flags %v, want as many SYNs as ACKs", flags)
	}
	// Of 256 addresses 400 packets miss 54, give or take 5.
	if len(sources) < count*99/100 || len(sequences) < count*99/100 || len(hosts) < 150 {
		t.Errorf("%d sources on %d addresses with %d sequence numbers in %d packets", len(sources), len(hosts), len(sequences), count)
	}
}

func TestFloodThatCannotStart(t *testing.T) {
	lab := New(t, Default(1))
	for name, change := range map[string]func(*FloodConfig){
		"IPv6":        func(c *FloodConfig) { c.Target = netip.MustParseAddrPort("[2001:db8::100]:80") },
		"few sources": func(c *FloodConfig) { c.Sources = netip.MustParsePrefix("203.0.113.0/28") },
		"no rate":     func(c *FloodConfig) { c.Rate = 0 },
	} {
		cfg := floodOfVIP
		change(&cfg)
		if _, err := lab.Host("lb1").StartFlood(cfg); err == nil {
			t.Errorf("%s: it starts", name)
		}
	}
}
