package loader

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

// wantUse compares how many entries each table has in use.
func wantUse(t *testing.T, d *Datapath, when string, want map[string]int) {
	t.Helper()
	got := map[string]int{}
	for _, table := range stats(t, d).Tables {
		if table.Size <= 0 || table.Used > table.Size {
			t.Errorf("%s: %+v", when, table)
		}
		got[table.Name] = table.Used
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: tables in use (-want +got):\n%s", when, diff)
	}
}

func TestFlowTablesInUse(t *testing.T) {
	d := newDatapath(t, withWindow(weights(1, 0)))
	wantUse(t, d, "before anybody has looked", map[string]int{
		"handshakes": -1, "pins": -1, "stragglers": -1, "udp_flows": -1, "nat_flows": 0,
	})
	old := clients(d, 0, 10)
	for _, c := range old {
		c.open(t)
	}
	apply(t, d, withWindow(weights(0, 1))) // every slot changes
	fresh := clients(d, 100, 7)
	for _, c := range fresh {
		c.open(t)
	}
	clients(d, 200, 1)[0].syn(t)
	for _, c := range old[:4] {
		c.data(t)
	}
	later(t, d, 0)
	wantUse(t, d, "with a window", map[string]int{
		"handshakes": entries(t, d.objects.Handshakes), "pins": 7, "stragglers": 4, "udp_flows": 0, "nat_flows": 0,
	})
	later(t, d, handshakeIdle+time.Second)
	wantUse(t, d, "after the handshakes", map[string]int{
		"handshakes": 0, "pins": 7, "stragglers": 4, "udp_flows": 0, "nat_flows": 0,
	})
	for range 2 { // settled, then clean
		later(t, d, testWindow+pinIdle+time.Second)
	}
	wantUse(t, d, "when nothing counts any more", map[string]int{
		"handshakes": 0, "pins": 0, "stragglers": 0, "udp_flows": 0, "nat_flows": 0,
	})
}

func TestTranslationsInUse(t *testing.T) {
	d, _ := newNAT(t, freeShare(t, 40))
	var conns []*conn
	for i := range 5 {
		conns = append(conns, openConn(t, d, clientAddr(i)))
	}
	for _, table := range stats(t, d).Tables {
		if table.Name == "nat_flows" && (table.Used != 5 || table.Size < 1024) {
			t.Errorf("%+v, want 5 in use of 1024 or more", table)
		}
	}
	conns[0].close(t)
	for _, table := range stats(t, d).Tables {
		if table.Name == "nat_flows" && table.Used != 4 {
			t.Errorf("after one has ended: %+v, want 4 in use", table)
		}
	}
	if s := stats(t, newDatapath(t, service("web", lb.DSR, 80, backends(1, 80)))); len(s.Tables) != 5 {
		t.Errorf("tables %v, want 5", s.Tables)
	}
}
