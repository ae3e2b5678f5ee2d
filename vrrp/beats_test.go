// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

const beatInterval = 5 * time.Millisecond

// beating is a machine with heartbeats, of priority 100.
func beating(c *MachineConfig) {
	c.Version, c.Interval = V3, 100*time.Millisecond
	c.Heartbeat, c.ID = beatInterval, NodeID{0x80}
}

// beat is a heartbeat of the node whose id begins with a byte.
func (r *rig) beat(node byte, s State, priority uint8) []string {
	return describe(r.m.Beat(r.now, Beat{Node: NodeID{node}, Source: lower, State: s, Priority: priority}))
}

func (r *rig) gone(node byte) []string {
	return describe(r.m.Beat(r.now, Beat{Node: NodeID{node}, Gone: true}))
}

func (r *rig) pass(d time.Duration) { r.now = r.now.Add(d) }

// backupRig is a Backup in fast mode that has heard the Active node 1.
func backupRig(t *testing.T) *rig {
	r := newRig(t, beating)
	r.m.Startup(r.now, false)
	r.beat(1, Active, 200)
	return r
}

func TestBackupTakesOverFromASilentNode(t *testing.T) {
	silent := silence(beatInterval)
	down := newRig(t, beating).m.ActiveDown()
	for _, tc := range []struct {
		name string
		do   func(r *rig)  // after the first heartbeat of an Active node
		want time.Duration // until it takes over
	}{
		{"the heartbeats stop", func(r *rig) {}, silent},
		{"each heartbeat counts", func(r *rig) {
			for range 100 {
				r.pass(silent - 1)
				wantActions(t, append(describe(r.m.Expire(r.now)), r.beat(1, Active, 200)...))
			}
		}, silent},
		{"an advertisement later: somebody is Active", func(r *rig) {
			r.pass(2 * beatInterval)
			r.hear(upper, 200)
		}, silent},
		{"the daemon has ended", func(r *rig) { r.gone(1) }, 0},
		{"the daemon has ended, and an advertisement came after that", func(r *rig) {
			r.gone(1)
			r.pass(1)
			r.hear(upper, 200)
		}, silent},
		{"one of two has ended, both were Active", func(r *rig) {
			r.beat(2, Active, 150)
			r.gone(1)
		}, silent},
		{"another daemon has ended", func(r *rig) {
			r.beat(2, Backup, 50)
			r.gone(2)
		}, silent},
		{"an unknown daemon has ended", func(r *rig) { r.gone(9) }, silent},
		{"the active node has become Backup: VRRP's timer", func(r *rig) { r.beat(1, Backup, 200) }, down},
		{"a better Backup comes first", func(r *rig) { r.beat(2, Backup, 101) }, silent + beatInterval},
		{"so does one of the same priority and a greater id", func(r *rig) { r.beat(0x90, Backup, 100) }, silent + beatInterval},
		{"one of the same priority and a lesser id does not", func(r *rig) { r.beat(0x70, Backup, 100) }, silent},
		{"nor a worse one, nor one that is in Fault", func(r *rig) {
			r.beat(2, Backup, 99)
			r.beat(3, Fault, 250)
			r.beat(4, Initialize, 250)
		}, silent},
		{"nor one that has ended", func(r *rig) {
			r.beat(2, Backup, 150)
			r.gone(2)
		}, silent},
		{"two better ones", func(r *rig) {
			r.beat(2, Backup, 150)
			r.beat(3, Backup, 151)
		}, silent + 2*beatInterval},
		{"its priority falls behind", func(r *rig) {
			r.beat(2, Backup, 99)
			r.m.SetPriority(98)
		}, silent + beatInterval},
		{"it gives up, in a heartbeat", func(r *rig) { r.beat(1, Active, PriorityRelease) }, 0},
		{"it gives up, in heartbeats", func(r *rig) {
			r.beat(2, Backup, 150)
			r.beat(1, Active, PriorityRelease)
			r.pass(2 * time.Millisecond)
			r.beat(1, Active, PriorityRelease)
		}, beatInterval - 2*time.Millisecond},
		{"it gives up, in an advertisement", func(r *rig) { r.hear(lower, PriorityRelease) }, 0},
		{"it is in Fault", func(r *rig) { r.beat(1, Fault, 200) }, 0},
		{"it is in Fault, since another one has taken over", func(r *rig) {
			r.beat(2, Active, 201)
			r.beat(1, Fault, 200)
		}, silent},
		{"it ends after another one has taken over from it", func(r *rig) {
			r.beat(1, Active, PriorityRelease)
			r.beat(2, Active, 201)
			r.gone(1)
		}, silent},
		{"it is in Fault, and the other one is silent", func(r *rig) {
			r.beat(2, Active, 201)
			r.pass(silent)
			r.beat(1, Active, 200)
			r.beat(1, Fault, 200)
		}, 0},
		{"it hands over, and ends", func(r *rig) {
			r.beat(2, Backup, 150)
			r.beat(1, Active, PriorityRelease)
			r.gone(1)
		}, beatInterval},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := backupRig(t)
			tc.do(r)
			r.wantState(Backup)
			r.wantTimer(tc.want)
			if tc.want > 0 {
				r.pass(tc.want - 1)
				wantActions(t, describe(r.m.Expire(r.now)))
				r.pass(1)
			}
			wantTakeover(t, describe(r.m.Expire(r.now)), r.m.Priority())
		})
	}
}

// wantTakeover demands what a takeover does, whether it says so or adds the VIPs
// first.
func wantTakeover(t *testing.T, got []string, priority uint8) {
	t.Helper()
	slices.Sort(got)
	wantActions(t, got, "add", "announce", "backup to active", fmt.Sprint("send ", priority))
}

func TestReasonOfAFastTakeover(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(r *rig)
		want string
	}{
		{"silence", func(r *rig) { r.pass(silence(beatInterval)) }, "the heartbeats of 192.0.2.1 fell silent for 12.5ms"},
		{"an end", func(r *rig) { r.gone(1) }, "the daemon of 192.0.2.1 has ended"},
		{"a fault", func(r *rig) { r.beat(1, Fault, 200) }, "192.0.2.1 gave up"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := backupRig(t)
			tc.do(r)
			actions := r.m.Expire(r.now)
			if len(actions) == 0 || actions[len(actions)-1].Reason != tc.want {
				t.Errorf("got %+v, want the reason %q", actions, tc.want)
			}
		})
	}
}

func TestHeartbeatsBesideVRRP(t *testing.T) {
	t.Run("a lower one is preempted as ever", func(t *testing.T) {
		r := newRig(t, beating)
		r.m.Startup(r.now, false)
		down := r.m.ActiveDown()
		for waited := time.Duration(0); waited+beatInterval < down; waited += beatInterval {
			r.pass(beatInterval)
			r.beat(1, Active, 50)
			wantActions(t, describe(r.m.Expire(r.now)))
		}
		r.now = epoch.Add(down)
		wantTakeover(t, describe(r.m.Expire(r.now)), 100)
	})
	t.Run("heartbeats hold a Backup while advertisements are lost", func(t *testing.T) {
		r := backupRig(t)
		for range 1000 {
			r.pass(beatInterval)
			r.beat(1, Active, 200)
			wantActions(t, describe(r.m.Expire(r.now)))
		}
	})
	t.Run("a higher active one wins over this one", func(t *testing.T) {
		r := activeRig(t, beating)
		wantActions(t, r.beat(1, Active, 101), "remove", "active to backup")
	})
	t.Run("an equal or lower one is left to advertisements", func(t *testing.T) {
		r := activeRig(t, beating)
		wantActions(t, r.beat(1, Active, 100))
		wantActions(t, r.beat(1, Active, 99))
	})
	t.Run("a release ends with the heartbeat of who took over", func(t *testing.T) {
		r := activeRig(t, beating)
		r.m.Release(r.now)
		wantActions(t, r.beat(1, Backup, 99))
		wantActions(t, r.beat(1, Active, 99), "remove", "active to initialize", "released to 192.0.2.1")
	})
	t.Run("what was heard before a fault is forgotten", func(t *testing.T) {
		r := backupRig(t)
		r.m.Fault("link")
		r.pass(time.Second)
		wantActions(t, describe(r.m.Startup(r.now, false)), "fault to backup")
		r.wantTimer(r.m.ActiveDown())
	})
	t.Run("where none was ever heard VRRP's timer counts", func(t *testing.T) {
		r := newRig(t, beating)
		r.m.Startup(r.now, false)
		r.beat(2, Backup, 50)
		r.hear(lower, 200)
		r.wantTimer(r.m.ActiveDown())
	})
	t.Run("without heartbeats in the configuration they say nothing", func(t *testing.T) {
		r := newRig(t, v3(100*time.Millisecond))
		r.m.Startup(r.now, false)
		r.beat(1, Active, 200)
		r.wantTimer(r.m.ActiveDown())
	})
	t.Run("many nodes", func(t *testing.T) {
		r := backupRig(t)
		for n := range 3 * maxBeatPeers {
			r.pass(time.Microsecond)
			r.beat(1, Active, 200)
			r.m.Beat(r.now, Beat{Node: NodeID{2, byte(n)}, State: Backup, Priority: 1})
		}
		if n := len(r.m.beats.peers); n > maxBeatPeers {
			t.Errorf("%d nodes are remembered", n)
		}
		r.wantTimer(silence(beatInterval))
	})
}

func TestBeatsDoNotAllocate(t *testing.T) {
	r := backupRig(t)
	b := Beat{Node: NodeID{1}, Source: lower, State: Active, Priority: 200}
	if n := testing.AllocsPerRun(100, func() {
		r.pass(beatInterval)
		r.m.Beat(r.now, b)
		r.m.Deadline()
		r.m.Expire(r.now)
	}); n > 0 {
		t.Errorf("a heartbeat allocates %v times", n)
	}
}

// A machine that stood still is back, and the first thing that is heard of it is what
// its pacemaker still says. Then its daemon finds that it was overtaken.
func TestTheOvertakenNodesPacemakerSpeaksFirst(t *testing.T) {
	spoken := []struct {
		name   string
		do     func(r *rig)
		within time.Duration
	}{
		{"a heartbeat", func(r *rig) { r.beat(1, Active, 200) }, 2 * beatInterval},
		{"an advertisement", func(r *rig) { r.hear(lower, 200) }, newRig(t, beating).m.Skew()},
	}
	for _, tc := range spoken {
		t.Run(tc.name, func(t *testing.T) {
			stood := newRig(t, func(c *MachineConfig) { beating(c); c.Priority, c.ID = 200, NodeID{1} })
			stood.m.Startup(stood.now, false)
			stood.expire()
			stood.wantState(Active)

			r := backupRig(t)
			r.pass(silence(beatInterval))
			r.expire()
			r.wantState(Active)
			tc.do(r)
			r.wantState(Backup)

			said := describe(stood.m.Overtaken(stood.now, true))
			wantActions(t, said, "remove", "send 0", "active to backup")
			r.hear(lower, PriorityRelease)
			r.beat(1, Backup, 200)
			r.pass(tc.within)
			wantTakeover(t, describe(r.m.Expire(r.now)), 100)
		})
	}
}

// Advertisements get lost, heartbeats come by another network: somebody is Active.
func TestUnfitNodeHearsHeartbeats(t *testing.T) {
	aside := func(t *testing.T) *rig {
		r := newRig(t, beating)
		wantActions(t, describe(r.m.Unfit(r.now, "x", true)), "initialize to fault")
		wantActions(t, r.beat(1, Active, 90), "remove")
		for range 1000 {
			r.pass(beatInterval)
			wantActions(t, append(describe(r.m.Expire(r.now)), r.beat(1, Active, 90)...))
		}
		return r
	}
	t.Run("it is no last resort", func(t *testing.T) { aside(t).wantState(Fault) })
	t.Run("before they have stopped for as long as advertisements", func(t *testing.T) {
		r := aside(t)
		r.wantTimer(newRig(t, beating).m.lastResortWait())
		wantActions(t, r.expire(), "send 1", "add", "announce", "fault to active")
	})
	t.Run("a last resort is no reason", func(t *testing.T) {
		r := newRig(t, beating)
		r.m.Unfit(r.now, "x", false)
		r.beat(1, Active, PriorityLastResort)
		r.wantTimer(r.m.lastResortWait())
	})
}

// A node that has handed over is held up itself, and hears the same peer by another
// address first.
func TestYieldedNodeKnowsItsPeerByHeartbeats(t *testing.T) {
	yielded := func(t *testing.T) *rig {
		r := activeRig(t, beating)
		r.m.HandOver(r.now)
		r.hear(upper, 90)
		r.beat(1, Active, 90)
		r.hear(upper, 90)
		r.pass(time.Second)
		return r
	}
	stands := func(t *testing.T, r *rig, want bool) {
		t.Helper()
		r.wantState(Backup)
		if got, _, _ := r.m.StandsBack(); got != want {
			t.Errorf("leaves the VIPs to its peer: %v, want %v", got, want)
		}
	}
	t.Run("a heartbeat from a path", func(t *testing.T) {
		r := yielded(t)
		r.beat(1, Active, 90)
		stands(t, r, true)
	})
	t.Run("a heartbeat from a path, then one from another", func(t *testing.T) {
		r := yielded(t)
		r.beat(1, Active, 90)
		r.pass(time.Second)
		r.m.Beat(r.now, Beat{Node: NodeID{1}, Source: upper, State: Active, Priority: 90})
		stands(t, r, true)
	})
	t.Run("another node's advertisement", func(t *testing.T) {
		r := yielded(t)
		r.hear(lower, 90)
		stands(t, r, false)
	})
	t.Run("another node's heartbeat", func(t *testing.T) {
		r := yielded(t)
		r.beat(1, Active, 90)
		r.pass(time.Second)
		r.beat(2, Active, 90)
		stands(t, r, false)
	})
	t.Run("the peer hands over, in a heartbeat", func(t *testing.T) {
		r := yielded(t)
		r.beat(1, Active, 90)
		r.beat(1, Active, PriorityRelease)
		stands(t, r, false)
	})
}

// Heartbeats are lost and advertisements come: who is held back says nothing of silence.
func TestHeldNodeLosesHeartbeats(t *testing.T) {
	r := backupRig(t)
	r.m.SetHold(r.now, true)
	wantSilent := func(want bool) {
		t.Helper()
		if _, _, silent := r.m.StandsBack(); silent != want {
			t.Fatalf("silent: %v, want %v", silent, want)
		}
	}
	for range 5 {
		wantActions(t, r.hear(upper, 200))
		for range 99 {
			r.pass(time.Millisecond)
			wantActions(t, describe(r.m.Expire(r.now)))
			wantSilent(false)
		}
	}
	wantActions(t, r.expire())
	wantSilent(true)
	wantActions(t, r.beat(1, Active, 200)) // they are back
	wantSilent(false)
}
