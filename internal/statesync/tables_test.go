// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

func tableOf(service string, backends, slots int) lb.TableState {
	t := lb.TableState{Service: service, Epoch: lb.Epoch{Term: 3, Number: 14}}
	for i := range backends {
		t.Backends = append(t.Backends, lb.TableBackend{
			Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}), 80), Failed: i%3 == 1, Leaving: i%3 == 2,
		})
	}
	for i := range slots {
		s := lb.Slot{Owner: uint16(i % (backends + 1))}
		switch {
		case i%7 == 0:
			s.Previous, s.Phase, s.Left = uint16(i*i%(backends+1)), lb.SlotTracked, 250*time.Second
		case i%11 == 0:
			s.Previous, s.Phase = uint16(backends), lb.SlotSettling
		}
		t.Slots = append(t.Slots, s)
	}
	return t
}

func TestTablesRoundTrip(t *testing.T) {
	for _, tc := range []struct {
		name  string
		table lb.TableState
	}{
		{"no backend, no slot", lb.TableState{Service: "web"}},
		{"two backends", tableOf("web", 2, 251)},
		{"as many as go into a byte", tableOf("web", 255, 4093)},
		{"more", tableOf("web", 256, 4093)},
		{"as large as may be", tableOf("web", 16383, maxSlots)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			whole := appendTable(nil, &tc.table)
			if err := checkTable(&tc.table); err != nil || len(whole) > maxWhole {
				t.Fatalf("%d bytes, error %v", len(whole), err)
			}
			got, _, err := readTable(whole)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.table.Backends, got.Backends, values); diff != "" {
				t.Errorf("backends, -want +got:\n%s", diff)
			}
			if got.Service != tc.table.Service || got.Epoch != tc.table.Epoch || len(got.Slots) != len(tc.table.Slots) {
				t.Fatalf("got table of %s, epoch %v, %d slots", got.Service, got.Epoch, len(got.Slots))
			}
			for i, s := range tc.table.Slots {
				if got.Slots[i] != s {
					t.Fatalf("slot %d: got %+v, want %+v", i, got.Slots[i], s)
				}
			}
		})
	}
}

func TestTableMistakes(t *testing.T) {
	good := lb.TableState{Service: "web", Backends: []lb.TableBackend{{Address: endpointOf("192.0.2.11:80")}}, Slots: make([]lb.Slot, 2)}
	for _, tc := range []struct {
		name   string
		change func(*lb.TableState)
	}{
		{"no service", func(t *lb.TableState) { t.Service = "" }},
		{"owner", func(t *lb.TableState) { t.Slots[1].Owner = 2 }},
		{"previous owner", func(t *lb.TableState) { t.Slots[1].Previous = 2 }},
		{"phase", func(t *lb.TableState) { t.Slots[1].Phase = 3 }},
		{"backend", func(t *lb.TableState) { t.Backends = []lb.TableBackend{{}} }},
		{"too many slots", func(t *lb.TableState) { t.Slots = make([]lb.Slot, maxSlots+1) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bad := good
			bad.Slots = append([]lb.Slot(nil), good.Slots...)
			tc.change(&bad)
			if checkTable(&bad) == nil {
				t.Error("nothing is said against it")
			}
		})
	}
	whole := appendTable(nil, &good)
	for n := range whole {
		if _, _, err := readTable(whole[:n]); !errors.Is(err, errMalformed) {
			t.Errorf("the first %d bytes of %d: error %v", n, len(whole), err)
		}
	}
	huge := append(bytes.Clone(whole[:len(whole)-7]), 0xff, 0xff, 0xff, 0xff)
	if _, _, err := readTable(huge); !errors.Is(err, errMalformed) {
		t.Errorf("four billion slots: error %v", err)
	}
}
