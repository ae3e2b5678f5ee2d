package main

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// nginxRig is webRig with nginx, which has a big file that takes seconds.
func nginxRig(t *testing.T, cfg testenv.NginxConfig) *rig {
	t.Helper()
	testenv.RequireRoot(t)
	testenv.RequireProgram(t, "nginx")
	r := newRig(t, testenv.Default(3))
	for _, name := range []string{"b1", "b2", "b3"} {
		if err := r.host(name).AddVIPOnLoopback(vip); err != nil {
			r.Fatal(err)
		}
		if _, err := testenv.StartNginx(t.Context(), r.host(name), cfg); err != nil {
			r.Fatal(err)
		}
	}
	return r
}

var sevenSeconds = testenv.NginxConfig{DownloadSize: 14 << 20, DownloadRate: 2 << 20}

// twentySeconds is for what may take as long on a busy machine: see suffice.
var twentySeconds = testenv.NginxConfig{DownloadSize: 40 << 20, DownloadRate: 2 << 20}

// packetsOf is what the data plane has forwarded for a service since it was
// loaded.
func packetsOf(s control.Status, service string) (n uint64) {
	v, err := serviceOf(s, service)
	if err != nil {
		return 0
	}
	for _, b := range v.Backends {
		n += b.Packets
	}
	return n
}

// fidget adds an address to a node's lo and removes it, again and again: what is
// no business of the daemon's must not lead it to do anything.
func (r *rig) fidget(on string) (stop func()) {
	r.Helper()
	other := prefix("198.51.100.77/32")
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(20 * time.Millisecond)
		defer ticker.Stop()
		for {
			if err := r.host(on).AddAddress("lo", other); err != nil {
				r.Error(err)
			}
			if err := deleteAddress(r.host(on), "lo", other.Addr()); err != nil {
				r.Error(err)
			}
			select {
			case <-quit:
				return
			case <-ticker.C:
			}
		}
	}()
	stop = sync.OnceFunc(func() {
		close(quit)
		<-done
	})
	r.Cleanup(stop)
	return stop
}

// A daemon that is killed stops no packet, and the next one takes over what it
// finds: nothing is lost at any moment, for old and for new connections.
func TestKilledDaemonLosesNoPacket(t *testing.T) {
	r := nginxRig(t, twentySeconds)
	file := r.usual()
	daemon := r.start("lb1", file)
	r.waitReady("lb1")
	downloads := []*download{
		r.download(dsrService, twentySeconds.DownloadSize),
		r.download(natService, twentySeconds.DownloadSize),
	}
	dsrProber, natProber := r.prober(dsrService), r.prober(natService)
	hosts := []string{"client", "b1", "b2", "b3"}
	r.answersMore(dsrProber, 50)
	before := r.mustStatus("lb1")
	lost := map[string]int{}
	for _, h := range hosts {
		lost[h] = r.tcpLosses(h)
	}
	removals := r.watchRemovals("lb1")

	r.kill(daemon)
	r.answersMore(dsrProber, 200)
	r.answersMore(natProber, 200)
	if r.xdpProgram("lb1", "eth0") == 0 || !r.has("lb1", vip) {
		t.Error("the dead daemon has taken the program or the VIP with it")
	}
	for _, d := range downloads {
		d.mustGoOn(r, "without a daemon")
	}

	stopFidgeting := r.fidget("lb1")
	r.start("lb1", file)
	after := r.waitReady("lb1")
	stopFidgeting()
	r.answersMore(dsrProber, 100)
	r.answersMore(natProber, 100)
	for _, d := range downloads {
		d.mustGoOn(r, "after the restart")
		d.suffice(r)
	}
	r.wantNoFailure(dsrProber)
	r.wantNoFailure(natProber)
	for _, h := range hosts {
		if n := r.tcpLosses(h) - lost[h]; n > 0 {
			t.Errorf("%s had to send %d segments again", h, n)
		}
	}
	for _, a := range removals.stop() {
		if a == vip || a == natVIP {
			t.Errorf("%v was removed", a)
		}
	}
	// The pinned maps were adopted: they go on counting.
	for _, service := range []string{"dsr", "nat"} {
		if was, is := packetsOf(before, service), packetsOf(after, service); was == 0 || is <= was {
			t.Errorf("service %s has counted %d packets, and %d before its daemon was killed", service, is, was)
		}
	}
	if now := r.mustStatus("lb1"); now.PID == before.PID || len(now.Problems) > 0 {
		t.Errorf("process %d answers, with problems %v", now.PID, now.Problems)
	}
}

// A node that stops for good where nobody can take over keeps what it has.
func TestStopWithoutAPeerKeepsForwarding(t *testing.T) {
	r := nginxRig(t, twentySeconds)
	file := r.usual()
	daemon := r.start("lb1", file)
	r.waitReady("lb1")
	d := r.download(dsrService, twentySeconds.DownloadSize)
	removals := r.watchRemovals("lb1")
	dsrProber, natProber := r.prober(dsrService), r.prober(natService)

	r.stop(daemon)
	if log := daemon.Tail(5); !strings.Contains(log, "no peer took over") {
		t.Errorf("the daemon does not say that the VIPs stay:\n%s", log)
	}
	if !r.has("lb1", vip) || !r.has("lb1", natVIP) || r.xdpProgram("lb1", "eth0") == 0 {
		t.Error("a VIP or the program is gone")
	}
	d.mustGoOn(r, "after SIGTERM")
	r.answersMore(dsrProber, 100)
	r.answersMore(natProber, 100)

	r.start("lb1", file)
	r.waitReady("lb1")
	r.answersMore(dsrProber, 100)
	r.answersMore(natProber, 100)
	r.wantNoFailure(dsrProber)
	r.wantNoFailure(natProber)
	d.suffice(r)
	if gone := removals.stop(); len(gone) > 0 {
		t.Errorf("addresses were removed: %v", gone)
	}
}

// An operator's slip and what the program itself knows to be wrong.
func TestVIPRemovedByHandComesBack(t *testing.T) {
	r := webRig(t, 3)
	r.start("lb1", r.usual())
	r.waitReady("lb1")
	removals := r.watchRemovals("lb1")
	if err := deleteAddress(r.host("lb1"), "eth0", vip); err != nil {
		t.Fatal(err)
	}
	r.eventually(soon, "the VIP back on lb1", func() (bool, error) { return r.has("lb1", vip), nil })
	r.waitStatus("lb1", soon, "both VIPs", func(s control.Status) error {
		if i, err := instanceOf(s, "VI_1"); err != nil || len(i.Present) != 2 || i.State != "active" {
			return fmt.Errorf("%s with %v, %w", i.State, i.Present, err)
		}
		return nil
	})
	r.waitEvents("lb1", soon, "alarm.begin VI_1 removed")
	r.wantServing(dsrService, "b1", "b2", "b3")
	if gone := removals.stop(); len(gone) != 1 || gone[0] != vip {
		t.Errorf("removed addresses: %v, want %v alone", gone, vip)
	}
}

// A VIP that is the node's own address faults its instance and nothing else.
func TestVIPThatIsTheNodesOwnAddress(t *testing.T) {
	r := webRig(t, 3)
	const own = "192.0.2.150/24"
	if err := r.host("lb1").AddAddress("eth0", prefix(own)); err != nil {
		t.Fatal(err)
	}
	daemon := r.start("lb1", r.file("own.yaml", roster, webPool, services(dsr, nat), vrrps(pair,
		`{name: VI_own, interface: eth0, virtual_router_id: 52, advertisement_interval: 200ms, addresses: [192.0.2.150/24]}`)))
	s := r.waitStatus("lb1", soon, "one instance Active and one at fault", func(s control.Status) error {
		for name, want := range map[string]string{"VI_1": "active", "VI_own": "fault"} {
			if i, err := instanceOf(s, name); err != nil || i.State != want {
				return fmt.Errorf("instance %s is %s: %s", name, i.State, i.Reason)
			}
		}
		return nil
	})
	i, err := instanceOf(s, "VI_own")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(i.Reason, "192.0.2.150") || !strings.Contains(i.Reason, "eth0") {
		t.Errorf("the reason %q does not name the address and where it is", i.Reason)
	}
	if len(s.Problems) != 1 || !strings.Contains(s.Problems[0], "VI_own") || !strings.Contains(s.Problems[0], "192.0.2.150") {
		t.Errorf("problems %v do not name the instance and the address", s.Problems)
	}
	r.waitServers("lb1", "dsr", soon, control.ServerUp, control.ServerUp, control.ServerUp)
	r.wantServing(dsrService, "b1", "b2", "b3")
	r.stop(daemon)
	r.wantRun(0, "lb1", "detach", "--force")
	if !r.has("lb1", prefix(own).Addr()) {
		t.Error("the node's own address is gone")
	}
	r.wantNothing("lb1")
}
