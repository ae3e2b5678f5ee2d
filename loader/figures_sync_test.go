package loader_test

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/testenv"
	"github.com/sluice-lb/sluice/loader"
)

const (
	syncRate = 20000 // new connections a second
	// streamed are told at full speed, between so many that wait.
	streamed                  = 200000
	leastWaiting, mostWaiting = 8192, 32768
	openAtOnce                = 4096
	// lagTime is for how long the lag is measured.
	lagTime = 5 * time.Second
)

// TestSyncFigures measures how the state of nat flows gets from one node to another,
// as `make bench` prints it.
func TestSyncFigures(t *testing.T) {
	if !loader.Figures() {
		t.Skip("measures only with -figures")
	}
	testenv.RequireRoot(t)
	p := newSyncPair(t)
	p.measureSnapshot()
	p.wantSame()
	p.measureStream()
	p.measureLag()
	p.wantSame()
}

// How packets are measured.
const (
	packetRounds     = 15
	roundPackets     = 1 << 20
	roundConnections = 16384
)

// A packetCase is what is sent to both of two data planes in turn: one of a node that tells
// a peer of its flows, and one of a node that does not. Send returns the processor's
// time for packets.
type packetCase struct {
	name    string
	packets int
	send    func(n *packetNode) time.Duration
	times   [2][]time.Duration // telling; not
}

// A packetNode is one of these, and the number of its next connection.
type packetNode struct {
	*loader.SyncBench
	next int
}

// TestSyncPacketFigures measures how much dearer a packet of nat is where flows are
// told. Times are the processor's for the thread that runs the program, so what the
// daemon does meanwhile is in them as far as it is in the program's way.
func TestSyncPacketFigures(t *testing.T) {
	if !loader.Figures() {
		t.Skip("measures only with -figures")
	}
	testenv.RequireRoot(t)
	p := newSyncPair(t)
	alone := &packetNode{loader.NewSyncBench(t, lowerShare, false), loader.SyncFlows}
	alone.Establish()
	p.run()
	p.await("the whole state", p.b.synced)
	nodes := [2]*packetNode{{p.a.SyncBench, loader.SyncFlows}, alone}

	// So many packets of established flows come between two of connections that there are
	// syncRate connections in a second of the program's time.
	alone.Established(roundPackets)
	each := alone.Established(roundPackets) / roundPackets
	between := int(time.Second/each)/(syncRate*loader.ClosePackets) - 1
	cases := []*packetCase{
		{name: "sync.established_packet", packets: roundPackets, send: func(n *packetNode) time.Duration { return n.Established(roundPackets) }},
		{name: "sync.connection_packet", packets: roundConnections * loader.ClosePackets, send: func(n *packetNode) time.Duration {
			n.next += roundConnections
			return n.Connections(n.next-roundConnections, roundConnections, loader.ClosePackets)
		}},
		{name: "sync.packet", packets: roundPackets, send: func(n *packetNode) time.Duration {
			took, ended := n.Mixed(n.next, between, roundPackets)
			n.next += ended + 1 // one may be open
			return took
		}},
	}
	for range packetRounds {
		for _, c := range cases {
			for i, n := range nodes {
				c.times[i] = append(c.times[i], c.send(n))
				p.settle()
			}
		}
	}
	for _, c := range cases {
		told, alone := loader.Typical(c.times[0], c.packets), loader.Typical(c.times[1], c.packets)
		fmt.Printf("figure: %s.ns %.1f ns\n", c.name, told)
		fmt.Printf("figure: %s_growth.percent %.1f %%\n", c.name, 100*(told/alone-1))
	}
	fmt.Printf("# of sync.packet one in %d is of a connection that is opened and closed, which makes %d a second\n", between+1, syncRate)
}

// A cost is what has been spent so far.
type cost struct {
	bytes, records uint64
	cpu            time.Duration
	at             time.Time
}

func (p *syncPair) cost() cost {
	out := p.out()
	return cost{out.Sent + out.Received, out.Records, loader.ProcessTime(), time.Now()}
}

// since is what has been spent since an earlier time, but for the making of packets.
func (c cost) since(before cost, packets time.Duration) cost {
	return cost{bytes: c.bytes - before.bytes, records: c.records - before.records, cpu: c.cpu - before.cpu - packets}
}

func (c cost) bytesPerFlow() float64 { return float64(c.bytes) / float64(c.records) }

func (c cost) cpuPerFlow() float64 { return float64(c.cpu.Nanoseconds()) / 1e3 / float64(c.records) }

// opens opens connections at a rate, until the pace that it returns is asked for.
func (p *syncPair) opens(count int, opens func(number int)) (end func() loader.Pace) {
	ctx, cancel := context.WithCancel(p.Context())
	var pace loader.Pace
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		pace, err = p.a.OpenPaced(ctx, p.opened, count, syncRate, opens)
	}()
	p.Cleanup(func() {
		cancel()
		<-done
	})
	return func() loader.Pace {
		p.Helper()
		cancel()
		<-done
		if err != nil {
			p.Fatal(err)
		}
		p.opened += pace.Opened
		return pace
	}
}

// measureSnapshot has the peer come while connections are opened.
func (p *syncPair) measureSnapshot() {
	p.Helper()
	var opened atomic.Int64
	end := p.opens(1<<20, func(int) { opened.Add(1) })
	before := p.cost()
	p.run()
	begun := p.await("the connection", p.a.started)
	flows := loader.SyncFlows + int(opened.Load())
	synced := p.await("the whole state", p.b.synced)
	pace := end()
	out := p.settle()
	used, took := p.cost().since(before, pace.CPU), synced.Sub(begun)
	fmt.Printf("figure: sync.snapshot.flows_per_s %.0f flows/s\n", float64(flows)/took.Seconds())
	fmt.Printf("figure: sync.bytes_per_flow %.1f bytes\n", used.bytesPerFlow())
	fmt.Printf("figure: sync.cpu_us_per_flow %.2f us\n", used.cpuPerFlow())
	fmt.Printf("# the state of %d flows took %.2f s and %d snapshots, while %.0f new ones a second came\n",
		flows, took.Seconds(), out.Snapshots, float64(pace.Opened)/pace.Took.Seconds())
}

// measureStream opens connections as fast as they are told.
func (p *syncPair) measureStream() {
	p.Helper()
	p.settle()
	before, packets := p.cost(), time.Duration(0)
	for opened := 0; opened < streamed; opened += openAtOnce {
		packets += p.a.Connections(p.opened, openAtOnce, loader.OpenPackets)
		p.opened += openAtOnce
		if p.out().Waiting < mostWaiting {
			continue
		}
		testenv.Eventually(p.T, syncSoon, "fewer flows to wait", func() (bool, error) { return p.out().Waiting < leastWaiting, nil })
	}
	p.settle()
	after := p.cost()
	used, took := after.since(before, packets), after.at.Sub(before.at)
	fmt.Printf("figure: sync.stream.flows_per_s %.0f flows/s\n", float64(used.records)/took.Seconds())
	fmt.Printf("figure: sync.stream.bytes_per_flow %.1f bytes\n", used.bytesPerFlow())
	fmt.Printf("figure: sync.stream.cpu_us_per_flow %.2f us\n", used.cpuPerFlow())
}

// measureLag measures how long it takes from the packet that opens a connection until
// the peer has acknowledged it.
func (p *syncPair) measureLag() {
	p.Helper()
	base := int64(p.settle().Records)
	count := int(lagTime.Seconds() * syncRate)
	opened := make([]time.Time, count)
	n := &notes{first: p.opened, record: make([]atomic.Int64, count)}
	came := p.b.sink.records.Load()
	p.b.sink.notes.Store(n)

	// What is acknowledged at a time, as b counts records.
	type acknowledged struct {
		records int64
		at      time.Time
	}
	var all []acknowledged
	first := p.opened
	end := p.opens(count, func(number int) { opened[number-first] = time.Now() })
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	target := came + int64(count)
	for late := time.After(syncSoon); len(all) == 0 || all[len(all)-1].records < target; {
		select {
		case <-look.C:
		case <-late:
			p.Fatalf("%d connections are not acknowledged after %v: %+v", count, syncSoon, p.a.stream.Status())
		}
		out := p.out()
		all = append(all, acknowledged{came + int64(out.Records) - base - int64(out.InFlight), time.Now()})
	}
	pace := end()
	p.settle()
	p.b.sink.notes.Store(nil)
	var lags []time.Duration
	for i := range n.record {
		record := n.record[i].Load()
		at := sort.Search(len(all), func(j int) bool { return all[j].records >= record })
		if record == 0 || at == len(all) {
			p.Fatalf("connection %d is record %d, and %d were acknowledged", i, record, all[len(all)-1].records)
		}
		lags = append(lags, all[at].at.Sub(opened[i]))
	}
	slices.Sort(lags)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }
	fmt.Printf("figure: sync.lag_ms %.1f ms\n", ms(lags[len(lags)/2]))
	fmt.Printf("figure: sync.lag_p99_ms %.1f ms\n", ms(lags[len(lags)*99/100]))
	fmt.Printf("# while %.0f new flows a second came; the longest lag was %.1f ms\n",
		float64(pace.Opened)/pace.Took.Seconds(), ms(lags[len(lags)-1]))
}
