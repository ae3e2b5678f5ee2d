// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"iter"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/key"
	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// A tap is a Source of flows that cost nothing, and a Sink that only counts.
type tap struct {
	*plane
	flows   []lb.FlowState
	changes atomic.Int64 // that Changes is to tell
	applied atomic.Int64
}

func (s *tap) Snapshot() iter.Seq2[lb.FlowState, error] {
	return func(yield func(lb.FlowState, error) bool) {
		for i := range s.flows {
			if !yield(s.flows[i], nil) {
				return
			}
		}
	}
}

func (s *tap) Changes(into []lb.FlowState) ([]lb.FlowState, bool, error) {
	n := s.changes.Swap(0)
	return append(into, s.flows[:n]...), false, nil
}

func (s *tap) Unread() int { return int(s.changes.Load()) }

func (s *tap) ApplyFlows(_ string, states []lb.FlowState) ([]lb.FlowID, error) {
	s.applied.Add(int64(len(states)))
	return nil, nil
}

func (s *tap) EndSnapshot(string) error { return nil }

// tapped starts two nodes over TCP on loopback, of which the first one has flows.
func tapped(b *testing.B, flows int) (from, to *tap, one, two *member) {
	b.Helper()
	from, to = &tap{plane: newPlane(), flows: manyFlows(flows)}, &tap{plane: newPlane()}
	k := []key.Key{key.New()}
	atA, placeA := onLoopback(b)
	atB, placeB := onLoopback(b)
	one = startOn(b, Config{Name: "lb1", Keys: k, Peers: []Peer{{"lb2", atB}}}, from, from, placeA)
	two = startOn(b, Config{Name: "lb2", Keys: k, Peers: []Peer{{"lb1", atA}}}, to, to, placeB)
	return from, to, one, two
}

// How long a peer that has nothing takes to have everything, the data planes left out.
func BenchmarkSnapshot(b *testing.B) {
	const flows = 1_000_000
	for b.Loop() {
		_, _, one, two := tapped(b, flows)
		testenv.Eventually(b, time.Minute, "the snapshot", func() (bool, error) { return two.Synced("lb1"), nil })
		b.ReportMetric(float64(one.peerStatus("lb2").Out.Sent)/flows, "bytes/flow")
		one.stop()
		two.stop()
	}
	b.ReportMetric(flows*float64(b.N)/b.Elapsed().Seconds(), "flows/s")
}

// How fast a peer that keeps up hears of changes, each of another flow.
func BenchmarkStream(b *testing.B) {
	const flows = 60_000
	from, to, one, two := tapped(b, flows)
	testenv.Eventually(b, time.Minute, "the snapshot", func() (bool, error) { return two.Synced("lb1"), nil })
	before := to.applied.Load()
	for b.Loop() {
		from.changes.Store(flows)
		if err := one.Flush(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	told := to.applied.Load() - before
	b.ReportMetric(float64(told)/b.Elapsed().Seconds(), "flows/s")
	if s := one.peerStatus("lb2").Out; told != int64(b.N)*flows || s.Snapshots != 1 {
		b.Fatalf("%d states were told in %d rounds, status %+v", told, b.N, s)
	}
}
