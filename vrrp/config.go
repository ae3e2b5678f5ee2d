// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// ChecksumForm says whether the checksum of a sent v3 IPv4 message covers a
// pseudo-header. Both forms are accepted from peers.
type ChecksumForm uint8

// The forms.
const (
	// ChecksumAuto sends the form with a pseudo-header, which keepalived insists
	// on, until a peer's advertisement shows the other one; then the peer's. A
	// Backup never shows its own, so the first form must suit those in use.
	ChecksumAuto   ChecksumForm = iota
	ChecksumPlain               // RFC 9568, 5.2.8: without a pseudo-header
	ChecksumPseudo              // with one, as keepalived sends by default
)

// defaultAnnounceRefresh is how often an Active node announces its VIPs again,
// for switches that forgot where they are.
const defaultAnnounceRefresh = 60 * time.Second

// Config is one virtual router instance on this node.
type Config struct {
	Name      string // as in the configuration; for logs and status
	Interface string
	VRID      uint8
	Version   Version
	// Priority is 1 to 254, or 255 where the VIPs are this node's own
	// addresses.
	Priority uint8
	// Interval is the advertisement interval: in version 2 whole seconds up to
	// 255, in version 3 centiseconds up to 40.95 s.
	Interval time.Duration
	// Password is version 2's simple password of at most 8 bytes; "": none.
	Password string
	// Addresses are the VIPs, with the prefix that they get on the interface. All
	// are of one family; IPv6 takes version 3, and a link-local VIP stands first
	// (RFC 9568, 5.2.9).
	Addresses []netip.Prefix
	// Peers are the other nodes where advertisements go to each of them and not
	// to the multicast group; empty: multicast. They may be behind routers.
	Peers []netip.Addr
	// Source is the address that Peers know this node by, where its interface has
	// several. Invalid, or not on the interface: the first that is no VIP.
	Source netip.Addr
	// Preempt lets this node take over from an Active one of lower priority.
	Preempt bool
	// PreemptDelay is how long this node hears such an Active node before it
	// starts to take over. An Active node that falls silent is never waited for.
	PreemptDelay time.Duration
	// SyncWait is how long it waits for Router.SetSynced before that, at the longest,
	// counted from the same moment. 0: it does not.
	SyncWait time.Duration
	Checksum ChecksumForm
	// Heartbeat is the interval of heartbeats between nodes of this program (fast
	// mode), 0: none. It goes with Deps.Heartbeats.
	Heartbeat time.Duration
	// VirtualMAC has the VIPs at the virtual router's MAC address (RFC 9568, 7.3), which
	// advertisements and announcements come from, and who asks is answered with. It goes
	// with Deps.Fence, which answers, and Deps.MACs, and is not for the owner.
	VirtualMAC bool
	// Extra is there while this node is Active, in the tables of Deps.Routes.
	Extra RouteSet
	// AnnounceRefresh is the time between announcements while Active. 0: 60 s.
	AnnounceRefresh time.Duration
}

// Validate reports every mistake in c.
func (c *Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Name == "" {
		bad("name is missing")
	}
	if c.Interface == "" {
		bad("interface is missing")
	}
	if c.VRID == 0 {
		bad("virtual router id 0: want 1 to 255")
	}
	if c.Priority == 0 {
		bad("priority 0: want 1 to 254, or 255 for the owner of the addresses")
	}
	if err := checkInterval(c.Version, c.Interval); err != nil {
		errs = append(errs, err)
	}
	if c.Password != "" && c.Version != V2 {
		bad("password: version %d has no authentication", c.Version)
	}
	if len(c.Password) > authLen {
		bad("password has %d bytes: the protocol carries %d", len(c.Password), authLen)
	}
	if strings.ContainsRune(c.Password, 0) {
		bad("password holds a zero byte")
	}
	if c.VirtualMAC && c.owner() {
		bad("virtual mac address: those of the owner of the addresses are at its own")
	}
	if c.PreemptDelay < 0 || c.SyncWait < 0 || c.AnnounceRefresh < 0 || c.Heartbeat < 0 {
		bad("preempt delay, wait for the peer's state, heartbeat interval and announcement refresh must not be negative")
	}
	if c.SyncWait > 0 && c.owner() {
		bad("priority %d preempts at once, and cannot wait for a peer's state: want 1 to 254", PriorityOwner)
	}
	if n := len(c.Addresses); n == 0 || n > maxAddresses {
		bad("%d addresses: want 1 to %d", n, maxAddresses)
	}
	seen := make(map[netip.Addr]bool)
	for i, p := range c.Addresses {
		switch a := p.Addr(); {
		case !p.IsValid() || a.Is4In6():
			bad("address is not valid")
		case a.Is6() != c.v6():
			bad("address %v: IPv4 and IPv6 need an instance each", a)
		case a.Is6() && c.Version == V2:
			bad("address %v: version 2 has IPv4 only", a)
		case a.Is6() && a.IsLinkLocalUnicast() && i > 0:
			bad("address %v: a link-local VIP stands first", a)
		case a.IsUnspecified() || a.IsMulticast() || a.IsLoopback():
			bad("address %v: want a unicast address of the network", a)
		case seen[a]:
			bad("address %v is listed twice", a)
		default:
			seen[a] = true
		}
	}
	errs = append(errs, c.checkPeers()...)
	if c.Checksum > ChecksumPseudo {
		bad("checksum form %d is not known", c.Checksum)
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("virtual router %q: %w", c.Name, errors.Join(errs...))
}

func (c *Config) checkPeers() (errs []error) {
	seen := make(map[netip.Addr]bool)
	for _, p := range c.Peers {
		switch {
		case !p.IsValid() || p.Is6() != c.v6() || p.Is4In6():
			errs = append(errs, fmt.Errorf("peer %v is not of the family of the addresses", p))
		case p.IsUnspecified() || p.IsMulticast() || p.IsLoopback() || p.Is6() && p.IsLinkLocalUnicast():
			errs = append(errs, fmt.Errorf("peer %v: want a unicast address that is known everywhere", p))
		case c.isVIP(p):
			errs = append(errs, fmt.Errorf("peer %v is a VIP", p))
		case p == c.Source:
			errs = append(errs, fmt.Errorf("peer %v is this node", p))
		case seen[p]:
			errs = append(errs, fmt.Errorf("peer %v is listed twice", p))
		}
		seen[p] = true
	}
	return errs
}

// v6 reports whether the family of the VIPs is IPv6.
func (c *Config) v6() bool { return len(c.Addresses) > 0 && c.Addresses[0].Addr().Is6() }

func (c *Config) unicast() bool { return len(c.Peers) > 0 }

// canSend reports whether an address is one that advertisements may come from:
// in IPv6 multicast the interface's link-local one (RFC 9568, 5.1.2.1), else one
// that peers can reach.
func (c *Config) canSend(a netip.Addr) bool {
	if a.Is4() || !c.v6() {
		return a.Is4() && !c.v6()
	}
	return a.IsLinkLocalUnicast() != c.unicast()
}

// virtualMAC is where the VIPs are; zero: at the interface's own MAC address.
func (c *Config) virtualMAC() MAC {
	if !c.VirtualMAC {
		return MAC{}
	}
	return VirtualMAC(c.VRID, c.v6())
}

func (c *Config) owner() bool { return c.Priority == PriorityOwner }

// vips are the addresses of c without their prefixes.
func (c *Config) vips() []netip.Addr {
	vips := make([]netip.Addr, len(c.Addresses))
	for i, p := range c.Addresses {
		vips[i] = p.Addr()
	}
	return vips
}

func (c *Config) isVIP(a netip.Addr) bool {
	return slices.ContainsFunc(c.Addresses, func(p netip.Prefix) bool { return p.Addr() == a })
}
