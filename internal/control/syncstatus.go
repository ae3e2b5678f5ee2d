package control

import (
	"net/netip"
	"time"

	"github.com/sluice-lb/sluice/internal/statesync"
	"github.com/sluice-lb/sluice/loader"
)

// A SyncStatus is how the state of connections gets from node to node.
type SyncStatus struct {
	// AtRisk is how many connections a failover now would break, as far as this node
	// knows: see atRisk. 0 on a node that is Active for nothing.
	AtRisk int `json:"at_risk"`
	// Unread is about how many changes have not been read yet, since peers do not keep up.
	Unread int        `json:"unread"`
	Peers  []SyncPeer `json:"peers"`
	// Strangers are who was refused last, and Refused counts them by reason.
	Strangers []SyncStranger    `json:"strangers"`
	Refused   map[string]uint64 `json:"refused"`
	// Taken is what has become of the flows that peers have told of.
	Taken SyncTaken `json:"taken"`
	// Lost is how often this node has lost track of what changes, so that its peers
	// got everything again.
	Lost uint64 `json:"lost"`
}

// A SyncPeer is how it stands with one node.
type SyncPeer struct {
	Node      string         `json:"node"`
	Address   netip.AddrPort `json:"address"`
	Connected bool           `json:"connected"` // this node's state goes there
	InSync    bool           `json:"in_sync"`   // it holds all that this node has, but for Waiting
	Synced    bool           `json:"synced"`    // this node holds all that it has
	Waiting   int            `json:"waiting"`   // flows that it has not acknowledged
	Age       float64        `json:"oldest_seconds"`
	// Records are states of flows, since the start; bytes are those on the wire.
	RecordsSent     uint64 `json:"records_sent"`
	RecordsReceived uint64 `json:"records_received"`
	BytesSent       uint64 `json:"bytes_sent"`
	BytesReceived   uint64 `json:"bytes_received"`
	// Refused is how often it had no use for a flow, and Refusing how many there are of
	// these that are not over.
	Refused   uint64 `json:"refused"`
	Refusing  int    `json:"refusing"`
	Snapshots uint64 `json:"snapshots"`
	Mends     uint64 `json:"mends"`
	Stalls    uint64 `json:"stalls"` // times that it did not keep up
	// Differs are services that are not the same on both nodes.
	Differs []string `json:"differs"`
	Problem string   `json:"problem,omitempty"`
}

// A SyncStranger is an address whose connections were refused.
type SyncStranger struct {
	Address netip.Addr `json:"address"`
	Why     string     `json:"why"`
	Error   string     `json:"error"`
	Count   uint64     `json:"count"`
	Last    time.Time  `json:"last"`
}

// SyncTaken counts flows that peers have told of.
type SyncTaken struct {
	Applied uint64                            `json:"applied"`
	Ended   uint64                            `json:"ended"`
	Kept    uint64                            `json:"kept"` // this node knew more of them
	Refused map[loader.Refusal]loader.Refused `json:"refused"`
}

// Sync describes it. Kept is how many connections the data plane keeps state of,
// to VIPs that this node is Active for.
func Sync(s statesync.Status, taken loader.ApplyResult, kept int) *SyncStatus {
	out := &SyncStatus{
		AtRisk: atRisk(s, kept), Unread: s.Unread, Peers: []SyncPeer{}, Strangers: []SyncStranger{}, Refused: map[string]uint64{}, Lost: s.Lost,
		Taken: SyncTaken{Applied: uint64(taken.Applied), Ended: uint64(taken.Ended), Kept: uint64(taken.Kept), Refused: taken.Refused},
	}
	for _, p := range s.Peers {
		k := SyncPeer{
			Node: p.Name, Address: p.Address, Connected: p.Out.Connected, InSync: p.Out.InSync, Synced: p.In.Synced,
			Waiting: p.Out.Waiting + p.Out.InFlight, Age: p.Out.Age.Seconds(), RecordsSent: p.Out.Records, RecordsReceived: p.In.Records,
			BytesSent: p.Out.Sent + p.In.Sent, BytesReceived: p.Out.Received + p.In.Received, Refused: p.Out.Refused, Refusing: p.Out.Refusing,
			Snapshots: p.Out.Snapshots, Mends: p.Out.Mends, Stalls: p.Out.Stalls, Differs: p.Differs, Problem: p.Problem,
		}
		if k.Differs == nil {
			k.Differs = []string{}
		}
		out.Peers = append(out.Peers, k)
	}
	for _, x := range s.Strangers {
		out.Strangers = append(out.Strangers, SyncStranger{Address: x.Address, Why: string(x.Why), Error: x.Error, Count: x.Count, Last: x.Last})
	}
	for why, n := range s.Refused {
		out.Refused[string(why)] = n
	}
	return out
}

// atRisk is how many of the connections that this node keeps state of would break if it
// died now. The next node is one of those that are connected: it has all but what it has
// not acknowledged or been told of yet, and what it has no use for; all is lost on one that is
// not in sync, and where none is connected. Of several nodes the worst one counts, since
// this node cannot know who will be elected.
func atRisk(s statesync.Status, kept int) int {
	worst, connected := 0, false
	for _, p := range s.Peers {
		if !p.Out.Connected && !p.In.Connected {
			continue
		}
		connected = true
		lost := kept
		if p.Out.InSync {
			lost = min(kept, p.Out.Waiting+p.Out.InFlight+p.Out.Refusing+s.Unread)
		}
		worst = max(worst, lost)
	}
	if !connected {
		return kept
	}
	return worst
}
