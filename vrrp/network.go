// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"fmt"
	"net/netip"
)

// A MAC is an Ethernet address. Zero: the interface has none.
type MAC [6]byte

// A Link is what a Router knows of its interface. Two that are equal need the
// same sockets.
type Link struct {
	Name  string
	Index int
	MAC   MAC
	// Virtual is the MAC address of the virtual router, where its VIPs are at that;
	// zero: they are at MAC.
	Virtual MAC
	Up      bool       // administratively up and with carrier
	Source  netip.Addr // of sent packets; invalid where the interface has none that is usable
	Router  bool       // with a source of IPv6: the interface forwards
}

// A Network is the host's network, as far as a Router needs it. Host is the
// real one; tests put a segment of their own in its place.
type Network interface {
	// Watch returns a channel that is signalled after links or addresses have
	// changed, once for any number of changes, until stop is called.
	Watch() (changed <-chan struct{}, stop func())
	// Link looks an interface up. Its source is its first address, of either
	// family, for which usable is true.
	Link(name string, usable func(netip.Addr) bool) (Link, error)
	// Transport opens a transport on a link that is up and has a source, in the
	// family of that. It sends to the peers, or to the multicast group if there
	// are none.
	Transport(link Link, peers []netip.Addr) (Transport, error)
	// Announcer prepares the announcements of VIPs on a link.
	Announcer(Link, []netip.Addr) (Announcer, error)
	// Prober opens what asks for VIPs on a link.
	Prober(Link, []netip.Addr) (Prober, error)
}

// A Transport carries advertisements on one link.
type Transport interface {
	// Destinations is where each advertisement goes: the multicast group, or
	// every peer.
	Destinations() []netip.Addr
	// Send sends one VRRP message to one of them. It never blocks.
	Send(msg []byte, to netip.Addr) error
	// Receive waits for the next packet and reads it into b, header and all.
	// An error that is a Reason is about that packet only; after any other the
	// transport is of no use.
	Receive(b []byte) (Packet, error)
	// Close makes Receive return.
	Close() error
}

// An AddressStore puts VIPs on the host's interfaces and takes them off.
// Addresses is the real one.
type AddressStore interface {
	// Check compares VIPs with what the host has. With owner, addresses of the
	// node's own are no conflict.
	Check(iface string, vips []netip.Prefix, owner bool) (AddressReport, error)
	// Add adds the VIPs that are not there already, as many as it can. The error
	// holds a *ConflictError if the node has one for another purpose; with
	// owner such an address is left alone.
	Add(iface string, vips []netip.Prefix, owner bool) error
	// Remove removes the VIPs that were added. Any other is left alone.
	Remove(iface string, vips []netip.Prefix) error
	// Added reports whether an address was added, to any interface.
	Added(netip.Addr) bool
}

// An AddressReport is how the VIPs of an instance stand.
type AddressReport struct {
	Present   []netip.Prefix   // added by this program, now or by an earlier run
	Missing   []netip.Prefix   // on no interface
	Conflicts []*ConflictError // the node's own
}

// A ConflictError is a VIP that the node has already, not from this program.
type ConflictError struct {
	Address   netip.Addr
	Interface string
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("%v is already this node's own address on %s: remove it from vrrp.addresses or from the interface", e.Address, e.Interface)
}
