package web

import (
	"fmt"
	"strconv"

	"github.com/sluice-lb/sluice/vrrp"
)

var (
	vrrpInfo        = gauge("vrrp_info", "A VRRP instance; always 1.", "instance", "interface", "virtual_router_id", "version", "source")
	vrrpState       = gauge("vrrp_state", "The state of an instance: 1 for the one it is in.", "instance", "state")
	vrrpSince       = gauge("vrrp_state_since_timestamp_seconds", "Since when an instance is in its state, since the epoch.", "instance")
	vrrpTransitions = counter("vrrp_transitions_total", "Changes of state, by the state that came.", "instance", "to")
	vrrpReleasing   = gauge("vrrp_releasing", "Whether an instance gives its VIPs away and waits for who takes over.", "instance")
	vrrpPriority    = gauge("vrrp_priority", "The priority that an instance advertises.", "instance")
	vrrpBase        = gauge("vrrp_configured_priority", "The configured priority, where an instance tracks anything.", "instance")
	vrrpAddresses   = gauge("vrrp_addresses", "How many VIPs an instance has.", "instance")
	vrrpPresent     = gauge("vrrp_addresses_present", "How many of an instance's VIPs sluice has put on this node.", "instance")
	vrrpSent        = counter("vrrp_advertisements_sent_total", "Advertisements that were sent.", "instance")
	vrrpFailed      = counter("vrrp_advertisements_failed_total", "Advertisements that could not be sent, to one of the peers at least.", "instance")
	vrrpReceived    = counter("vrrp_advertisements_received_total", "Advertisements of an instance that were accepted.", "instance")
	vrrpDropped     = counter("vrrp_advertisements_dropped_total", "Received packets that were dropped, by why; vrid is usual where several virtual routers share a segment.", "instance", "reason")
	vrrpPeer        = gauge("vrrp_peer_priority", "The priority that was heard last, and from whom.", "instance", "peer")
	vrrpHeard       = gauge("vrrp_peer_heard_timestamp_seconds", "When an advertisement was accepted last, since the epoch.", "instance", "peer")
	vrrpTracked     = gauge("vrrp_tracked_state", "How something stands that an instance tracks: 1 for the state it is in.", "instance", "kind", "name", "weight", "state")
	vrrpEffect      = gauge("vrrp_tracked_effect", "What it adds to the priority now.", "instance", "kind", "name", "weight")
)

// vrrpStates are those that an instance may be in.
var vrrpStates = []string{vrrp.Initialize.String(), vrrp.Backup.String(), vrrp.Active.String(), vrrp.Fault.String()}

func (s sink) instances(r Report) {
	for _, i := range r.Status.VRRP {
		s.put(vrrpInfo, 1, i.Name, i.Interface, strconv.Itoa(int(i.VirtualRouterID)), strconv.Itoa(int(i.Version)), i.Source)
		s.state(vrrpState, i.State, vrrpStates, i.Name)
		s.put(vrrpSince, seconds(i.Since), i.Name)
		for _, to := range vrrpStates {
			s.count(vrrpTransitions, r.Transitions[Transition{i.Name, to}], i.Name, to)
		}
		s.put(vrrpReleasing, truth(i.Releasing), i.Name)
		s.put(vrrpPriority, float64(i.Priority), i.Name)
		s.put(vrrpAddresses, float64(len(i.Addresses)), i.Name)
		s.put(vrrpPresent, float64(len(i.Present)), i.Name)
		s.count(vrrpSent, i.Sent, i.Name)
		s.count(vrrpFailed, i.Failed, i.Name)
		s.count(vrrpReceived, i.Received, i.Name)
		for _, reason := range vrrp.Reasons() {
			s.count(vrrpDropped, i.Dropped[reason.String()], i.Name, reason.String())
		}
		if p := i.Peer; p != nil {
			s.put(vrrpPeer, float64(p.Priority), i.Name, p.Address.String())
			s.put(vrrpHeard, seconds(p.Heard), i.Name, p.Address.String())
		}
		if i.Tracking == nil {
			continue
		}
		s.put(vrrpBase, float64(i.Tracking.Base), i.Name)
		seen := map[string]bool{} // one thing may be tracked twice
		for _, t := range i.Tracking.Items {
			weight := strconv.Itoa(t.Weight)
			if id := fmt.Sprint(t.Kind, " ", t.Name, " ", weight); seen[id] {
				continue
			} else {
				seen[id] = true
			}
			s.state(vrrpTracked, t.State, []string{"passing", "failing", "unknown"}, i.Name, t.Kind, t.Name, weight)
			s.put(vrrpEffect, float64(t.Effect), i.Name, t.Kind, t.Name, weight)
		}
	}
}
