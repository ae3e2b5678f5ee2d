package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/key"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// fastPair has an advertisement interval by which a takeover would take 3.6 s.
const fastPair = `{name: VI_1, interface: eth0, virtual_router_id: 51, advertisement_interval: 1s,
     addresses: [192.0.2.100/24, 192.0.2.101/24], heartbeat: {interval: 5ms}}`

// fastRig starts a pair in fast mode; lb1 is Active then, and each node knows of
// the other's daemon.
func fastRig(t *testing.T) (*rig, string, map[string]*testenv.Process) {
	r := webRig(t, 3)
	if err := key.Write(filepath.Join(r.lab.Dir(), "sync.key"), key.New()); err != nil {
		t.Fatal(err)
	}
	file := r.file("fast.yaml", roster, webPool, services(dsr, nat), vrrps(fastPair), "sync: {key_file: sync.key}\n")
	daemons := r.startPair(file)
	for _, node := range []string{"lb1", "lb2"} {
		r.waitConnected(node)
	}
	return r, file, daemons
}

func (r *rig) waitConnected(node string) {
	r.Helper()
	r.waitStatus(node, soon, "heartbeats", func(s control.Status) error {
		if len(s.Heartbeats) != 1 || !s.Heartbeats[0].Connected || s.Heartbeats[0].Heard == nil {
			return fmt.Errorf("heartbeats are %+v", s.Heartbeats)
		}
		return nil
	})
}

// waitTakeover waits until lb2 is Active, and demands one of the reasons.
func (r *rig) waitTakeover(since time.Time, reasons ...string) {
	r.Helper()
	s := r.waitStatus("lb2", soon, "takeover", func(s control.Status) error {
		if i, err := instanceOf(s, "VI_1"); err != nil || i.State != "active" {
			return fmt.Errorf("state %s: %w", i.State, err)
		}
		return nil
	})
	i, err := instanceOf(s, "VI_1")
	if err != nil {
		r.Fatal(err)
	}
	took := i.Since.Sub(since)
	r.Logf("lb2 became active after %v: %s", took.Round(time.Microsecond), i.Reason)
	// VRRP alone would take 3.6 s.
	known := slices.ContainsFunc(reasons, func(reason string) bool { return strings.Contains(i.Reason, reason) })
	if took > 2*time.Second || !known {
		r.Errorf("lb2 became active after %v because %q, want at once and one of %q", took, i.Reason, reasons)
	}
}

func TestFastTakeoverWhenADaemonIsKilled(t *testing.T) {
	r, file, daemons := fastRig(t)
	prober := r.prober(dsrService)
	r.answersMore(prober, 50)

	killed := time.Now()
	r.kill(daemons["lb1"])
	// On a busy machine a daemon takes its time to die, and its pacemaker outlives it.
	r.waitTakeover(killed, "the daemon of 192.0.2.1 has ended", "the heartbeats of 192.0.2.1 fell silent")
	r.answersMore(prober, 100)
	silence, _ := prober.Result().LongestSilenceBetween(killed, time.Now())
	t.Logf("the client's longest silence was %v", silence.Round(time.Millisecond))

	// The first node comes back, and takes the VIP back as ever.
	r.start("lb1", file)
	r.waitVIP(soon, vip, "lb1", "lb2")
	r.waitReady("lb1")
	r.waitConnected("lb2")
	r.answersMore(prober, 100)
	r.wantNoFailure(prober)
}

func TestFastTakeoverWhenANodeIsCutOff(t *testing.T) {
	r, file, daemons := fastRig(t)
	prober := r.prober(dsrService)
	r.answersMore(prober, 50)

	cut := time.Now()
	if err := r.host("lb1").LinkDown(); err != nil {
		t.Fatal(err)
	}
	r.kill(daemons["lb1"])
	r.waitTakeover(cut, "the heartbeats of 192.0.2.1 fell silent for 12.5ms")
	r.answersMore(prober, 100)
	silence, _ := prober.Result().LongestSilenceBetween(cut, time.Now())
	t.Logf("the client's longest silence was %v", silence.Round(time.Millisecond))

	if err := r.host("lb1").LinkUp(); err != nil {
		t.Fatal(err)
	}
	daemons["lb1"] = r.start("lb1", file)
	r.waitVIP(soon, vip, "lb1", "lb2")
	r.waitReady("lb1")
	r.waitConnected("lb2")

	// A planned stop is no death: it is handed over, and told so.
	r.stop(daemons["lb1"])
	r.waitVIP(soon, vip, "lb2", "lb1")
	s := r.waitReady("lb2")
	if i, err := instanceOf(s, "VI_1"); err != nil || !strings.Contains(i.Reason, "gave up") {
		t.Errorf("lb2 is active because %q, want that lb1 gave up (%v)", i.Reason, err)
	}
	r.answersMore(prober, 100)
	r.wantNoFailure(prober)
}

// A node with another key is no peer, and both say so.
func TestFastModeNamesAnotherKey(t *testing.T) {
	r := webRig(t, 3)
	for _, node := range []string{"lb1", "lb2"} {
		dir := filepath.Join(r.lab.Dir(), node+".key")
		if err := key.Write(dir, key.New()); err != nil {
			t.Fatal(err)
		}
		// Whose state does not come is waited for no longer than that.
		instance := strings.Replace(fastPair, "heartbeat:", "sync_wait: 1s, heartbeat:", 1)
		r.start(node, r.file(node+".yaml", roster, webPool, services(dsr, nat), vrrps(instance), "sync: {key_file: "+node+".key}\n"))
	}
	for _, node := range []string{"lb1", "lb2"} {
		r.waitStatus(node, soon, "the mistake", func(s control.Status) error {
			for _, p := range s.Problems {
				if strings.Contains(p, "signed with another key: give all nodes the same sync key_file") {
					return nil
				}
			}
			return fmt.Errorf("problems %q", s.Problems)
		})
	}
	// VRRP goes on without.
	r.waitVIP(soon, vip, "lb1", "lb2")
}

// A node stands still until the other one has taken over. Its pacemaker goes on first,
// and calls it active; the other one makes way. Then its daemon finds that it was
// overtaken: somebody has to be active all the same, at once.
func TestFastModeWhereAPacemakerWakesFirst(t *testing.T) {
	r, _, daemons := fastRig(t)
	daemon := daemons["lb1"].ID().PID
	signal := func(pid int, s syscall.Signal) {
		t.Helper()
		if err := syscall.Kill(pid, s); err != nil {
			t.Fatal(err)
		}
	}
	pacemaker := r.pacemakerOf(daemon)
	t.Cleanup(func() { _ = syscall.Kill(pacemaker, syscall.SIGCONT) }) // else it does not end with the daemon
	stopped := time.Now()
	signal(daemon, syscall.SIGSTOP)
	signal(pacemaker, syscall.SIGSTOP)
	r.waitTakeover(stopped, "fell silent")
	i, err := instanceOf(r.mustStatus("lb2"), "VI_1")
	if err != nil {
		t.Fatal(err)
	}
	signal(pacemaker, syscall.SIGCONT)
	// After that takeover: at the start lb2 may have been active for a while, too.
	r.waitEvents("lb2", soon, "vrrp.state VI_1: backup -> active: "+i.Reason, "vrrp.state VI_1: active -> backup: 192.0.2.1 is active with priority 100")
	woken := time.Now()
	signal(daemon, syscall.SIGCONT)
	r.waitTakeover(woken, "192.0.2.1 gave up")
}

// pacemakerOf returns the process that sends for a daemon.
func (r *rig) pacemakerOf(daemon int) int {
	r.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		r.Fatal(err)
	}
	for _, file := range all {
		status, err := os.ReadFile(file)
		command, err2 := os.ReadFile(filepath.Join(filepath.Dir(file), "cmdline"))
		if err != nil || err2 != nil { // it has ended
			continue
		}
		if strings.Contains(string(status), fmt.Sprintf("\nPPid:\t%d\n", daemon)) && strings.Contains(string(command), pacemakerName) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			if err != nil {
				r.Fatal(err)
			}
			return pid
		}
	}
	r.Fatalf("the daemon %d has no pacemaker", daemon)
	return 0
}
