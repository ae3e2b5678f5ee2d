package loader

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Mode is how a program is attached to an interface.
type Mode string

// The modes. Auto tries Native and falls back to Generic with a warning.
const (
	Auto    Mode = "auto"
	Native  Mode = "native"
	Generic Mode = "generic"
)

// An Attachment is an interface that the program is on.
type Attachment struct {
	Interface string
	Index     int
	Mode      Mode   // Native or Generic
	Warning   string // why it is Generic where Auto was asked for
}

// Attach puts the program on the interfaces, and takes it off those that it is
// on but that are not named. A program of sluice that is there already is
// replaced without losing a packet; one of somebody else is left alone, and is
// an error.
func (d *Datapath) Attach(interfaces []string, mode Mode) ([]Attachment, error) {
	var done []Attachment
	for _, name := range interfaces {
		nic, err := net.InterfaceByName(name)
		if err != nil {
			return done, fmt.Errorf("attach to %s: %w: ip link shows what there is", name, err)
		}
		if err := d.setInterface(nic); err != nil {
			return done, fmt.Errorf("attach to %s: %w", name, err)
		}
		a, err := d.attach(nic, mode)
		if err != nil {
			return done, fmt.Errorf("attach to %s: %w", name, err)
		}
		done = append(done, a)
	}
	if err := d.detachOthers(interfaces); err != nil {
		return done, err
	}
	return done, nil
}

// RefreshInterfaces writes the MAC addresses that the attached interfaces have
// now.
func (d *Datapath) RefreshInterfaces() error {
	for name := range d.links {
		nic, err := net.InterfaceByName(name)
		if err != nil {
			return fmt.Errorf("look at interface %s: %w", name, err)
		}
		if err := d.setInterface(nic); err != nil {
			return err
		}
	}
	return nil
}

func (d *Datapath) setInterface(nic *net.Interface) error {
	if len(nic.HardwareAddr) != 6 {
		return errors.New("it has no Ethernet address: sluice needs an Ethernet interface")
	}
	place := uint32(nic.Index) % uint32(lbLimitsMAX_INTERFACES)
	var have lbInterface
	if err := d.objects.Interfaces.Lookup(place, &have); err != nil {
		return fmt.Errorf("read the interface table: %w", err)
	}
	want := lbInterface{Index: uint32(nic.Index), Mac: [6]uint8(nic.HardwareAddr)}
	if have == want {
		return nil
	}
	if have.Index != 0 && have.Index != want.Index {
		if _, err := net.InterfaceByIndex(int(have.Index)); err == nil {
			return fmt.Errorf("interfaces number %d and %d can't be used together", have.Index, want.Index)
		}
	}
	return put(d.objects.Interfaces, place, &want)
}

func (d *Datapath) attach(nic *net.Interface, mode Mode) (Attachment, error) {
	a := Attachment{Interface: nic.Name, Index: nic.Index}
	if l, err := d.adopt(nic, mode); err != nil {
		return a, err
	} else if l != nil {
		d.links[nic.Name] = l
		a.Mode, err = attachedMode(nic)
		return a, err
	}
	l, got, err := attachNew(d.program, nic, mode)
	if err != nil {
		return a, err
	}
	a.Mode = got.mode
	if got.refused != nil {
		a.Warning = fmt.Sprintf("%s: no native XDP (%v): generic mode, which is several times slower", nic.Name, got.refused)
		d.log.Warn("generic XDP", "interface", nic.Name, "why", got.refused)
	}
	if d.pinDir != "" {
		if err := repin(l, linkPath(d.pinDir, nic.Name)); err != nil {
			return a, errors.Join(err, l.Close())
		}
	}
	d.links[nic.Name] = l
	return a, nil
}

// adopt takes over the pinned link of an interface and gives it the program;
// nil where there is none that fits.
func (d *Datapath) adopt(nic *net.Interface, mode Mode) (link.Link, error) {
	if l := d.links[nic.Name]; l != nil {
		return l, nil
	}
	if d.pinDir == "" {
		return nil, nil
	}
	path := linkPath(d.pinDir, nic.Name)
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open its pinned link: %w", err)
	}
	info, err := l.Info()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("look at its pinned link: %w", err), l.Close())
	}
	is, err := attachedMode(nic)
	stale := info.XDP() == nil || int(info.XDP().Ifindex) != nic.Index || err != nil
	if stale || mode != Auto && is != mode {
		// The interface was made anew, or another mode is wanted.
		d.log.Info("attach anew", "interface", nic.Name)
		if err := os.Remove(path); err != nil {
			return nil, errors.Join(err, l.Close())
		}
		return nil, l.Close()
	}
	if err := l.Update(d.program); err != nil {
		return nil, errors.Join(fmt.Errorf("replace the program: %w", err), l.Close())
	}
	return l, nil
}

type attached struct {
	mode    Mode
	refused error // why not native
}

func attachNew(program *ebpf.Program, nic *net.Interface, mode Mode) (link.Link, attached, error) {
	try := func(flags link.XDPAttachFlags) (link.Link, error) {
		l, err := link.AttachXDP(link.XDPOptions{Program: program, Interface: nic.Index, Flags: flags})
		if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) {
			err = fmt.Errorf("another XDP program is on it: `ip link set dev %s xdp off` takes it off", nic.Name)
		}
		return l, err
	}
	var refused error
	if mode != Generic {
		l, err := try(link.XDPDriverMode)
		if err == nil {
			return l, attached{mode: Native}, nil
		}
		if mode == Native || errors.Is(err, unix.EPERM) {
			return nil, attached{}, err
		}
		refused = err
	}
	l, err := try(link.XDPGenericMode)
	if err != nil {
		return nil, attached{}, err
	}
	return l, attached{Generic, refused}, nil
}

func (d *Datapath) detachOthers(keep []string) error {
	names := make([]string, 0, len(d.links))
	for name := range d.links {
		names = append(names, name)
	}
	if d.pinDir != "" {
		pinned, err := pinnedLinks(d.pinDir)
		if err != nil {
			return err
		}
		names = append(names, pinned...)
	}
	for _, name := range names {
		if slices.Contains(keep, name) {
			continue
		}
		if l := d.links[name]; l != nil {
			delete(d.links, name)
			if err := l.Close(); err != nil {
				return fmt.Errorf("close the link of %s: %w", name, err)
			}
		}
		if d.pinDir != "" {
			if _, err := detachLink(d.pinDir, name); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		d.log.Info("detached", slog.String("interface", name))
	}
	return nil
}
