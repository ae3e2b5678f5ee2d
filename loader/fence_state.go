package loader

import (
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// A FenceState is what the kernel knows of an instance.
type FenceState struct {
	Interface string // "": it is gone
	VRID      uint8
	Addresses []netip.Addr
	Held      bool // the VIPs were left on the node
	Fenced    bool // the program keeps who asks for them from the kernel
	Beat      time.Time
	Other     net.HardwareAddr // who was seen last, as an owner; nil: nobody since Beat
	Seen      time.Time
}

// readFences returns when the daemon was last alive, zero if it never was, and its
// instances.
func readFences(t *tables) (alive time.Time, all []FenceState, err error) {
	now, wall := uint64(clock(unix.CLOCK_MONOTONIC)), time.Now()
	day := func(at uint64) time.Time {
		if at == 0 {
			return time.Time{}
		}
		return wall.Add(time.Duration(at - now))
	}
	addresses, err := readFenced(t.objects.FenceAddresses)
	if err != nil {
		return alive, nil, err
	}
	alive = day(t.fence(0).Beat)
	for n := uint32(1); n < uint32(lbLimitsMAX_FENCES); n++ {
		at := *t.fence(n)
		if at.Used == 0 {
			continue
		}
		s := FenceState{VRID: at.Vrid, Held: at.Held != 0, Fenced: silenced(&at, now), Beat: day(at.Beat)}
		if nic, err := net.InterfaceByIndex(int(at.Interface)); err == nil {
			s.Interface = nic.Name
		}
		if seen := max(at.Heard, at.Claimed); seen > at.Beat {
			s.Other, s.Seen = slices.Clone(at.Other[:]), day(seen)
		}
		for key, number := range addresses {
			if number == n && key.Interface != 0 && !isMAC(key.Address) {
				s.Addresses = append(s.Addresses, unmapped(key.Address))
			}
		}
		slices.SortFunc(s.Addresses, netip.Addr.Compare)
		if s.Held && s.Beat.After(alive) {
			alive = s.Beat
		}
		all = append(all, s)
	}
	return alive, all, nil
}
