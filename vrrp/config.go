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
	// Addresses are the VIPs, with the prefix that they get on the interface.
	Addresses []netip.Prefix
	// Preempt lets this node take over from an Active one of lower priority.
	Preempt bool
	// PreemptDelay is how long this node hears such an Active node before it
	// starts to take over. An Active node that falls silent is never waited for.
	PreemptDelay time.Duration
	Checksum     ChecksumForm
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
	if c.PreemptDelay < 0 || c.AnnounceRefresh < 0 {
		bad("preempt delay and announcement refresh must not be negative")
	}
	if n := len(c.Addresses); n == 0 || n > maxAddresses {
		bad("%d addresses: want 1 to %d", n, maxAddresses)
	}
	seen := make(map[netip.Addr]bool)
	for _, p := range c.Addresses {
		switch a := p.Addr(); {
		case !p.IsValid():
			bad("address is not valid")
		case !a.Is4():
			bad("address %v: only IPv4 is supported", a)
		case a.IsUnspecified() || a.IsMulticast() || a.IsLoopback():
			bad("address %v: want a unicast address of the network", a)
		case seen[a]:
			bad("address %v is listed twice", a)
		default:
			seen[a] = true
		}
	}
	if c.Checksum > ChecksumPseudo {
		bad("checksum form %d is not known", c.Checksum)
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("virtual router %q: %w", c.Name, errors.Join(errs...))
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
