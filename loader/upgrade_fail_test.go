package loader

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// attachedProgram is the program on an interface, to send packets through.
func (l *layout1) attachedProgram(name string) *Datapath {
	l.Helper()
	p, err := ebpf.NewProgramFromID(ebpf.ProgramID(l.program(name)))
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { _ = p.Close() }) // nothing is written through it
	return &Datapath{program: p}
}

// A daemon that is killed in an upgrade, at whatever step, leaves what the next one
// goes on from: connections, new ones too, are served all the time by whichever
// program is on an interface.
func TestUpgradeKilled(t *testing.T) {
	n := newNode(t)
	nat := service("nat", lb.NAT, 80, backends(2, 80))
	services := []lb.ServiceState{nat, service("dsr", lb.DSR, 443, backends(3, 443))}
	n.addVeth("x0")
	l := newLayout1(n, services, "eth0", "x0")
	dsr := dsrBackends(t, l.run)
	conns := l.beginAll(0, 1)
	established := conns[lbNatStateNAT_ESTABLISHED]
	killed := errors.New("killed")

	// serves makes a connection through the program of each interface, and has all
	// others go on there.
	serves := func(when string) {
		t.Helper()
		for _, name := range []string{"eth0", "x0"} {
			d := l.attachedProgram(name)
			for _, c := range established {
				c.d = d
				c.translates(t, testenv.ACK)
			}
			c := newConn(d, clientAddr(1000+len(established)))
			if !c.tryOpen(t) {
				t.Fatalf("%s: no new connection by %s", when, name)
			}
			established = append(established, c)
			if diff := cmp.Diff(dsr, dsrBackends(t, d)); diff != "" {
				t.Fatalf("%s: backends of dsr connections by %s (-want +got):\n%s", when, name, diff)
			}
		}
	}
	// kill starts a daemon that is killed at a step. What it holds of the maps goes;
	// pins and links stay.
	kill := func(step string) {
		t.Helper()
		reached := func(s string) error {
			if s == step {
				return killed
			}
			return nil
		}
		d, err := l.openNew(func(o *Options) { o.reached = reached })
		if err == nil {
			_, err = n.attach(d, Auto, "eth0", "x0")
			// So that test packets are taken.
			store(d.tables.nic(nicIndex), lbInterface{Index: nicIndex, Mac: nicMAC})
			n.close(d)
		}
		if !errors.Is(err, killed) {
			t.Fatalf("killed at %q: %v", step, err)
		}
		serves("killed at " + step)
	}

	for _, step := range []string{
		"filled", "pinned outcomes", "pinned meta", "pinned program", "attached to eth0", "attached to x0", "difference copied",
	} {
		kill(step)
		if layout, _, err := pinnedLayout(n.host.PinDir); err != nil || layout != 1 {
			t.Fatalf("killed at %q: layout %d is pinned, %v", step, layout, err)
		}
		for name := range l.maps {
			m, err := ebpf.LoadPinnedMap(filepath.Join(n.host.PinDir, name), nil)
			if err != nil {
				t.Fatalf("killed at %q: a pin of the version before is gone: %v", step, err)
			}
			m.Close()
		}
	}
	kill("moved meta")
	// And at every later step: each daemon gets one step further.
	for i := 0; ; i++ {
		if _, err := os.Stat(upgradeFolder(n.host.PinDir, uint32(lbLayoutLAYOUT_VERSION))); errors.Is(err, os.ErrNotExist) {
			if i < 10 {
				t.Errorf("%d steps only", i)
			}
			break
		}
		if layout, _, err := pinnedLayout(n.host.PinDir); err != nil || layout != uint32(lbLayoutLAYOUT_VERSION) {
			t.Fatalf("layout %d is pinned, %v", layout, err)
		}
		err := moveUpgrade(n.host.PinDir, uint32(lbLayoutLAYOUT_VERSION), func(string) error {
			if _, err := os.Stat(upgradeFolder(n.host.PinDir, 2)); err == nil {
				return killed
			}
			return nil
		})
		if err != nil && !errors.Is(err, killed) {
			t.Fatal(err)
		}
		if i > 1000 {
			t.Fatal("it does not end")
		}
	}
	d := l.upgrade(nil, "eth0", "x0")
	l.wantPins()
	serves("in the end")
	conns[lbNatStateNAT_ESTABLISHED] = established
	goOn(t, d, conns)
	if steps, _, err := plan(d.state, lb.Snapshot{Services: services}, limits{slots: d.objects.Slots.MaxEntries(), share: allPorts}, d.cache.table); err != nil || len(steps) > 0 {
		t.Errorf("the same services take steps %v, %v", steps, err)
	}
}

// A daemon that is killed in an upgrade right after the decision is followed by one
// that only opens: that ends it.
func TestUpgradeIsEnded(t *testing.T) {
	n := newNode(t)
	l := newLayout1(n, []lb.ServiceState{service("dsr", lb.DSR, 443, backends(3, 443))}, "eth0")
	killed := errors.New("killed")
	d, err := l.openNew(func(o *Options) {
		o.reached = func(s string) error {
			if s == "moved meta" {
				return killed
			}
			return nil
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Apply(lb.Snapshot{}); err == nil || !strings.Contains(err.Error(), "upgrade is under way") {
		t.Errorf("services are written during an upgrade: %v", err)
	}
	if _, err := n.attach(d, Auto, "eth0"); !errors.Is(err, killed) {
		t.Fatal(err)
	}
	n.close(d)
	d = n.open()
	defer n.close(d)
	l.wantPins()
	if diff := diffStates(l.state, d.state); diff != "" {
		t.Errorf("state (-layout 1 +now):\n%s", diff)
	}
}

// What can't be taken over is left as it is, and the error says what to do.
func TestOpenRefusesWhatIsPinned(t *testing.T) {
	services := []lb.ServiceState{service("dsr", lb.DSR, 443, backends(3, 443))}
	for _, tc := range []struct {
		name  string
		spoil func(t *testing.T, l *layout1, pin func(name string) string)
		want  []string
	}{
		{"a later layout", func(t *testing.T, l *layout1, pin func(string) string) {
			l.setLayout(uint32(lbLayoutLAYOUT_VERSION) + 1)
		}, []string{"another version of sluice (layout 3)", "sluice detach"}},
		{"no layout", func(t *testing.T, l *layout1, pin func(string) string) {
			l.setLayout(0)
		}, []string{"layout 0", "sluice detach"}},
		{"a map is missing", func(t *testing.T, l *layout1, pin func(string) string) {
			if err := os.Remove(pin("backends")); err != nil {
				t.Fatal(err)
			}
		}, []string{"backends", "sluice detach"}},
		{"a map of other entries", func(t *testing.T, l *layout1, pin func(string) string) {
			l.replace("services", &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 16, MaxEntries: 4096})
		}, []string{"services", "sluice detach"}},
		{"a shared map of another size", func(t *testing.T, l *layout1, pin func(string) string) {
			l.replace("nat_choices", &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 16})
		}, []string{"nat_choices", "sluice detach"}},
		{"links without maps", func(t *testing.T, l *layout1, pin func(string) string) {
			if err := os.Remove(pin("meta")); err != nil {
				t.Fatal(err)
			}
		}, []string{"no map that says", "link", "sluice detach"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t)
			l := newLayout1(n, services, "eth0")
			dsr := dsrBackends(t, l.run)
			tc.spoil(t, l, func(name string) string { return filepath.Join(n.host.PinDir, name) })
			program, pins := n.program("eth0"), l.pins()
			d, err := l.openNew(nil)
			if err == nil {
				n.close(d)
				t.Fatal("it was opened")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
			if n.program("eth0") != program {
				t.Error("the program on the interface is another one")
			}
			if diff := cmp.Diff(pins, l.pins()); diff != "" {
				t.Errorf("pins (-before +after):\n%s", diff)
			}
			if diff := cmp.Diff(dsr, dsrBackends(t, l.attachedProgram("eth0"))); diff != "" {
				t.Errorf("backends of dsr connections (-before +after):\n%s", diff)
			}
			if got := n.detach(); !slices.Equal(got, []string{"eth0"}) {
				t.Errorf("detach frees %v", got)
			}
			if _, err := os.Stat(n.host.PinDir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("after detach there are pins: %v, %v", l.pins(), err)
			}
		})
	}
}

// Detach knows the pins of a later version by the program that they belong to, and
// leaves what is not of sluice.
func TestDetachOfALaterVersion(t *testing.T) {
	n := newNode(t)
	l := newLayout1(n, []lb.ServiceState{service("dsr", lb.DSR, 443, backends(3, 443))}, "eth0")
	l.setLayout(77)
	if err := os.Rename(filepath.Join(n.host.PinDir, "backends"), filepath.Join(n.host.PinDir, "backends_of_then")); err != nil {
		t.Fatal(err)
	}
	other, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	path := filepath.Join(n.host.PinDir, "somebody")
	if err := other.Pin(path); err != nil {
		t.Fatal(err)
	}
	n.detach()
	if diff := cmp.Diff([]string{"somebody"}, l.pins()); diff != "" {
		t.Errorf("pins after detach (-want +got):\n%s", diff)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func (l *layout1) setLayout(layout uint32) {
	l.Helper()
	l.must(testenv.SetPinnedLayout(l.host.PinDir, layout))
}

// replace pins another map under a name.
func (l *layout1) replace(name string, spec *ebpf.MapSpec) {
	l.Helper()
	m, err := ebpf.NewMap(spec)
	if err != nil {
		l.Fatal(err)
	}
	defer m.Close()
	if err := repin(m, filepath.Join(l.host.PinDir, name)); err != nil {
		l.Fatal(err)
	}
}

// pins are the names of what is pinned.
func (l *layout1) pins() []string {
	l.Helper()
	entries, err := os.ReadDir(l.host.PinDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		l.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
