package control

import (
	"net/netip"
	"time"
)

// Left is what a daemon that is gone has left of VRRP.
type Left struct {
	// DeadSince is when it was last seen at work, to a second; nil: not known.
	DeadSince *time.Time     `json:"dead_since,omitempty"`
	VIPs      []LeftVIP      `json:"vips"`
	Instances []LeftInstance `json:"instances"`
}

// A LeftVIP is one that the daemon has put on an interface, and that is there still.
type LeftVIP struct {
	Interface string       `json:"interface"`
	Address   netip.Prefix `json:"address"`
}

// A LeftInstance is an instance as the data plane knows it.
type LeftInstance struct {
	Name            string       `json:"name,omitempty"` // as the configuration calls it
	Interface       string       `json:"interface"`
	VirtualRouterID uint8        `json:"virtual_router_id"`
	Addresses       []netip.Addr `json:"addresses"`
	Held            bool         `json:"held"` // the daemon died while it was Active, or left the VIPs at its end
	// Fenced: another node has the VIPs, and this one keeps silent about them.
	Fenced bool `json:"fenced"`
	// Other is the MAC address of who was seen as their owner since then.
	Other string     `json:"other,omitempty"`
	Seen  *time.Time `json:"seen,omitempty"`
}
