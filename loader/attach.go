package loader

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
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
// an error. An interface that was deleted and made anew is attached again by
// another call.
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
		if err := d.upgrade.at("attached to " + name); err != nil {
			return done, err
		}
	}
	if err := d.detachOthers(interfaces); err != nil {
		return done, err
	}
	d.forgetInterfaces(done)
	d.checkPeers(done)
	if d.upgrade != nil {
		if err := d.finishUpgrade(); err != nil {
			return done, fmt.Errorf("upgrade the data plane: %w", err)
		}
	}
	return done, d.refreshWays()
}

// RefreshInterfaces writes the MAC addresses that the attached interfaces have
// now, and what VLANs there are on top of them where routes matter. An interface that is gone, or was made anew, is part of the error.
func (d *Datapath) RefreshInterfaces() error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(d.links)) {
		nic, err := net.InterfaceByName(name)
		if err == nil && !d.holds(d.links[name], nic) {
			err = errors.New("it was made anew, and sluice is not on it")
		}
		if err == nil {
			err = d.setInterface(nic)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("look at interface %s: %w", name, err))
		}
	}
	if d.state.ExpectsReplies {
		errs = append(errs, d.refreshWays())
	}
	return errors.Join(errs...)
}

func (d *Datapath) setInterface(nic *net.Interface) error {
	if len(nic.HardwareAddr) != 6 {
		return errors.New("it has no Ethernet address: sluice needs an Ethernet interface")
	}
	at := d.tables.nic(nic.Index)
	have := *at
	want := lbInterface{Index: uint32(nic.Index), Mac: [6]uint8(nic.HardwareAddr)}
	if have.Index != 0 && have.Index != want.Index {
		if _, err := net.InterfaceByIndex(int(have.Index)); err == nil {
			return fmt.Errorf("interfaces number %d and %d can't be used together", have.Index, want.Index)
		}
	}
	store(at, want)
	return nil
}

// forgetInterfaces takes those out of the table that the program is not on.
func (d *Datapath) forgetInterfaces(attached []Attachment) {
	for i := range int(lbLimitsMAX_INTERFACES) {
		nic := d.tables.nic(i)
		if !slices.ContainsFunc(attached, func(a Attachment) bool { return a.Index == int(nic.Index) }) {
			store(nic, lbInterface{})
		}
	}
}

func (d *Datapath) attach(nic *net.Interface, mode Mode) (Attachment, error) {
	a := Attachment{Interface: nic.Name, Index: nic.Index}
	if l, err := d.adopt(nic, mode); err != nil {
		return a, err
	} else if l != nil {
		d.links[nic.Name] = l
		if a.Mode, err = attachedMode(nic); err != nil {
			return a, err
		}
		if a.Mode == Generic && mode == Auto {
			a.Warning = genericWarning(nic, "as when the program was attached first")
		}
		return a, nil
	}
	l, got, err := attachNew(d.program, nic, mode)
	if err != nil {
		return a, err
	}
	a.Mode = got.mode
	if got.refused != nil {
		a.Warning = genericWarning(nic, got.refused.Error())
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

func genericWarning(nic *net.Interface, why string) string {
	return fmt.Sprintf("%s: no native XDP (%s): generic mode, which is several times slower", nic.Name, why)
}

// adopt returns the link of an interface that is there already, of this process
// or pinned, with the program on it; nil where there is none that fits.
func (d *Datapath) adopt(nic *net.Interface, mode Mode) (link.Link, error) {
	l := d.links[nic.Name]
	if l == nil {
		if d.pinDir == "" {
			return nil, nil
		}
		var err error
		l, err = link.LoadPinnedLink(linkPath(d.pinDir, nic.Name), nil)
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("open its pinned link: %w", err)
		}
	}
	is, err := attachedMode(nic)
	if err != nil || !d.holds(l, nic) || mode != Auto && is != mode {
		// The interface was made anew, or another mode is wanted.
		d.log.Info("attach anew", "interface", nic.Name)
		delete(d.links, nic.Name)
		if d.pinDir != "" {
			if err := os.Remove(linkPath(d.pinDir, nic.Name)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return nil, errors.Join(err, l.Close())
			}
		}
		return nil, l.Close()
	}
	if d.links[nic.Name] == l {
		return l, nil
	}
	if err := l.Update(d.program); err != nil {
		return nil, errors.Join(fmt.Errorf("replace the program: %w", err), l.Close())
	}
	return l, nil
}

// holds tells whether a link is one to this very interface.
func (d *Datapath) holds(l link.Link, nic *net.Interface) bool {
	info, err := l.Info()
	return err == nil && info.XDP() != nil && int(info.XDP().Ifindex) == nic.Index
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
	names := slices.Collect(maps.Keys(d.links))
	if d.pinDir != "" {
		pinned, err := pinnedLinks(d.pinDir)
		if err != nil {
			return err
		}
		names = append(names, pinned...)
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
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
		d.log.Info("detached", "interface", name)
	}
	return nil
}

// attachedMode tells how the program that is on an interface is attached.
func attachedMode(nic *net.Interface) (Mode, error) {
	l, err := netlink.LinkByIndex(nic.Index)
	if err != nil {
		return "", fmt.Errorf("look at interface %s: %w", nic.Name, err)
	}
	x := l.Attrs().Xdp
	if x == nil || !x.Attached {
		return "", fmt.Errorf("look at interface %s: %w", nic.Name, os.ErrNotExist)
	}
	if x.AttachMode == xdpAttachedGeneric {
		return Generic, nil
	}
	return Native, nil
}

const xdpAttachedGeneric = 2 // XDP_ATTACHED_SKB of linux/if_link.h
