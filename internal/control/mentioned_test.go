package control

import (
	"iter"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/loader"
)

// heldFlows is a FlowFeed that has some flows, and notes what it is told.
type heldFlows struct {
	held []lb.FlowState
	told []lb.FlowState
}

func (h *heldFlows) Changes(into []lb.FlowState) ([]lb.FlowState, bool, error) {
	return into, false, nil
}

func (h *heldFlows) Unread() int { return 0 }

func (h *heldFlows) Handshakes() func([]lb.FlowState) ([]lb.FlowState, error) { return nil }

func (h *heldFlows) Snapshot() iter.Seq2[lb.FlowState, error] {
	return func(yield func(lb.FlowState, error) bool) {
		for _, s := range h.held {
			if !yield(s, nil) {
				return
			}
		}
	}
}

func (h *heldFlows) ApplyFlows(states []lb.FlowState) (loader.ApplyResult, error) {
	h.told = append(h.told, states...)
	return loader.ApplyResult{Applied: len(states)}, nil
}

// aFlow is a translated flow, with the changes.
func aFlow(changes ...func(*lb.FlowState)) lb.FlowState {
	s := lb.FlowState{
		FlowID: lb.FlowID{
			Kind: lb.FlowTranslated, Protocol: lb.TCP,
			Client: netip.MustParseAddrPort("198.51.100.7:40000"), VIP: netip.MustParseAddrPort("192.0.2.100:80"),
		},
		Phase: lb.FlowOpen, Backend: netip.MustParseAddrPort("192.0.2.11:80"), Source: netip.MustParseAddrPort("192.0.2.100:2048"),
	}
	for _, change := range changes {
		change(&s)
	}
	return s
}

// What a peer does not mention between the beginning of its snapshot and the end is over,
// and nothing else is.
func TestSnapshotEndsWhatItDoesNotMention(t *testing.T) {
	source := func(to string) func(*lb.FlowState) {
		return func(s *lb.FlowState) { s.Source = netip.MustParseAddrPort(to) }
	}
	client := func(to string) func(*lb.FlowState) {
		return func(s *lb.FlowState) { s.Client = netip.MustParseAddrPort(to) }
	}
	pinned := func(s *lb.FlowState) { s.Kind, s.Source = lb.FlowPinned, netip.AddrPort{} }
	over := func(s *lb.FlowState) { s.Phase = lb.FlowOver }
	for _, tc := range []struct {
		name      string
		mentioned []lb.FlowState
		held      lb.FlowState
		ends      bool
	}{
		{"nothing", nil, aFlow(), true},
		{"the flow itself", []lb.FlowState{aFlow()}, aFlow(), false},
		{"its end", []lb.FlowState{aFlow(over)}, aFlow(), true},
		{"one after many others", []lb.FlowState{
			aFlow(), aFlow(source("192.0.2.100:2049")), aFlow(source("192.0.2.100:50000")), aFlow(source("192.0.2.101:2048"), pinned),
		}, aFlow(), false},
		{"a port beside it", []lb.FlowState{aFlow(source("192.0.2.100:2049")), aFlow(source("192.0.2.100:2047"))}, aFlow(), true},
		{"a port of the same place in another block", []lb.FlowState{aFlow(source("192.0.2.100:4096"))}, aFlow(), true},
		{"the port of another source address", []lb.FlowState{aFlow(source("192.0.2.101:2048"))}, aFlow(), true},
		{"the port towards another backend", []lb.FlowState{aFlow(func(s *lb.FlowState) {
			s.Backend = netip.MustParseAddrPort("192.0.2.12:80")
		})}, aFlow(), true},
		{"the port of another protocol", []lb.FlowState{aFlow(func(s *lb.FlowState) { s.Protocol = lb.UDP })}, aFlow(), true},
		{"the highest port", []lb.FlowState{aFlow(source("192.0.2.100:65535"))}, aFlow(source("192.0.2.100:65535")), false},
		{"a pinned flow", []lb.FlowState{aFlow(pinned)}, aFlow(pinned), false},
		{"a pinned flow of another client", []lb.FlowState{aFlow(pinned, client("198.51.100.8:40000"))}, aFlow(pinned), true},
		{"a translated flow of the same client", []lb.FlowState{aFlow()}, aFlow(pinned), true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			feed := &heldFlows{held: []lb.FlowState{tc.held}}
			vip := tc.held.VIP.Addr()
			s := NewSharedState(t.Context(), &Loop{}, feed, func() map[netip.Addr]bool { return map[netip.Addr]bool{vip: false} })
			if err := s.BeginSnapshot("b", []netip.Addr{vip}); err != nil {
				t.Fatal(err)
			}
			for _, m := range tc.mentioned { // each in a message of its own
				if _, err := s.ApplyFlows("b", []lb.FlowState{m}); err != nil {
					t.Fatal(err)
				}
			}
			feed.told = nil
			if err := s.EndSnapshot("b"); err != nil {
				t.Fatal(err)
			}
			var want []lb.FlowState
			for i := range feed.told {
				feed.told[i].Idle = 0 // since the snapshot began
			}
			if tc.ends {
				want = []lb.FlowState{{FlowID: tc.held.FlowID, Phase: lb.FlowOver}}
			}
			if diff := cmp.Diff(want, feed.told, cmpAddresses); diff != "" {
				t.Errorf("told (-want +got):\n%s", diff)
			}
		})
	}
}
