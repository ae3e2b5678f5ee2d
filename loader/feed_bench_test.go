package loader

import (
	"testing"

	"github.com/sluice-lb/sluice/internal/lb"
)

// benchFlows is how many flows there are in these benchmarks: those of several pairs.
const benchFlows = 100000

func benchStates(kind lb.FlowKind) []lb.FlowState {
	var all []lb.FlowState
	for i := range benchFlows {
		if kind == lb.FlowTranslated {
			s := translatedState(i, uint16(2000+i/4))
			s.Backend = backends(4, 80)[i%4].Address
			all = append(all, s)
			continue
		}
		all = append(all, pinnedState(kind, i))
	}
	return all
}

func newBenchFeed(b *testing.B, kind lb.FlowKind) *FlowFeed {
	b.Helper()
	s := service("web", lb.NAT, 80, backends(4, 80))
	if kind != lb.FlowTranslated {
		s = trackedService(lb.DSR, 80, 1, 1)
	}
	d := newDatapathWith(b, Options{MaxFlows: benchFlows, Ports: allPorts, TellFlows: true}, natTimeouts, s)
	feed, err := d.OpenFlowFeed()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := feed.Close(); err != nil {
			b.Error(err)
		}
	})
	return feed
}

// How many flows a node takes in that is empty, and that has them.
func BenchmarkApplyFlows(b *testing.B) {
	for _, tc := range []struct {
		name string
		kind lb.FlowKind
	}{{"nat", lb.FlowTranslated}, {"pins", lb.FlowPinned}} {
		flows := benchStates(tc.kind)
		run := func(b *testing.B, fresh bool) {
			var feed *FlowFeed
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if i == 0 || fresh {
					b.StopTimer()
					feed = newBenchFeed(b, tc.kind)
					if !fresh {
						applyAll(b, feed, flows)
					}
					b.StartTimer()
				}
				applyAll(b, feed, flows)
			}
			b.ReportMetric(float64(b.N)*benchFlows/b.Elapsed().Seconds(), "flows/s")
		}
		b.Run(tc.name+"/fresh", func(b *testing.B) { run(b, true) })
		b.Run(tc.name+"/again", func(b *testing.B) { run(b, false) })
	}
}

// applyAll applies flows as they come from another node, some at a time.
func applyAll(b *testing.B, feed *FlowFeed, flows []lb.FlowState) {
	b.Helper()
	var sum ApplyResult
	for ; len(flows) > 0; flows = flows[min(512, len(flows)):] {
		r, err := feed.ApplyFlows(flows[:min(512, len(flows))])
		if err != nil {
			b.Fatal(err)
		}
		sum.Add(r)
	}
	if sum.Applied != benchFlows {
		b.Fatalf("%+v", sum)
	}
}

// How many flows a snapshot yields.
func BenchmarkSnapshot(b *testing.B) {
	for _, tc := range []struct {
		name string
		kind lb.FlowKind
	}{{"nat", lb.FlowTranslated}, {"pins", lb.FlowPinned}} {
		b.Run(tc.name, func(b *testing.B) {
			feed := newBenchFeed(b, tc.kind)
			applyAll(b, feed, benchStates(tc.kind))
			b.ReportAllocs()
			for b.Loop() {
				n := 0
				for _, err := range feed.Snapshot() {
					if err != nil {
						b.Fatal(err)
					}
					n++
				}
				if n != benchFlows {
					b.Fatalf("%d flows", n)
				}
			}
			b.ReportMetric(float64(b.N)*benchFlows/b.Elapsed().Seconds(), "flows/s")
		})
	}
}
