package loader

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// foreign attaches somebody else's program.
func (n *node) foreign(attach func(nic *net.Interface, p *ebpf.Program) (func() error, error)) {
	n.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "foreign", Type: ebpf.XDP, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, xdpPass), asm.Return()},
	})
	if err != nil {
		n.Fatal(err)
	}
	var remove func() error
	err = n.host.Do(func() error {
		nic, err := net.InterfaceByName("eth0")
		if err == nil {
			remove, err = attach(nic, p)
		}
		return err
	})
	if err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() {
		if err := n.host.Do(remove); err != nil {
			n.Error(err)
		}
		if err := p.Close(); err != nil {
			n.Error(err)
		}
	})
}

// Somebody else's program stays, and the error names it.
func TestAttachForeignProgram(t *testing.T) {
	byLink := func(flags link.XDPAttachFlags) func(*net.Interface, *ebpf.Program) (func() error, error) {
		return func(nic *net.Interface, p *ebpf.Program) (func() error, error) {
			l, err := link.AttachXDP(link.XDPOptions{Program: p, Interface: nic.Index, Flags: flags})
			if err != nil {
				return nil, err
			}
			return l.Close, nil
		}
	}
	byNetlink := func(nic *net.Interface, p *ebpf.Program) (func() error, error) {
		l, err := netlink.LinkByIndex(nic.Index)
		if err != nil {
			return nil, err
		}
		return func() error { return netlink.LinkSetXdpFd(l, -1) }, netlink.LinkSetXdpFd(l, p.FD())
	}
	tests := []struct {
		name   string
		attach func(*net.Interface, *ebpf.Program) (func() error, error)
	}{
		{"native link", byLink(link.XDPDriverMode)},
		{"generic link", byLink(link.XDPGenericMode)},
		{"netlink", byNetlink},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t)
			n.foreign(tc.attach)
			program := n.program("eth0")
			d := n.open()
			defer n.close(d)
			for _, mode := range []Mode{Auto, Native, Generic} {
				_, err := n.attach(d, mode, "eth0")
				if err == nil || !strings.Contains(err.Error(), "attach to eth0: ") || !strings.Contains(err.Error(), "another XDP program") {
					t.Errorf("%s: error %v, want one that names another XDP program on eth0", mode, err)
				}
				if got := n.program("eth0"); got != program {
					t.Errorf("%s: program %d is on the interface, want %d", mode, got, program)
				}
			}
		})
	}
}

// An interface without native XDP gets generic, with a warning, and a name with a
// dot is no obstacle to its pin.
func TestAttachGeneric(t *testing.T) {
	n := newNode(t)
	const upper = "eth0.100"
	n.addMacvlan("eth0", upper)
	d := n.open()
	if _, err := n.attach(d, Native, upper); err == nil {
		t.Error("an interface without native XDP was attached in native mode")
	}
	check := func(what string, d *Datapath) {
		t.Helper()
		got := n.mustAttach(d, Auto, upper)
		if got[0].Mode != Generic || !strings.Contains(got[0].Warning, upper+": no native XDP") {
			t.Errorf("%s: %+v", what, got[0])
		}
	}
	check("attached", d)
	if !strings.Contains(n.logs.String(), "level=WARN") {
		t.Errorf("no warning is logged:\n%s", n.logs)
	}
	check("again", d)
	n.close(d)
	d = n.open()
	check("adopted", d)
	if got := n.mustAttach(d, Generic, upper)[0]; got.Warning != "" {
		t.Errorf("a warning where generic mode was asked for: %s", got.Warning)
	}
	n.close(d)
	if diff := cmp.Diff([]string{upper}, n.detach()); diff != "" {
		t.Errorf("freed (-want +got):\n%s", diff)
	}
}

func TestAttachRefuses(t *testing.T) {
	n := newNode(t)
	d := n.open()
	defer n.close(d)
	for name, want := range map[string]string{
		"lo":   "no Ethernet address",
		"eth9": "ip link shows what there is",
	} {
		if _, err := n.attach(d, Auto, name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want one with %q", name, err, want)
		}
	}
}

// Another mode attaches anew; auto keeps what is there.
func TestAttachModes(t *testing.T) {
	n := newNode(t)
	for i, reopen := range []bool{false, true} {
		d := n.open()
		for _, step := range []struct{ ask, want Mode }{
			{Auto, Native}, {Generic, Generic}, {Auto, Generic}, {Native, Native}, {Native, Native}, {Auto, Native},
		} {
			if reopen {
				n.close(d)
				d = n.open()
			}
			got := n.mustAttach(d, step.ask, "eth0")
			if got[0].Mode != step.want {
				t.Errorf("round %d: %s was asked for, got %s", i, step.ask, got[0].Mode)
			}
			if n.program("eth0") == 0 {
				t.Errorf("round %d: no program is on the interface", i)
			}
		}
		n.close(d)
	}
}

// Interfaces that are not named any more are freed, and forgotten.
func TestAttachFreesOthers(t *testing.T) {
	n := newNode(t)
	n.addVeth("x0")
	n.addVeth("x1")
	d := n.open()
	n.mustAttach(d, Auto, "eth0", "x0", "x1")
	n.mustAttach(d, Auto, "eth0", "x1")
	if n.program("x0") != 0 || n.program("x1") == 0 {
		t.Errorf("programs: x0 %d, x1 %d", n.program("x0"), n.program("x1"))
	}
	n.close(d)
	d = n.open()
	defer n.close(d)
	n.mustAttach(d, Auto, "eth0")
	if n.program("x1") != 0 || n.program("eth0") == 0 {
		t.Errorf("programs: x1 %d, eth0 %d", n.program("x1"), n.program("eth0"))
	}
	if got := used(d.tables.arrays.Interfaces[:]); got != 1 {
		t.Errorf("%d interfaces are known, want 1", got)
	}
	links, err := pinnedLinks(n.host.PinDir)
	if diff := cmp.Diff([]string{"eth0"}, links); diff != "" || err != nil {
		t.Errorf("pinned links: %v (-want +got):\n%s", err, diff)
	}
}

// An interface that is deleted and made anew under its name is told apart, and
// attached again, by the daemon that knew it and by the next.
func TestAttachInterfaceMadeAnew(t *testing.T) {
	n := newNode(t)
	n.addVeth("x0")
	d := n.open()
	n.mustAttach(d, Auto, "eth0", "x0")
	refresh := func() error { return n.host.Do(d.RefreshInterfaces) }
	if err := refresh(); err != nil {
		t.Fatal(err)
	}
	for _, reopen := range []bool{false, true} {
		n.delLink("x0")
		if err := refresh(); err == nil || !strings.Contains(err.Error(), "x0") {
			t.Errorf("refreshed with x0 gone: %v", err)
		}
		if _, err := n.attach(d, Auto, "eth0", "x0"); err == nil {
			t.Error("attached to an interface that is gone")
		}
		n.addVeth("x0")
		if err := refresh(); err == nil || !strings.Contains(err.Error(), "x0") {
			t.Errorf("refreshed with another x0: %v", err)
		}
		if reopen {
			n.close(d)
			d = n.open()
		}
		got := n.mustAttach(d, Auto, "eth0", "x0")
		if got[1].Index != n.link("x0").Attrs().Index || n.program("x0") == 0 {
			t.Errorf("attached %+v, program %d", got[1], n.program("x0"))
		}
		if err := refresh(); err != nil {
			t.Error(err)
		}
		if got := used(d.tables.arrays.Interfaces[:]); got != 2 {
			t.Errorf("%d interfaces are known, want 2", got)
		}
	}
	n.close(d)
}

// A NIC whose MAC address changes takes frames to the new one after a refresh.
func TestRefreshInterfaces(t *testing.T) {
	n := newNode(t)
	d := n.open()
	defer n.close(d)
	apply(t, d, n.services(lb.DSR)...)
	n.mustAttach(d, Auto, "eth0")
	mac := net.HardwareAddr{2, 0, 0, 0, 7, 7}
	if err := n.host.Netlink().LinkSetHardwareAddr(n.link("eth0"), mac); err != nil {
		t.Fatal(err)
	}
	if err := n.host.Do(d.RefreshInterfaces); err != nil {
		t.Fatal(err)
	}
	s := n.newSender()
	if err := s.send(); err != nil { // to the old address
		t.Fatal(err)
	}
	testenv.Eventually(t, 5*time.Second, "the frame to the old address to pass", func() (bool, error) {
		return outcomes(t, d)["other_mac"] > 0, nil
	})
	index := n.link("eth0").Attrs().Index
	have := *d.tables.nic(index)
	if diff := cmp.Diff(lbInterface{Index: uint32(index), Mac: [6]byte(mac)}, have, cmp.AllowUnexported(lbInterface{})); diff != "" {
		t.Errorf("interface (-want +got):\n%s", diff)
	}
}

func TestInspect(t *testing.T) {
	n := newNode(t)
	d := n.open()
	apply(t, d, n.services(lb.NAT)...)
	n.mustAttach(d, Auto, "eth0")
	want := stats(t, d)
	want.Services[0].Name = "" // the configuration's
	n.close(d)
	var got Inspection
	err := n.host.Do(func() error {
		var err error
		got, err = Inspect(n.host.PinDir)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Attachment{{Interface: "eth0", Index: n.link("eth0").Attrs().Index, Mode: Native}}, got.Attachments); diff != "" {
		t.Errorf("attachments (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want.Services, got.Stats.Services, equateAddrs); diff != "" {
		t.Errorf("services (-want +got):\n%s", diff)
	}
}
