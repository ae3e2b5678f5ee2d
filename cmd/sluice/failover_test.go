package main

import (
	"fmt"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// takeover is how long a Backup with priority 99 waits for advertisements of
// the instance pair before it takes over (RFC 9568, Active_Down_Interval).
const takeover = 3*200*time.Millisecond + 200*time.Millisecond*(256-99)/256

// startPair starts both nodes; lb1 is Active then.
func (r *rig) startPair(file string) map[string]*testenv.Process {
	r.Helper()
	daemons := map[string]*testenv.Process{}
	for _, node := range []string{"lb1", "lb2"} {
		daemons[node] = r.start(node, file)
	}
	r.waitReady("lb1")
	r.waitBackup("lb2")
	r.waitVIP(soon, vip, "lb1", "lb2")
	return daemons
}

// waitBackup waits until a node could take over: Backup, with all servers up.
func (r *rig) waitBackup(node string) {
	r.Helper()
	r.waitStatus(node, soon, "state Backup with services", func(s control.Status) error {
		for _, v := range s.Services {
			if v.Healthy != len(v.Backends) {
				return fmt.Errorf("service %s has %d healthy servers", v.Name, v.Healthy)
			}
		}
		if i, err := instanceOf(s, "VI_1"); err != nil || i.State != "backup" || i.Peer == nil || len(s.Services) == 0 {
			return fmt.Errorf("state %s, %d services: %w", i.State, len(s.Services), err)
		}
		return nil
	})
}

// wantOnOneNode fails when an address is on both nodes, or on none, at any
// moment of a while.
func (r *rig) wantOnOneNode(on string, while time.Duration) {
	r.Helper()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for began := time.Now(); time.Since(began) < while; <-ticker.C {
		for _, node := range []string{"lb1", "lb2"} {
			if has := r.has(node, vip); has != (node == on) {
				r.Fatalf("%v after the VIP came to %s: on %s: %v", time.Since(began), on, node, has)
			}
		}
	}
}

func TestPlannedStopMovesTheVIP(t *testing.T) {
	r := webRig(t, 3)
	daemons := r.startPair(r.usual())
	dsrProber, natProber := r.prober(dsrService), r.prober(natService)
	r.answersMore(dsrProber, 50)

	r.stop(daemons["lb1"])
	r.waitVIP(soon, vip, "lb2", "lb1")
	r.waitVIP(soon, natVIP, "lb2", "lb1")
	r.answersMore(dsrProber, 100)
	r.answersMore(natProber, 100)
	got := r.wantNoFailure(dsrProber)
	silence, _ := got.LongestSilence()
	t.Logf("dsr: %d requests, none may fail; longest silence %v", got.Sent, silence.Round(time.Millisecond))
	// A translated connection lives in one node until flows are shared.
	result, err := natProber.Stop()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("nat: %d of %d requests failed: %v", result.Failed, result.Sent, result.Errors)
	if most := result.Sent / 10; result.Failed > most {
		t.Errorf("%d of %d requests over nat failed: %v, want those of the moment at most", result.Failed, result.Sent, result.Errors)
	}
	r.wantOnOneNode("lb2", time.Second)

	// The node with the higher priority takes it back when it is there again.
	r.start("lb1", r.usual())
	r.waitVIP(soon, vip, "lb1", "lb2")
	r.waitReady("lb1")
	r.wantOnOneNode("lb1", time.Second)
}

func TestKilledAndCutOffNodeLosesTheVIP(t *testing.T) {
	r := webRig(t, 3)
	daemons := r.startPair(r.usual())
	dsrProber := r.prober(dsrService)
	r.answersMore(dsrProber, 50)

	cut := time.Now()
	if err := r.host("lb1").LinkDown(); err != nil {
		t.Fatal(err)
	}
	r.kill(daemons["lb1"])
	r.waitVIP(soon, vip, "lb2")
	// A second is for a busy machine, and for this test's own looking.
	if took := time.Since(cut); took > takeover+time.Second {
		t.Errorf("the VIP came to lb2 after %v, want %v", took, takeover)
	}
	r.answersMore(dsrProber, 100)
	back := time.Now()
	silence, _ := dsrProber.Result().LongestSilenceBetween(cut, back)
	t.Logf("longest silence %v, of which %v is the protocol's", silence.Round(time.Millisecond), takeover)
	if silence < takeover/2 {
		t.Errorf("the client's longest silence is %v: was lb1 Active at all?", silence)
	}

	if err := r.host("lb1").LinkUp(); err != nil {
		t.Fatal(err)
	}
	r.start("lb1", r.usual())
	r.waitVIP(soon, vip, "lb1", "lb2")
	r.waitReady("lb1")
	r.answersMore(dsrProber, 100)
	// What is lost on the way is sent again and answered.
	r.wantNoFailure(dsrProber)
	r.wantOnOneNode("lb1", time.Second)
}

// A daemon that is killed leaves its VIP behind; when it comes back and another
// node is Active, it clears that away.
func TestReturningNodeRemovesItsStaleVIP(t *testing.T) {
	r := webRig(t, 3)
	file := r.file("stay.yaml", roster, webPool, services(dsr, nat), vrrps(
		`{name: VI_1, interface: eth0, virtual_router_id: 51, advertisement_interval: 200ms, preempt: false,
     addresses: [192.0.2.100/24, 192.0.2.101/24]}`))
	// Without preemption the first one stays Active.
	first := r.start("lb1", file)
	r.waitReady("lb1")
	r.start("lb2", file)
	r.waitBackup("lb2")

	r.kill(first)
	r.eventually(soon, "the VIP on lb2", func() (bool, error) { return r.has("lb2", vip), nil })
	if !r.has("lb1", vip) {
		t.Fatal("the killed daemon has left no VIP behind: nothing is shown here")
	}
	r.start("lb1", file)
	r.waitVIP(soon, vip, "lb2", "lb1")
	r.waitVIP(soon, natVIP, "lb2", "lb1")
	r.waitBackup("lb1")
	r.wantOnOneNode("lb2", 2*takeover)
	r.wantServing(dsrService, "b1", "b2", "b3")
	r.wantServing(natService, "b1", "b2", "b3")
	if !r.has("lb1", r.host("lb1").Address()) {
		t.Error("the node's own address is gone, too")
	}
}
