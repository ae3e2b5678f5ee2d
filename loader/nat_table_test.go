package loader

import (
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// newSmallTable makes a data plane with the smallest flow table and the number of
// names that it has room for.
func newSmallTable(t *testing.T) (d *Datapath, room int) {
	t.Helper()
	d = newDatapathWith(t, Options{MaxFlows: 1, Ports: allPorts}, natTimeouts, service("web", lb.NAT, 80, backends(1, 80)))
	return d, len(d.tables.buckets.memory) / 8
}

// fill opens connections until one finds no room.
func fill(t *testing.T, d *Datapath, first int) []*conn {
	t.Helper()
	var conns []*conn
	for i := first; ; i++ {
		c := newConn(d, clientAddr(i))
		if !c.tryOpen(t) {
			return conns
		}
		conns = append(conns, c)
	}
}

// Names move to make room, so the table is all but full when a connection is
// refused for want of it, and every flow in it is found.
func TestNATTableFull(t *testing.T) {
	d, room := newSmallTable(t)
	conns := fill(t, d, 0)
	if got := losses(t, d); got.FlowsFull != 1 || got.NoPort != 0 {
		t.Fatalf("losses %+v, want one flows_full", got)
	}
	if got := outcomes(t, d)["flows_full"]; got != 1 {
		t.Errorf("%d packets dropped as flows_full, want 1", got)
	}
	if len(conns) < room*8/10 {
		t.Errorf("%d of %d names are in use when a flow is refused, want eight in ten", len(conns), room)
	}
	if got := names(d); got != len(conns) {
		t.Errorf("%d names for %d flows", got, len(conns))
	}
	for _, c := range conns {
		c.translates(t, testenv.ACK)
	}

	// The refused one's port is free again.
	view := viewPair(t, d, 1)
	if got, want := len(view.queued()), int(allPorts.Last)-int(allPorts.First)+1-len(conns); got > want || got < want-100 {
		t.Errorf("%d ports are free, want %d but for what the machine listens on", got, want)
	}

	// What is over makes room; what is not stays.
	for _, c := range conns[:len(conns)/2] {
		c.end(t)
	}
	more := 0
	for i := range len(conns) / 4 {
		if c := newConn(d, clientAddr(100000+i)); c.tryOpen(t) {
			more++
		}
	}
	if more != len(conns)/4 {
		t.Errorf("%d of %d connections found room among closed ones", more, len(conns)/4)
	}
	for _, c := range conns[len(conns)/2:] {
		c.translates(t, testenv.ACK)
	}
}

// What has been idle for long makes room without the search coming by.
func TestNATTableOfIdleFlows(t *testing.T) {
	d, room := newSmallTable(t)
	conns := fill(t, d, 0)
	viewPair(t, d, 1).ageAll(125 * time.Minute)
	for i := range room / 2 {
		if c := newConn(d, clientAddr(100000+i)); !c.tryOpen(t) {
			t.Fatalf("connection %d was refused with all others idle: %v", i, outcomes(t, d))
		}
	}
	for _, c := range conns[:10] {
		if got := c.forward(t, testenv.ACK, "data"); got.Outcome != "no_flow" {
			t.Errorf("a packet of an idle flow: %s, want no_flow", got.Outcome)
		}
	}
}

// A name of a pair that is gone is forgotten, and so is one of an entry that has
// been given to another flow.
func TestNATNamesAreForgotten(t *testing.T) {
	d := newDatapath(t, service("web", lb.NAT, 80, backends(2, 80)))
	for i := range 200 {
		if c := newConn(d, clientAddr(i)); !c.tryOpen(t) {
			t.Fatalf("connection %d was refused", i)
		}
	}
	if got := names(d); got != 200 {
		t.Fatalf("%d names, want 200", got)
	}
	before := stats(t, d).Services[0].Backends[1].Flows
	apply(t, d, service("web", lb.NAT, 80, backends(1, 80)))
	letGo(t, d)
	if got, want := names(d), 200-int(before); got != want {
		t.Errorf("%d names after a backend with %d flows has gone, want %d", got, before, want)
	}
	apply(t, d)
	if got := names(d); got != 0 {
		t.Errorf("%d names after all has gone, want 0", got)
	}
}

// Idle entries end although nobody asks for them, also those whose port is not
// this node's to hand out.
func TestNATSweep(t *testing.T) {
	share := freeShare(t, 2000)
	half := lb.PortRange{First: share.First, Last: share.First + 999}
	d := newDatapathWith(t, Options{MaxFlows: 1000, Ports: half}, natTimeouts, service("web", lb.NAT, 80, backends(1, 80)))
	view := viewPair(t, d, 1)
	for i := range 100 {
		openConn(t, d, clientAddr(i))
	}
	d.share = lb.PortRange{First: half.Last + 1, Last: share.Last}
	apply(t, d, service("web", lb.NAT, 80, backends(1, 80)))
	view.ageAll(125 * time.Minute)
	// The search looks at two entries for each new flow.
	view.words().Hand = uint32(half.First)
	for i := range 500 {
		c := newConn(d, clientAddr(1000+i))
		if !c.tryOpen(t) {
			t.Fatalf("connection %d was refused", i)
		}
		if c.source.Port() <= half.Last {
			t.Fatalf("port %d of the old share was handed out", c.source.Port())
		}
	}
	if got := names(d); got != 500 {
		t.Errorf("%d names, want the 500 of the new flows", got)
	}
	for port := half.First; port <= half.Last; port++ {
		if f := view.flow(port); f.State != 0 || f.Flags&uint32(lbNatFlagsNAT_QUEUED) != 0 {
			t.Fatalf("port %d of the old share: state %d, flags %#x", port, f.State, f.Flags)
		}
	}
}
