package main

import (
	"bufio"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/key"
	"github.com/sluice-lb/sluice/internal/testenv"
)

var (
	syncConnections = flag.Int("sync.connections", 2000, "connections in the tests of failover with state")
	syncRounds      = flag.Int("sync.rounds", 2, "how often each of them has the node die and come back")
)

// A syncRig is a pair of nodes that share their state, and a crowd of connections
// through them.
type syncRig struct {
	*rig
	mode     forwardMode
	file     string
	daemons  map[string]*testenv.Process
	crowd    *crowd
	services []netip.AddrPort
}

// newSyncRig starts the pair, and opens the crowd through lb1, to a VIP of each family.
func newSyncRig(t *testing.T, m forwardMode) *syncRig {
	t.Helper()
	testenv.RequireRoot(t)
	needDescriptors(t, uint64(*syncConnections+200*(*syncRounds)+200))
	spec := testenv.Default(3)
	spec.IPv6 = true
	clients := append(testenv.Addresses(prefix("192.0.2.200/24"), 20), testenv.Addresses(prefix("2001:db8::200/64"), 20)...)
	withAddresses(spec, "client", clients...)
	withAddresses(spec, "lb2", prefix("192.0.2.2/24"), prefix("2001:db8::2/64"))
	for i := range 3 {
		withAddresses(spec, fmt.Sprintf("b%d", i+1), netip.PrefixFrom(serverAddress(i+1), 24), prefix(fmt.Sprintf("2001:db8::1%d/64", i+1)))
	}
	r := &syncRig{rig: newElectingModeRig(t, m, spec), mode: m}
	for i := range 3 {
		r.startEcho(fmt.Sprintf("b%d", i+1))
	}
	if err := key.Write(filepath.Join(r.lab.Dir(), "sync.key"), key.New()); err != nil {
		t.Fatal(err)
	}
	r.file = r.rig.file("sync.yaml", crowdRoster, "pools:\n  - name: web\n    "+patientProbes+`
    servers: [{address: 192.0.2.11}, {address: 192.0.2.12}, {address: 192.0.2.13}]
  - name: web6
    `+patientProbes+`
    servers: [{address: "2001:db8::11"}, {address: "2001:db8::12"}, {address: "2001:db8::13"}]
`, services(m.service("crowd", m.vip, "web"), m.service("crowd6", m.v6, "web6")), vrrps(
		fmt.Sprintf(`{name: VI_1, interface: eth0, virtual_router_id: 51, advertisement_interval: 200ms, group: both, addresses: [%v/24]}`, m.vip),
		fmt.Sprintf(`{name: VI_6, interface: eth0, virtual_router_id: 51, advertisement_interval: 200ms, group: both, addresses: ["fe80::100/64", "%v/64"]}`, m.v6)),
		"sync: {key_file: sync.key}\n")
	r.services = []netip.AddrPort{netip.AddrPortFrom(m.vip, 80), netip.AddrPortFrom(m.v6, 80)}
	r.daemons = map[string]*testenv.Process{}
	for _, node := range []string{"lb1", "lb2"} {
		r.daemons[node] = r.start(node, r.file)
	}
	r.waitReady("lb1")
	r.waitBackup("lb2")
	r.waitShared("lb1")
	r.crowd = r.rig.crowd("client", clients...)
	r.crowd.mustOpen(r.services, *syncConnections)
	r.crowd.talk("at first")
	return r
}

// waitShared waits until a node's peer has acknowledged all that the node has, and
// the node has all of its peer's.
func (r *rig) waitShared(node string) control.Status {
	r.Helper()
	return r.waitStatus(node, soon, "state that both nodes have", func(s control.Status) error {
		switch {
		case s.Sync == nil || len(s.Sync.Peers) != 1:
			return fmt.Errorf("sync is %+v", s.Sync)
		case !s.Sync.Peers[0].InSync || !s.Sync.Peers[0].Synced || s.Sync.AtRisk != 0:
			return fmt.Errorf("sync is %+v", *s.Sync)
		}
		return nil
	})
}

// goesOn has every connection talk, and some new ones open.
func (r *syncRig) goesOn(when string) {
	r.Helper()
	r.crowd.talk(when)
	r.crowd.mustOpen(r.services, 50)
	r.crowd.talk(when + ", and new ones opened")
}

// comesBack starts lb1 again, and waits until it has the VIPs, and b1 as an operator has
// left it on lb2.
func (r *syncRig) comesBack(b1 control.ServerState) {
	r.Helper()
	r.daemons["lb1"] = r.start("lb1", r.file)
	r.waitVIP(time.Minute, r.mode.vip, "lb1", "lb2")
	r.waitVIP(time.Minute, r.mode.v6, "lb1", "lb2")
	r.waitServers("lb1", "crowd", soon, b1, control.ServerUp, control.ServerUp)
}

// No connection breaks when the Active node is killed and cut off, when it comes
// back, and when it is stopped, whatever the mode; also while servers are drained and
// come back between.
func TestNoConnectionBreaks(t *testing.T) {
	for _, m := range forwardModes {
		t.Run(m.name, func(t *testing.T) {
			r := newSyncRig(t, m)
			for round := range *syncRounds {
				r.waitShared("lb1")
				if err := r.host("lb1").LinkDown(); err != nil {
					t.Fatal(err)
				}
				r.kill(r.daemons["lb1"])
				r.waitVIP(soon, m.vip, "lb2")
				r.waitVIP(soon, m.v6, "lb2")
				r.goesOn(fmt.Sprintf("round %d, lb1 has died", round))

				r.wantRun(0, "lb2", "backend", "drain", "web", "192.0.2.11")
				r.goesOn(fmt.Sprintf("round %d, b1 drains", round))
				if err := r.host("lb1").LinkUp(); err != nil {
					t.Fatal(err)
				}
				r.comesBack(control.ServerDrained)
				r.goesOn(fmt.Sprintf("round %d, lb1 is back", round))

				r.waitShared("lb1")
				r.stop(r.daemons["lb1"])
				r.waitVIP(soon, m.vip, "lb2", "lb1")
				r.waitVIP(soon, m.v6, "lb2", "lb1")
				r.goesOn(fmt.Sprintf("round %d, lb1 was stopped", round))
				r.wantRun(0, "lb2", "backend", "enable", "web", "192.0.2.11")
				r.comesBack(control.ServerUp)
				r.goesOn(fmt.Sprintf("round %d, lb1 is back again", round))
			}
		})
	}
}

// A node that comes back and does not reach a server that has connections leaves the VIP to
// the node that does, until it does, too.
func TestNoReturnWithoutTheServers(t *testing.T) {
	r := newSyncRig(t, forwardModes[0])
	r.stop(r.daemons["lb1"])
	r.waitVIP(soon, r.mode.vip, "lb2", "lb1")
	r.ip("lb1", "neighbour", "replace", "192.0.2.12", "lladdr", "02:00:00:00:00:99", "dev", "eth0", "nud", "permanent")
	r.daemons["lb1"] = r.start("lb1", r.file)
	r.waitShared("lb1")
	r.waitHeldBack("lb1", "does not reach a server that serves there")
	r.goesOn("lb1 waits")
	r.ip("lb1", "neighbour", "del", "192.0.2.12", "dev", "eth0")
	r.waitVIP(time.Minute, r.mode.vip, "lb1", "lb2")
	r.goesOn("lb1 is back")
}

// ip runs ip(8) on a node.
func (r *rig) ip(on string, args ...string) {
	r.Helper()
	if out, err := r.host(on).Run(r.Context(), "ip", args...); err != nil {
		r.Fatalf("ip %v on %s: %v: %s", args, on, err, out)
	}
}

// A node that could not tell its peer anything for a while has told it everything a
// moment after it can again: what began meanwhile, and what ended.
func TestSyncLinkIsCut(t *testing.T) {
	r := newSyncRig(t, forwardModes[1])
	r.ip("lb1", "route", "add", "blackhole", "192.0.2.2/32")
	r.waitStatus("lb1", time.Minute, "a link that is cut", func(s control.Status) error {
		if s.Sync == nil || s.Sync.Peers[0].Connected || s.Sync.AtRisk < *syncConnections/2 || len(s.Problems) == 0 {
			return fmt.Errorf("sync is %+v, problems are %q", s.Sync, s.Problems)
		}
		return nil
	})
	gone := r.crowd.members[:100]
	for _, m := range gone {
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	r.crowd.members = r.crowd.members[100:]
	r.goesOn("the link between the nodes is cut")
	r.ip("lb1", "route", "del", "blackhole", "192.0.2.2/32")
	r.waitShared("lb1")
	here, there := r.flowsOf("lb1"), r.flowsOf("lb2")
	for flow, where := range here {
		if there[flow] != where {
			t.Errorf("%s goes to %q on lb1, and %q on lb2", flow, where, there[flow])
		}
	}
	if len(there) != len(here) {
		t.Errorf("lb2 has %d flows, lb1 %d", len(there), len(here))
	}
	if err := r.host("lb1").LinkDown(); err != nil {
		t.Fatal(err)
	}
	r.kill(r.daemons["lb1"])
	r.waitVIP(soon, r.mode.vip, "lb2")
	r.waitVIP(soon, r.mode.v6, "lb2")
	r.goesOn("lb1 has died")
}

// A node that is stopped while its peer does not have everything yet waits until it has.
func TestStopWaitsForThePeer(t *testing.T) {
	r := newSyncRig(t, forwardModes[1])
	r.ip("lb1", "route", "add", "blackhole", "192.0.2.2/32")
	r.waitStatus("lb1", time.Minute, "a link that is cut", func(s control.Status) error {
		if s.Sync == nil || s.Sync.Peers[0].Connected {
			return fmt.Errorf("sync is %+v", s.Sync)
		}
		return nil
	})
	r.goesOn("the link between the nodes is cut")
	r.ip("lb1", "route", "del", "blackhole", "192.0.2.2/32")
	r.stop(r.daemons["lb1"])
	r.waitVIP(soon, r.mode.vip, "lb2", "lb1")
	r.waitVIP(soon, r.mode.v6, "lb2", "lb1")
	r.goesOn("lb1 was stopped")
}

// flowsOf returns the open flows that a node knows, and where they go.
func (r *rig) flowsOf(node string) map[string]string {
	r.Helper()
	all := map[string]string{}
	flows, _ := r.flowsIn(r.wantRun(0, node, "flows", "--json").stdout)
	for _, f := range flows {
		if f.State == "established" || f.State == "open" {
			all[f.Protocol+" "+f.Client.String()+" "+f.VIP.String()] = fmt.Sprint(f.Backend, " ", f.Source)
		}
	}
	return all
}

// A halfOpen is a connection that is open for the client alone: its acknowledgement is
// on its way.
type halfOpen struct {
	*member
	r *syncRig
}

func (r *syncRig) halfOpen() *halfOpen {
	r.Helper()
	from, to := netip.MustParseAddrPort("192.0.2.200:9999"), r.services[0]
	r.nft("client", fmt.Sprintf(`table ip delay {
	chain out {
		type filter hook output priority 0
		ip saddr %v tcp sport %d tcp flags & syn == 0 drop
	}
}`, from.Addr(), from.Port()))
	conn, err := r.host("client").DialFrom(r.Context(), from, to)
	if err != nil {
		r.Fatal(err)
	}
	return &halfOpen{&member{Conn: conn, service: to, replies: bufio.NewReaderSize(conn, lineLength)}, r}
}

// arrive lets the client's packets through: the connection must open, and belongs to the
// crowd.
func (h *halfOpen) arrive() {
	h.r.Helper()
	h.r.nft("client", "delete table ip delay")
	if err := h.say("at last"); err != nil {
		h.r.Fatalf("a handshake that was under way: %v", err)
	}
	h.r.crowd.members = append(h.r.crowd.members, h.member)
}

// nft changes a host's packet filter.
func (r *rig) nft(on, rules string) {
	r.Helper()
	testenv.RequireProgram(r.T, "nft")
	if out, err := r.host(on).Run(r.Context(), "nft", rules); err != nil {
		r.Fatalf("nft on %s: %v: %s", on, err, out)
	}
}

// Both nodes are restarted, one after the other, as for an upgrade. What is about to open
// meanwhile does.
func TestUpgradeOfBothNodes(t *testing.T) {
	r := newSyncRig(t, forwardModes[1])
	r.stop(r.daemons["lb2"])
	r.goesOn("lb2 is stopped")
	r.daemons["lb2"] = r.start("lb2", r.file)
	r.waitBackup("lb2")
	r.waitShared("lb1")
	half := r.halfOpen()
	r.wantRun(0, "lb1", "handover", "--hold")
	r.waitVIP(soon, r.mode.vip, "lb2", "lb1")
	half.arrive()
	r.goesOn("lb1 has handed over")
	r.stop(r.daemons["lb1"])
	r.goesOn("lb1 is stopped")
	r.daemons["lb1"] = r.start("lb1", r.file)
	r.waitShared("lb2")
	r.wantRun(0, "lb1", "handover", "--release")
	r.waitVIP(time.Minute, r.mode.vip, "lb1", "lb2")
	r.waitVIP(time.Minute, r.mode.v6, "lb1", "lb2")
	r.goesOn("lb1 has the VIPs again")
}

// Two nodes with different keys go on, without each other's state, and say so.
func TestNodesWithDifferentKeys(t *testing.T) {
	r := newSyncRig(t, forwardModes[1])
	r.stop(r.daemons["lb2"])
	other := filepath.Join(r.lab.Dir(), "other.key")
	if err := key.Write(other, key.New()); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(r.file)
	if err != nil {
		t.Fatal(err)
	}
	r.daemons["lb2"] = r.start("lb2", r.rig.file("other.yaml", strings.Replace(string(text), "sync.key", "other.key", 1)))
	r.waitBackup("lb2")
	for _, node := range []string{"lb1", "lb2"} {
		r.waitStatus(node, soon, "a problem that names the key", func(s control.Status) error {
			if s.Sync == nil || s.Sync.Peers[0].Connected || !strings.Contains(s.Sync.Peers[0].Problem, "key_file") || s.Sync.Refused["another key"] == 0 {
				return fmt.Errorf("sync is %+v", s.Sync)
			}
			return nil
		})
	}
	r.goesOn("lb2 has another key")
	// A stop breaks them, and does not keep it to itself.
	if s := r.mustStatus("lb1"); s.Sync.AtRisk != len(r.crowd.members) {
		t.Errorf("%d of %d connections are at risk", s.Sync.AtRisk, len(r.crowd.members))
	}
	r.stop(r.daemons["lb1"])
	want := fmt.Sprintf("as planned; no other node had %d connections: lb2 (192.0.2.2:3780) has not this node's state", len(r.crowd.members))
	if text := r.wantRun(0, "lb1", "events").stdout; !strings.Contains(text, want) {
		t.Errorf("events do not say %q:\n%s", want, text)
	}
}
