package loader

import (
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

func netInterface(name string) (*net.Interface, error) { return net.InterfaceByName(name) }

// A daemon that ends and one that takes over lose nothing: tables, flows, links,
// and not one packet while it happens.
func TestAdopt(t *testing.T) {
	n := newNode(t)
	d := n.open()
	apply(t, d, n.services(lb.DSR)...)
	if got, want := n.mustAttach(d, Native, "eth0"), []Attachment{{Interface: "eth0", Index: n.link("eth0").Attrs().Index, Mode: Native}}; !cmp.Equal(got, want) {
		t.Fatalf("attached %+v, want %+v", got, want)
	}
	s := n.newSender()
	sent := uint64(0)
	stop, done := make(chan struct{}), make(chan error, 1)
	halt := sync.OnceValue(func() error { close(stop); return <-done })
	t.Cleanup(func() { _ = halt() }) // the test has asked already, or failed
	go func() {
		pace := time.NewTicker(200 * time.Microsecond)
		defer pace.Stop()
		for {
			select {
			case <-stop:
				done <- nil
				return
			case <-pace.C:
			}
			if err := s.send(); err != nil {
				done <- err
				return
			}
			sent++
		}
	}()

	programs := map[uint32]bool{n.program("eth0"): true}
	for range 5 {
		before := d.state
		n.close(d)
		d = n.open()
		if diff := diffStates(before, d.state); diff != "" {
			t.Fatalf("state (-before +adopted):\n%s", diff)
		}
		apply(t, d, n.services(lb.DSR)...)
		got := n.mustAttach(d, Auto, "eth0")
		if got[0].Mode != Native || got[0].Warning != "" {
			t.Errorf("adopted as %+v", got[0])
		}
		programs[n.program("eth0")] = true
	}
	if err := halt(); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 5*time.Second, "every packet to be forwarded", func() (bool, error) {
		return traffic(t, d).Packets == sent, nil
	})
	if got := outcomes(t, d); len(got) > 0 && (got["no_service"] > 0 || got["not_vip"] > 0) {
		t.Errorf("outcomes %v", got)
	}
	if len(programs) != 6 {
		t.Errorf("%d programs were on the interface, want 6: each daemon brings its own", len(programs))
	}
	if strings.Contains(n.logs.String(), "level=WARN") {
		t.Errorf("log:\n%s", n.logs)
	}
	n.close(d)
}

// NAT flows go on under the next daemon, and its tables' sizes are those of the
// first.
func TestAdoptFlows(t *testing.T) {
	n := newNode(t)
	d := n.open()
	apply(t, d, n.services(lb.NAT)...)
	names := func() int { return names(d) }
	view := viewPair(t, d, 1)
	view.flow(5000).State = uint32(lbNatStateNAT_ESTABLISHED)
	d.tables.buckets.store(3, 1<<32|1<<16|5000)
	seed := metaOf(t, d).NatSeed
	n.close(d)

	d, err := n.try(func(o *Options) { o.MaxFlows = 1000000 })
	if err != nil {
		t.Fatal(err)
	}
	defer n.close(d)
	if got := names(); got != 1 {
		t.Errorf("%d names, want 1", got)
	}
	if got := metaOf(t, d).NatSeed; got != seed {
		t.Errorf("the seed is %#x, was %#x: no flow would be found", got, seed)
	}
	if !strings.Contains(n.logs.String(), "max_flows has changed") {
		t.Errorf("no warning of a table that keeps its size:\n%s", n.logs)
	}
	apply(t, d, n.services(lb.NAT)...)
	if got := viewPair(t, d, 1).flow(5000).State; got != uint32(lbNatStateNAT_ESTABLISHED) {
		t.Errorf("the flow's state is %d", got)
	}
}

func metaOf(t *testing.T, d *Datapath) lbMeta {
	t.Helper()
	var m lbMeta
	if err := d.objects.Meta.Lookup(uint32(0), &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// A table of slots that is too small is replaced by a larger one with the same
// slots in it.
func TestAdoptGrowsSlots(t *testing.T) {
	n := newNode(t)
	d := n.open()
	apply(t, d, n.services(lb.DSR)...)
	before, size := d.state, d.objects.Slots.MaxEntries()
	n.close(d)
	d, err := n.try(func(o *Options) { o.Slots = int(size) })
	if err != nil {
		t.Fatal(err)
	}
	if got := d.objects.Slots.MaxEntries(); got != 2*size {
		t.Errorf("%d slots, want %d", got, 2*size)
	}
	if diff := diffStates(before, d.state); diff != "" {
		t.Errorf("state (-before +adopted):\n%s", diff)
	}
	n.close(d)
	d = n.open() // asks for fewer, and keeps them
	defer n.close(d)
	if got := d.objects.Slots.MaxEntries(); got != 2*size {
		t.Errorf("%d slots, want %d", got, 2*size)
	}
	if diff := diffStates(before, d.state); diff != "" {
		t.Errorf("state (-before +adopted):\n%s", diff)
	}
}

// Settings that the program knows as constants are those of the last daemon: it brings
// its own program, over the tables that are there.
func TestAdoptTakesNewSettings(t *testing.T) {
	n := newNode(t)
	d := n.open()
	if got := d.Fresh(); !got {
		t.Error("where nothing was pinned it is not fresh")
	}
	nat := service("nat", lb.NAT, 8080, backends(1, 8080))
	apply(t, d, tunnelService(v4Backend, 0), nat)
	store(d.tables.nic(nicIndex), lbInterface{Index: nicIndex, Mac: nicMAC})
	c := newConn(d, clientPort)
	c.service = netip.AddrPortFrom(vipIP, 8080)
	c.open(t)
	source := func() netip.Addr {
		t.Helper()
		_, out := send(t, d, toVIP().Bytes())
		outer, _, err := testenv.Decapsulate(out)
		if err != nil {
			t.Fatal(err)
		}
		return outer.Src
	}
	if got := source(); !DefaultTunnelSource4.Contains(got) {
		t.Errorf("the outer source is %v", got)
	}
	n.close(d)

	other := netip.MustParsePrefix("198.18.4.0/22")
	impatient := map[lbNatState]time.Duration{lbNatStateNAT_ESTABLISHED: 0}
	d, err := open(Options{
		PinDir: n.host.PinDir, MaxFlows: 10000, Ports: allPorts, TunnelSource4: other, Log: slog.New(slog.NewTextHandler(n.logs, nil)),
	}, impatient)
	if err != nil {
		t.Fatal(err)
	}
	defer n.close(d)
	if d.Fresh() {
		t.Error("what was adopted is fresh")
	}
	if got := source(); !other.Contains(got) {
		t.Errorf("the outer source is %v, want one of %v", got, other)
	}
	var pair uint32
	for i := range d.state.Pairs {
		pair = i
	}
	viewPair(t, d, pair).age(c.source.Port(), time.Minute)
	c.d = d
	if r := c.forward(t, testenv.ACK, "data"); r.Outcome != "no_flow" {
		t.Errorf("a connection that is idle for longer than it may be now: %s", r.Outcome)
	}
}

// What a daemon leaves that was killed while it pinned is no obstacle.
func TestOpenAfterACrash(t *testing.T) {
	n := newNode(t)
	d := n.open()
	apply(t, d, n.services(lb.DSR)...)
	n.mustAttach(d, Auto, "eth0")
	n.close(d)
	for _, move := range [][2]string{{"meta", "new-meta"}, {"link-eth0", "new-link-eth0"}} {
		if err := os.Rename(filepath.Join(n.host.PinDir, move[0]), filepath.Join(n.host.PinDir, move[1])); err != nil {
			t.Fatal(err)
		}
	}
	d = n.open()
	defer n.close(d)
	apply(t, d, n.services(lb.DSR)...)
	if got := n.mustAttach(d, Native, "eth0"); got[0].Mode != Native {
		t.Errorf("attached %+v", got)
	}
	left, err := filepath.Glob(filepath.Join(n.host.PinDir, freshPrefix+"*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestDetach(t *testing.T) {
	n := newNode(t)
	if got := n.detach(); len(got) != 0 {
		t.Errorf("freed %v where nothing was", got)
	}
	n.addVeth("x0")
	d := n.open()
	apply(t, d, n.services(lb.NAT)...)
	n.mustAttach(d, Auto, "eth0", "x0")
	id := ebpf.ProgramID(n.program("eth0"))
	n.close(d)
	n.delLink("x0")
	if diff := cmp.Diff([]string{"eth0"}, n.detach()); diff != "" {
		t.Errorf("freed (-want +got), x0 is gone:\n%s", diff)
	}
	if got := n.program("eth0"); got != 0 {
		t.Errorf("program %d is on the interface", got)
	}
	if _, err := os.Stat(n.host.PinDir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the pin directory is left: %v", err)
	}
	testenv.Eventually(t, 5*time.Second, "the program to be freed", func() (bool, error) {
		p, err := ebpf.NewProgramFromID(id)
		if errors.Is(err, fs.ErrNotExist) {
			return true, nil
		}
		if err == nil {
			err = p.Close()
		}
		return false, err
	})
	if got := n.detach(); len(got) != 0 {
		t.Errorf("freed %v a second time", got)
	}
	d = n.open() // and all begins anew
	defer n.close(d)
	if got := len(d.state.Services); got != 0 {
		t.Errorf("%d services are left", got)
	}
}

func TestPreparePinDir(t *testing.T) {
	testenv.RequireRoot(t)
	dir := filepath.Join(t.TempDir(), "a", "bpf")
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	for range 2 {
		if err := preparePinDir(dir); err != nil {
			t.Fatal(err)
		}
	}
	if on, err := onBPFFS(dir); err != nil || !on {
		t.Errorf("on a BPF file system: %v, %v", on, err)
	}
	below := filepath.Join(dir, "sluice")
	if err := preparePinDir(below); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(below); err != nil {
		t.Errorf("a directory on a BPF file system got one of its own: %v", err)
	}
	if freed, err := Detach(dir); err != nil || len(freed) > 0 {
		t.Errorf("detach on an empty BPF file system: %v, %v", freed, err)
	}
}

func TestLinkPath(t *testing.T) {
	for _, name := range []string{"eth0", "eth0.100", "bond_d", "a_.b", "a._b", "__", "x-new", "_d.", "new-eth0"} {
		base := filepath.Base(linkPath("/pins", name))
		if strings.Contains(base, ".") {
			t.Errorf("%s: %s has a dot", name, base)
		}
		if got := unescape.Replace(strings.TrimPrefix(base, linkPrefix)); got != name {
			t.Errorf("%s: it comes back as %s", name, got)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	testenv.RequireRoot(t)
	_, err := Open(Options{MaxFlows: MaxFlows + 1, Ports: allPorts})
	if err == nil || !strings.Contains(err.Error(), "max_flows") {
		t.Errorf("error %v, want one about max_flows", err)
	}
}
