package control

import (
	"net/netip"
	"time"

	"github.com/sluice-lb/sluice/internal/heartbeat"
)

// A HeartbeatPath is an address of another node that heartbeats go to and come
// from.
type HeartbeatPath struct {
	Address   netip.Addr `json:"address"`
	Node      string     `json:"node,omitempty"`  // who is there; absent: nobody has shown it
	Heard     *time.Time `json:"heard,omitempty"` // absent: never
	Connected bool       `json:"connected"`       // the end of the daemon there would be noticed at once
	Mistake   string     `json:"mistake,omitempty"`
	Received  uint64     `json:"received"`
	Forged    uint64     `json:"forged"`
	Replayed  uint64     `json:"replayed"`
	Malformed uint64     `json:"malformed"`
}

// Heartbeats describes paths.
func Heartbeats(paths []heartbeat.PathStatus) []HeartbeatPath {
	all := make([]HeartbeatPath, 0, len(paths))
	for _, p := range paths {
		h := HeartbeatPath{
			Address: p.Address, Node: p.Node, Connected: p.Connected, Mistake: p.Mistake,
			Received: p.Beats, Forged: p.Forged, Replayed: p.Replayed, Malformed: p.Malformed,
		}
		if !p.Heard.IsZero() {
			h.Heard = &p.Heard
		}
		all = append(all, h)
	}
	return all
}
