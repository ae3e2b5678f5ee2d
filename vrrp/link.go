// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// maxPacket holds any VRRP packet: a full IPv4 header and 255 IPv6 addresses.
const maxPacket = 60 + headerLen + maxAddresses*16

// logEvery is how often one kind of mistake is logged.
const logEvery = time.Minute

// refresh looks at the interface and the addresses again, and opens or closes
// what that asks for.
func (r *Router) refresh(now time.Time, into chan<- *received) {
	link, reason := r.look()
	r.faults[faultLink] = reason
	if r.faults[faultAdd] != "" && !now.Before(r.addAfter) {
		r.faults[faultAdd] = ""
	}
	r.checkAddresses(now)
	if reason != "" {
		// Before the socket goes: if the interface merely lost its address, the
		// others can still be told.
		r.settle(now)
		r.closeLink()
		r.faults[faultTransport], r.faults[faultVirtual] = "", ""
		return
	}
	if r.transport == nil || r.link != link {
		r.closeLink()
		r.faults[faultTransport] = ""
		if err := r.openLink(link, into); err != nil {
			r.failTransport(now, err)
		} else if r.machine.State() == Active && !r.machine.Releasing() && r.hardFault() == "" {
			// The interface may have another MAC address than it was announced with.
			r.schedule.begin(now)
			r.announce(now)
		}
	}
	if r.transport != nil {
		r.placeFence() // also where the link is as it was: the data plane may have come to it
	}
	r.settle(now)
}

// look returns the interface, or why it cannot be used.
func (r *Router) look() (Link, string) {
	link, err := r.lookup()
	switch {
	case err != nil:
		return link, err.Error()
	case !link.Up:
		return link, fmt.Sprintf("interface %s is down", link.Name)
	case !link.Source.IsValid():
		return link, r.noSource(link.Name)
	}
	link.Virtual = r.cfg.virtualMAC()
	return link, ""
}

// lookup finds the interface and the address to send from: the one that peers
// know, else the first of the node's own, and only then, for the owner, a VIP.
func (r *Router) lookup() (link Link, err error) {
	choices := []func(netip.Addr) bool{r.ownAddress}
	if r.cfg.Source.IsValid() {
		choices = []func(netip.Addr) bool{func(a netip.Addr) bool { return a == r.cfg.Source && r.ownAddress(a) }, r.ownAddress}
	}
	if r.cfg.owner() {
		choices = append(choices, r.cfg.canSend)
	}
	for _, usable := range choices {
		link, err = r.deps.Network.Link(r.cfg.Interface, usable)
		if err != nil || link.Source.IsValid() {
			break
		}
	}
	return link, err
}

// noSource says what an interface lacks that has no address to send from.
func (r *Router) noSource(iface string) string {
	switch {
	case !r.cfg.v6():
		return fmt.Sprintf("interface %s has no IPv4 address of its own: add one that is not a VIP", iface)
	case r.cfg.unicast():
		return fmt.Sprintf("interface %s has no IPv6 address of its own for unicast: add one that is neither a VIP nor link-local", iface)
	}
	return fmt.Sprintf("interface %s has no link-local address that is not a VIP: is IPv6 disabled there, or duplicate address detection under way?", iface)
}

// checkAddresses finds VIPs that are the node's own, puts back those that
// somebody removed, and removes again those that could not be before.
func (r *Router) checkAddresses(now time.Time) {
	report, err := r.deps.Addresses.Check(r.cfg.Interface, r.cfg.Addresses, r.cfg.owner())
	if err != nil {
		r.log.Warn("addresses cannot be checked", "error", err)
		return
	}
	var conflicts []string
	for _, c := range report.Conflicts {
		conflicts = append(conflicts, c.Error())
	}
	r.faults[faultConflict] = strings.Join(conflicts, "; ")
	r.update(func(s *Status) { s.Addresses = report.Present })
	switch r.machine.State() {
	case Active:
		if r.hardFault() == "" {
			defer r.addRoutes() // what somebody has removed, or went with a VIP
		}
		if len(report.Missing) == 0 || r.hardFault() != "" {
			return
		}
		r.log.Warn("vip was removed by somebody else; putting it back", "addresses", report.Missing)
		r.doubtHost(now, report.Missing)
		r.takeVIPs(now, false, false)
		if !r.machine.Releasing() {
			r.schedule.begin(now)
			r.announce(now)
		}
		r.noteAddresses()
	case Backup, Fault:
		if len(report.Present) > 0 && !r.machine.Held() {
			r.removeVIPs()
		}
		if !r.machine.Held() {
			r.removeRoutes()
		}
	}
}

func (r *Router) openLink(link Link, into chan<- *received) error {
	if link.Virtual != (MAC{}) {
		if err := r.deps.MACs.Add(link.Name, link.Virtual); err != nil {
			return err
		}
	}
	announcer, err := r.deps.Network.Announcer(link, r.filter.VIPs)
	if err != nil {
		return err
	}
	transport, err := r.deps.Network.Transport(link, r.cfg.Peers)
	if err != nil {
		return errors.Join(err, announcer.Close())
	}
	if r.cfg.Source.IsValid() && link.Source != r.cfg.Source {
		r.log.Warn("the interface has not the address that peers may know this node by; they may drop what it sends",
			"interface", link.Name, "address", r.cfg.Source, "source", link.Source)
	}
	r.link, r.announcer = link, announcer
	r.transport = startReceiver(transport, into)
	// A node that cannot ask who else has the VIPs can serve them all the same.
	if prober, err := r.deps.Network.Prober(link, r.filter.VIPs); err == nil {
		r.prober = listen(prober, r.claims)
	} else {
		r.log.Warn("strangers that answer for the vips will not be seen", "error", err)
	}
	r.filter.Local = link.Source
	r.machine.SetLocal(link.Source)
	r.update(func(s *Status) { s.Source = link.Source })
	return nil
}

func (r *Router) closeLink() {
	if r.transport == nil {
		return
	}
	r.stopRepeating()
	r.transport.stop()
	if r.prober != nil {
		r.prober.stop()
	}
	if err := r.announcer.Close(); err != nil {
		r.log.Warn("close announcements", "error", err)
	}
	r.transport, r.announcer, r.prober, r.link = nil, nil, nil, Link{}
	r.update(func(s *Status) { s.Source = netip.Addr{} })
}

func (r *Router) failTransport(now time.Time, err error) {
	r.faults[faultTransport] = err.Error()
	r.retryAt(now.Add(retryAfter))
}

// take handles what a receiver got.
func (r *Router) take(now time.Time, p *received) {
	if p.from != r.transport {
		return // of a socket that has been replaced
	}
	if p.fatal() {
		r.closeLink()
		r.failTransport(now, p.err)
		return
	}
	err := p.err
	if err == nil {
		err = r.filter.Accept(p.packet, &r.in)
	} else {
		r.in = Advertisement{Addresses: r.in.Addresses[:0]}
	}
	// RFC 3768, 7.1: a list that differs is reported, but what the owner of the
	// addresses sends counts all the same.
	owner := err == ReasonAddresses && r.in.Priority == PriorityOwner
	if err != nil {
		r.drop(now, p.packet, err.(Reason))
	}
	if err == nil || owner {
		r.accept(now, p.packet)
	}
	p.from.free <- p
}

func (r *Router) accept(now time.Time, p Packet) {
	h := Heard{Source: p.Source, Priority: r.in.Priority, Interval: r.in.Interval}
	r.mu.Lock()
	r.status.Received++
	r.status.Peer = Peer{Address: h.Source, Priority: h.Priority, Interval: h.Interval, Heard: now}
	r.mu.Unlock()
	if r.cfg.Version == V3 && r.cfg.Checksum == ChecksumAuto && tellsForm(p) {
		r.out.PseudoHeader = r.in.PseudoHeader
	}
	r.perform(now, r.machine.Receive(now, h))
	r.doubt(now, p) // last: it delays nothing
}

// tellsForm reports whether a checksum shows which form it has. For one pair of
// addresses in 65,535 both forms are equal.
func tellsForm(p Packet) bool {
	return pseudoHeaderSum(p.Source, p.Destination, len(p.Payload))%0xffff != 0
}

// drop counts a dropped packet. It raises an alarm where that shows a mistake of
// configuration, else logs the first of a kind, then one a minute.
func (r *Router) drop(now time.Time, p Packet, reason Reason) {
	r.mu.Lock()
	r.drops[reason]++
	r.mu.Unlock()
	if r.blame(now, p, reason) {
		return
	}
	if reason == ReasonVRID || now.Sub(r.lastLog[reason]) < logEvery {
		return
	}
	r.lastLog[reason] = now
	r.log.Warn("advertisement dropped", "reason", reason.Error(), "source", p.Source,
		"version", r.in.Version, "interval", r.in.Interval, "addresses", slices.Clone(r.in.Addresses))
}

// A receiver reads packets off one Transport.
type receiver struct {
	Transport
	free chan *received // buffers to read into: reading makes no garbage
	quit chan struct{}
	done chan struct{}
}

// A received is a packet with the buffer that it is in. Whoever takes it gives
// it back to from.free.
type received struct {
	from   *receiver
	packet Packet
	err    error
	buf    [maxPacket]byte
}

// fatal reports whether the transport is of no use any more.
func (p *received) fatal() bool {
	_, packetOnly := p.err.(Reason)
	return p.err != nil && !packetOnly
}

func startReceiver(t Transport, into chan<- *received) *receiver {
	r := &receiver{Transport: t, free: make(chan *received, 4), quit: make(chan struct{}), done: make(chan struct{})}
	for range cap(r.free) {
		r.free <- &received{from: r}
	}
	go r.run(into)
	return r
}

func (r *receiver) run(into chan<- *received) {
	defer close(r.done)
	for {
		var p *received
		select {
		case p = <-r.free:
		case <-r.quit:
			return
		}
		p.packet, p.err = r.Receive(p.buf[:])
		fatal := p.fatal() // before p is somebody else's
		select {
		case into <- p:
		case <-r.quit:
			return
		}
		if fatal {
			return
		}
	}
}

// stop closes the transport and waits until nothing reads it any more.
func (r *receiver) stop() {
	close(r.quit)
	r.Close()
	<-r.done
}
