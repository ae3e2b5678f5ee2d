package config

import (
	"net/netip"
	"time"
)

// Bounds of the interval of heartbeats: below it a node that is busy for a
// moment would seem dead, and above it VRRP itself is as fast.
const (
	minHeartbeat = 3 * time.Millisecond
	maxHeartbeat = time.Second
)

// maxHeartbeats is how many instances a heartbeat has room for.
const maxHeartbeats = 150

// Heartbeat is the fast mode of an instance.
type Heartbeat struct {
	Interval time.Duration // 0: none
	// Peers are addresses of the other nodes, one or more of each: every one is a
	// path of its own.
	Peers []netip.Addr
}

var heartbeatSchema = schema{
	what: "heartbeat",
	keys: []string{"interval", "peers"},
	hints: map[string]string{
		"key_file": "the nodes have one key: write sync: {key_file: FILE} at the top",
		"port":     "the nodes have one port: write sync: {port: PORT} at the top",
	},
}

// heartbeat decodes the fast mode of an instance.
func (d *decoder) heartbeat(n *node, i *instanceDef, roster []nodeDef, s self) {
	f, ok := d.fields(n, &heartbeatSchema)
	if !ok {
		return
	}
	i.heartbeatAt = n
	if v := f.need("interval"); v != nil {
		interval, ok := d.duration(v, "interval", minHeartbeat, maxHeartbeat)
		if ok && interval > i.Interval {
			d.errorf(v, "interval must be at most the advertisement_interval, %s: heartbeats are to be faster than VRRP", short(i.Interval))
		}
		i.Heartbeat.Interval = interval
	}
	if p := f.own["peers"]; p != nil {
		d.heartbeatPeers(p, i, s)
		return
	}
	if d.incomplete || len(roster) > 0 && s.def == nil {
		return // reported already
	}
	for k := range roster {
		if other := &roster[k]; other != s.def && other.Address.IsValid() {
			i.addHeartbeatPeer(other.Address, n)
		}
	}
	if len(i.Heartbeat.Peers) == 0 {
		d.errorf(n, "heartbeat needs another node in nodes, or peers")
	}
}

func (i *instanceDef) addHeartbeatPeer(a netip.Addr, at *node) {
	i.Heartbeat.Peers = append(i.Heartbeat.Peers, a)
	i.heartbeatPeers = append(i.heartbeatPeers, at)
}

func (d *decoder) heartbeatPeers(n *node, i *instanceDef, s self) {
	d.peerList(n, s, peerAdvice{
		key:   "peers",
		empty: "name addresses of the other nodes, or leave it out to take those of nodes",
		own:   "list addresses of the others",
	}, i.addHeartbeatPeer)
}

// checkHeartbeats demands a key where an instance has heartbeats, and peers that
// do not move.
func (d *decoder) checkHeartbeats(sync *node, instances []*instanceDef, listed map[listing]*node) {
	count := 0
	for _, i := range instances {
		if i.heartbeatAt == nil {
			continue
		}
		if count++; count == maxHeartbeats+1 {
			d.errorf(i.heartbeatAt, "more than %d instances have heartbeats: one message has no room for more", maxHeartbeats)
		}
		if sync == nil {
			d.errorf(i.heartbeatAt, "heartbeat needs a key that the nodes share: write sync: {key_file: FILE} at the top, and make the file with `sluice keygen FILE`")
		}
		for k, p := range i.Heartbeat.Peers {
			if _, ok := listed[listing{address: p}]; ok {
				d.errorf(i.heartbeatPeers[k], "peer %v is a VIP: it moves, a peer is another node's own address", p)
			}
		}
	}
}
