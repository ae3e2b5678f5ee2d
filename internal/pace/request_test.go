// SPDX-License-Identifier: Apache-2.0

package pace

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestRequests(t *testing.T) {
	for _, tc := range []struct {
		name string
		r    request
	}{
		{"renew", request{op: opRenew, slot: 7}},
		{"clear", request{op: opClear, slot: 65535}},
		{"set", request{op: opSet, slot: 1, first: 1 << 40, job: Job{
			Interval: 5 * time.Millisecond, Lease: time.Second, Now: true,
			Parcels: []Parcel{{Address: []byte{1, 2}, Control: []byte{3}, Payload: []byte("a")}, {Address: []byte{}, Control: []byte{}, Payload: []byte("b")}},
		}}},
		{"set with a stamp", request{op: opSet, first: 9, job: Job{
			Interval: time.Hour, Lease: time.Hour, Stamp: &Stamp{Key: [32]byte{9}, At: 3},
			Parcels: []Parcel{{Address: []byte{}, Control: []byte{}, Payload: make([]byte, 43)}},
		}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := tc.r.append(nil)
			got, err := readRequest(b)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.r, got, cmp.AllowUnexported(request{})); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
			for n := range b {
				if _, err := readRequest(b[:n]); err == nil {
					t.Errorf("the first %d of %d bytes are a request", n, len(b))
				}
			}
			if _, err := readRequest(append(b, 0)); err == nil {
				t.Error("a byte more is a request")
			}
		})
	}
}

func TestJobsThatCannotBeDone(t *testing.T) {
	good := Job{Interval: time.Second, Lease: time.Second, Parcels: []Parcel{{Payload: []byte("x")}}}
	for _, tc := range []struct {
		name   string
		change func(*Job)
	}{
		{"no message", func(j *Job) { j.Parcels = nil }},
		{"an empty message", func(j *Job) { j.Parcels = []Parcel{{}} }},
		{"no interval", func(j *Job) { j.Interval = 0 }},
		{"a lease that ends before the first message", func(j *Job) { j.Lease = j.Interval - 1 }},
		{"no room for the stamp", func(j *Job) { j.Stamp = &Stamp{} }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			j := good
			if !j.valid() {
				t.Fatal("a good job is refused")
			}
			if tc.change(&j); j.valid() {
				t.Error("it is taken")
			}
		})
	}
}

// A job that fits into no request is its caller's to do, and ends nobody else's.
func TestAJobThatIsTooLarge(t *testing.T) {
	w := newWire(t)
	p, log := newPacer(t, Thread)
	p.Slot("hello").Set(w.conn(), hello("one"))
	w.next()
	j := hello("")
	j.Parcels = nil
	for range 70 {
		j.Parcels = append(j.Parcels, Parcel{Payload: make([]byte, 1000)})
	}
	if p.Slot("large").Set(w.conn(), j) {
		t.Error("it is taken")
	}
	w.waitSilence(0)
	for range 100 {
		w.next()
		if log.has("starting another") {
			t.Fatalf("the log says %s", log.lines)
		}
	}
}
