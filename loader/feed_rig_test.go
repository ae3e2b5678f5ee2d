package loader

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	gocmp "github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// A feedNode is a data plane that tells others of its flows, and takes in what they tell.
type feedNode struct {
	*testing.T
	*Datapath
	feed *FlowFeed
}

func newFeedNode(t *testing.T, share lb.PortRange, services ...lb.ServiceState) *feedNode {
	t.Helper()
	return newFeedNodeWith(t, share, natTimeouts, services...)
}

func newFeedNodeWith(t *testing.T, share lb.PortRange, timeouts map[lbNatState]time.Duration, services ...lb.ServiceState) *feedNode {
	t.Helper()
	d := newDatapathWith(t, Options{MaxFlows: 100000, Ports: share, TellFlows: true, LogTranslations: true}, timeouts, services...)
	n := &feedNode{T: t, Datapath: d}
	n.openFeed()
	return n
}

func (n *feedNode) openFeed() {
	n.Helper()
	feed, err := n.OpenFlowFeed()
	if err != nil {
		n.Fatal(err)
	}
	n.feed = feed
	n.Cleanup(func() {
		if n.feed == feed {
			n.closeFeed()
		}
	})
}

func (n *feedNode) closeFeed() {
	n.Helper()
	if err := n.feed.Close(); err != nil {
		n.Error(err)
	}
	n.feed = nil
}

// twoNodes returns two nodes with halves of the ports. What they serve has other numbers
// on the second one, which has served something else before.
func twoNodes(t *testing.T, services ...lb.ServiceState) (a, b *feedNode) {
	t.Helper()
	lower, upper := lb.PortRange{First: 1024, Last: 33023}, lb.PortRange{First: 33024, Last: 65535}
	a = newFeedNode(t, lower, services...)
	other := service("other", lb.NAT, 7, backends(2, 7))
	other.SourceAddresses = []netip.Addr{netip.MustParseAddr("192.0.2.107")}
	b = newFeedNode(t, upper, other)
	apply(t, b.Datapath, append([]lb.ServiceState{other}, services...)...)
	return a, b
}

// changes returns all that there is to be told.
func (n *feedNode) changes() []lb.FlowState {
	n.Helper()
	var all []lb.FlowState
	for {
		before := len(all)
		var lost bool
		var err error
		if all, lost, err = n.feed.Changes(all); err != nil || lost {
			n.Fatalf("changes: lost %v, %v", lost, err)
		}
		if len(all) == before {
			return all
		}
	}
}

// held returns all flows, in order.
func (n *feedNode) held() []lb.FlowState {
	n.Helper()
	var all []lb.FlowState
	for s, err := range n.feed.Snapshot() {
		if err != nil {
			n.Fatal(err)
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b lb.FlowState) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Protocol, b.Protocol), a.Client.Compare(b.Client), a.VIP.Compare(b.VIP))
	})
	return all
}

// take applies flows, none of which may be refused.
func (n *feedNode) take(flows []lb.FlowState) ApplyResult {
	n.Helper()
	r := n.try(flows)
	if len(r.Refused) > 0 {
		n.Errorf("refused: %+v", r.Refused)
	}
	return r
}

func (n *feedNode) try(flows []lb.FlowState) ApplyResult {
	n.Helper()
	r, err := n.feed.ApplyFlows(flows)
	if err != nil {
		n.Fatal(err)
	}
	return r
}

// tell hands on what has changed.
func (n *feedNode) tell(to *feedNode) ApplyResult { n.Helper(); return to.take(n.changes()) }

// ageless returns flows without the time since their last packet.
func ageless(flows []lb.FlowState) []lb.FlowState {
	flows = slices.Clone(flows)
	for i := range flows {
		flows[i].Idle = 0
	}
	return flows
}

// wantSame checks that two nodes have the same flows.
func wantSame(t *testing.T, a, b *feedNode) {
	t.Helper()
	if diff := gocmp.Diff(ageless(a.held()), ageless(b.held()), equateAddrs); diff != "" {
		t.Errorf("flows (-a +b):\n%s", diff)
	}
}

// wantTwins sends a frame through two nodes: it must leave both in the same way.
func wantTwins(t *testing.T, a, b *feedNode, what string, f testenv.Frame) {
	t.Helper()
	va, fa := sendEarnest(t, a.Datapath, f.Bytes())
	vb, fb := sendEarnest(t, b.Datapath, f.Bytes())
	if va != xdpTX && va != xdpRedirect {
		t.Errorf("%s: verdict %d", what, va)
	}
	if va != vb || !bytes.Equal(maskID(fa), maskID(fb)) {
		t.Errorf("%s left by verdict %d as\n%x\nand at the other node by %d as\n%x", what, va, fa, vb, fb)
	}
}

// walkAll has the next call of Changes look at all flows.
func (n *feedNode) walkAll() {
	n.feed.walk.last, n.feed.walk.owed = time.Now(), walkTime
}

// waysToTell are those by which flows come to another node.
var waysToTell = []struct {
	name string
	tell func(a, b *feedNode)
}{
	{"changes", func(a, b *feedNode) { a.Helper(); a.tell(b) }},
	{"snapshot", func(a, b *feedNode) { a.Helper(); b.take(a.held()) }},
}

// pairAt returns the view of a pair and the port of a connection.
func (n *feedNode) pairAt(c *conn) pairView {
	n.Helper()
	d := c.d
	c.d = n.Datapath
	defer func() { c.d = d }()
	return viewPair(n, n.Datapath, pairOf(n, n.Datapath, c))
}

// flowAt is the entry of a connection.
func (n *feedNode) flowAt(c *conn) *lbNatFlow { n.Helper(); return n.pairAt(c).flow(c.source.Port()) }

// newsOffset is where a pair says that it has news.
const newsOffset = unsafe.Offsetof(lbNatPair{}.News)

// agePin makes the entries of a table look as if nothing had come for so long, and as
// if they had been told then.
func agePin(t testing.TB, m *ebpf.Map, by time.Duration) {
	t.Helper()
	all := map[lbFlowKey]lbPin{}
	if err := eachFlow(m, func(k lbFlowKey, p lbPin) { all[k] = p }); err != nil {
		t.Fatal(err)
	}
	for k, p := range all {
		p.Seen -= uint32(by / tick)
		p.Told -= uint32(by / tick)
		if err := m.Put(&k, &p); err != nil {
			t.Fatal(err)
		}
	}
}

// lbSource is a source address and port of the first service.
func lbSource(port uint16) netip.AddrPort { return netip.AddrPortFrom(vipIP, port) }

// flowsOwner is the backend that owns the slot of a UDP client.
func flowsOwner(t *testing.T, d *Datapath, client netip.AddrPort) int {
	t.Helper()
	a := owner(d, client, 80).As4()
	return int(a[3]) - 10
}
