package control

import (
	"testing"

	"github.com/sluice-lb/sluice/internal/statesync"
	"github.com/sluice-lb/sluice/loader"
)

// What a failover would break is what the worst of the nodes lacks that may be the next.
func TestAtRisk(t *testing.T) {
	const kept = 1000
	peer := func(out, in, inSync bool, change ...func(*statesync.OutStatus)) statesync.PeerStatus {
		var p statesync.PeerStatus
		p.Out.Connected, p.In.Connected, p.Out.InSync = out, in, inSync
		for _, f := range change {
			f(&p.Out)
		}
		return p
	}
	waits := func(waiting, inFlight int) func(*statesync.OutStatus) {
		return func(o *statesync.OutStatus) { o.Waiting, o.InFlight = waiting, inFlight }
	}
	refuses := func(n int) func(*statesync.OutStatus) { return func(o *statesync.OutStatus) { o.Refusing = n } }
	dead, whole, filling := peer(false, false, false), peer(true, true, true), peer(true, true, false)
	for _, tc := range []struct {
		name   string
		kept   int
		unread int
		peers  []statesync.PeerStatus
		want   int
	}{
		{"no peer", kept, 0, nil, kept},
		{"a dead one", kept, 0, []statesync.PeerStatus{dead}, kept},
		{"in sync", kept, 0, []statesync.PeerStatus{whole}, 0},
		{"some on their way", kept, 0, []statesync.PeerStatus{peer(true, true, true, waits(30, 12))}, 42},
		{"some not read", kept, 7, []statesync.PeerStatus{peer(true, true, true, waits(30, 12))}, 49},
		{"some that it cannot take", kept, 0, []statesync.PeerStatus{peer(true, true, true, refuses(300))}, 300},
		{"more than there are", kept, 900, []statesync.PeerStatus{peer(true, true, true, waits(900, 900))}, kept},
		{"a first snapshot", kept, 0, []statesync.PeerStatus{filling}, kept},
		{"its state comes, this node's does not go", kept, 0, []statesync.PeerStatus{peer(false, true, false)}, kept},
		{"the spare is dead", kept, 0, []statesync.PeerStatus{whole, dead}, 0},
		{"one of two fills up", kept, 0, []statesync.PeerStatus{whole, filling}, kept},
		{"the worse of two", kept, 0, []statesync.PeerStatus{peer(true, true, true, waits(5, 0)), peer(true, true, true, waits(6, 0))}, 6},
		{"Active for nothing", 0, 10, []statesync.PeerStatus{filling}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := Sync(statesync.Status{Peers: tc.peers, Unread: tc.unread}, loader.ApplyResult{}, tc.kept)
			if s.AtRisk != tc.want || s.Unread != tc.unread {
				t.Errorf("at risk %d, want %d; unread %d, want %d", s.AtRisk, tc.want, s.Unread, tc.unread)
			}
		})
	}
}
