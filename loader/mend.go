package loader

import (
	"sync/atomic"
	"time"
)

// mend puts a ring right that a daemon has left half done when it was killed. That
// leaves at most one place in the ring that a ticket was taken for and that holds
// nothing, at which the program would see the end of the ring for ever; and one port
// that is marked as queued and stands nowhere. The program goes on meanwhile, and for
// moments of its own does both: what lasts longer than any run of it is nobody's.
func (q *portQueue) mend() {
	head, tail := atomic.LoadUint64(q.head()), atomic.LoadUint64(q.tail())
	var suspects []uint16
	for port := 1; port < int(lbLimitsNAT_PORTS); port++ {
		if queued(q.flow(uint16(port))) {
			suspects = append(suspects, uint16(port))
		}
	}
	q.at("suspected")
	if err := waitForPrograms(); err != nil {
		time.Sleep(longRun) // a kernel that can't be asked
	}
	lost := q.lost(suspects, head)
	for ticket := max(head, atomic.LoadUint64(q.head())); ticket < tail; ticket++ {
		i := int(ticket % uint64(lbLimitsNAT_PORTS))
		w := q.ring.load(i)
		if w>>16 == (ticket+1)&ticketMask {
			continue
		}
		// Port 0 is none: the program looks further.
		port := uint16(0)
		if len(lost) > 0 {
			port, lost = lost[0], lost[1:]
		}
		q.ring.swap(i, w, ringWord(ticket, port))
	}
	for _, port := range lost {
		q.push(port)
	}
}

// longRun is more than any run of the program takes.
const longRun = 100 * time.Millisecond

// lost returns those of the suspects that are marked still and have not been in the
// ring since its head was as given. Whose mark was a program's own has been there by
// now, or has lost its mark.
func (q *portQueue) lost(suspects []uint16, head uint64) []uint16 {
	seen := make([]bool, lbLimitsNAT_PORTS)
	for i := range int(lbLimitsNAT_PORTS) {
		if w := q.ring.load(i); w>>16 > head {
			seen[uint16(w)] = true
		}
	}
	var lost []uint16
	for _, port := range suspects {
		if !seen[port] && queued(q.flow(port)) {
			lost = append(lost, port)
		}
	}
	return lost
}
