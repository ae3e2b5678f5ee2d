// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ethernet"
	"golang.org/x/sys/unix"
)

// An Announcer tells the segment that the VIPs are at this node's MAC address.
type Announcer interface {
	// Announce sends one round for every VIP. It does not allocate: the frames are
	// there already.
	Announce() error
	Close() error
}

// sendTimeout bounds how long a round of announcements, or of probes, may hold up the
// advertisements where an interface's queue is full.
const sendTimeout = 20 * time.Millisecond

// A frameAnnouncer sends gratuitous ARP (RFC 5227, 3; RFC 9568, 8.1.2), or
// neighbour advertisements.
type frameAnnouncer struct {
	file   *os.File // owns the socket, which is bound to the interface
	raw    syscall.RawConn
	frames [][]byte // built beforehand: a takeover only sends

	// For the function, which is made once: a closure per call would be garbage.
	frame  []byte
	err    error
	sendFn func(uintptr) bool
}

// announce opens an Announcer on an Ethernet interface.
func announce(link Link, vips []netip.Addr) (Announcer, error) {
	var frames [][]byte
	var err error
	if link.Source.Is4() {
		frames, err = gratuitousFrames(link.announced(), vips)
	} else {
		frames, err = neighbourFrames(link, vips)
	}
	if err != nil {
		return nil, fmt.Errorf("announce on %s: %w", link.Name, err)
	}
	a := &frameAnnouncer{frames: frames}
	if a.file, a.raw, err = framesOf(link, "announcements"); err != nil {
		return nil, err
	}
	a.sendFn = func(fd uintptr) bool {
		_, a.err = unix.Write(int(fd), a.frame)
		return a.err != unix.EAGAIN
	}
	return a, nil
}

var errNoMAC = errors.New("interface has no ethernet address")

// gratuitousFrames builds both forms for each VIP. Some hosts update their
// cache on a request only, some on a reply only.
func gratuitousFrames(mac MAC, vips []netip.Addr) ([][]byte, error) {
	if mac == (MAC{}) {
		return nil, errNoMAC
	}
	own := net.HardwareAddr(mac[:])
	var frames [][]byte
	for _, vip := range vips {
		for _, form := range []struct {
			op     arp.Operation
			target net.HardwareAddr
		}{
			{arp.OperationRequest, make(net.HardwareAddr, len(own))},
			{arp.OperationReply, own},
		} {
			p, err := arp.NewPacket(form.op, own, vip, form.target, vip)
			if err != nil {
				return nil, fmt.Errorf("build gratuitous arp for %v: %w", vip, err)
			}
			body, err := p.MarshalBinary()
			if err != nil {
				return nil, fmt.Errorf("build gratuitous arp for %v: %w", vip, err)
			}
			frame, err := (&ethernet.Frame{
				Destination: ethernet.Broadcast,
				Source:      own,
				EtherType:   ethernet.EtherTypeARP,
				Payload:     body,
			}).MarshalBinary()
			if err != nil {
				return nil, fmt.Errorf("build gratuitous arp for %v: %w", vip, err)
			}
			frames = append(frames, frame)
		}
	}
	return frames, nil
}

func (a *frameAnnouncer) Announce() error {
	if err := a.file.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return fmt.Errorf("announce vips: %w", err)
	}
	for _, a.frame = range a.frames {
		err := a.raw.Write(a.sendFn)
		if err == nil {
			err = a.err
		}
		if err != nil {
			return fmt.Errorf("announce vips: %w", err)
		}
	}
	return nil
}

func (a *frameAnnouncer) Close() error { return a.file.Close() }

// burst is when rounds of announcements follow the start of one: a switch or
// host that misses the first gets another, and the late ones reach those whose
// port was still coming up.
var burst = [...]time.Duration{0, 200 * time.Millisecond, time.Second, 3 * time.Second}

// A schedule says when announcements are due. It is pure.
type schedule struct {
	refresh time.Duration
	start   time.Time
	step    int
	next    time.Time // zero: idle
}

// begin starts a burst, due at once. A burst that began less than a second ago
// goes on instead: a peer that sends a hundred advertisements a second must not
// make a hundred bursts.
func (s *schedule) begin(now time.Time) {
	if !s.next.IsZero() && now.Sub(s.start) < time.Second {
		return
	}
	s.start, s.step, s.next = now, 0, now
}

func (s *schedule) stop() { s.next = time.Time{} }

// due reports whether a round is due, and plans the next one.
func (s *schedule) due(now time.Time) bool {
	if s.next.IsZero() || now.Before(s.next) {
		return false
	}
	if s.step++; s.step < len(burst) {
		s.next = s.start.Add(burst[s.step])
	} else {
		s.next = now.Add(s.refresh)
	}
	return true
}
