package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Fences are the data plane's table of VRRP's instances: which VIPs this node holds,
// and when its daemon was last at work. bpf/fence.h says what the program makes of
// it. It is safe for concurrent use.
type Fences struct {
	objects *kernelMaps
	tables  *tables
	log     *slog.Logger
	mu      sync.Mutex // of entries being given out, and of addresses

	vethSaid bool // guarded by mu
}

// A FenceName is what makes an instance the same one for the next daemon.
type FenceName struct {
	Interface string
	VRID      uint8
	V6        bool
}

// OpenFences returns the table. What an earlier daemon has left of instances that
// are not named is removed; the others go on as they are.
func (d *Datapath) OpenFences(instances []FenceName) (*Fences, error) {
	f := &Fences{objects: d.objects, tables: d.tables, log: d.log}
	wanted := map[fenceID]bool{}
	for _, i := range instances {
		if nic, err := net.InterfaceByName(i.Interface); err == nil {
			wanted[fenceID{uint32(nic.Index), i.VRID, i.V6}] = true
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for n := uint32(1); n < uint32(lbLimitsMAX_FENCES); n++ {
		at := f.tables.fence(n)
		if at.Used == 0 || wanted[idOf(at)] {
			continue
		}
		if err := f.setAddresses(n, nil); err != nil {
			return nil, err
		}
		store(at, lbFence{})
	}
	return f, nil
}

// Alive notes that the daemon runs, whatever its instances do.
func (f *Fences) Alive() { storeWord(&f.tables.fence(0).Beat, uint64(clock(unix.CLOCK_MONOTONIC))) }

// A Fence is one instance's entry. It is for one goroutine at a time.
type Fence struct {
	all    *Fences
	vrid   uint8
	vips   []netip.Addr
	number uint32      // 0: it has no place yet
	held   lbFenceHeld // by this daemon, or adopted
	// virtual says that the VIPs are at a virtual MAC address, so that the kernel never
	// answers for them.
	virtual bool
}

// Fence returns the entry of an instance, which has no place in the table before
// Place. The VIPs are of one family.
func (f *Fences) Fence(vrid uint8, vips []netip.Addr) *Fence {
	return &Fence{all: f, vrid: vrid, vips: vips}
}

// A FencePlace is where an instance's VIPs are, and how its daemon is known.
type FencePlace struct {
	Interface int
	MAC       [6]byte
	Source    netip.Addr    // of its advertisements
	Patience  time.Duration // without a beat, after which the daemon counts as gone
	Router    bool          // of IPv6: neighbours are told that the node is one
	Virtual   bool          // the VIPs are at the virtual router's MAC address
	Closed    bool          // the node takes for the VIPs what services do, and nothing else
}

// Place says where the instance's VIPs are. The error says why the program can't
// see who asks for them there; then nothing is fenced.
func (f *Fence) Place(p FencePlace) error {
	f.all.mu.Lock()
	defer f.all.mu.Unlock()
	way, err := f.all.way(p.Interface, netlink.LinkByIndex)
	if err != nil {
		if f.number != 0 {
			err = errors.Join(err, f.all.setAddresses(f.number, nil))
		}
		return err
	}
	f.virtual = p.Virtual
	id := fenceID{uint32(p.Interface), f.vrid, len(f.vips) > 0 && f.vips[0].Is6()}
	if f.number == 0 || idOf(f.at()) != id {
		if err := f.move(id); err != nil {
			return err
		}
		if f.held != lbFenceHeldHELD_NOT { // since before it had this place
			f.Adopt()
		}
	}
	at := f.at()
	want := *at
	want.Patience, want.Source, want.Mac = uint64(p.Patience), mapped(p.Source), p.MAC
	want.Flags = 0
	if p.Router {
		want.Flags |= uint8(lbFenceFlagsFENCE_ROUTER)
	}
	if p.Virtual {
		want.Flags |= uint8(lbFenceFlagsFENCE_VIRTUAL)
	}
	if p.Closed {
		want.Flags |= uint8(lbFenceFlagsFENCE_CLOSED)
	}
	want.Heard, want.Claimed, want.Other = at.Heard, at.Claimed, at.Other
	storeFence(at, &want)
	keys := map[lbFenceKey]bool{}
	for _, vip := range f.vips {
		way.Address = mapped(vip)
		keys[way] = true
		if p.Closed && !vip.IsLinkLocalUnicast() {
			keys[lbFenceKey{Address: way.Address}] = true
		}
	}
	if p.Virtual {
		f.all.checkVeth(int(way.Interface))
		way.Address = macAddress(virtualMAC(id))
		keys[way] = true
	}
	return f.all.setAddresses(f.number, keys)
}

// move gives the instance the entry that it had in an earlier run, or a free one,
// where its VIPs are held if they were before.
func (f *Fence) move(id fenceID) error {
	before, free := f.number, uint32(0)
	for n := uint32(1); n < uint32(lbLimitsMAX_FENCES); n++ {
		at := f.all.tables.fence(n)
		if at.Used == 0 && free == 0 {
			free = n
		}
		if at.Used != 0 && idOf(at) == id {
			free = n
			break
		}
	}
	if free == 0 {
		return fmt.Errorf("there is room for %d instances", lbLimitsMAX_FENCES-1)
	}
	at := f.all.tables.fence(free)
	if at.Used == 0 {
		store(at, lbFence{Interface: id.index, Vrid: id.vrid, V6: boolByte(id.v6), Used: 1})
	}
	if before != 0 && before != free {
		if err := f.all.setAddresses(before, nil); err != nil {
			return err
		}
		store(f.at(), lbFence{})
	}
	f.number = free
	return nil
}

// Hold says that the VIPs are this node's from now on, by the doing of this daemon: it
// is at work. From this store on the program answers who asks for them, until Present;
// it reports whether it does.
func (f *Fence) Hold() bool {
	f.Beat()
	f.hold(lbFenceHeldHELD_PROGRAM)
	return f.number != 0
}

// Present says that the VIPs that are held are on the interface: the kernel answers,
// where they are at the interface's own MAC address.
func (f *Fence) Present() {
	if f.held != lbFenceHeldHELD_NOT {
		f.hold(f.present())
	}
}

// present is who answers for VIPs that are on the interface.
func (f *Fence) present() lbFenceHeld {
	if f.virtual {
		return lbFenceHeldHELD_PROGRAM
	}
	return lbFenceHeldHELD_KERNEL
}

// Left tells how long ago the daemon of an earlier run was at work, which has left the
// VIPs on this node. False: there was none, or another owner has been seen since.
func (f *Fence) Left() (age time.Duration, ok bool) {
	if f.number == 0 {
		return 0, false
	}
	at := f.at()
	beat := atomic.LoadUint64(&at.Beat)
	if at.Held == 0 || beat == 0 || atomic.LoadUint64(&at.Heard) > beat || atomic.LoadUint64(&at.Claimed) > beat {
		return 0, false
	}
	return time.Duration(uint64(clock(unix.CLOCK_MONOTONIC)) - beat), true
}

// Adopt says that VIPs of an earlier run are on this node. Whether that run counts
// as gone, and who has been seen since, stays as it was.
func (f *Fence) Adopt() {
	if f.number != 0 && f.at().Held == uint8(lbFenceHeldHELD_NOT) {
		f.Beat()
	}
	f.hold(f.present())
}

// Drop says that the VIPs are not on this node any more.
func (f *Fence) Drop() { f.hold(lbFenceHeldHELD_NOT) }

func (f *Fence) hold(held lbFenceHeld) {
	f.held = held
	if f.number == 0 {
		return
	}
	at := f.at()
	want := *at
	want.Held = uint8(held)
	storeWord(&wordsOf(at)[fenceHeldWord], wordsOf(&want)[fenceHeldWord])
}

// Free gives the entry up, of an instance that has ended and is configured no more.
// What is said of it afterwards nobody hears.
func (f *Fence) Free() error {
	f.all.mu.Lock()
	defer f.all.mu.Unlock()
	if f.number == 0 {
		return nil
	}
	if err := f.all.setAddresses(f.number, nil); err != nil {
		return err
	}
	store(f.at(), lbFence{})
	f.number = 0
	return nil
}

// Beat says that the daemon is at work, as the Active node. It does not allocate.
func (f *Fence) Beat() {
	if f.number != 0 {
		storeWord(&f.at().Beat, uint64(clock(unix.CLOCK_MONOTONIC)))
	}
}

// Overtaken tells whether the daemon has stood still until the program heard another
// node's advertisement, and took it for the owner of the VIPs.
func (f *Fence) Overtaken() bool {
	return f.number != 0 && silenced(f.at(), uint64(clock(unix.CLOCK_MONOTONIC))) &&
		atomic.LoadUint64(&f.at().Heard) > atomic.LoadUint64(&f.at().Beat)
}

func (f *Fence) at() *lbFence { return f.all.tables.fence(f.number) }

// silenced is is_fenced of bpf/fence.h.
func silenced(at *lbFence, now uint64) bool {
	beat := atomic.LoadUint64(&at.Beat)
	if at.Held == 0 || atomic.LoadUint64(&at.Heard) <= beat && atomic.LoadUint64(&at.Claimed) <= beat {
		return false
	}
	return int64(now-beat) > int64(at.Patience)
}

// The words of a fence: those up to fenceHeard are the daemon's, and of these one
// says that the VIPs are held.
const (
	fenceHeldWord = unsafe.Offsetof(lbFence{}.Interface) / 8
	fenceHeard    = unsafe.Offsetof(lbFence{}.Heard) / 8
)

// storeFence writes the daemon's part of a fence. The program writes the rest.
func storeFence(at, want *lbFence) {
	to, from := wordsOf(at), wordsOf(want)
	for i := range fenceHeard {
		storeWord(&to[i], from[i])
	}
}

// A fenceID is a FenceName whose interface is a number.
type fenceID struct {
	index uint32
	vrid  uint8
	v6    bool
}

func idOf(f *lbFence) fenceID { return fenceID{f.Interface, f.Vrid, f.V6 != 0} }

// virtualMAC is the MAC address of an instance's virtual router (RFC 9568, 7.3).
func virtualMAC(i fenceID) [6]byte { return [6]byte{0, 0, 0x5e, 0, 1 + boolByte(i.v6), i.vrid} }

// macAddress stands for a MAC address among addresses, and isMAC tells it from others.
func macAddress(mac [6]byte) [2]uint64 {
	return [2]uint64{math.MaxUint64, binary.LittleEndian.Uint64(append(mac[:], 0, 0))}
}

func isMAC(address [2]uint64) bool { return address[0] == math.MaxUint64 }

func boolByte(b bool) uint8 { return uint8(boolWord(b)) }

// way is how frames of an interface come in: by a NIC that the program is on, with
// tags. The error says that they do not.
func (f *Fences) way(index int, linkBy func(int) (netlink.Link, error)) (lbFenceKey, error) {
	var key lbFenceKey
	for at, tags := index, 0; ; tags++ {
		if f.tables.nic(at).Index == uint32(at) {
			key.Interface = uint32(at)
			return key, nil
		}
		l, err := linkBy(at)
		if err != nil {
			return key, fmt.Errorf("look at interface number %d: %w", at, err)
		}
		v, ok := l.(*netlink.Vlan)
		if !ok || tags == len(key.Vlan) {
			return key, fmt.Errorf("the XDP program is not on %s: name it in datapath.interfaces", l.Attrs().Name)
		}
		key.Vlan[1] = key.Vlan[0]
		key.Vlan[0] = bigEndian16(uint16(v.VlanId))
		at = v.ParentIndex
	}
}

// setAddresses makes the given VIPs those of an entry, and no others.
func (f *Fences) setAddresses(number uint32, want map[lbFenceKey]bool) error {
	have, err := f.addresses()
	if err != nil {
		return err
	}
	for key, n := range have {
		if n == number && !want[key] {
			if err := f.objects.FenceAddresses.Delete(&key); err != nil {
				return fmt.Errorf("forget a VIP of an instance: %w", err)
			}
			delete(have, key)
		}
	}
	for key := range want {
		if n, known := have[key]; known && n == number {
			continue
		}
		if err := f.objects.FenceAddresses.Put(&key, &number); err != nil {
			return fmt.Errorf("note a VIP of an instance: %w", err)
		}
		have[key] = number
	}
	var macs, closed bool
	for key, n := range have {
		macs = macs || isMAC(key.Address)
		closed = closed || f.tables.fence(n).Flags&uint8(lbFenceFlagsFENCE_CLOSED) != 0
	}
	storeWord(&f.tables.arrays.VirtualMacs, uint64(boolWord(macs)))
	storeWord(&f.tables.arrays.Closed, uint64(boolWord(closed)))
	storeWord(&f.tables.arrays.Fences, uint64(boolWord(len(have) > 0)))
	return nil
}

func (f *Fences) addresses() (map[lbFenceKey]uint32, error) {
	return readFenced(f.objects.FenceAddresses)
}

func readFenced(m *ebpf.Map) (map[lbFenceKey]uint32, error) {
	all := map[lbFenceKey]uint32{}
	var key lbFenceKey
	var number uint32
	entries := m.Iterate()
	for entries.Next(&key, &number) {
		all[key] = number
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("read the VIPs of instances: %w", err)
	}
	return all, nil
}
