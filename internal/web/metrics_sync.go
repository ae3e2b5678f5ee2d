package web

import (
	"github.com/sluice-lb/sluice/internal/control"
)

var (
	heartbeatUp       = gauge("heartbeat_path_connected", "Whether the end of the daemon at an address would be noticed at once.", "address")
	heartbeatHeard    = gauge("heartbeat_path_heard_timestamp_seconds", "When a heartbeat of an address was accepted last, since the epoch.", "address")
	heartbeatReceived = counter("heartbeats_received_total", "Heartbeats from an address, by what became of them.", "address", "result")

	syncRisk      = gauge("sync_connections_at_risk", "Connections that a failover now would break, as far as this node knows.")
	syncUnread    = gauge("sync_unread_changes", "About how many changes peers have not been told of yet, since they do not keep up.")
	syncLost      = counter("sync_restarts_total", "How often all peers got everything again, since VIPs moved or changes were lost.")
	syncRefused   = counter("sync_refused_connections_total", "Connections to the sync port that were refused, by why.", "reason")
	syncTaken     = counter("sync_flows_taken_total", "Flows that peers have told of, by what became of them.", "result")
	syncTakenNot  = counter("sync_flows_refused_total", "Flows of peers that this node has no use for, by why.", "reason")
	syncStrangers = gauge("sync_strangers", "Addresses of late that have no place among the nodes.")

	syncConnected = gauge("sync_peer_connected", "Whether this node's state goes to a peer.", "peer")
	syncInSync    = gauge("sync_peer_in_sync", "Whether a peer has all of this node's state, but for what waits.", "peer")
	syncSynced    = gauge("sync_peer_synced", "Whether this node has all of a peer's state.", "peer")
	syncWaiting   = gauge("sync_peer_waiting_flows", "Flows that a peer has not acknowledged.", "peer")
	syncAge       = gauge("sync_peer_oldest_seconds", "How old the oldest of these is.", "peer")
	syncRecords   = counter("sync_peer_records_total", "States of flows, by direction.", "peer", "direction")
	syncBytes     = counter("sync_peer_bytes_total", "Bytes on the wire, by direction.", "peer", "direction")
	syncUseless   = counter("sync_peer_refused_flows_total", "How often a peer had no use for a flow.", "peer")
	syncRefusing  = gauge("sync_peer_refusing_flows", "Flows that a peer has no use for, and that are not over.", "peer")
	syncSnapshots = gauge("sync_peer_snapshots", "How often a peer got everything by the present connection.", "peer")
	syncMends     = gauge("sync_peer_mends", "How often differences were mended by the present connection.", "peer")
	syncStalls    = gauge("sync_peer_stalls", "How often a peer did not keep up by the present connection.", "peer")
	syncDiffers   = gauge("sync_peer_differing_services", "Services that are not the same on a peer.", "peer")
)

func (s sink) heartbeats(paths []control.HeartbeatPath) {
	for _, p := range paths {
		at := p.Address.String()
		s.put(heartbeatUp, truth(p.Connected), at)
		if p.Heard != nil {
			s.put(heartbeatHeard, seconds(*p.Heard), at)
		}
		s.count(heartbeatReceived, p.Received, at, "accepted")
		s.count(heartbeatReceived, p.Forged, at, "forged")
		s.count(heartbeatReceived, p.Replayed, at, "replayed")
		s.count(heartbeatReceived, p.Malformed, at, "malformed")
	}
}

func (s sink) sync(st *control.SyncStatus) {
	if st == nil {
		return
	}
	s.put(syncRisk, float64(st.AtRisk))
	s.put(syncUnread, float64(st.Unread))
	s.count(syncLost, st.Lost)
	for why, n := range st.Refused {
		s.count(syncRefused, n, why)
	}
	s.put(syncStrangers, float64(len(st.Strangers)))
	s.count(syncTaken, st.Taken.Applied, "applied")
	s.count(syncTaken, st.Taken.Ended, "ended")
	s.count(syncTaken, st.Taken.Kept, "kept")
	for why, r := range st.Taken.Refused {
		s.count(syncTakenNot, uint64(r.Flows), string(why))
	}
	for _, p := range st.Peers {
		s.put(syncConnected, truth(p.Connected), p.Node)
		s.put(syncInSync, truth(p.InSync), p.Node)
		s.put(syncSynced, truth(p.Synced), p.Node)
		s.put(syncWaiting, float64(p.Waiting), p.Node)
		s.put(syncAge, p.Age, p.Node)
		s.count(syncRecords, p.RecordsSent, p.Node, "sent")
		s.count(syncRecords, p.RecordsReceived, p.Node, "received")
		s.count(syncBytes, p.BytesSent, p.Node, "sent")
		s.count(syncBytes, p.BytesReceived, p.Node, "received")
		s.count(syncUseless, p.Refused, p.Node)
		s.put(syncRefusing, float64(p.Refusing), p.Node)
		s.put(syncSnapshots, float64(p.Snapshots), p.Node)
		s.put(syncMends, float64(p.Mends), p.Node)
		s.put(syncStalls, float64(p.Stalls), p.Node)
		s.put(syncDiffers, float64(len(p.Differs)), p.Node)
	}
}
