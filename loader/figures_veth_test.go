package loader

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

const (
	liveRounds   = 7
	liveFlows    = int(liveLiveLimitsLIVE_FLOWS)
	liveBackends = 4
	// How long a measurement takes, more or less.
	liveTime = 500 * time.Millisecond
)

// TestVethFigures measures how many packets a second go in by one end of a veth,
// are forwarded by a node at the other end, and come out where they went in. One
// CPU does all of it: it makes the packets, forwards them and counts them. The
// cases take turns, as those of TestFigures do.
func TestVethFigures(t *testing.T) {
	if !*figures {
		t.Skip("measures only with -figures")
	}
	var spec testenv.Spec
	cases := []*liveCase{
		{name: "drop", start: (*liveCase).startDrop},
		{name: "dsr", start: (*liveCase).startSluice, forward: lb.DSR},
		{name: "tunnel", start: (*liveCase).startSluice, forward: lb.Tunnel},
		{name: "nat", start: (*liveCase).startSluice, forward: lb.NAT},
		{name: "nft_dnat", start: (*liveCase).startNftables},
	}
	for _, c := range cases {
		spec.Hosts = append(spec.Hosts, testenv.HostSpec{Name: c.name + "-out"}, testenv.HostSpec{Name: c.name})
	}
	lab := testenv.New(t, spec)
	pin(t)
	for _, c := range cases {
		c.T, c.outside, c.node = t, lab.Host(c.name+"-out"), lab.Host(c.name)
		c.wire()
		c.start(c)
		c.calibrate()
	}
	for range liveRounds {
		for _, c := range cases {
			c.rates = append(c.rates, c.rate(c.count))
		}
	}
	of := map[string]float64{}
	for _, c := range cases {
		slices.Sort(c.rates)
		of[c.name] = c.rates[len(c.rates)/2]
		fmt.Printf("figure: veth.%s.mpps %.3f mpps\n", c.name, of[c.name])
	}
	fmt.Printf("figure: veth.dsr_over_nft_dnat.ratio %.2f x\n", of["dsr"]/of["nft_dnat"])
}

// pin keeps this goroutine on one CPU until the test ends.
func pin(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	for cpu := range runtime.NumCPU() {
		if before.IsSet(cpu) {
			one.Set(cpu) // the last one: interrupts tend to be the first one's
			if one.Count() > 1 {
				one.Zero()
				one.Set(cpu)
			}
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.SchedSetaffinity(0, &before); err != nil {
			t.Error(err)
		}
		runtime.UnlockOSThread()
	})
}

// A liveCase is a node and the wire to it, whose outer end is in a namespace of
// its own.
type liveCase struct {
	*testing.T
	name          string
	start         func(*liveCase)
	forward       lb.Forward
	outside, node *testenv.Host

	programs     map[string]*ebpf.Program
	state        *ebpf.Map
	frames       *ebpf.Map
	outer, inner *net.Interface // ends of the wire
	want         liveLiveState  // what a frame that comes out must have
	count        int            // packets of a measurement
	rates        []float64      // millions a second
}

// vethName is what both ends of a wire are called.
const vethName = "eth0"

// wire joins the two, loads the programs, and fills in the frames.
func (c *liveCase) wire() {
	c.Helper()
	peer := netlink.NewLinkAttrs()
	peer.Name = vethName
	_, err := c.inside(c.node, func() error {
		ns, err := netnsOfThread()
		if err != nil {
			return err
		}
		defer unix.Close(ns)
		return c.outside.Netlink().LinkAdd(&netlink.Veth{LinkAttrs: peer, PeerName: vethName, PeerNamespace: netlink.NsFd(ns)})
	})
	if err != nil {
		c.Fatalf("make the wire of %s: %v", c.name, err)
	}
	c.outer, c.inner = c.up(c.outside), c.up(c.node)

	spec, err := loadLive()
	if err != nil {
		c.Fatal(err)
	}
	collection, err := ebpf.NewCollection(spec)
	if err != nil {
		c.Fatal(err)
	}
	c.Cleanup(collection.Close)
	c.programs, c.state, c.frames = collection.Programs, collection.Maps["live_state"], collection.Maps["live_frames"]
	c.fill(testenv.ACK)

	vip := vipIP.As4()
	mac := backendMAC(0)
	c.want = liveLiveState{
		Interface: uint32(c.outer.Index), Protocol: unix.IPPROTO_TCP, Mac: [5]uint8(mac[:5]),
		Destination: binary.LittleEndian.Uint32(vip[:]), Mask: ^uint32(0),
	}
}

func (c *liveCase) inside(h *testenv.Host, f func() error) (*net.Interface, error) {
	var nic *net.Interface
	err := h.Do(func() error {
		err := f()
		if err == nil {
			nic, _ = net.InterfaceByName(vethName) // there is none at first
		}
		return err
	})
	return nic, err
}

func netnsOfThread() (int, error) {
	return unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
}

// up sets an end of the wire up.
func (c *liveCase) up(h *testenv.Host) *net.Interface {
	c.Helper()
	l, err := h.Netlink().LinkByName(vethName)
	if err == nil {
		err = h.Netlink().LinkSetUp(l)
	}
	if err != nil {
		c.Fatal(err)
	}
	nic, err := c.inside(h, func() error { return nil })
	if err != nil || nic == nil {
		c.Fatalf("find %s of %s: %v", vethName, h.Name, err)
	}
	return nic
}

// fill makes a frame of each flow.
func (c *liveCase) fill(flags testenv.TCPFlags) {
	c.Helper()
	keys, frames := make([]uint32, liveFlows), make([]liveLiveFrame, liveFlows)
	for i := range frames {
		f := toVIP(func(f *testenv.Frame) {
			f.DstMAC, f.SrcMAC, f.Flags = c.inner.HardwareAddr, c.outer.HardwareAddr, flags
			f.Src = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(1 + i%128)}), uint16(20000+i/128))
			f.Payload = make([]byte, int(liveLiveLimitsLIVE_LENGTH)-54)
		}).Bytes()
		keys[i] = uint32(i)
		for w := range frames[i].Words {
			frames[i].Words[w] = binary.LittleEndian.Uint64(f[8*w:])
		}
	}
	if _, err := c.frames.BatchUpdate(keys, frames, nil); err != nil {
		c.Fatal(err)
	}
}

// put attaches a program to an end of the wire.
func (c *liveCase) put(h *testenv.Host, nic *net.Interface, program string) {
	c.Helper()
	var l link.Link
	_, err := c.inside(h, func() (err error) {
		l, err = link.AttachXDP(link.XDPOptions{Program: c.programs[program], Interface: nic.Index, Flags: link.XDPDriverMode})
		return err
	})
	if err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() { _ = l.Close() }) // its namespace is gone soon
}

// startDrop has frames dropped as soon as they arrive: what is left is the cost of
// making them and of the wire.
func (c *liveCase) startDrop() {
	c.want.Mac = [5]uint8(c.inner.HardwareAddr[:5])
	c.put(c.node, c.inner, "live_count")
}

// startSluice has a data plane forward them.
func (c *liveCase) startSluice() {
	bs := backends(liveBackends, 80)
	for i := range bs {
		bs[i].NextHop.Interface, bs[i].NextHop.Source = c.inner.Index, [6]byte(c.inner.HardwareAddr)
	}
	switch c.forward {
	case lb.Tunnel:
		c.want.Protocol = unix.IPPROTO_IPIP
		fallthrough
	case lb.NAT:
		c.toBackends()
	}
	d := newDatapath(c.T, service("web", c.forward, 80, bs))
	if _, err := c.inside(c.node, func() error {
		_, err := d.Attach([]string{vethName}, Native)
		return err
	}); err != nil {
		c.Fatal(err)
	}
	c.put(c.outside, c.outer, "live_count")
	if c.forward != lb.NAT {
		return
	}
	c.fill(testenv.SYN)
	c.send(liveFlows)
	if open := openFlows(c.T, d, liveBackends); open != liveFlows {
		c.Fatalf("%d flows are open, want %d", open, liveFlows)
	}
	c.fill(testenv.ACK)
}

// toBackends says that frames come out with a backend's address.
func (c *liveCase) toBackends() {
	network := backendAddr(0).As4()
	network[3] = 0
	c.want.Destination, c.want.Mask = binary.LittleEndian.Uint32(network[:]), binary.LittleEndian.Uint32([]byte{255, 255, 255, 192})
}

// startNftables has the kernel forward them, with nftables' DNAT and connection
// tracking, to the same backends by the same wire.
func (c *liveCase) startNftables() {
	c.toBackends()
	c.put(c.node, c.inner, "live_pass")
	// A program on a veth switches GRO on. No two packets here can be merged, so all
	// that it does is cost the kernel time.
	if _, err := c.inside(c.node, func() error { return switchGROOff(vethName) }); err != nil {
		c.Fatal(err)
	}
	c.put(c.outside, c.outer, "live_count")
	for _, s := range [][2]string{
		{"net/ipv4/conf/all/send_redirects", "0"},
		{"net/ipv4/conf/" + vethName + "/send_redirects", "0"},
		{"net/ipv4/conf/all/rp_filter", "0"},
		{"net/ipv4/conf/" + vethName + "/rp_filter", "0"},
		{"net/ipv4/ip_forward", "1"},
	} {
		if err := c.node.Sysctl(s[0], s[1]); err != nil {
			c.Fatal(err)
		}
	}
	nl := c.node.Netlink()
	l, err := nl.LinkByName(vethName)
	if err != nil {
		c.Fatal(err)
	}
	must := func(err error) {
		c.Helper()
		if err != nil {
			c.Fatal(err)
		}
	}
	must(nl.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(192, 0, 2, 1), Mask: net.CIDRMask(24, 32)}}))
	must(nl.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: vipIP.AsSlice(), Mask: net.CIDRMask(32, 32)}}))
	client := backendMAC(200)
	must(nl.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.IPv4(192, 0, 2, 200), HardwareAddr: hardware(client)}))
	must(nl.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.IPv4(192, 0, 2, 200)}))
	var ways []string
	for i := 1; i <= liveBackends; i++ {
		ways = append(ways, fmt.Sprintf("%d : %v", i-1, backendAddr(i)))
		must(nl.NeighSet(&netlink.Neigh{
			LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: backendAddr(i).AsSlice(), HardwareAddr: hardware(backendMAC(i)),
		}))
	}
	rules := fmt.Sprintf(`table ip bench {
	chain prerouting {
		type nat hook prerouting priority dstnat
		ip daddr %v tcp dport 80 dnat to jhash ip saddr . tcp sport mod %d map { %s }
	}
}`, vipIP, liveBackends, strings.Join(ways, ", "))
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := c.node.Do(cmd.Run); err != nil {
		c.Fatalf("nft: %v\n%s", err, &out)
	}
	// Each connection's first packet makes its entry.
	c.send(liveFlows)
}

// calibrate finds out how many packets a measurement takes.
func (c *liveCase) calibrate() {
	c.Helper()
	rate := c.rate(8 * liveFlows)
	c.count = max(8, int(rate*1e6*liveTime.Seconds())/liveFlows) * liveFlows
}

// rate sends packets and returns how many came out, in millions a second. Setting
// up a run takes milliseconds and is left out: time is counted from the first round
// through all flows to the last one.
func (c *liveCase) rate(count int) float64 {
	c.Helper()
	s := c.send(count)
	rounds := (s.Sent - 1) / uint64(liveFlows)
	return float64(rounds*uint64(liveFlows)) / float64(s.Last-s.First) * 1e3
}

// send sends packets to all flows in turn. It fails unless every one came out, and
// as it should.
func (c *liveCase) send(count int) liveLiveState {
	c.Helper()
	if err := put(c.state, 0, &c.want); err != nil {
		c.Fatal(err)
	}
	if err := c.outside.Do(func() error {
		_, err := c.programs["live_generate"].Run(&ebpf.RunOptions{
			Data: make([]byte, liveLiveLimitsLIVE_LENGTH), Repeat: uint32(count), Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES,
		})
		return err
	}); err != nil {
		c.Fatalf("veth.%s: send live frames: %v", c.name, err)
	}
	var s liveLiveState
	testenv.Eventually(c.T, time.Second, "the last packets to come out", func() (bool, error) {
		err := c.state.Lookup(uint32(0), &s)
		return s.Right+s.Wrong >= s.Sent, err
	})
	if s.Sent < uint64(count) || s.Right != s.Sent || s.Wrong != 0 {
		c.Fatalf("veth.%s: of %d packets %d were sent, %d came out, and %d wrong ones", c.name, count, s.Sent, s.Right, s.Wrong)
	}
	return s
}

// switchGROOff is `ethtool -K IF gro off`.
func switchGROOff(name string) error {
	const sgro = 0x2c // ETHTOOL_SGRO of linux/ethtool.h
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	value := struct{ Command, Data uint32 }{sgro, 0}
	request := struct {
		Name [unix.IFNAMSIZ]byte
		Data unsafe.Pointer
		_    [16]byte
	}{Data: unsafe.Pointer(&value)}
	copy(request.Name[:], name)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); e != 0 {
		return fmt.Errorf("switch GRO off on %s: %w", name, e)
	}
	return nil
}
