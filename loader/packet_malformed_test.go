package loader

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// forEachMode runs a test on a service of each mode but tunnel, nat with a flow
// open that clientPort's packets belong to.
func forEachMode(t *testing.T, f func(t *testing.T, d *Datapath)) {
	for _, mode := range []lb.Forward{lb.DSR, lb.NAT, lb.DNAT} {
		t.Run(mode.String(), func(t *testing.T) {
			d := newDatapath(t, service("web", mode, 80, backends(1, 80)))
			if mode == lb.NAT {
				openConn(t, d, clientPort)
			}
			f(t, d)
		})
	}
}

// A frame that is cut off anywhere is passed or dropped, never forwarded: as long
// as it does not say that it is for the VIP it passes, from then on it is dropped.
func TestTruncated(t *testing.T) {
	forEachMode(t, func(t *testing.T, d *Datapath) {
		tests := []struct {
			name string
			in   testenv.Frame
			ip   int // where the IP header ends
		}{
			{"plain", toVIP(), 34},
			{"one tag", toVIP(vlans(100)), 38},
			{"two tags", toVIP(vlans(100, 200)), 42},
			{"options", toVIP(func(f *testenv.Frame) { f.IPOptions, f.TCPOptions = make([]byte, 12), make([]byte, 20) }), 34},
			{"no payload", toVIP(func(f *testenv.Frame) { f.Payload = nil }), 34},
		}
		for _, tc := range tests {
			t.Run(tc.name, func(t *testing.T) {
				frame := tc.in.Bytes()
				for n := 14; n <= len(frame); n++ {
					want := "malformed_ip"
					switch {
					case n < tc.ip:
						want = "not_ip"
					case n == len(frame):
						want = "sent"
					}
					if got := try(t, d, frame[:n:n]); got.Outcome != want {
						t.Errorf("%d of %d bytes: %s, want %s", n, len(frame), got.Outcome, want)
					}
				}
			})
		}
	})
}

// A packet whose length says that the headers are not all there is dropped, however
// much padding follows.
func TestShortTotalLength(t *testing.T) {
	forEachMode(t, func(t *testing.T, d *Datapath) {
		for _, options := range []int{0, 4, 40} {
			full := 20 + options + 20
			for n := range full + 3 {
				in := toVIP(func(f *testenv.Frame) {
					f.IPOptions, f.Payload = make([]byte, options), make([]byte, 2)
					f.PadTo = 120
				})
				frame := in.Bytes()
				setIP(frame, 2, uint16(n))
				want := "sent"
				switch {
				case n < 20+options:
					want = "malformed_ip"
				case n < full:
					want = "malformed_tcp"
				}
				// The checksum of TCP covers the length, so only the outcome counts.
				got := outcomeOf(t, d, frame)
				if got != want {
					t.Errorf("%d bytes of options, total length %d: %s, want %s", options, n, got, want)
				}
			}
		}
	})
}

func TestMalformed(t *testing.T) {
	tests := []struct {
		name   string
		change func(frame []byte)
		want   string
	}{
		{"version 0", func(f []byte) { f[14] = 0x05 }, "malformed_ip"},
		{"version 5", func(f []byte) { f[14] = 0x55 }, "malformed_ip"},
		{"version 6", func(f []byte) { f[14] = 0x65 }, "malformed_ip"},
		{"header of 0 words", func(f []byte) { f[14] = 0x40 }, "malformed_ip"},
		{"header of 4 words", func(f []byte) { f[14] = 0x44 }, "malformed_ip"},
		{"header that ends past the packet", func(f []byte) { f[14] = 0x4f }, "malformed_ip"},
		{"header that swallows TCP's", func(f []byte) { f[14] = 0x4a }, "malformed_tcp"},
		{"header that swallows some of TCP's", func(f []byte) { f[14] = 0x46; f[14+24+12] = 0xf0 }, "malformed_tcp"},
		{"total length 0", func(f []byte) { setIP(f, 2, 0) }, "malformed_ip"},
		{"total length one too long", func(f []byte) { setIP(f, 2, uint16(len(f)-14+1)) }, "malformed_ip"},
		{"total length 65535", func(f []byte) { setIP(f, 2, 65535) }, "malformed_ip"},
		{"data offset 0", func(f []byte) { f[46] = 0x00 }, "malformed_tcp"},
		{"data offset 4", func(f []byte) { f[46] = 0x40 }, "malformed_tcp"},
		{"data offset past the packet", func(f []byte) { f[46] = 0xf0 }, "malformed_tcp"},
		{"malformed udp to the vip", func(f []byte) { f[14] = 0x44; f[23] = 17 }, "malformed_ip"},
		{"first fragment without a whole header", func(f []byte) { setIP(f, 2, 28); setIP(f, 6, 0x2000) }, "malformed_tcp"},
		{"malformed to a port that is no service", func(f []byte) { f[37] = 81; f[46] = 0 }, "malformed_tcp"},
		{"malformed to another address", func(f []byte) { f[33] = 101; f[14] = 0x44 }, "not_vip"},
		{"malformed to another nic", func(f []byte) { f[5] = 9; f[14] = 0x44 }, "other_mac"},
	}
	forEachMode(t, func(t *testing.T, d *Datapath) {
		for _, tc := range tests {
			t.Run(tc.name, func(t *testing.T) {
				frame := toVIP().Bytes()
				tc.change(frame)
				if got := try(t, d, frame); got.Outcome != tc.want {
					t.Errorf("outcome %s, want %s", got.Outcome, tc.want)
				}
			})
		}
	})
}

// A frame may be longer than its packet by any number of bytes: padding.
func TestPadding(t *testing.T) {
	forEachMode(t, func(t *testing.T, d *Datapath) {
		for _, pad := range []int{1, 2, 6, 100} {
			t.Run(fmt.Sprint(pad), func(t *testing.T) {
				in := toVIP()
				in.PadTo = len(in.Bytes()) + pad
				got := try(t, d, in.Bytes())
				if got.Outcome != "sent" {
					t.Fatalf("outcome %s", got.Outcome)
				}
				if got.Frame.PadTo != in.PadTo {
					t.Errorf("the frame that left has %d bytes, want %d", got.Frame.PadTo, in.PadTo)
				}
			})
		}
	})
}

// setIP writes a 16-bit field of the IP header of an untagged frame.
func setIP(frame []byte, offset int, v uint16) { binary.BigEndian.PutUint16(frame[14+offset:], v) }

// outcomeOf is try for a frame whose checksums are wrong from the start.
func outcomeOf(t *testing.T, d *Datapath, frame []byte) string {
	t.Helper()
	before := outcomes(t, d)
	send(t, d, frame)
	for name, n := range outcomes(t, d) {
		if n > before[name] {
			return name
		}
	}
	return "sent"
}
