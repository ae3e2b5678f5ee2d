// SPDX-License-Identifier: Apache-2.0

package vrrp

import "fmt"

// A Reason says why a received packet was dropped. It is an error, so that the
// decoder can return it without allocating: a segment that is flooded with bad
// packets must not make garbage.
type Reason uint8

// The reasons, in the order in which a packet is checked.
const (
	ReasonHeader    Reason = iota + 1 // the IP header is malformed or cut short
	ReasonTTL                         // the TTL is not 255: the packet was routed (RFC 9568, 7.1)
	ReasonPeer                        // unicast: from an address that is none of the peers'
	ReasonLength                      // the message is shorter than it says it is
	ReasonVRID                        // another virtual router; usual where several share a segment
	ReasonVersion                     // a version other than the instance's
	ReasonType                        // not an advertisement
	ReasonChecksum                    // the checksum is wrong
	ReasonOwnSource                   // sent from this node's own address: a loop or a duplicate address
	ReasonAuthType                    // v2: another authentication type than the instance's
	ReasonPassword                    // v2: another password
	ReasonInterval                    // v2: another advertisement interval; v3: zero
	ReasonAddresses                   // another list of VIPs
	numReasons
)

// Reasons lists all reasons, for whoever reports counters.
func Reasons() []Reason {
	all := make([]Reason, 0, numReasons-1)
	for r := ReasonHeader; r < numReasons; r++ {
		all = append(all, r)
	}
	return all
}

// String is a short name, fit for a label in metrics.
func (r Reason) String() string {
	switch r {
	case ReasonHeader:
		return "header"
	case ReasonTTL:
		return "ttl"
	case ReasonPeer:
		return "peer"
	case ReasonLength:
		return "length"
	case ReasonVRID:
		return "vrid"
	case ReasonVersion:
		return "version"
	case ReasonType:
		return "type"
	case ReasonChecksum:
		return "checksum"
	case ReasonOwnSource:
		return "own_source"
	case ReasonAuthType:
		return "auth_type"
	case ReasonPassword:
		return "password"
	case ReasonInterval:
		return "interval"
	case ReasonAddresses:
		return "addresses"
	}
	return fmt.Sprintf("reason_%d", uint8(r))
}

func (r Reason) Error() string {
	switch r {
	case ReasonHeader:
		return "ip header is malformed"
	case ReasonTTL:
		return "ttl is not 255: the packet crossed a router"
	case ReasonPeer:
		return "sender is no unicast peer: list it on this node, or set the address it sends from"
	case ReasonLength:
		return "message is shorter than its address count asks for"
	case ReasonVRID:
		return "message is for another virtual router id"
	case ReasonVersion:
		return "vrrp version differs: set the same version on every node"
	case ReasonType:
		return "message is not an advertisement"
	case ReasonChecksum:
		return "checksum is wrong"
	case ReasonOwnSource:
		return "message comes from this node's own address: look for a loop or a duplicate address"
	case ReasonAuthType:
		return "authentication type differs: set a password on every node or on none"
	case ReasonPassword:
		return "password differs: set the same password on every node"
	case ReasonInterval:
		return "advertisement interval differs: set the same interval on every node"
	case ReasonAddresses:
		return "address list differs: set the same addresses on every node"
	}
	return r.String()
}
