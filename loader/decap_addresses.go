package loader

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Run follows the addresses and interfaces until ctx ends. An interface that is
// deleted and made anew gets the program again.
func (d *Decap) Run(ctx context.Context) {
	changed := make(chan struct{}, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		d.listen(changed)
	}()
	ticker := time.NewTicker(refreshEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			// Ends the read; no later one is wanted.
			_ = d.events.SetReadDeadline(time.Unix(1, 0))
			<-ended
			return
		case <-changed:
		case <-ticker.C:
		}
		if _, err := d.refresh(); err != nil {
			d.log.Error("addresses can't be followed", "error", err)
		}
	}
}

// listen pokes changed for each event until the events end.
func (d *Decap) listen(changed chan<- struct{}) {
	// A datagram that is longer is cut, which is fine: nothing reads it.
	buf := make([]byte, 4096)
	for {
		_, err := d.events.Read(buf)
		// ENOBUFS: messages were lost, so something has changed.
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				d.log.Error("changes of addresses are noticed late from now on", "error", err)
			}
			return
		}
		select {
		case changed <- struct{}{}:
		default:
		}
	}
}

// followAddresses opens a socket that hears of every change of links and
// addresses.
func followAddresses() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	groups := uint32(1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_IFADDR-1))
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "netlink events"), nil
}

// refresh makes the tables those of the addresses that there are, then puts the
// program where it is missing. It returns what is wrong with interfaces, by name;
// the error is of what concerns all.
func (d *Decap) refresh() (map[string]error, error) {
	links, addresses, err := d.list()
	if err != nil {
		return nil, err
	}
	faults := map[string]error{}
	nics := map[string]netlink.Link{}
	for _, name := range d.options.Interfaces {
		i := slices.IndexFunc(links, func(l netlink.Link) bool { return l.Attrs().Name == name })
		if i < 0 {
			faults[name] = fmt.Errorf("attach to %s: there is no such interface: ip link shows what there is", name)
			continue
		}
		nics[name] = links[i]
	}

	// The tables come first: a program on the interface counts on them.
	hosts := map[decapHost]bool{}
	for _, nic := range nics {
		index := nic.Attrs().Index
		own := takenBy(index, links)
		for _, a := range addresses {
			if own[a.link] {
				hosts[decapHost{Interface: uint32(index), Address: decapKey(a.addr)}] = true
			}
		}
	}
	vips := map[decapAddress]bool{}
	for _, vip := range d.inner(links, addresses) {
		vips[decapKey(vip)] = true
	}
	if err := errors.Join(
		setKeys("addresses of interfaces", d.objects.Hosts, hosts),
		setKeys("VIPs", d.objects.Vips, vips),
	); err != nil {
		return nil, err
	}

	for _, name := range slices.Sorted(maps.Keys(nics)) {
		if err := d.attach(nics[name]); err != nil {
			faults[name] = fmt.Errorf("attach to %s: %w", name, err)
		}
	}
	d.report(faults, addresses)
	return faults, nil
}

// report logs what is wrong, once each.
func (d *Decap) report(faults map[string]error, addresses []address) {
	now := map[string]string{}
	for name, err := range faults {
		now["interface "+name] = err.Error()
	}
	for _, vip := range d.options.VIPs {
		if !slices.ContainsFunc(addresses, func(a address) bool { return a.addr == vip }) {
			now["VIP "+vip.String()] = fmt.Sprintf("no interface has it, so the kernel does not take its packets: ip address add %v dev lo",
				netip.PrefixFrom(vip, vip.BitLen()))
		}
	}
	for _, what := range slices.Sorted(maps.Keys(now)) {
		if d.problems[what] != now[what] {
			d.log.Warn(what, "problem", now[what])
		}
	}
	d.problems = now
}

// An address is one of this host's.
type address struct {
	link int // index
	addr netip.Addr
}

// list returns the links and addresses of the network namespace.
func (d *Decap) list() ([]netlink.Link, []address, error) {
	// A list is interrupted when something changes meanwhile.
	const tries = 10
	var links []netlink.Link
	var list []netlink.Addr
	var err error
	for range tries {
		if links, err = d.network.LinkList(); err == nil {
			list, err = d.network.AddrList(nil, netlink.FAMILY_ALL)
		}
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("list links and addresses: %w", err)
	}
	var addresses []address
	for _, a := range list {
		// An address whose uniqueness is in doubt is not the host's yet; when it is, that is an event.
		doubtful := a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 && a.Flags&unix.IFA_F_OPTIMISTIC == 0
		if addr, ok := netip.AddrFromSlice(a.IP); ok && !doubtful {
			addresses = append(addresses, address{a.LinkIndex, addr.Unmap()})
		}
	}
	return links, addresses, nil
}

// inner returns the VIPs.
func (d *Decap) inner(links []netlink.Link, addresses []address) []netip.Addr {
	if len(d.options.VIPs) > 0 {
		return d.options.VIPs
	}
	var vips []netip.Addr
	for _, a := range addresses {
		onLoopback := slices.ContainsFunc(links, func(l netlink.Link) bool {
			return l.Attrs().Index == a.link && l.Attrs().Flags&net.FlagLoopback != 0
		})
		if onLoopback && !a.addr.IsLoopback() {
			vips = append(vips, a.addr)
		}
	}
	return vips
}

// takenBy returns the links that take the packets of the one with this index: itself,
// a bond or bridge that it belongs to, and the VLANs on top of any of them.
func takenBy(index int, links []netlink.Link) map[int]bool {
	taken := map[int]bool{index: true}
	for grown := true; grown; {
		grown = false
		add := func(index int) {
			if index != 0 && !taken[index] {
				taken[index], grown = true, true
			}
		}
		for _, l := range links {
			a := l.Attrs()
			if taken[a.Index] {
				add(a.MasterIndex)
			}
			// Elsewhere the parent's number is that of another namespace.
			if l.Type() == "vlan" && a.NetNsID < 0 && taken[a.ParentIndex] {
				add(a.Index)
			}
		}
	}
	return taken
}

func decapKey(a netip.Addr) decapAddress { return decapAddress{Bytes: a.As16()} }

// setKeys makes the keys of a table those that are wanted. What stays is there at
// every moment.
func setKeys[K comparable](what string, m *ebpf.Map, want map[K]bool) error {
	have := map[K]bool{}
	var key K
	var value uint8
	entries := m.Iterate()
	for entries.Next(&key, &value) {
		have[key] = true
	}
	if err := entries.Err(); err != nil {
		return fmt.Errorf("read the %s: %w", what, err)
	}
	for key := range have {
		if want[key] {
			continue
		}
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("remove one of the %s: %w", what, err)
		}
	}
	for key := range want {
		if have[key] {
			continue
		}
		if err := m.Put(key, uint8(1)); err != nil {
			return fmt.Errorf("write the %s: %d are wanted, there is room for %d: %w", what, len(want), m.MaxEntries(), err)
		}
	}
	return nil
}
