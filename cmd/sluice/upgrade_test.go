package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// layout1 gives a node the data plane of the version that had layout 1, as a daemon
// that is gone has left it: a dsr and a nat service on three backends.
func (r *rig) layout1(on string) {
	r.Helper()
	h := r.host(on)
	must := func(err error) {
		r.Helper()
		if err != nil {
			r.Fatal(err)
		}
	}
	plane, err := testenv.LoadLayout1("../../loader/testdata/lb_layout1.o", time.Hour)
	must(err)
	r.Cleanup(func() {
		if err := plane.Close(); err != nil {
			r.Error(err)
		}
	})
	eth0, err := h.Netlink().LinkByName("eth0")
	must(err)
	mac := h.MAC("eth0")
	const slots = 65537
	for i, s := range []struct {
		vip     netip.AddrPort
		forward uint32
	}{{dsrService, testenv.DSR1}, {natService, testenv.NAT1}} {
		service, first := uint16(i+1), uint32(i*slots)
		place := testenv.VIPPlace(s.vip.Addr())
		entry := testenv.VIP1{Address: testenv.Mapped(s.vip.Addr()), Ports: uint32(service), InState: 1}
		if s.forward == testenv.NAT1 {
			entry.Source = 1
		}
		must(plane.Put("vips", place, entry))
		must(plane.AddPort(uint32(service), s.vip.Port(), service))
		must(plane.Put("services", uint32(service), testenv.Service1{Slots: first, Count: slots, Forward: s.forward}))
		for b := range uint32(3) {
			number, host := uint32(i)*3+b+1, r.host(fmt.Sprintf("b%d", b+1))
			address := netip.AddrPortFrom(host.Address(), 80)
			backend := testenv.Backend1{
				Address: testenv.Mapped(address.Addr()), Port: testenv.Port1(80), Service: service, Generation: 10 + number, Alive: 1,
				NextHop: testenv.Hop1{
					Destination: [6]byte(host.MAC("eth0")), SourceLow: [2]byte(mac[:2]), SourceHigh: [4]byte(mac[2:]),
					Interface: uint32(eth0.Attrs().Index),
				},
			}
			if s.forward == testenv.NAT1 {
				backend.Choice, backend.Choices = b, 1
				must(plane.Put("nat_choices", b, b+1))
				must(plane.AddPair(b+1, s.vip.Addr(), place, address))
			}
			must(plane.Put("backends", number, backend))
			for slot := b; slot < slots; slot += 3 {
				must(plane.Put("slots", first+slot, uint64(number)))
			}
		}
	}
	must(plane.Pin(h.PinDir))
	must(h.Do(func() error { return plane.Attach(h.PinDir, "eth0") }))
}

// A new version takes over what the one before has left, with other slots than its
// own: no connection of either service notices, and what is idle goes on, too.
func TestUpgradeLosesNoPacket(t *testing.T) {
	r := nginxRig(t, sevenSeconds)
	for _, a := range []netip.Addr{vip, natVIP} {
		if err := r.host("lb1").AddAddress("eth0", netip.PrefixFrom(a, 24)); err != nil {
			t.Fatal(err)
		}
	}
	r.layout1("lb1")
	program := r.xdpProgram("lb1", "eth0")
	var idle []net.Conn
	for i := range 200 {
		to := natService
		if i%2 == 0 {
			to = dsrService
		}
		c, err := r.host("client").Dial(t.Context(), "tcp", to.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() }) // it may be closed by the server
		idle = append(idle, c)
	}
	downloads := []*download{
		r.download(dsrService, sevenSeconds.DownloadSize),
		r.download(natService, sevenSeconds.DownloadSize),
	}
	dsrProber, natProber := r.prober(dsrService), r.prober(natService)
	hosts := []string{"client", "b1", "b2", "b3"}
	r.answersMore(dsrProber, 50)
	r.answersMore(natProber, 50)
	lost := map[string]int{}
	for _, h := range hosts {
		lost[h] = r.tcpLosses(h)
	}

	// Nothing but the service's own probes needs VRRP here.
	r.start("lb1", r.file("sluice.yaml", roster, webPool, services(dsr, nat)))
	s := r.waitReady("lb1")
	r.answersMore(dsrProber, 100)
	r.answersMore(natProber, 100)
	if r.xdpProgram("lb1", "eth0") == program {
		t.Error("the program is the old one still")
	}
	if u := s.Upgrade; u == nil || u.From != 1 || u.Services != 2 || u.Backends != 6 || u.Pairs != 3 || u.Flows < 101 || len(u.NotKept) > 0 {
		t.Errorf("the upgrade is reported as %+v", u)
	}
	if len(s.Problems) > 0 {
		t.Errorf("problems: %v", s.Problems)
	}
	if got := r.wantRun(0, "lb1", "status"); !strings.Contains(got.stdout, "the data plane was layout 1 and is 2") {
		t.Errorf("status says:\n%s", got.stdout)
	}
	var asJSON control.Status
	if err := json.Unmarshal([]byte(r.wantRun(0, "lb1", "status", "--json").stdout), &asJSON); err != nil || asJSON.Upgrade == nil {
		t.Errorf("status --json has no upgrade (%v)", err)
	}
	for _, d := range downloads {
		d.mustGoOn(r, "after the upgrade")
	}
	answered := 0
	for _, c := range idle {
		if err := c.SetDeadline(time.Now().Add(soon)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, "HEAD / HTTP/1.0\r\n\r\n"); err != nil {
			t.Errorf("idle connection %v: %v", c.RemoteAddr(), err)
			continue
		}
		if head, err := io.ReadAll(c); err != nil || !strings.HasPrefix(string(head), "HTTP/1.") {
			t.Errorf("idle connection %v: %q, %v", c.RemoteAddr(), head, err)
			continue
		}
		answered++
	}
	if answered != len(idle) {
		t.Errorf("%d of %d idle connections go on", answered, len(idle))
	}
	for _, d := range downloads {
		d.finish(r)
	}
	r.wantNoFailure(dsrProber)
	r.wantNoFailure(natProber)
	again := 0
	for _, h := range hosts {
		again += r.tcpLosses(h) - lost[h]
	}
	t.Logf("%d segments were sent again", again)
	// A host that is slow to acknowledge is sent its last segment twice.
	if again > 5 {
		t.Errorf("%d segments had to be sent again", again)
	}
}

// A version that does not know what is pinned says so, and forwarding goes on.
func TestDowngradeIsRefused(t *testing.T) {
	r := webRig(t, 3)
	for _, a := range []netip.Addr{vip, natVIP} {
		if err := r.host("lb1").AddAddress("eth0", netip.PrefixFrom(a, 24)); err != nil {
			t.Fatal(err)
		}
	}
	r.layout1("lb1")
	if err := testenv.SetPinnedLayout(r.host("lb1").PinDir, 99); err != nil {
		t.Fatal(err)
	}
	program, pins := r.xdpProgram("lb1", "eth0"), r.pins("lb1")
	file := r.file("sluice.yaml", roster, webPool, services(dsr, nat))
	for range 2 {
		got := r.wantRun(exitFailed, "lb1", "run", "-c", file, "--node", "lb1")
		for _, want := range []string{"layout 99", "sluice detach", "goes on forwarding"} {
			if !strings.Contains(got.stderr, want) {
				t.Errorf("stderr %q does not say %q", got.stderr, want)
			}
		}
	}
	if r.xdpProgram("lb1", "eth0") != program || len(r.pins("lb1")) != len(pins) {
		t.Errorf("program or pins have changed: %v, were %v", r.pins("lb1"), pins)
	}
	r.wantServing(dsrService, "b1", "b2", "b3")
	r.wantServing(natService, "b1", "b2", "b3")
	r.wantRun(0, "lb1", "detach")
	if r.xdpProgram("lb1", "eth0") != 0 || len(r.pins("lb1")) > 0 {
		t.Errorf("after detach there are pins: %v", r.pins("lb1"))
	}
}
