// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/sluice-lb/sluice/internal/lb"
)

func TestVersionsInCommon(t *testing.T) {
	for _, tc := range []struct {
		name                         string
		oldestA, newestA, oldB, newB uint8
		want                         uint8 // 0: none
	}{
		{"the same", 1, 1, 1, 1, 1},
		{"the next one", 1, 1, 1, 2, 1},
		{"the one before", 1, 2, 1, 1, 1},
		{"both speak two", 1, 2, 1, 2, 2},
		{"neighbours", 2, 3, 1, 2, 2},
		{"too far apart", 1, 2, 3, 4, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := common(hello{oldest: tc.oldestA, newest: tc.newestA, name: "lb1"}, hello{oldest: tc.oldB, newest: tc.newB, name: "lb2"})
			if got != tc.want && tc.want != 0 || (err != nil) != (tc.want == 0) || err != nil && !errors.Is(err, errVersions) {
				t.Errorf("got %d, error %v, want %d", got, err, tc.want)
			}
		})
	}
}

func TestMessageFrames(t *testing.T) {
	frame := func(k kind, sequence uint64, body string) []byte {
		return endMessage(append(beginMessage(nil, k, sequence), body...), 0)
	}
	for _, tc := range []struct {
		name, want string
		is         error
		stream     []byte
	}{
		{"the first", "", nil, frame(kindPing, 1, "body")},
		{"not the first", "sequence 2, behind 0", errMalformed, frame(kindPing, 2, "")},
		{"again", "sequence 1, behind 1", errMalformed, append(frame(kindPing, 1, ""), frame(kindPing, 1, "")...)},
		{"shorter than a header", "less than a header", errMalformed, []byte{0, 0, 0, 8, 4, 0, 0, 0, 0, 0, 0, 0, 1}},
		{"as long as may be", "", nil, frame(kindFlows, 1, strings.Repeat("x", maxMessage-headerLen))},
		{"longer", "flows of 262145 bytes", errOversized, frame(kindFlows, 1, strings.Repeat("x", maxMessage-headerLen+1))},
		{"cut short", "flows of 20 bytes is cut short", nil, frame(kindFlows, 1, "1234567")[:18]},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newMessageReader(bytes.NewReader(tc.stream))
			var err error
			for range bytes.Count(tc.stream, []byte{byte(kindPing), 0, 0, 0, 0, 0, 0, 0}) + 1 {
				if _, _, e := r.read(); e != nil {
					err = e
					break
				}
			}
			if tc.want == "" {
				if r.last != 1 {
					t.Errorf("error %v", err)
				}
				return
			}
			if !strings.Contains(fmt.Sprint(err), tc.want) || tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
			if cap(r.body) > maxMessage {
				t.Errorf("%d bytes were allocated", cap(r.body))
			}
		})
	}
}

// decoded is what a body holds, and how it is encoded again; nil for a kind that has
// no body.
func decoded(k kind, body []byte) (v any, again []byte, err error) {
	switch k {
	case kindHello:
		h, err := readHello(body)
		return h, h.append(nil), err
	case kindServices:
		l, err := readServices(body)
		return l, appendServices(nil, l), err
	case kindBye, kindRefused:
		r, err := readComplaint(body)
		return r, r.append(nil), err
	case kindFlows:
		return decodedFlows(body)
	case kindTable:
		t, tail, err := readTable(body)
		return t, append(appendTable(nil, &t), tail...), err
	case kindOverrides:
		l, err := readOverrides(body)
		return l, appendOverrides(nil, l), err
	case kindDigests:
		d, err := readDigests(body)
		if err != nil {
			return nil, nil, err
		}
		return d, d.append(nil), err
	case kindMendBegin, kindWant:
		s, err := readSelection(body)
		if err != nil {
			return nil, nil, err
		}
		return s, s.append(nil), err
	case kindAck:
		a, err := readAck(body)
		return a, a.append(nil), err
	}
	return nil, nil, nil
}

func decodedFlows(body []byte) (any, []byte, error) {
	var in, out flowCodec
	in.reset()
	out.reset()
	var all []lb.FlowState
	var again []byte
	for c := (cursor{b: body}); len(c.b) > 0; {
		s, tail, err := in.read(&c)
		if err != nil {
			return nil, nil, err
		}
		all = append(all, s)
		again = out.append(again, &s, tail)
	}
	return all, again, nil
}

func wholeMessages(t testing.TB) map[kind][]byte {
	var flows flowBatch
	for _, s := range []lb.FlowState{natFlow, pinned6, datagrams, {FlowID: natFlow.FlowID}} {
		if err := flows.add(&s); err != nil {
			t.Fatal(err)
		}
	}
	table := tableOf("web", 3, 31)
	k := bucketing{seed: 5, bits: minBucketBits}
	d := digests{bucketing: k, busy: newBitset(k.count()), sums: make([]uint64, k.count())}
	sel := selection{bucketing: k, chosen: newBitset(k.count())}
	h := hello{oldest: 1, newest: 2, run: runID{7}, name: "lb1", tail: []byte{1, 2}}
	a := ack{sequence: 9, refused: 2}
	c := complaint{sequence: 9, text: "no"}
	return map[kind][]byte{
		kindHello: h.append(nil), kindServices: appendServices(nil, []ServiceDigest{{"web", 7}, {"dns", 8}}),
		kindBye: c.append(nil), kindFlows: flows.body, kindTable: appendTable(nil, &table),
		kindOverrides: appendOverrides(nil, []Override{{"web/192.0.2.11", Stamp{12, "lb1"}, []byte("drain")}, {"x", Stamp{13, "lb2"}, nil}}),
		kindDigests:   d.append(nil), kindMendBegin: sel.append(nil), kindAck: a.append(nil),
	}
}

// checkBody demands that what was decoded is encoded as it came, but for what a later
// version has appended to a record.
func checkBody(t *testing.T, k kind, body []byte) {
	t.Helper()
	v, again, err := decoded(k, body)
	if err != nil {
		if !errors.Is(err, errMalformed) && !errors.Is(err, errOversized) {
			t.Fatalf("%v: error %v says not what is wrong", k, err)
		}
		return
	}
	if v == nil || bytes.Equal(body, again) {
		return
	}
	second, third, err := decoded(k, again)
	if k != kindServices && k != kindOverrides && k != kindTable || len(again) >= len(body) || err != nil ||
		!bytes.Equal(again, third) || !reflect.DeepEqual(v, second) {
		t.Fatalf("%v:\ngot  %x\nwant %x", k, again, body)
	}
}

func TestMessagesRoundTrip(t *testing.T) {
	for k, body := range wholeMessages(t) {
		checkBody(t, k, body)
		if _, again, err := decoded(k, body); err != nil || !bytes.Equal(body, again) {
			t.Errorf("%v: got %x, want %x, error %v", k, again, body, err)
		}
		for n := range body {
			checkBody(t, k, body[:n])
		}
	}
}

func FuzzMessages(f *testing.F) {
	for k, body := range wholeMessages(f) {
		f.Add(byte(k), body)
	}
	f.Fuzz(func(t *testing.T, k byte, body []byte) {
		checkBody(t, kind(k), body)
		var a assembler
		_, _, _ = a.add(body)
		r := newMessageReader(bytes.NewReader(body))
		for {
			if _, _, err := r.read(); err != nil {
				break
			}
		}
	})
}

func TestParts(t *testing.T) {
	for _, size := range []int{0, 1, batchBytes, batchBytes + 1, 5 * batchBytes} {
		whole := bytes.Repeat([]byte{7}, size)
		var a assembler
		var got []byte
		complete, n := false, 0
		err := parts(whole, func(body func([]byte) []byte, last bool) (err error) {
			n++
			if complete {
				t.Fatal("parts go on behind the last one")
			}
			got, complete, err = a.add(body(nil))
			if complete != last {
				t.Errorf("part %d: complete %v, last %v", n, complete, last)
			}
			return err
		})
		if err != nil || !complete || !bytes.Equal(got, whole) {
			t.Errorf("%d bytes: got %d in %d parts, error %v", size, len(got), n, err)
		}
	}
	var a assembler
	var err error
	for n := 0; err == nil; n += batchBytes {
		if n > maxWhole+batchBytes {
			t.Fatal("there is no end to it")
		}
		_, _, err = a.add(append([]byte{1}, make([]byte, batchBytes)...))
	}
	if !errors.Is(err, errOversized) {
		t.Errorf("error %v", err)
	}
}
