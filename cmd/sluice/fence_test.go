package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/events"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// An asker asks from a host who has an address, and hears all who answer.
type asker struct {
	*rig
	conn *packet.Conn
	mac  net.HardwareAddr
	from netip.Addr // IPv4 or IPv6
}

func (r *rig) asker(on string) *asker { r.Helper(); return r.askerFrom(on, r.host(on).Address()) }

func (r *rig) askerFrom(on string, from netip.Addr) *asker {
	r.Helper()
	h := r.host(on)
	a := &asker{rig: r, mac: h.MAC("eth0"), from: from}
	protocol := unix.ETH_P_ARP
	if from.Is6() {
		protocol = unix.ETH_P_IPV6
	}
	if err := h.Do(func() error {
		nic, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		a.conn, err = packet.Listen(nic, packet.Raw, protocol, nil)
		return err
	}); err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { a.conn.Close() })
	return a
}

// answers asks once, and returns the nodes that answer, in order. All of them are
// asked by one frame: who is silent when an answer has come and a while has gone by
// does not answer.
func (a *asker) answers(address netip.Addr) []string {
	a.Helper()
	question := a.question(address)
	if _, err := a.conn.WriteTo(question, &packet.Addr{HardwareAddr: net.HardwareAddr(question[:6])}); err != nil {
		a.Fatal(err)
	}
	const while = 50 * time.Millisecond
	if err := a.conn.SetReadDeadline(time.Now().Add(while)); err != nil {
		a.Fatal(err)
	}
	var nodes []string
	buf := make([]byte, 2048)
	for {
		n, _, err := a.conn.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			a.Fatal(err)
		}
		if mac := a.answer(buf[:n], address); mac != nil {
			nodes = append(nodes, a.nodeOf(mac))
		}
	}
	slices.Sort(nodes)
	return slices.Compact(nodes)
}

// question is an ARP request, or a neighbour solicitation.
func (a *asker) question(address netip.Addr) []byte {
	a.Helper()
	var all []gopacket.SerializableLayer
	if address.Is4() {
		all = append(all, &layers.Ethernet{SrcMAC: a.mac, DstMAC: layers.EthernetBroadcast, EthernetType: layers.EthernetTypeARP},
			&layers.ARP{
				AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: layers.ARPRequest,
				SourceHwAddress: a.mac, SourceProtAddress: a.from.AsSlice(), DstHwAddress: make([]byte, 6), DstProtAddress: address.AsSlice(),
			})
	} else {
		last := address.AsSlice()[13:]
		ip := &layers.IPv6{
			Version: 6, NextHeader: layers.IPProtocolICMPv6, HopLimit: 255, SrcIP: a.from.AsSlice(),
			DstIP: append([]byte{0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff}, last...),
		}
		icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeNeighborSolicitation, 0)}
		if err := icmp.SetNetworkLayerForChecksum(ip); err != nil {
			a.Fatal(err)
		}
		all = append(all, &layers.Ethernet{SrcMAC: a.mac, DstMAC: append([]byte{0x33, 0x33, 0xff}, last...), EthernetType: layers.EthernetTypeIPv6},
			ip, icmp, &layers.ICMPv6NeighborSolicitation{
				TargetAddress: address.AsSlice(), Options: layers.ICMPv6Options{{Type: layers.ICMPv6OptSourceAddress, Data: a.mac}},
			})
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, all...); err != nil {
		a.Fatal(err)
	}
	return buf.Bytes()
}

// answer is the MAC address of who answers with a frame; announcements are no answers.
func (a *asker) answer(frame []byte, address netip.Addr) net.HardwareAddr {
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	if l, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP); ok {
		if l.Operation == layers.ARPReply && slices.Equal(l.SourceProtAddress, address.AsSlice()) && slices.Equal(l.DstProtAddress, a.from.AsSlice()) {
			return l.SourceHwAddress
		}
		return nil
	}
	if l, ok := p.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement); ok && l.Solicited() && l.TargetAddress.Equal(address.AsSlice()) {
		for _, o := range l.Options {
			if o.Type == layers.ICMPv6OptTargetAddress {
				return o.Data
			}
		}
	}
	return nil
}

func (a *asker) nodeOf(mac net.HardwareAddr) string {
	for _, node := range []string{"lb1", "lb2"} {
		if h := a.lab.Host(node); h != nil && slices.Equal(h.MAC("eth0"), mac) {
			return node
		}
	}
	return mac.String()
}

// wait waits until one node alone answers, and returns when it was asked then.
func (a *asker) wait(address netip.Addr, node string) time.Time {
	a.Helper()
	var asked time.Time
	a.eventually(soon, node+" alone answering", func() (bool, error) {
		asked = time.Now()
		if got := a.answers(address); !slices.Equal(got, []string{node}) {
			return false, fmt.Errorf("%v answer", got)
		}
		return true, nil
	})
	return asked
}

// stays fails unless the node alone answers each of some requests.
func (a *asker) stays(address netip.Addr, node string) {
	a.Helper()
	for range 10 {
		if got := a.answers(address); !slices.Equal(got, []string{node}) && len(got) > 0 {
			a.Fatalf("%v answer, want %s alone", got, node)
		}
	}
}

// fencedPackets is how often a node's program has kept a question from the kernel.
func fencedPackets(s control.Status) uint64 {
	for _, o := range s.Outcomes {
		if o.Name == "fenced" {
			return o.Packets
		}
	}
	return 0
}

// leftOn is the status of a node whose daemon is dead.
func (r *rig) leftOn(node, file string) string {
	r.Helper()
	return r.wantRun(0, node, "status", "-c", file, "--node", node).stdout
}

// A daemon that is killed while its cable is plugged in leaves the VIP with a kernel
// that would answer for it for ever. The survivor alone answers, from its takeover on;
// what still comes to the dead node is forwarded; the status says all of it; and a
// daemon that comes back has its VIP back.
func TestKilledWithTheLinkUpNobodyElseAnswers(t *testing.T) {
	r := webRig(t, 3)
	file := r.usual()
	daemons := r.startPair(file)
	ask := r.asker("client")
	ask.wait(vip, "lb1")

	killed := time.Now()
	r.kill(daemons["lb1"])
	// The kernel answers as long as nobody else does.
	if got := ask.answers(vip); !slices.Equal(got, []string{"lb1"}) && time.Since(killed) < takeover/2 {
		t.Errorf("%v answer right after the kill, want lb1", got)
	}
	r.eventually(soon, "the VIP on lb2", func() (bool, error) { return r.has("lb2", vip), nil })
	took := time.Now()
	alone := ask.wait(vip, "lb2")
	t.Logf("lb2 had the VIP %v after the kill; it alone was known to answer %v after it", took.Sub(killed), alone.Sub(killed))
	// A second is for a busy machine, and for this test's own looking.
	if late := alone.Sub(killed); late > takeover+time.Second {
		t.Errorf("two nodes answered until %v after the kill", late)
	}
	ask.stays(vip, "lb2")
	if !r.has("lb1", vip) {
		t.Fatal("lb1 has no VIP any more: nothing is shown here")
	}
	// lb2 has asked who else answers, by now more than once.
	if i, err := instanceOf(r.mustStatus("lb2"), "VI_1"); err != nil || len(i.Alarms) > 0 {
		t.Errorf("alarms of lb2: %q, %v", i.Alarms, err)
	}

	out := r.leftOn("lb1", file)
	for _, want := range []string{
		"sluice is not running, forwarding goes on\ndead since ", " ago\n", "vip 192.0.2.100/24 is left on eth0\n",
		"vrrp VI_1, virtual router 51 on eth0: fenced: " + r.host("lb2").MAC("eth0").String() + " has taken over",
		"does not answer for 192.0.2.100, 192.0.2.101\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("status of the dead node does not say %q:\n%s", want, out)
		}
	}

	// Forwarding goes on: whoever has an old entry still gets through.
	if err := r.host("client").Netlink().NeighSet(&netlink.Neigh{
		LinkIndex: r.linkIndex("client"), IP: vip.AsSlice(), HardwareAddr: r.host("lb1").MAC("eth0"), State: netlink.NUD_PERMANENT,
	}); err != nil {
		t.Fatal(err)
	}
	r.answers("client", dsrService, 10)

	r.start("lb1", file)
	ask.wait(vip, "lb1")
	r.waitVIP(soon, vip, "lb1", "lb2")
	ask.stays(vip, "lb1")
	if n := fencedPackets(r.mustStatus("lb1")); n == 0 {
		t.Error("lb1 has counted no question as fenced")
	}
	if n := fencedPackets(r.mustStatus("lb2")); n > 0 {
		t.Errorf("lb2 has counted %d questions as fenced", n)
	}
}

func (r *rig) linkIndex(node string) int {
	r.Helper()
	l, err := r.host(node).Netlink().LinkByName("eth0")
	if err != nil {
		r.Fatal(err)
	}
	return l.Attrs().Index
}

// A daemon that is killed and back before anybody can have missed it goes on: the VIP does
// not move away and back.
func TestKilledAndBackInTimeGoesOn(t *testing.T) {
	r := webRig(t, 1)
	const interval = 2 * time.Second // and nobody gives it up before three of these
	file := r.file("back.yaml", roster, pool("{address: 192.0.2.11}"), services(dsr), vrrps(
		`{name: VI_1, interface: eth0, virtual_router_id: 51, advertisement_interval: 2s, addresses: [192.0.2.100/24]}`))
	daemons := r.startPair(file)
	removals := r.watchRemovals("lb1")
	began := r.since("lb2", "VI_1")
	killed := time.Now()
	r.kill(daemons["lb1"])
	r.start("lb1", file)
	var first events.Event // of the new daemon's instance
	r.eventually(soon, "the instance takes part", func() (bool, error) {
		err := control.AskEvents(t.Context(), filepath.Join(r.host("lb1").RunDir, "sluice.sock"), 0, false, func(e events.Event) error {
			if e.Type == events.VRRPState && e.Time.After(killed) && first.Type == "" {
				first = e
			}
			return nil
		})
		return first.Type != "", err
	})
	if took := first.Time.Sub(killed); took > interval*3/2 {
		t.Skipf("the machine is busy: the daemon was back after %v", took)
	}
	if first.To != "active" || first.Text != "an earlier run was active until a moment ago" {
		t.Errorf("lb1 begins with: %v", first)
	}
	if gone := removals.stop(); len(gone) > 0 {
		t.Errorf("addresses were removed: %v", gone)
	}
	r.wantOnOneNode("lb1", time.Until(killed.Add(7*interval/2))) // lb2 would have taken over
	if now := r.since("lb2", "VI_1"); !now.Equal(began) {
		t.Errorf("lb2 has changed its state at %v", now)
	}
}

// IPv6 asks and answers in another way.
func TestKilledWithTheLinkUpNobodyElseAnswersIPv6(t *testing.T) {
	r := viaRig(t, 2)
	for _, name := range []string{"b1", "b2"} {
		r.lo(name, vip6, true)
	}
	file := r.file("six.yaml", pair6, vrrps(
		`{name: VI_1, interface: eth0, virtual_router_id: 51, advertisement_interval: 200ms, addresses: ["fe80::100/64", "2001:db8::100/64"]}`))
	daemon := r.start("lb1", file)
	r.start("lb2", file)
	r.waitReady("lb1")
	r.waitBackup("lb2")
	ask := r.askerFrom("client", netip.MustParseAddr("2001:db8::200"))
	ask.wait(vip6, "lb1")
	r.kill(daemon)
	ask.wait(vip6, "lb2")
	for _, a := range []netip.Addr{vip6, link6} {
		ask.stays(a, "lb2")
		if !r.has("lb1", a) {
			t.Fatalf("lb1 has %v no more: nothing is shown here", a)
		}
	}
	r.start("lb1", file)
	ask.wait(vip6, "lb1")
	if n := fencedPackets(r.mustStatus("lb1")); n == 0 {
		t.Error("lb1 has counted no question as fenced")
	}
}

// Without a taker nothing is silenced, however long the daemon is dead.
func TestKilledWithoutATakerGoesOnAnswering(t *testing.T) {
	r := webRig(t, 1)
	file := r.file("alone.yaml", roster, pool("{address: 192.0.2.11}"), services(dsr), vrrps(
		`{name: VI_1, interface: eth0, virtual_router_id: 51, advertisement_interval: 100ms, addresses: [192.0.2.100/24]}`))
	daemon := r.start("lb1", file)
	r.waitReady("lb1")
	ask := r.asker("client")
	ask.wait(vip, "lb1")
	r.kill(daemon)
	answered := 0
	for range 20 { // a second: ten intervals
		got := ask.answers(vip)
		if len(got) > 0 {
			answered++
		}
	}
	if answered < 10 {
		t.Errorf("%d of 20 questions to a node without a daemon were answered", answered)
	}
	if out := r.leftOn("lb1", file); !strings.Contains(out, "not fenced: nobody else was seen, this node answers for 192.0.2.100\n") {
		t.Errorf("status of the dead node says:\n%s", out)
	}
	r.start("lb1", file)
	r.waitReady("lb1")
	ask.wait(vip, "lb1")
	if n := fencedPackets(r.mustStatus("lb1")); n > 0 {
		t.Errorf("%d questions were fenced", n)
	}
}

// The same beside a keepalived that takes over.
func TestKilledWithTheLinkUpBesideKeepalived(t *testing.T) {
	testenv.RequireRoot(t)
	testenv.RequireProgram(t, "keepalived")
	for _, d := range dialects {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel() // most of it is waiting
			r := webRig(t, 1)
			file := r.file("sluice.yaml", roster, pool("{address: 192.0.2.11}"), services(dsr), fmt.Sprintf(
				"vrrp:\n  - {name: VI_1, interface: eth0, virtual_router_id: 51, %s, addresses: [192.0.2.100/24]}\n", d.sluice))
			daemon := r.start("lb1", file)
			r.waitReady("lb1")
			r.waitTakesPart("lb2", r.startKeepalived("lb2", d, 99))
			r.waitVIP(soon, vip, "lb1", "lb2")
			ask := r.asker("client")
			ask.wait(vip, "lb1")
			r.kill(daemon)
			ask.wait(vip, "lb2")
			ask.stays(vip, "lb2")
			if !r.has("lb1", vip) {
				t.Fatal("lb1 has no VIP any more: nothing is shown here")
			}
			r.start("lb1", file)
			r.waitVIP(soon, vip, "lb1", "lb2")
			ask.wait(vip, "lb1")
		})
	}
}

// A node that stands still for two seconds and goes on is not a second owner: not
// while it stands still, and not afterwards.
func TestStoppedAndContinuedNodeIsNoSecondOwner(t *testing.T) {
	for _, tc := range []struct{ name, preempt, holder, other string }{
		{"it takes the VIP back", "true", "lb1", "lb2"},
		{"without preemption it does not", "false", "lb2", "lb1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel() // most of it is waiting
			r := webRig(t, 1)
			file := r.file("stop.yaml", roster, pool("{address: 192.0.2.11}"), services(dsr), vrrps(
				`{name: VI_1, interface: eth0, virtual_router_id: 51, advertisement_interval: 100ms, preempt: `+tc.preempt+`, addresses: [192.0.2.100/24]}`))
			first := r.start("lb1", file)
			r.waitReady("lb1")
			r.start("lb2", file)
			r.waitBackup("lb2")
			ask := r.asker("client")
			ask.wait(vip, "lb1")

			if err := first.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			stopped := time.Now()
			ask.wait(vip, "lb2")
			for time.Since(stopped) < 2*time.Second {
				ask.stays(vip, "lb2")
			}
			if err := first.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			r.waitStatus("lb1", soon, "that it has let go", func(s control.Status) error {
				i, err := instanceOf(s, "VI_1")
				if err == nil && !i.Since.After(stopped.Add(2*time.Second)) {
					err = fmt.Errorf("%s since %v: %s", i.State, i.Since, i.Reason)
				}
				return err
			})
			r.waitVIP(soon, vip, tc.holder, tc.other)
			ask.wait(vip, tc.holder)
			r.wantOnOneNode(tc.holder, 2*time.Second)
			ask.stays(vip, tc.holder)
		})
	}
}
