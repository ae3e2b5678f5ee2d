package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// DecapOptions say what a decapsulator is made for.
type DecapOptions struct {
	PinDir     string   // on a BPF file system, mounted if need be; "": nothing is pinned
	Interfaces []string // NICs by which tunnel packets come
	Mode       Mode
	// VIPs are the inner destinations. With none they are the addresses on lo but
	// those of 127.0.0.0/8 and ::1, as they come and go.
	VIPs []netip.Addr
	Log  *slog.Logger
}

// A Decap is the XDP program of a backend: it takes the outer header off packets
// that a node has sent through a tunnel. Stats may be called at any time, the
// other methods from one goroutine at a time.
type Decap struct {
	options DecapOptions
	log     *slog.Logger
	objects decapMaps
	program *ebpf.Program
	network *netlink.Handle // of the network namespace it was opened in
	events  *os.File        // tells of changes of links and addresses

	links    map[string]*decapLink
	problems map[string]string // by interface or VIP: reported once each
}

// A decapLink holds the program on one interface.
type decapLink struct {
	link.Link
	index int
}

// OpenDecap loads the program in the calling thread's network namespace and
// attaches it to the interfaces. One that an earlier process has left is replaced
// without losing a packet, and its counters go on; interfaces that are named no
// more are freed. An interface that can't have the program is an error.
func OpenDecap(o DecapOptions) (*Decap, error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("lift the limit on locked memory: %w", err)
	}
	fresh := false
	if o.PinDir != "" {
		if err := preparePinDir(o.PinDir); err != nil {
			return nil, err
		}
		_, err := os.Stat(filepath.Join(o.PinDir, decapMapOutcomes))
		fresh = errors.Is(err, fs.ErrNotExist)
	}
	d := &Decap{options: o, log: o.Log, links: map[string]*decapLink{}, problems: map[string]string{}}
	if err := d.load(); err != nil {
		return nil, err
	}
	if err := d.open(); err != nil {
		err = errors.Join(err, d.Close())
		if fresh {
			// What was there before goes on.
			_, detachErr := DetachDecap(o.PinDir)
			err = errors.Join(err, detachErr)
		}
		return nil, err
	}
	return d, nil
}

// load makes program and maps. The tables of addresses are new each time: they are
// filled before the program takes the place of an earlier one.
func (d *Decap) load() error {
	spec, err := loadDecap()
	if err != nil {
		return fmt.Errorf("read the program: %w", err)
	}
	adopted := map[string]*ebpf.Map{}
	defer closeAll(adopted)
	if d.options.PinDir != "" {
		m, err := ebpf.LoadPinnedMap(filepath.Join(d.options.PinDir, decapMapOutcomes), nil)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return fmt.Errorf("open the pinned counters: %w", err)
		case spec.Maps[decapMapOutcomes].Compatible(m) != nil:
			d.log.Warn("the pinned counters are those of another version: they begin anew")
			m.Close()
		default:
			adopted[decapMapOutcomes] = m
		}
	}
	collection, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: adopted})
	if err != nil {
		return loadError(err)
	}
	defer collection.Close()
	var objects struct {
		decapMaps
		SluiceDecap *ebpf.Program `ebpf:"sluice_decap"`
	}
	if err := collection.Assign(&objects); err != nil {
		return fmt.Errorf("read the program: %w", err)
	}
	d.objects, d.program = objects.decapMaps, objects.SluiceDecap
	return nil
}

func (d *Decap) open() error {
	var err error
	if d.network, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	// Before the first look, so that no change falls between.
	if d.events, err = followAddresses(); err != nil {
		return fmt.Errorf("follow addresses: %w", err)
	}
	if d.options.PinDir != "" {
		if err := repin(d.objects.Outcomes, filepath.Join(d.options.PinDir, decapMapOutcomes)); err != nil {
			return err
		}
	}
	for _, name := range d.options.Interfaces {
		if _, err := d.network.LinkByName(name); err != nil {
			return fmt.Errorf("attach to %s: %w: ip link shows what there is", name, err)
		}
	}
	// Others come first: the kernel takes no program below an interface that has one.
	if err := d.detachOthers(); err != nil {
		return err
	}
	faults, err := d.refresh()
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(faults)) {
		return faults[name]
	}
	return nil
}

// attach puts the program on an interface where it is not yet.
func (d *Decap) attach(nic netlink.Link) error {
	name, index := nic.Attrs().Name, nic.Attrs().Index
	if l := d.links[name]; l != nil {
		if l.index == index {
			return nil
		}
		// It was made anew; the link died with the one before.
		delete(d.links, name)
		if err := l.Close(); err != nil {
			return err
		}
	}
	if len(nic.Attrs().HardwareAddr) != 6 {
		return errors.New("it has no Ethernet address: sluice needs an Ethernet interface")
	}
	l, err := d.adopt(nic)
	if err == nil && l == nil {
		l, err = d.attachNew(nic)
	}
	if err != nil {
		return err
	}
	d.links[name] = &decapLink{l, index}
	return nil
}

// adopt returns the pinned link of an interface, with this program on it; nil
// where there is none that fits.
func (d *Decap) adopt(nic netlink.Link) (link.Link, error) {
	if d.options.PinDir == "" {
		return nil, nil
	}
	path := linkPath(d.options.PinDir, nic.Attrs().Name)
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open its pinned link: %w", err)
	}
	info, err := l.Info()
	here := err == nil && info.XDP() != nil && int(info.XDP().Ifindex) == nic.Attrs().Index
	mode := linkMode(nic)
	if !here || d.options.Mode != Auto && d.options.Mode != mode {
		return nil, errors.Join(os.Remove(path), l.Close())
	}
	if err := l.Update(d.program); err != nil {
		return nil, errors.Join(fmt.Errorf("replace the program: %w", err), l.Close())
	}
	d.log.Info("replaced the program", "interface", nic.Attrs().Name, "mode", mode)
	return l, nil
}

func (d *Decap) attachNew(nic netlink.Link) (link.Link, error) {
	name := nic.Attrs().Name
	try := func(flags link.XDPAttachFlags) (link.Link, error) {
		l, err := link.AttachXDP(link.XDPOptions{Program: d.program, Interface: nic.Attrs().Index, Flags: flags})
		if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) {
			err = fmt.Errorf("another XDP program is on it: `ip link set dev %s xdp off` takes it off", name)
		}
		return l, err
	}
	var l link.Link
	var err error
	mode := Native
	if d.options.Mode != Generic {
		l, err = try(link.XDPDriverMode)
	}
	if d.options.Mode == Generic || d.options.Mode == Auto && err != nil {
		refused := err
		mode = Generic
		if l, err = try(link.XDPGenericMode); err == nil && refused != nil {
			d.log.Warn("no native XDP: generic mode, which is several times slower", "interface", name, "why", refused)
		}
	}
	if err != nil {
		return nil, err
	}
	if d.options.PinDir != "" {
		if err := repin(l, linkPath(d.options.PinDir, name)); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	d.log.Info("attached", "interface", name, "mode", mode)
	return l, nil
}

// detachOthers frees the interfaces that an earlier process has used and that are
// not named any more.
func (d *Decap) detachOthers() error {
	if d.options.PinDir == "" {
		return nil
	}
	names, err := pinnedLinks(d.options.PinDir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if slices.Contains(d.options.Interfaces, name) {
			continue
		}
		if _, err := detachLink(d.options.PinDir, name); err != nil {
			return err
		}
		d.log.Info("detached", "interface", name)
	}
	return nil
}

// linkMode tells how the program on an interface is attached; "" where none is.
func linkMode(nic netlink.Link) Mode {
	x := nic.Attrs().Xdp
	switch {
	case x == nil || !x.Attached:
		return ""
	case x.AttachMode == xdpAttachedGeneric:
		return Generic
	}
	return Native
}

// Stats returns the frames by outcome since the counters were made: those that
// were decapsulated, that passed untouched and that were dropped.
func (d *Decap) Stats() ([]Outcome, error) { return decapOutcomes(d.objects.Outcomes) }

// Close lets go of the program: what is pinned goes on, what is not ends.
func (d *Decap) Close() error {
	var errs []error
	for _, l := range d.links {
		errs = append(errs, l.Close())
	}
	if d.events != nil {
		errs = append(errs, d.events.Close())
	}
	if d.network != nil {
		d.network.Close()
	}
	return errors.Join(append(errs, d.objects.Close(), d.program.Close())...)
}
