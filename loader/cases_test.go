package loader

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// A packetCase is a frame and what becomes of it in the world of world, where
// nothing else has come but the frames before it.
type packetCase struct {
	name    string
	before  []testenv.Frame
	in      []byte
	outcome string
	// out is the frame as it leaves, whole, made anew from its description. Of
	// the one that has left it may take what the program is free to choose.
	out func(got []byte) []byte
}

// packetCases are all cases, by theme.
func packetCases() []packetCase {
	return slices.Concat(linkCases(), ipCases(), extensionCases(), fragmentCases(), transportCases(), serviceCases(),
		tunnelCases(), natCasesOf(), natPortsCases(), dnatCases(), icmpCases(), nodeCases())
}

func TestPacketCases(t *testing.T) {
	w := newTwin(t)
	for _, c := range packetCases() {
		t.Run(c.name, func(t *testing.T) {
			if err := w.reset(); err != nil {
				t.Fatal(err)
			}
			for _, f := range c.before {
				if err := w.feed(f.Bytes()); err != nil {
					t.Fatal(err)
				}
			}
			// The model agrees, or this is an error.
			got, err := w.step(c.in)
			if err != nil {
				t.Fatalf("%v\nframe %x\n%s", err, c.in, decoded(c.in))
			}
			if got.Outcome != c.outcome {
				t.Fatalf("outcome %s, want %s", got.Outcome, c.outcome)
			}
			var want []byte
			if c.out != nil {
				want = c.out(got.Frame)
			}
			if got.Verdict == xdpPass {
				want = c.in // the model would know if it had to be changed
			}
			if diff := cmp.Diff(want, got.Frame); diff != "" {
				t.Errorf("frame that left (-want +got):\n%s", diff)
			}
			if err := w.finish(); err != nil {
				t.Error(err)
			}
		})
	}
}

// There are as many cases as it takes, and each is another one.
func TestPacketCasesAreMany(t *testing.T) {
	names, frames := map[string]bool{}, map[string]bool{}
	for _, c := range packetCases() {
		if names[c.name] {
			t.Errorf("%q stands twice", c.name)
		}
		names[c.name] = true
		before := ""
		for _, f := range c.before {
			before += string(f.Bytes())
		}
		frames[before+string(c.in)] = true
		if forwarded := c.outcome == "sent" || c.outcome == "answered"; forwarded != (c.out != nil) {
			t.Errorf("%q: %s, but a frame that leaves is described: %v", c.name, c.outcome, c.out != nil)
		}
	}
	if len(names) < 120 || len(frames) < 120 {
		t.Errorf("%d names, %d different frames; want 120 at least", len(names), len(frames))
	}
	t.Logf("%d cases, %d different inputs", len(names), len(frames))
}

// sent is a case of a frame that leaves as another one is described.
func sent(name string, in testenv.Frame, out testenv.Frame) packetCase {
	return packetCase{name: name, in: in.Bytes(), outcome: "sent", out: exactly(out.Bytes())}
}

func exactly(b []byte) func([]byte) []byte { return func([]byte) []byte { return b } }

// ends is a case of a frame that does not leave.
func ends(name string, in testenv.Frame, outcome string) packetCase {
	return packetCase{name: name, in: in.Bytes(), outcome: outcome}
}

// endsRaw is ends for bytes that no description yields.
func endsRaw(name string, in testenv.Frame, outcome string, spoil func([]byte)) packetCase {
	b := in.Bytes()
	spoil(b)
	return packetCase{name: name, in: b, outcome: outcome}
}

// sentRaw is sent where both frames are spoilt in the same way.
func sentRaw(name string, in, out testenv.Frame, spoil func([]byte)) packetCase {
	a, b := in.Bytes(), out.Bytes()
	spoil(a)
	spoil(b)
	return packetCase{name: name, in: a, outcome: "sent", out: exactly(b)}
}

// with returns a frame with changes.
func with(f testenv.Frame, changes ...change) testenv.Frame {
	for _, change := range changes {
		change(&f)
	}
	return f
}

// rerouted is a frame as dsr sends it to a service's first backend.
func rerouted(f testenv.Frame, changes ...change) testenv.Frame {
	f.DstMAC, f.SrcMAC, f.VLANs = hardware(backendMAC(1)), hardware(nicMAC), nil
	return with(f, changes...)
}

// both makes cases of IPv4 and IPv6.
func both(cases func(family string, base change) []packetCase) []packetCase {
	return append(cases("ipv4", func(*testenv.Frame) {}), cases("ipv6", from6)...)
}

func setByte(at int, v byte) func([]byte) { return func(b []byte) { b[at] = v } }

// Of every case, every length that a cut may leave: the program and the model
// agree, and nothing that is cut before its packet's end leaves.
func TestPacketCasesCut(t *testing.T) {
	w := newTwin(t)
	for _, c := range packetCases() {
		if err := w.reset(); err != nil {
			t.Fatal(err)
		}
		for _, f := range c.before {
			if err := w.feed(f.Bytes()); err != nil {
				t.Fatal(err)
			}
		}
		whole := &modelPacket{frame: c.in}
		need := len(c.in)
		if whole.readLink() == "" && whole.readIP() == "" {
			need = whole.l3 + whole.length
		}
		// What follows the headers that anything is read from is all alike.
		for n := 14; n < len(c.in); n++ {
			if n > 600 && n < need-8 {
				continue
			}
			got, err := w.step(c.in[:n:n])
			if err != nil {
				t.Fatalf("%s: %d of %d bytes: %v\n%s", c.name, n, len(c.in), err, decoded(c.in))
			}
			if n < need && got.Frame != nil && got.Verdict != xdpPass {
				t.Errorf("%s: %d of %d bytes, its packet ends at %d: %s", c.name, n, len(c.in), need, got.Outcome)
			}
		}
	}
}
