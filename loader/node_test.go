package loader

import (
	"log/slog"
	"net/netip"
	"sync"
	"testing"

	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// A node is lb1 of a lab with a client and one backend: everything runs in its
// network namespace, and its pins are on a BPF file system of its own.
type node struct {
	*testing.T
	lab  *testenv.Lab
	host *testenv.Host
	logs *recorder
}

func newNode(t *testing.T) *node {
	t.Helper()
	lab := testenv.New(t, testenv.Default(1))
	return &node{T: t, lab: lab, host: lab.Host("lb1"), logs: &recorder{}}
}

// A recorder keeps what is logged.
type recorder struct {
	mu   sync.Mutex
	text []byte
}

func (r *recorder) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.text = append(r.text, b...)
	return len(b), nil
}

func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return string(r.text)
}

// try opens the pinned data plane; the test closes it.
func (n *node) try(change func(*Options)) (*Datapath, error) {
	n.Helper()
	o := Options{PinDir: n.host.PinDir, MaxFlows: 10000, Ports: allPorts, Log: slog.New(slog.NewTextHandler(n.logs, nil))}
	if change != nil {
		change(&o)
	}
	var d *Datapath
	err := n.host.Do(func() error {
		var err error
		d, err = Open(o)
		return err
	})
	return d, err
}

func (n *node) open() *Datapath {
	n.Helper()
	d, err := n.try(nil)
	if err != nil {
		n.Fatal(err)
	}
	return d
}

func (n *node) close(d *Datapath) {
	n.Helper()
	if err := d.Close(); err != nil {
		n.Fatal(err)
	}
}

func (n *node) attach(d *Datapath, mode Mode, interfaces ...string) ([]Attachment, error) {
	n.Helper()
	var done []Attachment
	err := n.host.Do(func() error {
		var err error
		done, err = d.Attach(interfaces, mode)
		return err
	})
	return done, err
}

func (n *node) mustAttach(d *Datapath, mode Mode, interfaces ...string) []Attachment {
	n.Helper()
	done, err := n.attach(d, mode, interfaces...)
	if err != nil {
		n.Fatal(err)
	}
	return done
}

func (n *node) detach() []string {
	n.Helper()
	var freed []string
	err := n.host.Do(func() error {
		var err error
		freed, err = Detach(n.host.PinDir)
		return err
	})
	if err != nil {
		n.Fatal(err)
	}
	return freed
}

func (n *node) link(name string) netlink.Link {
	n.Helper()
	l, err := n.host.Netlink().LinkByName(name)
	if err != nil {
		n.Fatalf("find %s: %v", name, err)
	}
	return l
}

// program returns the number of the XDP program on an interface, 0 for none.
func (n *node) program(name string) uint32 {
	n.Helper()
	if x := n.link(name).Attrs().Xdp; x != nil && x.Attached {
		return x.ProgId
	}
	return 0
}

// addVeth makes a pair of interfaces on the node, both up.
func (n *node) addVeth(name string) {
	n.Helper()
	nl := n.host.Netlink()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := nl.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name + "peer"}); err != nil {
		n.Fatal(err)
	}
	for _, name := range []string{name, name + "peer"} {
		if err := nl.LinkSetUp(n.link(name)); err != nil {
			n.Fatal(err)
		}
	}
}

func (n *node) delLink(name string) {
	n.Helper()
	if err := n.host.Netlink().LinkDel(n.link(name)); err != nil {
		n.Fatal(err)
	}
}

// addMacvlan makes an interface on top of another, which has no native XDP.
func (n *node) addMacvlan(parent, name string) {
	n.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = name, n.link(parent).Attrs().Index
	if err := n.host.Netlink().LinkAdd(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}); err != nil {
		n.Fatal(err)
	}
	if err := n.host.Netlink().LinkSetUp(n.link(name)); err != nil {
		n.Fatal(err)
	}
}

// services returns a service of the lab's VIP on its backend b1.
func (n *node) services(forward lb.Forward) []lb.ServiceState {
	n.Helper()
	s := service("web", forward, 80, nil)
	s.Addresses = []lb.Frontend{lb.FrontendOf(netip.AddrPortFrom(testenv.VIP, 80))}
	s.SourceAddresses = []netip.Addr{testenv.VIP}
	b1 := n.lab.Host("b1")
	s.Backends = []lb.Backend{{
		Address: netip.AddrPortFrom(b1.Address(), 80), Weight: 1,
		NextHop: lb.NextHop{
			Interface: n.link("eth0").Attrs().Index, Destination: [6]byte(b1.MAC("eth0")), Source: [6]byte(n.host.MAC("eth0")),
		},
	}}
	return []lb.ServiceState{s}
}

// A sender sends packets of the client to the VIP, straight to the node.
type sender struct {
	*node
	conn *packet.Conn
}

func (n *node) newSender() *sender {
	n.Helper()
	client := n.lab.Host("client")
	s := &sender{node: n}
	err := client.Do(func() error {
		nic, err := netInterface("eth0")
		if err != nil {
			return err
		}
		s.conn, err = packet.Listen(nic, packet.Raw, testenv.EtherTypeIPv4, nil)
		return err
	})
	if err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() { _ = s.conn.Close() }) // nothing is read from it
	return s
}

// send sends one data packet.
func (s *sender) send() error {
	client := s.lab.Host("client")
	f := testenv.Frame{
		DstMAC: s.host.MAC("eth0"), SrcMAC: client.MAC("eth0"), Flags: testenv.ACK, Payload: []byte("data"),
		Src: netip.AddrPortFrom(client.Address(), 40000), Dst: netip.AddrPortFrom(testenv.VIP, 80),
	}
	_, err := s.conn.WriteTo(f.Bytes(), &packet.Addr{HardwareAddr: f.DstMAC})
	return err
}
