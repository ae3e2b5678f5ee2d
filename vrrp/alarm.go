// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// An AlarmKind is a mistake in the configuration of two nodes that one of them
// sees in what the other sends; or one in the network, or on this node.
type AlarmKind uint8

// The kinds.
const (
	AlarmVRID      AlarmKind = iota // another virtual router id for one of the VIPs
	AlarmStranger                   // this virtual router id for other addresses
	AlarmVersion                    // another version
	AlarmAuthType                   // a password on one of the two only
	AlarmPassword                   // another password
	AlarmInterval                   // another advertisement interval
	AlarmAddresses                  // a list of addresses that differs
	AlarmPriority                   // the same priority
	AlarmAnswered                   // a stranger answers for a VIP
	AlarmPeer                       // a node that is none of the unicast peers
	AlarmRemoved                    // something else takes VIPs off this node

	alarmKinds = iota
)

func (k AlarmKind) String() string {
	switch k {
	case AlarmVRID:
		return "virtual_router_id"
	case AlarmStranger:
		return "stranger"
	case AlarmVersion:
		return "version"
	case AlarmAuthType:
		return "auth_type"
	case AlarmPassword:
		return "password"
	case AlarmInterval:
		return "interval"
	case AlarmAddresses:
		return "addresses"
	case AlarmPriority:
		return "priority"
	case AlarmAnswered:
		return "answered"
	case AlarmPeer:
		return "peer"
	case AlarmRemoved:
		return "removed"
	}
	return fmt.Sprintf("alarm_%d", uint8(k))
}

// An Alarm is a mistake that lasts.
type Alarm struct {
	Kind  AlarmKind
	Peer  netip.Addr // who sends what shows it; of AlarmAnswered and AlarmRemoved the VIP
	Text  string     // the mistake, and what to change
	Since time.Time
}

const (
	// minAlarm is how long an alarm lasts at least: with short intervals a reader
	// of the status would see nothing else.
	minAlarm = 10 * time.Second
	// maxAlarms of one kind bound what a flood of made-up senders can cost; it hides no
	// alarm of another kind.
	maxAlarms = 16
	// lineEvery is how often the log has a line about one kind, at most, and textsPerLine how
	// often meanwhile the text of an alarm follows what is seen: two senders that have one
	// address, or one that says two things in turn, would have a new one for each packet.
	lineEvery    = minAlarm
	textsPerLine = 4
)

// A raised alarm, with what its text was made of.
type raised struct {
	Alarm
	evidence evidence
	until    time.Time // when it is over, unless it is seen again
	news     bool      // the log has not its text
	said     bool      // the log has had one

	written time.Time // when the first of the texts was made that count
	texts   int       // how many of them since
}

// follows reports whether the text may follow what is seen, and counts it.
func (r *raised) follows(now time.Time) bool {
	if now.Sub(r.written) >= lineEvery {
		r.written, r.texts = now, 0
	}
	r.texts++
	return r.texts <= textsPerLine
}

// evidence is what an alarm's text tells of a packet.
type evidence struct {
	version  Version
	vrid     uint8
	authType uint8
	interval time.Duration
	priority uint8
	digest   uint32 // of the addresses, or of a MAC address
}

// alarms are those of one instance. They are set at the first packet that shows
// a mistake, and over after three intervals, ten seconds at least, without one.
// Seeing again what is known allocates nothing.
type alarms struct {
	all   []raised
	next  time.Time // when the first is over; zero: there is none
	lines [alarmKinds]lines
}

// lines are what the log has of a kind.
type lines struct {
	last time.Time // the last one
	left int       // what would have been one since then
}

// see notes that a packet shows a mistake. It reports whether the alarms are others by it:
// there is one more, or another text, which is called only then.
func (s *alarms) see(now time.Time, kind AlarmKind, peer netip.Addr, e evidence, own time.Duration, text func() string) bool {
	until := now.Add(max(minAlarm, 3*own, 3*e.interval))
	i := s.find(kind, peer)
	switch {
	case i >= 0:
		r := &s.all[i]
		r.until = until
		if r.evidence == e {
			s.plan()
			return false
		}
		s.lines[kind].left++
		if !r.follows(now) {
			s.plan()
			return false
		}
		r.evidence, r.Text, r.news = e, text(), true
	case s.count(kind) == maxAlarms:
		s.lines[kind].left++
		return false
	default:
		s.lines[kind].left++
		s.all = append(s.all, raised{
			Alarm: Alarm{kind, peer, text(), now}, evidence: e, until: until, news: true, written: now, texts: 1,
		})
	}
	s.plan()
	return true
}

func (s *alarms) find(kind AlarmKind, peer netip.Addr) int {
	return slices.IndexFunc(s.all, func(r raised) bool { return r.Kind == kind && r.Peer == peer })
}

// say reports whether it is time for a line about an alarm that has just been seen, and how
// many others there would have been since the last one of its kind.
func (s *alarms) say(now time.Time, kind AlarmKind, peer netip.Addr) (text string, left int, ok bool) {
	i := s.find(kind, peer)
	l := &s.lines[kind]
	if i < 0 || !s.all[i].news || !l.last.IsZero() && now.Sub(l.last) < lineEvery {
		return "", 0, false
	}
	s.all[i].news, s.all[i].said = false, true
	left = max(0, l.left-1) // without this one
	*l = lines{last: now}
	return s.all[i].Text, left, true
}

func (s *alarms) count(kind AlarmKind) (n int) {
	for i := range s.all {
		if s.all[i].Kind == kind {
			n++
		}
	}
	return n
}

// expire removes and returns the alarms that are over.
func (s *alarms) expire(now time.Time) (over []raised) {
	if s.next.IsZero() || now.Before(s.next) {
		return nil
	}
	s.all = slices.DeleteFunc(s.all, func(r raised) bool {
		if now.Before(r.until) {
			return false
		}
		over = append(over, r)
		return true
	})
	s.plan()
	return over
}

func (s *alarms) plan() {
	s.next = time.Time{}
	for i := range s.all {
		if t := s.all[i].until; s.next.IsZero() || t.Before(s.next) {
			s.next = t
		}
	}
}

func (s *alarms) list() []Alarm {
	list := make([]Alarm, len(s.all))
	for i := range s.all {
		list[i] = s.all[i].Alarm
	}
	return list
}

// blame looks for the mistakes of configuration in a packet that was dropped,
// whose decoded part is in r.in. It reports whether there is one.
func (r *Router) blame(now time.Time, p Packet, reason Reason) bool {
	a := &r.in
	switch reason {
	case ReasonVRID:
		// Other virtual routers on the segment are no mistake, unless they claim
		// the same VIP.
		if _, err := a.Decode(p.Payload, p.Source, p.Destination); err != nil || p.Source == r.filter.Local || !r.sharesVIP(a) {
			return false
		}
		r.alarm(now, AlarmVRID, p)
	case ReasonPeer:
		return r.blameOutsider(now, p)
	case ReasonVersion:
		kind := AlarmVersion
		if _, err := a.Decode(p.Payload, p.Source, p.Destination); err == nil && !r.sharesVIP(a) {
			kind = AlarmStranger
		}
		r.alarm(now, kind, p)
	case ReasonAuthType, ReasonPassword, ReasonInterval, ReasonAddresses:
		if len(a.Addresses) == 0 {
			return false
		}
		if !r.sharesVIP(a) {
			r.alarm(now, AlarmStranger, p)
			return true
		}
		r.blameDifferences(now, p)
	default:
		return false
	}
	return true
}

// blameOutsider looks for mistakes in what somebody sends who is none of the unicast
// peers. Other virtual routers are none of these, and what was routed may be from anybody.
func (r *Router) blameOutsider(now time.Time, p Packet) bool {
	a := &r.in
	if _, err := a.Decode(p.Payload, p.Source, p.Destination); err != nil || p.TTL != ttl || p.Source == r.filter.Local {
		return false
	}
	switch shares := r.sharesVIP(a); {
	case shares && a.VRID == r.cfg.VRID:
		r.alarm(now, AlarmPeer, p)
	case shares:
		r.alarm(now, AlarmVRID, p)
	case a.VRID == r.cfg.VRID:
		r.alarm(now, AlarmStranger, p)
	default:
		return false
	}
	return true
}

// blameDifferences raises an alarm for everything in which a peer's
// advertisement differs: not only for what the filter has found first.
func (r *Router) blameDifferences(now time.Time, p Packet) {
	a := &r.in
	if r.cfg.Version == V2 {
		switch authType, auth := authData(r.cfg.Password); {
		case a.AuthType != authType:
			r.alarm(now, AlarmAuthType, p)
		case authType == authPassword && a.Auth != auth:
			r.alarm(now, AlarmPassword, p)
		}
	}
	if a.Interval != r.cfg.Interval {
		r.alarm(now, AlarmInterval, p)
	}
	if !a.SameAddresses(r.filter.VIPs) {
		r.alarm(now, AlarmAddresses, p)
	}
}

// doubt looks for mistakes in an advertisement that counts.
func (r *Router) doubt(now time.Time, p Packet) {
	if r.in.Interval != r.cfg.Interval { // version 3 learns it
		r.alarm(now, AlarmInterval, p)
	}
	if r.in.Priority == r.machine.Priority() && r.in.Priority != PriorityRelease {
		r.alarm(now, AlarmPriority, p)
	}
}

// doubtHost raises an alarm where something else has taken VIPs off this node.
func (r *Router) doubtHost(now time.Time, missing []netip.Prefix) {
	var all []netip.Addr
	for _, vip := range missing {
		all = append(all, vip.Addr())
	}
	r.raise(now, AlarmRemoved, all[0], evidence{digest: digest(all)}, func() string {
		return fmt.Sprintf("something else has taken %s off %s, and this node puts it back: find what removes addresses there, a network manager perhaps",
			texts(all), r.cfg.Interface)
	})
}

// digest is a hash of addresses.
func digest(addrs []netip.Addr) uint32 {
	sum := uint32(fnvBasis)
	for _, a := range addrs {
		b := a.As16()
		sum = fnv(sum, b[:])
	}
	return sum
}

const fnvBasis = 2166136261

// fnv goes on with FNV-1a.
func fnv(sum uint32, bytes []byte) uint32 {
	for _, b := range bytes {
		sum = (sum ^ uint32(b)) * 16777619
	}
	return sum
}

// sharesVIP reports whether an advertisement names one of the VIPs.
func (r *Router) sharesVIP(a *Advertisement) bool {
	for _, vip := range r.filter.VIPs {
		if slices.Contains(a.Addresses, vip) {
			return true
		}
	}
	return false
}

// alarm raises an alarm or keeps it up.
func (r *Router) alarm(now time.Time, kind AlarmKind, p Packet) {
	e := evidence{r.in.Version, r.in.VRID, r.in.AuthType, r.in.Interval, r.in.Priority, digest(r.in.Addresses)}
	if kind != AlarmPriority {
		e.priority = 0 // may change with what the peer tracks
	}
	r.raise(now, kind, p.Source, e, func() string { return r.describe(kind, p.Source) })
}

func (r *Router) raise(now time.Time, kind AlarmKind, peer netip.Addr, e evidence, text func() string) {
	if r.alarms.see(now, kind, peer, e, r.cfg.Interval, text) {
		list := r.alarms.list()
		r.update(func(s *Status) { s.Alarms = list })
	}
	what, left, ok := r.alarms.say(now, kind, peer)
	switch {
	case ok && left > 0:
		r.log.Warn("configuration mistake", "alarm", kind.String(), "what", what, "not logged", left)
	case ok:
		r.log.Warn("configuration mistake", "alarm", kind.String(), "what", what)
	}
}

// expireAlarms ends the alarms whose cause has not been seen for a while. The log has the
// end of those that it has had.
func (r *Router) expireAlarms(now time.Time) {
	over := r.alarms.expire(now)
	if len(over) == 0 {
		return
	}
	list := r.alarms.list()
	r.update(func(s *Status) { s.Alarms = list })
	for _, a := range over {
		if a.said {
			r.log.Info("configuration mistake is not seen any more", "alarm", a.Kind.String(), "peer", a.Peer)
		}
	}
}

// describe says what is wrong with r.in, and what to change.
func (r *Router) describe(kind AlarmKind, peer netip.Addr) string {
	a := &r.in
	switch kind {
	case AlarmVRID:
		return fmt.Sprintf("%v advertises %s as virtual router %d, this node as %d: set one virtual_router_id on all nodes",
			peer, texts(common(a.Addresses, r.filter.VIPs)), a.VRID, r.cfg.VRID)
	case AlarmStranger:
		return fmt.Sprintf("%v uses virtual router %d for other addresses (%s): give one of the two another virtual_router_id",
			peer, r.cfg.VRID, texts(a.Addresses))
	case AlarmVersion:
		return fmt.Sprintf("%v sends version %d for virtual router %d, this node %d: set one version on all nodes",
			peer, a.Version, r.cfg.VRID, r.cfg.Version)
	case AlarmAuthType:
		return fmt.Sprintf("%v sends %s, this node %s: set one password on all nodes, or none",
			peer, authName(a.AuthType), authName(r.out.AuthType))
	case AlarmPassword:
		return fmt.Sprintf("%v has another password: set one password on all nodes", peer)
	case AlarmInterval:
		return fmt.Sprintf("%v advertises every %v, this node every %v: set one advertisement_interval on all nodes",
			peer, a.Interval, r.cfg.Interval)
	case AlarmAddresses:
		return fmt.Sprintf("%v advertises another list of addresses (%s): set the same addresses on all nodes",
			peer, differences(a.Addresses, r.filter.VIPs))
	case AlarmPriority:
		return fmt.Sprintf("%v has priority %d, as this node has, and only the addresses decide between them: give each node a priority of its own",
			peer, a.Priority)
	case AlarmPeer:
		return fmt.Sprintf("%v advertises %s as virtual router %d, too, and is none of this node's unicast peers: give each node all the others as peers",
			peer, texts(common(a.Addresses, r.filter.VIPs)), a.VRID)
	}
	return kind.String()
}

func authName(authType uint8) string {
	switch authType {
	case authNone:
		return "no password"
	case authPassword:
		return "a password"
	}
	return fmt.Sprintf("authentication of type %d", authType)
}

func common(a, b []netip.Addr) []netip.Addr {
	var both []netip.Addr
	for _, addr := range a {
		if slices.Contains(b, addr) {
			both = append(both, addr)
		}
	}
	return both
}

// differences says what a list has and lacks beside the VIPs of this node.
func differences(theirs, ours []netip.Addr) string {
	without := func(a, b []netip.Addr) []netip.Addr {
		return slices.DeleteFunc(slices.Clone(a), func(addr netip.Addr) bool { return slices.Contains(b, addr) })
	}
	var parts []string
	if more := without(theirs, ours); len(more) > 0 {
		parts = append(parts, "with "+texts(more))
	}
	if less := without(ours, theirs); len(less) > 0 {
		parts = append(parts, "without "+texts(less))
	}
	if len(parts) == 0 {
		return "one of them twice"
	}
	return strings.Join(parts, ", ")
}

// texts lists addresses, of many the first few.
func texts(addrs []netip.Addr) string {
	const most = 4
	var all []string
	for _, a := range addrs[:min(most, len(addrs))] {
		all = append(all, a.String())
	}
	if n := len(addrs) - most; n > 0 {
		all = append(all, fmt.Sprintf("and %d more", n))
	}
	return strings.Join(all, ", ")
}
