package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"

	"github.com/sluice-lb/sluice/internal/testenv"
)

var (
	decapVIP4    = netip.MustParseAddr("192.0.2.100")
	decapVIP6    = netip.MustParseAddr("2001:db8::100")
	decapClient4 = netip.MustParseAddr("198.51.100.7")
	decapClient6 = netip.MustParseAddr("2001:db8:1::7")
	decapNode4   = netip.MustParseAddr("192.0.2.1")
	decapNode6   = netip.MustParseAddr("2001:db8::1")
	decapHost4   = netip.MustParseAddr("192.0.2.11")
	decapHost6   = netip.MustParseAddr("2001:db8::11")
)

// A decapRig is a node, which sends tunnel packets, and a backend with the VIPs on
// lo and a server on them. The clients are behind the node.
type decapRig struct {
	*rig
	backend *testenv.Host
	conn    *packet.Conn // of the node
	port    uint16       // of the next client
	started int          // how often decap was called
}

func newDecapRig(t *testing.T) *decapRig {
	t.Helper()
	spec := testenv.Spec{IPv6: true, Hosts: []testenv.HostSpec{
		{Name: "node", Interfaces: []testenv.InterfaceSpec{{Addresses: []netip.Prefix{
			netip.PrefixFrom(decapNode4, 24), netip.PrefixFrom(decapNode6, 64)}}}},
		{Name: "b1", Node: true, Interfaces: []testenv.InterfaceSpec{{Addresses: []netip.Prefix{
			netip.PrefixFrom(decapHost4, 24), netip.PrefixFrom(decapHost6, 64)}}},
			Routes: []testenv.RouteSpec{{Via: decapNode4}, {Via: decapNode6}}},
	}}
	r := &decapRig{rig: newRig(t, spec), port: 40000}
	r.backend = r.host("b1")
	for _, vip := range []netip.Addr{decapVIP4, decapVIP6} {
		if err := r.backend.AddVIPOnLoopback(vip); err != nil {
			t.Fatal(err)
		}
	}
	for _, address := range []string{"0.0.0.0:80", "[::]:80"} {
		network := "tcp4"
		if address[0] == '[' {
			network = "tcp6"
		}
		l, err := r.backend.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() }) // it has accepted nothing
	}
	err := r.host("node").Do(func() error {
		nic, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		const everything = 3 // ETH_P_ALL
		r.conn, err = packet.Listen(nic, packet.Raw, everything, nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.conn.Close() }) // nothing of it is needed
	return r
}

// syn is a SYN of a new client to a VIP, not in a tunnel yet.
func (r *decapRig) syn(vip netip.Addr) []byte {
	r.port++
	to, from := r.backend.MAC("eth0"), r.host("node").MAC("eth0")
	dst := netip.AddrPortFrom(vip, 80)
	if vip.Is4() {
		return testenv.Frame{DstMAC: to, SrcMAC: from, Src: netip.AddrPortFrom(decapClient4, r.port), Dst: dst,
			Flags: testenv.SYN, Seq: 1000, Window: 65535}.Bytes()
	}
	return testenv.Frame{DstMAC: to, SrcMAC: from, Src: netip.AddrPortFrom(decapClient6, r.port), Dst: dst,
		Flags: testenv.SYN, Seq: 1000, Window: 65535}.Bytes()
}

// answered sends a SYN through a tunnel and tells whether a SYN and ACK of the
// server came back within the time.
func (r *decapRig) answered(tunnel testenv.Tunnel, vip netip.Addr, within time.Duration) (bool, error) {
	frame, err := tunnel.Encapsulate(r.syn(vip))
	if err != nil {
		return false, err
	}
	if _, err := r.conn.WriteTo(frame, &packet.Addr{HardwareAddr: r.backend.MAC("eth0")}); err != nil {
		return false, err
	}
	if err := r.conn.SetReadDeadline(time.Now().Add(within)); err != nil {
		return false, err
	}
	buf := make([]byte, 2048)
	for {
		n, _, err := r.conn.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if r.isAnswer(buf[:n], vip) {
			return true, nil
		}
	}
}

// isAnswer tells whether a frame is the SYN and ACK for the last client.
func (r *decapRig) isAnswer(frame []byte, vip netip.Addr) bool {
	f, err := testenv.ParseFrame(frame)
	if err != nil || f.Protocol != testenv.ProtocolTCP {
		return false
	}
	client := decapClient4
	if vip.Is6() {
		client = decapClient6
	}
	return f.Src.Addr() == vip && f.Dst == netip.AddrPortFrom(client, r.port) && f.Flags == testenv.SYN|testenv.ACK
}

// waitAnswer sends SYNs until one is answered, or, with want false, until none is.
func (r *decapRig) waitAnswer(tunnel testenv.Tunnel, vip netip.Addr, want bool) {
	r.Helper()
	r.eventually(soon, fmt.Sprintf("an answer of %v through %v: %v", vip, tunnel.Dst, want), func() (bool, error) {
		ok, err := r.answered(tunnel, vip, 300*time.Millisecond)
		return ok == want, err
	})
}

var (
	tunnel4 = testenv.Tunnel{Src: decapNode4, Dst: decapHost4, DontFragment: true}
	tunnel6 = testenv.Tunnel{Src: decapNode6, Dst: decapHost6}
)

// removeAddress removes an address of the backend.
func (r *decapRig) removeAddress(iface string, p netip.Prefix) {
	r.Helper()
	link, err := r.backend.Netlink().LinkByName(iface)
	if err != nil {
		r.Fatal(err)
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if err := r.backend.Netlink().AddrDel(link, address); err != nil {
		r.Fatal(err)
	}
}

// decap starts `sluice decap` on the backend and waits until it decapsulates.
func (r *decapRig) decap(args ...string) *testenv.Process {
	r.Helper()
	// Each has a log of its own: what an earlier one has left looks like its work in the status.
	r.started++
	name := fmt.Sprintf("sluice-%d", r.started)
	p, err := r.backend.Start(name, sluice(r.backend, append([]string{"decap", "--interface", "eth0"}, args...)...))
	if err != nil {
		r.Fatal(err)
	}
	r.eventually(soon, "sluice decap", func() (bool, error) {
		select {
		case <-p.Done():
			return false, fmt.Errorf("%w: it has ended: %s", testenv.ErrGiveUp, p.Tail(10))
		default:
		}
		return strings.Contains(p.Tail(100), "msg=decapsulating"), nil
	})
	return p
}

func (r *decapRig) status() decapStatus {
	r.Helper()
	var s decapStatus
	if err := json.Unmarshal([]byte(r.wantRun(0, "b1", "decap", "--status", "--json").stdout), &s); err != nil {
		r.Fatal(err)
	}
	return s
}

func (s decapStatus) count(name string) uint64 {
	for _, o := range s.Outcomes {
		if o.Name == name {
			return o.Packets
		}
	}
	return 0
}

// decapPins returns what is pinned, by the name of the directory entry.
func (r *decapRig) decapPins() []string {
	r.Helper()
	entries, err := os.ReadDir(r.backend.PinDir + "-decap")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		r.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
