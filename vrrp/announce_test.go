// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestGratuitousFrames(t *testing.T) {
	got, err := gratuitousFrames(MAC{2, 0, 0, 0, 0, 1}, []netip.Addr{addr("192.0.2.100")})
	if err != nil {
		t.Fatal(err)
	}
	want := [][]byte{{
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, // to everybody
		2, 0, 0, 0, 0, 1, // from this node
		0x08, 0x06, // ARP
		0, 1, 0x08, 0x00, 6, 4, // Ethernet and IPv4
		0, 1, // request
		2, 0, 0, 0, 0, 1, 192, 0, 2, 100, // sender
		0, 0, 0, 0, 0, 0, 192, 0, 2, 100, // target: the same address
		0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // padding to 60 bytes
	}, {
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
		2, 0, 0, 0, 0, 1,
		0x08, 0x06,
		0, 1, 0x08, 0x00, 6, 4,
		0, 2, // reply
		2, 0, 0, 0, 0, 1, 192, 0, 2, 100,
		2, 0, 0, 0, 0, 1, 192, 0, 2, 100,
		0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("frames (-want +got):\n%s", diff)
	}
}

func TestGratuitousFramesNeedEthernet(t *testing.T) {
	if _, err := gratuitousFrames(MAC{}, []netip.Addr{addr("192.0.2.100")}); err == nil {
		t.Error("got no error for an interface without an Ethernet address")
	}
}

func TestSchedule(t *testing.T) {
	s := schedule{refresh: time.Minute}
	if s.due(epoch) {
		t.Fatal("due before it began")
	}
	s.begin(epoch)
	var got []time.Duration
	for range len(burst) + 2 {
		if s.due(s.next.Add(-1)) {
			t.Fatalf("due before %v", s.next.Sub(epoch))
		}
		at := s.next
		if !s.due(at) {
			t.Fatalf("not due at %v", at.Sub(epoch))
		}
		got = append(got, at.Sub(epoch))
	}
	want := []time.Duration{0, 200 * time.Millisecond, time.Second, 3 * time.Second, 63 * time.Second, 123 * time.Second}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rounds (-want +got):\n%s", diff)
	}

	// Beginning again and again within a second does not add rounds.
	again := epoch.Add(time.Hour)
	s.begin(again)
	s.due(again)
	s.begin(again.Add(10 * time.Millisecond))
	if s.due(again.Add(10 * time.Millisecond)) {
		t.Error("a burst began 10 ms after another")
	}
	s.begin(again.Add(time.Second))
	if !s.due(again.Add(time.Second)) {
		t.Error("no burst began a second after another")
	}
	s.stop()
	if s.due(again.Add(time.Hour)) {
		t.Error("due after stop")
	}
}
