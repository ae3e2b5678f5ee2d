// Package loader is the only one that touches the kernel's BPF: it loads,
// attaches, pins and adopts the data plane, turns a snapshot of the world into
// ordered writes, follows the next hops of backends, and reads counters.
package loader

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/bits"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/lb"
)

// Options say what a data plane is made for.
type Options struct {
	PinDir   string       // on a BPF file system, mounted if need be; "": nothing is pinned
	MaxFlows int          // nat flows that have room
	Slots    int          // of all services together; the table has room for more
	Ports    lb.PortRange // this node's share of nat's source ports
	// What the outer source addresses of tunnels are taken from; zero:
	// DefaultTunnelSource4, DefaultTunnelSource6.
	TunnelSource4, TunnelSource6 netip.Prefix
	// What the addresses are taken from that probes through VIPs dial; zero:
	// DefaultProbeAddresses4, DefaultProbeAddresses6.
	ProbeAddresses4, ProbeAddresses6 netip.Prefix
	LogTranslations                  bool // the program reports them: see OpenTranslations
	TellFlows                        bool // other nodes are told of flows: see OpenFlowFeed
	Log                              *slog.Logger

	reached func(step string) error // of an upgrade: a test's
}

// A Datapath is the XDP program with its maps. Stats, Traffic, Upgraded, Check and
// TableStates may be called at any time, the other methods from one goroutine at a time.
type Datapath struct {
	pinDir  string
	share   lb.PortRange
	log     *slog.Logger
	objects *kernelMaps
	program *ebpf.Program
	probes  probeFilter
	tables  *tables
	links   map[string]link.Link
	cache   *tableCache
	fresh   bool     // there was none to adopt
	upgrade *upgrade // until Attach has ended it

	tellsFlows bool
	timeouts   map[lbNatState]time.Duration // of nat flows

	mu       sync.Mutex
	state    *State
	names    map[uint16]string // services, by number, as the last snapshot named them
	want     lb.Snapshot       // the last one that was applied
	scan     scan              // of the flow tables, the last one
	moves    map[uint16]Moves  // of the last change of each service
	pressure pressure          // on the memory of connections older than their window
	idle     idlePorts         // as the last call of Usage counted them
	feed     *FlowFeed         // nil: nobody asks

	seen     atomic.Pointer[view] // nil: it is closed
	readers  sync.RWMutex         // held by who looks at it: what is mapped stays
	upgraded atomic.Pointer[Upgrade]
}

// A view is what Stats goes by: the data plane as whoever has changed it last has left
// it. Who asks does not wait for who writes, which takes seconds on a busy machine.
// Nothing in it is changed later.
type view struct {
	state *State
	names map[uint16]string
	scan  scan
	moves map[uint16]Moves
	idle  map[uint32]int
}

// unlock shows what there is now, and lets others in.
func (d *Datapath) unlock() {
	d.show()
	d.mu.Unlock()
}

func (d *Datapath) show() {
	d.seen.Store(&view{d.state, maps.Clone(d.names), d.scan, maps.Clone(d.moves), d.idle.ports})
}

var errClosed = errors.New("the data plane is closed")

// look has f read what a view tells of, and once more where it is of before by then: the
// number of a backend may be another one's.
func (d *Datapath) look(f func(*view) error) error {
	d.readers.RLock()
	defer d.readers.RUnlock()
	v := d.seen.Load()
	if v == nil {
		return errClosed
	}
	err := f(v)
	if now := d.seen.Load(); now.state != v.state {
		err = f(now)
	}
	return err
}

// idle times after which a nat flow is void, by its state.
var natTimeouts = map[lbNatState]time.Duration{
	lbNatStateNAT_SYN_SENT:     5 * time.Second,
	lbNatStateNAT_SYN_RECEIVED: 5 * time.Second,
	lbNatStateNAT_ESTABLISHED:  124 * time.Minute, // RFC 5382, REQ-5
	lbNatStateNAT_CLOSING:      4 * time.Minute,   // RFC 5382, REQ-5
	lbNatStateNAT_CLOSED:       time.Minute,
	lbNatStateNAT_UDP_REPLIED:  udpIdle,
}

// MaxFlows is the most that Options.MaxFlows may be: 4 GiB of names.
const MaxFlows = 1 << 27

const tick = time.Duration(1 << 27) // TICK_SHIFT of bpf/nat_ports.h

// Open loads the data plane, or adopts the one that is pinned, also that of an
// earlier version: its tables and flows go on. One that can't be adopted is an error
// and is left as it is. Nothing is attached yet. For a fresh data plane Apply comes
// before Attach, or a program with empty tables would hand the VIPs' packets to the
// kernel, which knows nothing of their connections. For that of an earlier version
// Attach comes first: both have what the other needs until then.
func Open(o Options) (*Datapath, error) {
	return open(o, natTimeouts)
}

func open(o Options, timeouts map[lbNatState]time.Duration) (*Datapath, error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("lift the limit on locked memory: %w", err)
	}
	spec, err := loadLb()
	if err != nil {
		return nil, fmt.Errorf("read the program: %w", err)
	}
	if o.PinDir != "" {
		if err := preparePinDir(o.PinDir); err != nil {
			return nil, err
		}
	}
	found, err := size(spec, o)
	if err != nil {
		return nil, err
	}
	defer closeAll(found.maps)
	if err := setVariables(spec, o, found.meta, timeouts); err != nil {
		found.upgrade.close()
		return nil, err
	}
	collection, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: found.maps})
	if err != nil {
		found.upgrade.close()
		return nil, loadError(err)
	}
	defer collection.Close()
	var objects struct {
		kernelMaps
		Sluice      *ebpf.Program `ebpf:"sluice"`
		SluiceProbe *ebpf.Program `ebpf:"sluice_probe"`
	}
	if err := collection.Assign(&objects); err != nil {
		found.upgrade.close()
		return nil, fmt.Errorf("read the program: %w", err)
	}
	d := &Datapath{
		pinDir: o.PinDir, share: o.Ports, log: o.Log, objects: &objects.kernelMaps, program: objects.Sluice,
		probes: newProbeFilter(objects.SluiceProbe, o),
		links:  map[string]link.Link{}, names: map[uint16]string{}, moves: map[uint16]Moves{}, cache: &tableCache{},
		fresh: found.fresh, upgrade: found.upgrade, tellsFlows: o.TellFlows, timeouts: timeouts,
	}
	if err := d.start(spec, found.meta); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// start fills in what a fresh set of maps lacks, pins it, and reads the state.
func (d *Datapath) start(spec *ebpf.CollectionSpec, meta lbMeta) error {
	if err := put(d.objects.Meta, 0, &meta); err != nil {
		return err
	}
	var err error
	if d.tables, err = openTables(*d.objects); err != nil {
		return err
	}
	if d.upgrade != nil {
		if err := d.upgrade.fill(d, spec); err != nil {
			return refuse(d.pinDir, d.upgrade.from, err)
		}
	}
	if d.state, err = d.tables.readState(); err != nil {
		return err
	}
	d.show()
	if err := d.tables.ensureNews(d.state); err != nil {
		return err
	}
	if d.upgrade != nil {
		if err := d.tables.countPorts(d.state); err != nil {
			return err
		}
	}
	if d.pinDir == "" {
		return nil
	}
	dir := d.pinDir
	if d.upgrade != nil {
		// The old ones keep their places until every interface has the new program.
		dir = upgradeFolder(dir, meta.Layout)
		if err := os.Mkdir(dir, 0o700); err != nil {
			return fmt.Errorf("make a folder for the pins: %w", err)
		}
	}
	// The map that says what the others are comes last: a daemon that is killed
	// here leaves nothing that the next one takes for what it is not.
	for _, m := range slices.Backward(d.mapsByName()) {
		if err := repin(m.m, pinPath(dir, m.name)); err != nil {
			return err
		}
		if err := d.upgrade.at("pinned " + m.name); err != nil {
			return err
		}
	}
	if err := repin(d.program, filepath.Join(dir, programPin)); err != nil {
		return err
	}
	return d.upgrade.at("pinned " + programPin)
}

// Fresh tells whether there was no data plane to adopt.
func (d *Datapath) Fresh() bool { return d.fresh }

type namedMap struct {
	name string
	m    *ebpf.Map
}

func (d *Datapath) mapsByName() []namedMap {
	all := []namedMap{{"meta", d.objects.Meta}} // the first one
	for name, m := range d.objects.byName() {
		if *m != d.objects.Meta {
			all = append(all, namedMap{name, *m})
		}
	}
	return all
}

// tablesMap is what the program's one variable is called in a specification; a
// BPF file system refuses the name.
const tablesMap = ".bss"

// byName returns the maps by their names in a specification. All of them are
// pinned.
func (m *kernelMaps) byName() map[string]**ebpf.Map {
	all := map[string]**ebpf.Map{tablesMap: &m.Tables}
	v := reflect.ValueOf(&m.lbMaps).Elem()
	for i := range v.NumField() {
		all[v.Type().Field(i).Tag.Get("ebpf")] = v.Field(i).Addr().Interface().(**ebpf.Map)
	}
	return all
}

// pinPath is where a map is pinned.
func pinPath(dir, name string) string {
	if name == tablesMap {
		name = "tables"
	}
	return filepath.Join(dir, name)
}

// pinnable tells whether a map of a specification is pinned: constants are not.
func pinnable(name string) bool { return name == tablesMap || !strings.HasPrefix(name, ".") }

// size gives the maps their sizes and finds the pinned ones that can be taken
// over.
func size(spec *ebpf.CollectionSpec, o Options) (foundation, error) {
	f := foundation{fresh: true, maps: map[string]*ebpf.Map{}}
	if o.MaxFlows > MaxFlows {
		return f, fmt.Errorf("max_flows is %d: no more than %d fit", o.MaxFlows, MaxFlows)
	}
	// Four words a flow: most names stand in the first of their two buckets, and
	// what is over may linger.
	buckets := uint32(1) << bits.Len32(uint32(max(o.MaxFlows, 1024)*4/int(lbLimitsNAT_WAYS)-1))
	f.meta = lbMeta{Layout: uint32(lbLayoutLAYOUT_VERSION), BucketMask: buckets - 1}
	var seed [8]byte
	rand.Read(seed[:])
	f.meta.NatSeed = binary.LittleEndian.Uint64(seed[:])
	spec.Maps[tablesMap].Flags |= unix.BPF_F_MMAPABLE
	spec.Maps["slots"].MaxEntries = uint32(max(2*o.Slots, 16*lb.DefaultTableSize))
	spec.Maps["nat_buckets"].MaxEntries = buckets
	for name, entries := range flowTables(o.MaxFlows) {
		spec.Maps[name].MaxEntries = entries
	}
	if o.PinDir == "" {
		return f, nil
	}
	err := f.adopt(spec, o)
	return f, err
}

// flowTables are the sizes of the tables of single flows. Handshakes last for 5 s
// only; stragglers are preallocated.
func flowTables(maxFlows int) map[string]uint32 {
	pins := uint32(max(maxFlows, 1024))
	return map[string]uint32{
		"pins": pins, "udp_flows": pins, "handshakes": min(pins, 1<<17), "stragglers": min(pins, 1<<18),
		"udp_new": min(pins, 1<<16),
	}
}

// The prefixes of the outer source addresses of tunnels where Options names none.
var (
	DefaultTunnelSource4 = netip.MustParsePrefix("172.16.0.0/16")
	DefaultTunnelSource6 = netip.MustParsePrefix("100::/64") // discard-only (RFC 6666)
)

// prefixWords returns what the program knows of a prefix.
func prefixWords(p, fallback netip.Prefix) (address, mask [2]uint64) {
	if !p.IsValid() {
		p = fallback
	}
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	var b [16]byte
	for i := range bits {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return mapped(p.Masked().Addr()), mapped(netip.AddrFrom16(b))
}

func setVariables(spec *ebpf.CollectionSpec, o Options, meta lbMeta, timeouts map[lbNatState]time.Duration) error {
	source4, mask4 := prefixWords(o.TunnelSource4, DefaultTunnelSource4)
	source6, mask6 := prefixWords(o.TunnelSource6, DefaultTunnelSource6)
	probe4, probeMask4 := prefixWords(o.ProbeAddresses4, DefaultProbeAddresses4)
	probe6, probeMask6 := prefixWords(o.ProbeAddresses6, DefaultProbeAddresses6)
	var ticks [lbNatStateNAT_STATES]uint32
	for state, d := range timeouts {
		ticks[state] = uint32(d / tick)
	}
	for name, value := range map[string]any{
		"tunnel_source4": uint32(source4[1] >> 32), "tunnel_mask4": uint32(mask4[1] >> 32),
		"tunnel_source6": source6, "tunnel_mask6": mask6,
		"probe_prefix4": uint32(probe4[1] >> 32), "probe_mask4": uint32(probeMask4[1] >> 32),
		"probe_prefix6": probe6, "probe_mask6": probeMask6,
		"nat_seed": meta.NatSeed, "nat_bucket_mask": meta.BucketMask, "nat_timeout": ticks,
		"nat_logged": boolWord(o.LogTranslations), "flows_told": boolWord(o.TellFlows),
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("set %s of the program: %w", name, err)
		}
	}
	return nil
}

// loadError shortens a verifier's log to what says why.
func loadError(err error) error {
	var ve *ebpf.VerifierError
	if errors.As(err, &ve) {
		const lines = 40
		ve.Log = ve.Log[max(0, len(ve.Log)-lines):]
		return fmt.Errorf("load the XDP program: the kernel's verifier refused it (Linux 6.1 or later is needed): %+v", ve)
	}
	return fmt.Errorf("load the XDP program (this needs root and Linux 6.1 or later): %w", err)
}

func closeAll(m map[string]*ebpf.Map) {
	for _, m := range m {
		m.Close()
	}
}

// Close lets go of the data plane. What is pinned goes on forwarding; what is
// not stops.
func (d *Datapath) Close() error {
	d.readers.Lock() // waits for who looks
	d.seen.Store(nil)
	d.readers.Unlock()
	var errs []error
	d.upgrade.close()
	if d.tables != nil {
		errs = append(errs, d.tables.close())
	}
	for _, l := range d.links {
		errs = append(errs, l.Close())
	}
	return errors.Join(append(errs, d.objects.Close(), d.program.Close(), d.probes.program.Close())...)
}
