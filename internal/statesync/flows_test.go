// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/sluice-lb/sluice/internal/lb"
)

func endpointOf(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// values compares addresses as they are.
var values = cmp.Options{
	cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}), cmpopts.EquateEmpty(), cmp.AllowUnexported(hello{}, ack{}, complaint{}),
}

var (
	natFlow = lb.FlowState{
		FlowID: lb.FlowID{Kind: lb.FlowTranslated, Protocol: lb.TCP, Client: endpointOf("198.51.100.7:40000"), VIP: endpointOf("192.0.2.100:80")},
		Phase:  lb.FlowOpen, Backend: endpointOf("192.0.2.11:8080"), Source: endpointOf("192.0.2.100:1024"),
		Idle: 300 * time.Millisecond, Opened: true, Sequence: 0x01020304,
		LastHop: lb.LastHop{Interface: "eth0", MAC: [6]byte{2, 0, 0, 0, 0, 1}, VLANs: [2]uint16{7, 0}, Tags: 1},
	}
	pinned6 = lb.FlowState{
		FlowID: lb.FlowID{Kind: lb.FlowPinned, Protocol: lb.TCP, Client: endpointOf("[2001:db8::7]:40000"), VIP: endpointOf("[2001:db8::100]:80")},
		Phase:  lb.FlowClosing, Backend: endpointOf("192.0.2.11:80"), Idle: 62 * time.Second,
	}
	datagrams = lb.FlowState{
		FlowID: lb.FlowID{Kind: lb.FlowDatagrams, Protocol: lb.UDP, Client: endpointOf("198.51.100.8:5353"), VIP: endpointOf("192.0.2.100:53")},
		Phase:  lb.FlowOpen, Backend: endpointOf("192.0.2.12:53"),
	}
)

// with returns a state that differs from another one.
func with(s lb.FlowState, change func(*lb.FlowState)) lb.FlowState {
	change(&s)
	return s
}

func encodeFlows(t *testing.T, states ...lb.FlowState) []byte {
	t.Helper()
	var b flowBatch
	for i := range states {
		if err := b.add(&states[i]); err != nil {
			t.Fatal(err)
		}
	}
	return b.body
}

func TestFlowsAreCompact(t *testing.T) {
	for _, tc := range []struct {
		name  string
		first lb.FlowState
		want  string // of the second flow of a message
	}{
		{"nat, IPv4", natFlow, "13" + "11" + "01" + "c6336407" + "9c40" + "01" + "02" + "01" + "0400" + "03" + "01020304" + "01"},
		{"nat, IPv4, over", with(natFlow, func(s *lb.FlowState) { s.Phase = lb.FlowOver }), "0c" + "01" + "c6336407" + "9c40" + "01" + "02" + "01" + "0400"},
		{"pinned, IPv6", pinned6, "17" + "9a" + "20010db8000000000000000000000007" + "9c40" + "01" + "02" + "ec04"},
		{"UDP", datagrams, "0a" + "54" + "c6336408" + "14e9" + "01" + "02" + "00"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			alone := encodeFlows(t, tc.first)
			both := encodeFlows(t, tc.first, tc.first)
			if got := hex.EncodeToString(both[len(alone):]); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestFlowsRoundTrip(t *testing.T) {
	many := []lb.FlowState{natFlow, pinned6, datagrams}
	for i := range 600 { // more endpoints than there are places for
		many = append(many, with(natFlow, func(s *lb.FlowState) {
			s.Backend = netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), uint16(1+i/256))
			s.Client = netip.AddrPortFrom(s.Client.Addr(), uint16(i))
		}))
	}
	for _, tc := range []struct {
		name   string
		states []lb.FlowState
	}{
		{"none", nil},
		{"one of each", []lb.FlowState{natFlow, pinned6, datagrams}},
		{"more endpoints than places", append(many, many...)},
		{"over", []lb.FlowState{{FlowID: natFlow.FlowID, Backend: natFlow.Backend, Source: natFlow.Source}, {FlowID: pinned6.FlowID}}},
		{"nat, UDP", []lb.FlowState{with(natFlow, func(s *lb.FlowState) { s.Protocol, s.Sequence = lb.UDP, 0 })}},
		{"every flag", []lb.FlowState{with(natFlow, func(s *lb.FlowState) {
			s.ClientFIN, s.BackendFIN, s.Phase = true, true, lb.FlowClosed
		})}},
		{"no last hop, no backend", []lb.FlowState{with(natFlow, func(s *lb.FlowState) { s.LastHop, s.Backend = lb.LastHop{}, netip.AddrPort{} })}},
		{"two tags", []lb.FlowState{with(natFlow, func(s *lb.FlowState) { s.LastHop.VLANs[1], s.LastHop.Tags = 9, 2 })}},
		{"an IPv4 address in IPv6", []lb.FlowState{with(pinned6, func(s *lb.FlowState) { s.Client = endpointOf("[::ffff:192.0.2.1]:1") })}},
		{"idle for long", []lb.FlowState{with(natFlow, func(s *lb.FlowState) { s.Idle = 124 * time.Minute })}},
		{"all places and a long name", []lb.FlowState{with(natFlow, func(s *lb.FlowState) { s.LastHop.Interface = "fifteen-letters" })}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var codec flowCodec
			got, err := codec.decode(encodeFlows(t, tc.states...), nil)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.states, got, values); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// What does not count of a flow does not go over the wire.
func TestFlowsAreReduced(t *testing.T) {
	s := with(natFlow, func(s *lb.FlowState) { s.Kind, s.Idle = lb.FlowPinned, 199*time.Millisecond })
	var codec flowCodec
	got, err := codec.decode(encodeFlows(t, s), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []lb.FlowState{{FlowID: s.FlowID, Phase: s.Phase, Backend: s.Backend, Idle: 100 * time.Millisecond}}
	if diff := cmp.Diff(want, got, values); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestFlowsThatCannotBeTold(t *testing.T) {
	for _, tc := range []struct {
		name  string
		state lb.FlowState
	}{
		{"nothing", lb.FlowState{}},
		{"kind", with(natFlow, func(s *lb.FlowState) { s.Kind = 5 })},
		{"phase", with(natFlow, func(s *lb.FlowState) { s.Phase = 5 })},
		{"protocol", with(natFlow, func(s *lb.FlowState) { s.Protocol = 1 })},
		{"families", with(natFlow, func(s *lb.FlowState) { s.VIP = pinned6.VIP })},
		{"zone", with(pinned6, func(s *lb.FlowState) { s.Client = endpointOf("[fe80::1%eth0]:1") })},
		{"port of no address", with(natFlow, func(s *lb.FlowState) { s.Backend = netip.AddrPortFrom(netip.Addr{}, 1) })},
		{"tags", with(natFlow, func(s *lb.FlowState) { s.LastHop.Tags = 3 })},
		{"a tag too many", with(natFlow, func(s *lb.FlowState) { s.LastHop.VLANs[1] = 9 })},
		{"interface", with(natFlow, func(s *lb.FlowState) { s.LastHop.Interface = "sixteen-letters." })},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var b flowBatch
			if err := b.add(&tc.state); !errors.Is(err, errNoFlow) || len(b.body) > 0 {
				t.Errorf("error %v, and %d bytes", err, len(b.body))
			}
		})
	}
}

// Each mistake in a record is named.
func TestFlowMistakes(t *testing.T) {
	good := encodeFlows(t, natFlow)
	change := func(at int, to byte) []byte {
		b := bytes.Clone(good)
		b[at] = to
		return b
	}
	for _, tc := range []struct {
		name, want string
		body       []byte
	}{
		{"cut short", "flow: ", good[:len(good)-1]},
		{"length is longer than it need be", "a number longer than it need be", append([]byte{good[0] | 0x80, 0}, good[1:]...)},
		{"no length", "no number", []byte{0x80}},
		{"an empty record", "kind of a flow", []byte{0}},
		{"kind", "flow of kind 0", change(1, 0x10)},
		{"phase", "in phase 7", change(1, 0x39)},
		{"flags", "flags 0x8", change(2, 8)},
		{"a place that is not there", "vip: place 9 of 0", change(9, 9)},
		{"family", "vip: family 5", change(10, 5)},
		{"spelled out for one", "there are places left", change(9, 255)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var codec flowCodec
			_, err := codec.decode(tc.body, nil)
			if !errors.Is(err, errMalformed) || !strings.Contains(fmt.Sprint(err), tc.want) {
				t.Errorf("error %v, want one of %q", err, tc.want)
			}
		})
	}
	t.Run("spelled out twice", func(t *testing.T) {
		first := encodeFlows(t, with(natFlow, func(s *lb.FlowState) { s.Backend = netip.AddrPort{} }))
		second := bytes.Replace(first, []byte{1, 4, 192, 0, 2, 100, 0, 80}, []byte{2, 4, 192, 0, 2, 100, 0, 80}, 1)
		var codec flowCodec
		if _, err := codec.decode(append(first, second...), nil); !errors.Is(err, errMalformed) || !strings.Contains(err.Error(), "need not be spelled out") {
			t.Errorf("error %v", err)
		}
	})
}

// A record of a later version has more at its end, which is skipped.
func TestFlowsOfALaterVersion(t *testing.T) {
	var codec flowCodec
	codec.reset()
	body := codec.append(nil, &natFlow, bytes.Repeat([]byte{9}, 200))
	body = codec.append(body, &pinned6, []byte{1})
	got, err := codec.decode(body, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]lb.FlowState{natFlow, pinned6}, got, values); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func BenchmarkEncode(b *testing.B) {
	states := manyFlows(4096)
	var batch flowBatch
	bytes, flows := 0, 0
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		_ = batch.add(&states[i%len(states)])
		if flows++; batch.full() {
			bytes += len(batch.body)
			batch.records = 0
		}
	}
	b.ReportMetric(float64(bytes+len(batch.body))/float64(flows), "bytes/flow")
}

func BenchmarkDecode(b *testing.B) {
	var batch flowBatch
	states := manyFlows(4096)
	for i := 0; !batch.full(); i++ {
		_ = batch.add(&states[i])
	}
	var codec flowCodec
	var into []lb.FlowState
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if into, err = codec.decode(batch.body, into[:0]); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batch.records), "ns/flow")
}
