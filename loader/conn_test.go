package loader

import (
	"net/netip"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// The initial sequence numbers of both ends of a test connection.
const (
	clientISN  = 1000
	backendISN = 5000
)

// A conn is a client's connection to a nat service, both ends of it.
type conn struct {
	d       *Datapath
	client  netip.AddrPort
	service netip.AddrPort
	// As the backend sees the connection, once a packet was forwarded.
	source, backend netip.AddrPort
	// changes are made to every packet of the client.
	changes []change
}

func newConn(d *Datapath, client netip.AddrPort) *conn {
	return &conn{d: d, client: client, service: vipPort}
}

// openConn makes a connection and shakes hands.
func openConn(t testing.TB, d *Datapath, client netip.AddrPort) *conn {
	t.Helper()
	c := newConn(d, client)
	c.open(t)
	return c
}

func (c *conn) open(t testing.TB) {
	t.Helper()
	c.mustForward(t, testenv.SYN, "")
	c.mustReply(t, testenv.SYN|testenv.ACK, "")
	c.mustForward(t, testenv.ACK, "")
}

// tryOpen is open without a look at the counters: whether the SYN was forwarded.
func (c *conn) tryOpen(t testing.TB) bool {
	t.Helper()
	verdict, out := send(t, c.d, c.fromClient(testenv.SYN, "").Bytes())
	if verdict == xdpDrop {
		return false
	}
	f := parse(t, out)
	c.source, c.backend = f.Src, f.Dst
	c.translates(t, testenv.SYN|testenv.ACK)
	return true
}

// translates checks that both ways are translated, without a look at the
// counters: the backend's packet with these flags, the client's with ACK.
func (c *conn) translates(t testing.TB, flags testenv.TCPFlags) {
	t.Helper()
	for _, p := range []struct {
		in       testenv.Frame
		src, dst netip.AddrPort
	}{
		{c.fromBackend(flags, ""), c.service, c.client},
		{c.fromClient(testenv.ACK, ""), c.source, c.backend},
	} {
		verdict, out := send(t, c.d, p.in.Bytes())
		if verdict != xdpTX {
			t.Fatalf("a packet from %v to %v of %v has verdict %d", p.in.Src, p.in.Dst, c.client, verdict)
		}
		if f := parse(t, out); f.Src != p.src || f.Dst != p.dst {
			t.Fatalf("a packet from %v to %v of %v left from %v to %v", p.in.Src, p.in.Dst, c.client, f.Src, f.Dst)
		}
	}
}

// end is close without a look at the counters.
func (c *conn) end(t testing.TB) {
	t.Helper()
	c.translates(t, testenv.FIN|testenv.ACK)
	send(t, c.d, c.fromClient(testenv.FIN|testenv.ACK, "").Bytes())
}

// close ends the connection the way both ends agree to.
func (c *conn) close(t testing.TB) {
	t.Helper()
	c.mustForward(t, testenv.FIN|testenv.ACK, "")
	c.mustReply(t, testenv.FIN|testenv.ACK, "")
	c.mustForward(t, testenv.ACK, "")
}

// fromClient is a packet of the client.
func (c *conn) fromClient(flags testenv.TCPFlags, payload string) testenv.Frame {
	f := testenv.Frame{
		DstMAC: hardware(nicMAC), SrcMAC: hardware(clientMAC), Src: c.client, Dst: c.service,
		Flags: flags, Seq: clientISN + 1, Window: 512, Payload: []byte(payload),
	}
	if flags&testenv.SYN != 0 {
		f.Seq = clientISN
	}
	if flags&testenv.ACK != 0 {
		f.Ack = backendISN + 1
	}
	for _, change := range c.changes {
		change(&f)
	}
	return f
}

// fromBackend is a packet of the backend.
func (c *conn) fromBackend(flags testenv.TCPFlags, payload string) testenv.Frame {
	f := testenv.Frame{
		DstMAC: hardware(nicMAC), SrcMAC: hardware(backendMAC(1)), Src: c.backend, Dst: c.source,
		Flags: flags, Seq: backendISN + 1, Window: 512, Payload: []byte(payload),
	}
	if flags&testenv.SYN != 0 {
		f.Seq = backendISN
	}
	if flags&testenv.ACK != 0 {
		f.Ack = clientISN + 1
	}
	return f
}

// forward sends a packet of the client and learns how the backend sees it.
func (c *conn) forward(t testing.TB, flags testenv.TCPFlags, payload string) result {
	t.Helper()
	r := try(t, c.d, c.fromClient(flags, payload).Bytes())
	if r.Outcome == "sent" {
		c.source, c.backend = r.Frame.Src, r.Frame.Dst
	}
	return r
}

// reply sends a packet of the backend.
func (c *conn) reply(t testing.TB, flags testenv.TCPFlags, payload string) result {
	t.Helper()
	return try(t, c.d, c.fromBackend(flags, payload).Bytes())
}

func (c *conn) mustForward(t testing.TB, flags testenv.TCPFlags, payload string) {
	t.Helper()
	if r := c.forward(t, flags, payload); r.Outcome != "sent" {
		t.Fatalf("%v of the client %v: %s", flags, c.client, r.Outcome)
	}
}

func (c *conn) mustReply(t testing.TB, flags testenv.TCPFlags, payload string) {
	t.Helper()
	r := c.reply(t, flags, payload)
	if r.Outcome != "sent" {
		t.Fatalf("%v of the backend for %v: %s", flags, c.client, r.Outcome)
	}
	if diff := cmp.Diff(
		[]netip.AddrPort{c.service, c.client}, []netip.AddrPort{r.Frame.Src, r.Frame.Dst}, equateAddrs); diff != "" {
		t.Fatalf("%v of the backend went astray (-want +got):\n%s", flags, diff)
	}
}

// A pairView is the memory of a pair, as the program sees it.
type pairView struct{ *portQueue }

func viewPair(t testing.TB, d *Datapath, pair uint32) pairView {
	t.Helper()
	q, err := d.tables.openQueue(pair)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(q.close)
	return pairView{q}
}

func (v pairView) words() *lbNatPair { return (*lbNatPair)(unsafe.Pointer(&v.pair[0])) }

// age makes a flow look as if nothing had come for so long.
func (v pairView) age(port uint16, d time.Duration) {
	v.flow(port).LastSeen -= uint32(d / tick)
}

// ageAll does so for all flows.
func (v pairView) ageAll(d time.Duration) {
	for port := range int(lbLimitsNAT_PORTS) {
		v.age(uint16(port), d)
	}
}

// count returns how many flows are in a state.
func (v pairView) count(state lbNatState) int {
	n := 0
	for port := range int(lbLimitsNAT_PORTS) {
		if v.flow(uint16(port)).State == uint32(state) {
			n++
		}
	}
	return n
}

// queued returns the ports that the ring holds, the next one first.
func (v pairView) queued() []uint16 {
	var ports []uint16
	for i := *v.head(); i < *v.tail(); i++ {
		ports = append(ports, uint16(v.ring.load(int(i%uint64(lbLimitsNAT_PORTS)))))
	}
	return ports
}

// names returns how many names stand in the flow table.
func names(d *Datapath) int {
	n := 0
	for i := range len(d.tables.buckets.memory) / 8 {
		if d.tables.buckets.load(i) != 0 {
			n++
		}
	}
	return n
}
