package loader

import (
	"math/rand/v2"
	"strings"
	"testing"
)

// replay plays a script and says how it went wrong, and how to see it again.
func (w *twin) replay(t *testing.T, steps, raw []byte) {
	t.Helper()
	err := w.play(steps, raw)
	if err == nil {
		return
	}
	w.dirty = true
	t.Fatalf("%v\nso far:\n%s\nto see it again: FuzzFrames with %s", err, strings.Join(w.log, "\n"), describe(steps, raw))
}

// FuzzFrames feeds the program and the model the same frames: steps steer a
// builder of frames and change the world between them, raw is a frame as it is.
func FuzzFrames(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		f.Add(randomBytes(r, r.IntN(200)), []byte(nil))
	}
	for _, c := range packetCases() {
		f.Add([]byte(nil), c.in)
	}
	w := newTwin(f)
	f.Fuzz(func(t *testing.T, steps, raw []byte) {
		if len(raw) > 9000 || len(steps) > 4096 {
			t.Skip("longer than any frame")
		}
		w.replay(t, steps, raw)
	})
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// Some ten thousand frames, the same in every run: what FuzzFrames does for as
// long as it is let.
func TestRandomFrames(t *testing.T) {
	w := newTwin(t)
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 3))
		w.replay(t, randomBytes(r, r.IntN(600)), nil)
	}
	t.Log(w.m.reached)
	for _, what := range []string{
		"sent", "answered", "not_ip", "not_vip", "other_mac", "protocol", "later_fragment", "no_service", "no_flow",
		"malformed_ip", "malformed_tcp", "malformed_udp", "fragment", "early_fragment", "denied", "source_limit", "ttl",
		"no_backend", "no_next_hop", "too_big", "who_has", "fenced", "not_accepted",
		"a pin", "a straggler", "a handshake", "a lasting UDP flow", "a fragment that follows", "a tunnel", "a new nat flow",
		"a nat flow that goes on", "a nat reply", "a new nat flow that keeps its port", "a nat reply from a port that was kept", "an error to a nat backend", "an error to a nat client", "an error about a pinned flow",
		"a first fragment to a nat backend", "a first fragment to a nat client", "a copy of a first fragment",
		"a later fragment to a nat backend", "a later fragment to a nat client", "a fragment whose flow is over",
		"a fragment whose backend has gone", "a fragment that begins with another header",
		"a packet to a dnat backend", "a later fragment to a dnat backend", "a dnat reply", "a later fragment of a dnat reply",
		"an error to a dnat backend", "an error to a dnat client", "an answer to a dnat backend",
		"a frame to a virtual MAC address",
		"here", "from_node", "a packet to another node", "an error about a flow that a node serves", "a packet that no node serves",
	} {
		if w.m.reached[what] < 20 {
			t.Errorf("%s was reached %d times, want 20 at least", what, w.m.reached[what])
		}
	}
}
