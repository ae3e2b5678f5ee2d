package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func decapOutcomes(m *ebpf.Map) ([]Outcome, error) {
	var outcomes []Outcome
	for _, o := range slices.Sorted(maps.Keys(decapOutcomeNames)) {
		var counts []uint64
		if err := m.Lookup(uint32(o), &counts); err != nil {
			return nil, fmt.Errorf("read the counters: %w", err)
		}
		out := Outcome{Name: decapOutcomeNames[o], Dropped: o >= decapOutcomeDROP_OUTER}
		for _, c := range counts {
			out.Packets += c
		}
		outcomes = append(outcomes, out)
	}
	return outcomes, nil
}

// decapOutcomeNames are the outcomes as users see them.
var decapOutcomeNames = map[decapOutcome]string{
	decapOutcomePASS_DECAPSULATED: "decapsulated",
	decapOutcomePASS_NOT_TUNNEL:   "not_tunnel",
	decapOutcomePASS_NOT_HOST:     "not_host",
	decapOutcomePASS_NOT_VIP:      "not_vip",
	decapOutcomePASS_FRAGMENT:     "fragment",
	decapOutcomePASS_OPTIONS:      "options",
	decapOutcomePASS_SPLIT:        "split",
	decapOutcomeDROP_OUTER:        "malformed_outer",
	decapOutcomeDROP_CHECKSUM:     "outer_checksum",
	decapOutcomeDROP_INNER:        "malformed_inner",
	decapOutcomeDROP_CONGESTION:   "congestion",
	decapOutcomeDROP_INTERNAL:     "internal",
}

// A DecapInspection is what `sluice decap` has in the kernel.
type DecapInspection struct {
	Attachments []Attachment // Warning says what is wrong
	Outcomes    []Outcome
}

// InspectDecap reads what is pinned in dir, without changing anything. Where
// nothing is, the error is fs.ErrNotExist.
func InspectDecap(dir string) (DecapInspection, error) {
	var in DecapInspection
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, decapMapOutcomes), &ebpf.LoadPinOptions{ReadOnly: true})
	if errors.Is(err, fs.ErrNotExist) {
		return in, fmt.Errorf("nothing is pinned in %s: %w", dir, fs.ErrNotExist)
	}
	if err != nil {
		return in, fmt.Errorf("open the pinned counters: %w", err)
	}
	defer m.Close()
	spec, err := loadDecap()
	if err != nil {
		return in, fmt.Errorf("read the program: %w", err)
	}
	// Not Compatible: opened for reading only, it has another flag.
	if want := spec.Maps[decapMapOutcomes]; m.Type() != want.Type || m.MaxEntries() != want.MaxEntries || m.ValueSize() != want.ValueSize {
		return in, fmt.Errorf("the counters pinned in %s are those of another version of sluice", dir)
	}
	if in.Outcomes, err = decapOutcomes(m); err != nil {
		return in, err
	}
	names, err := pinnedLinks(dir)
	if err != nil {
		return in, err
	}
	slices.Sort(names)
	for _, name := range names {
		in.Attachments = append(in.Attachments, inspectLink(dir, name))
	}
	return in, nil
}

// inspectLink tells where a pinned link leads.
func inspectLink(dir, name string) Attachment {
	a := Attachment{Interface: name}
	bad := func(err error) Attachment {
		a.Warning = fmt.Sprintf("%s: not decapsulating: %v", name, err)
		return a
	}
	nic, err := netlink.LinkByName(name)
	if err != nil {
		return bad(err)
	}
	a.Index, a.Mode = nic.Attrs().Index, linkMode(nic)
	l, err := link.LoadPinnedLink(linkPath(dir, name), nil)
	if err != nil {
		return bad(err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return bad(err)
	}
	if info.XDP() == nil || int(info.XDP().Ifindex) != a.Index {
		a.Mode = ""
		return bad(errors.New("the interface was made anew"))
	}
	return a
}

// DetachDecap takes the program off all interfaces and removes what is pinned in
// dir. It returns the interfaces that it freed. Nothing pinned is no error.
func DetachDecap(dir string) ([]string, error) {
	freed, err := detachLinks(dir)
	if err != nil {
		return freed, err
	}
	if err := os.Remove(filepath.Join(dir, decapMapOutcomes)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return freed, fmt.Errorf("remove the pin: %w", err)
	}
	if err := removeFresh(dir); err != nil {
		return freed, err
	}
	// Only our own, empty folder goes; a file system's root can't be removed.
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) &&
		!errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
		return freed, fmt.Errorf("remove the pin directory: %w", err)
	}
	slices.Sort(freed)
	return freed, nil
}
