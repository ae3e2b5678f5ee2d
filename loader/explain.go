package loader

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
)

// An Explainer tells which way packets would go. It runs a second load of the XDP
// program over the live maps, with dry = 1, which writes to none of them; the
// steps come back through a map of its own. Its methods are for one goroutine.
type Explainer struct {
	pinned  *Pinned
	nic     lbInterface
	name    string // of the interface
	program *ebpf.Program
	trace   *ebpf.Map
	note    string // about the program
}

// Explainer loads the program for packets that come by an interface, of those
// that the data plane is attached to; "": the first of them.
func (p *Pinned) Explainer(nic string) (*Explainer, error) {
	e := &Explainer{pinned: p}
	var err error
	if e.nic, e.name, err = p.attachedNIC(nic); err != nil {
		return nil, err
	}
	live, err := ebpf.LoadPinnedProgram(filepath.Join(p.dir, programPin), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no program is pinned in %s: `sluice run` makes it anew", p.dir)
	}
	if err != nil {
		return nil, fmt.Errorf("open the pinned program: %w", err)
	}
	defer live.Close()
	if err := e.load(live); err != nil {
		return nil, err
	}
	return e, nil
}

// attachedNIC finds an interface among those that the program is on. In another
// network namespace the same number is another interface.
func (p *Pinned) attachedNIC(name string) (lbInterface, string, error) {
	var known []string
	elsewhere := false
	for i := range int(lbLimitsMAX_INTERFACES) {
		entry := *p.tables.nic(i)
		if entry.Index == 0 {
			continue
		}
		nic, err := net.InterfaceByIndex(int(entry.Index))
		if err != nil || !bytes.Equal(nic.HardwareAddr, entry.Mac[:]) {
			elsewhere = true
			continue
		}
		if name == "" || name == nic.Name {
			return entry, nic.Name, nil
		}
		known = append(known, nic.Name)
	}
	switch {
	case len(known) == 0 && elsewhere:
		return lbInterface{}, "", errors.New("the interfaces that the program is on are not here: they are gone, or in another network namespace: " +
			"if `sluice status` shows them, run this where the daemon runs, with `nsenter -t PID -n`")
	case name == "":
		return lbInterface{}, "", errors.New("the program is on no interface: `sluice status` says why")
	case len(known) == 0:
		return lbInterface{}, "", fmt.Errorf("the program is not on %s, nor on any other interface", name)
	}
	return lbInterface{}, "", fmt.Errorf("the program is not on %s: it sees packets of %s", name, strings.Join(known, ", "))
}

// load makes the dry program for what the live one is: the same instructions, with
// the same constants. Where they are not the same, the live one is of another
// version; then those constants count that this version would take, and the note
// says so.
func (e *Explainer) load(live *ebpf.Program) error {
	if err := rlimit.RemoveMemlock(); err != nil {
		return fmt.Errorf("lift the limit on locked memory: %w", err)
	}
	info, err := live.Info()
	if err != nil {
		return fmt.Errorf("look at the pinned program: %w", err)
	}
	values, err := constants(info)
	if err != nil {
		return err
	}
	err = e.loadWith(func(spec *ebpf.CollectionSpec) error {
		if uint32(len(values)) != spec.Maps[constantsMap].ValueSize {
			return errOtherVersion
		}
		for _, v := range spec.Variables {
			if v.SectionName == constantsMap {
				v.Value = slices.Clone(values[v.Offset : v.Offset+v.Size()])
			}
		}
		return nil
	}, info.Tag)
	if !errors.Is(err, errOtherVersion) {
		return err
	}
	var meta lbMeta
	if err := e.pinned.maps.Meta.Lookup(uint32(0), &meta); err != nil {
		return fmt.Errorf("read the pinned maps: %w", err)
	}
	e.note = "the program that forwards is of another version of sluice than this command: it may do otherwise"
	return e.loadWith(func(spec *ebpf.CollectionSpec) error {
		return setVariables(spec, Options{}, meta, natTimeouts)
	}, "")
}

var errOtherVersion = errors.New("the program is of another version")

// loadWith loads the program with the constants that set gives it. Tag is what its
// instructions must have; "": whatever.
func (e *Explainer) loadWith(set func(*ebpf.CollectionSpec) error, tag string) error {
	spec, err := loadLb()
	if err != nil {
		return fmt.Errorf("read the program: %w", err)
	}
	if err := set(spec); err != nil {
		return err
	}
	if err := errors.Join(spec.Variables["dry"].Set(uint32(1)),
		spec.Variables["dry_interface"].Set(e.nic.Index)); err != nil {
		return fmt.Errorf("make the program a dry one: %w", err)
	}
	onlyMain(spec)
	maps := map[string]*ebpf.Map{}
	for name, m := range e.pinned.maps.byName() {
		ms := spec.Maps[name]
		ms.MaxEntries, ms.Flags = (*m).MaxEntries(), (*m).Flags()
		maps[name] = *m
	}
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: maps})
	if err != nil {
		return loadError(err)
	}
	defer c.Close()
	info, err := c.Programs[mainProgram].Info()
	if err != nil {
		return fmt.Errorf("look at the program: %w", err)
	}
	if tag != "" && info.Tag != tag {
		return errOtherVersion
	}
	e.program, e.trace = c.DetachProgram(mainProgram), c.DetachMap(traceMap)
	return nil
}

// onlyMain leaves the XDP program alone in a specification: the filter of probes has
// no dry runs.
func onlyMain(spec *ebpf.CollectionSpec) {
	for name := range spec.Programs {
		if name != mainProgram {
			delete(spec.Programs, name)
		}
	}
}

// mainProgram is the XDP program's name in a specification.
const mainProgram = "sluice"

// traceMap holds what a dry run reports.
const traceMap = ".data.trace"

// constantsMap holds the constants of a program, in a specification and in the
// kernel.
const constantsMap = ".rodata"

// constants reads the constants of a program from the kernel; nil: it has none.
func constants(info *ebpf.ProgramInfo) ([]byte, error) {
	ids, _ := info.MapIDs()
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			return nil, fmt.Errorf("open a map of the pinned program: %w", err)
		}
		info, err := m.Info()
		var values []byte
		if err == nil && info.Name == constantsMap {
			values, err = m.LookupBytes(uint32(0))
		}
		m.Close() // nothing was written through it
		if err != nil {
			return nil, fmt.Errorf("read the constants of the pinned program: %w", err)
		}
		if values != nil {
			return values, nil
		}
	}
	return nil, nil
}

// Close lets go of the program. The maps stay open.
func (e *Explainer) Close() error {
	return errors.Join(e.program.Close(), e.trace.Close())
}

// foresee runs one frame as the program that forwards would at this moment.
func (e *Explainer) foresee(frame []byte) (uint32, []byte, lbTrace, error) {
	verdict, out, t, err := e.run(frame, lbTrace{})
	if err != nil || t.Found != uint32(lbTraceFoundNEW_HANDSHAKE) {
		return verdict, out, t, err
	}
	handshakes := 0
	if err := eachFlow(e.pinned.maps.Handshakes, func(lbFlowKey, lbPin) { handshakes++ }); err != nil {
		return 0, nil, t, err
	}
	if handshakes < int(e.pinned.maps.Handshakes.MaxEntries()) {
		return verdict, out, t, nil
	}
	return e.run(frame, lbTrace{HandshakesFull: 1})
}

// run runs one frame: its verdict, how it left, and the steps. Whether there is room
// for another handshake only a write would tell the program: it goes by what t says.
func (e *Explainer) run(frame []byte, t lbTrace) (uint32, []byte, lbTrace, error) {
	if err := e.trace.Put(uint32(0), &t); err != nil {
		return 0, nil, t, fmt.Errorf("clear the trace: %w", err)
	}
	// Room for an outer header, tags, or the headers of an ICMP error.
	opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+64)}
	verdict, err := e.program.Run(&opts)
	if err != nil {
		return 0, nil, t, fmt.Errorf("run the program: %w", err)
	}
	if err := e.trace.Lookup(uint32(0), &t); err != nil {
		return 0, nil, t, fmt.Errorf("read the trace: %w", err)
	}
	return verdict, opts.DataOut, t, nil
}
