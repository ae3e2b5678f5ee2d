package loader

import (
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// A frame that is cut off anywhere is passed or dropped, never decapsulated: as
// long as it does not say that it is a tunnel's to this host it passes.
func TestDecapTruncated(t *testing.T) {
	forEachTunnelMix(t, func(t *testing.T, d *Decap, m tunnelMix) {
		tunnels := []testenv.Tunnel{m.tunnel}
		headers := []int{m.outer}
		if m.outer == 40 {
			tunnels = append(tunnels, extended(m.tunnel, testenv.ProtocolDestination, encapsulationLimit))
			headers = append(headers, m.outer+8)
		}
		for i, tunnel := range tunnels {
			for _, tags := range [][]uint16{nil, {100}, {100, 200}} {
				frame := encapsulate(t, tunnel, m.inner(tags, 0))
				told := 14 + 4*len(tags) + headers[i]
				for n := 14; n <= len(frame); n++ {
					want := "malformed_outer"
					switch {
					case n < told:
						want = "not_tunnel"
					case n == len(frame):
						want = "decapsulated"
					}
					if got, _ := tryDecap(t, d, frame[:n:n]); got != want {
						t.Errorf("%d of %d bytes, %d tags, %d bytes of extensions: %s, want %s",
							n, len(frame), len(tags), headers[i]-m.outer, got, want)
					}
				}
			}
		}
	})
}

// A packet whose lengths say that the inner one is not all there is dropped,
// however much follows in the frame.
func TestDecapLengths(t *testing.T) {
	forEachTunnelMix(t, func(t *testing.T, d *Decap, m tunnelMix) {
		inner := m.inner(nil, 0)
		for cut := range len(inner) - 14 + 1 {
			tunnel := m.tunnel
			payload := len(inner) - 14 - cut
			want := "malformed_inner"
			if cut == 0 {
				want = "decapsulated"
			}
			tunnel.Length = uint16(payload)
			if m.outer == 20 {
				tunnel.Length += 20
			}
			frame := encapsulate(t, tunnel, inner)
			if tunnel.Length == 0 {
				binary.BigEndian.PutUint16(frame[14+4:], 0)
			}
			if got, _ := tryDecap(t, d, frame); got != want {
				t.Errorf("%d bytes of the inner packet's %d: %s, want %s", payload, len(inner)-14, got, want)
			}
		}
	})
}

func TestDecapMalformed(t *testing.T) {
	const ip = 14
	// rightChecksum makes the checksum of the outer IPv4 header right again.
	rightChecksum := func(f []byte) {
		f[ip+10], f[ip+11] = 0, 0
		var sum uint32
		for i := 0; i < int(f[ip]&15)*4; i += 2 {
			sum += uint32(binary.BigEndian.Uint16(f[ip+i:]))
		}
		for sum > 0xffff {
			sum = sum>>16 + sum&0xffff
		}
		binary.BigEndian.PutUint16(f[ip+10:], ^uint16(sum))
	}
	tests := []struct {
		name   string
		mix    int
		change func(f []byte)
		want   string
	}{
		{"outer version 6 in ipv4", 0, func(f []byte) { f[ip] = 0x65; rightChecksum(f) }, "malformed_outer"},
		{"outer header of 4 words", 0, func(f []byte) { f[ip] = 0x44 }, "malformed_outer"},
		{"outer header of 0 words", 0, func(f []byte) { f[ip] = 0x40 }, "malformed_outer"},
		{"outer total length 0", 0, func(f []byte) { setIP(f, 2, 0); rightChecksum(f) }, "malformed_outer"},
		{"outer total length less than the header", 0, func(f []byte) { setIP(f, 2, 19); rightChecksum(f) }, "malformed_outer"},
		{"outer total length one too long", 0, func(f []byte) { setIP(f, 2, uint16(len(f)-ip+1)); rightChecksum(f) }, "malformed_outer"},
		{"outer total length 65535", 0, func(f []byte) { setIP(f, 2, 65535); rightChecksum(f) }, "malformed_outer"},
		{"outer version 4 in ipv6", 2, func(f []byte) { f[ip] = 0x40 }, "malformed_outer"},
		{"outer payload length one too long", 2, func(f []byte) { setIP(f, 4, uint16(len(f)-ip-40+1)) }, "malformed_outer"},
		{"outer payload length 65535", 3, func(f []byte) { setIP(f, 4, 65535) }, "malformed_outer"},
		{"outer payload length 0", 3, func(f []byte) { setIP(f, 4, 0) }, "malformed_inner"},

		{"outer checksum", 0, func(f []byte) { f[ip+10] ^= 1 }, "outer_checksum"},
		{"outer checksum with ipv6 inside", 1, func(f []byte) { f[ip+11] ^= 0x80 }, "outer_checksum"},
		{"outer checksum 0", 0, func(f []byte) { setIP(f, 10, 0) }, "outer_checksum"},
		{"outer ttl was changed", 0, func(f []byte) { f[ip+8]++ }, "outer_checksum"},
		{"two outer words were swapped", 0, func(f []byte) { f[ip+4], f[ip+5], f[ip+6], f[ip+7] = f[ip+6], f[ip+7], f[ip+4], f[ip+5] }, "fragment"},

		{"inner version 6 in protocol 4", 0, func(f []byte) { f[ip+20] = 0x65 }, "malformed_inner"},
		{"inner version 5", 0, func(f []byte) { f[ip+20] = 0x55 }, "malformed_inner"},
		{"inner header of 4 words", 0, func(f []byte) { f[ip+20] = 0x44 }, "malformed_inner"},
		{"inner header that ends past the packet", 0, func(f []byte) { f[ip+20] = 0x4f; setIP(f, 20+2, 59) }, "malformed_inner"},
		{"inner total length 0", 0, func(f []byte) { setIP(f, 20+2, 0) }, "malformed_inner"},
		{"inner total length 19", 2, func(f []byte) { setIP(f, 40+2, 19) }, "malformed_inner"},
		{"inner total length one too long", 2, func(f []byte) { setIP(f, 40+2, uint16(len(f)-ip-40+1)) }, "malformed_inner"},
		{"inner total length 65535", 0, func(f []byte) { setIP(f, 20+2, 65535) }, "malformed_inner"},
		{"inner version 4 in protocol 41", 1, func(f []byte) { f[ip+20] = 0x45 }, "malformed_inner"},
		{"inner payload length one too long", 1, func(f []byte) { setIP(f, 20+4, uint16(len(f)-ip-20-40+1)) }, "malformed_inner"},
		{"inner payload length 65535", 3, func(f []byte) { setIP(f, 40+4, 65535) }, "malformed_inner"},
		{"inner ipv4 is said to be ipv6", 0, func(f []byte) { f[ip+9] = 41; rightChecksum(f) }, "not_vip"},
		{"inner ipv6 is said to be ipv4", 3, func(f []byte) { f[ip+6] = 4 }, "not_vip"},

		{"inner packet shorter than the outer one says", 0, func(f []byte) { setIP(f, 20+2, 40) }, "decapsulated"},
		{"inner checksum is the kernel's business", 0, func(f []byte) { f[ip+20+10] ^= 1 }, "decapsulated"},
	}
	d := decapProgram(t)
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			m := tunnelMixes[tc.mix]
			frame := encapsulate(t, m.tunnel, m.inner(nil, 0))
			tc.change(frame)
			if got, _ := tryDecap(t, d, frame); got != tc.want {
				t.Errorf("outcome %s, want %s", got, tc.want)
			}
		})
	}
}

// Options and lengths of IPv4 that no packet builder would write: every
// header length against every total length.
func TestDecapHeaderLengths(t *testing.T) {
	d := decapProgram(t)
	inner := inner4(nil, 0)
	for words := range 16 {
		tunnel := over4
		tunnel.IPOptions = make([]byte, max(0, words-5)*4)
		tunnel.IHL = uint8(words)
		frame := encapsulate(t, tunnel, inner)
		if words == 0 {
			frame[14] = 0x40
		}
		want := "decapsulated"
		if words < 5 {
			want = "malformed_outer"
		}
		got, out := tryDecap(t, d, frame)
		if got != want {
			t.Errorf("%d words: %s, want %s", words, got, want)
		}
		if diff := cmp.Diff(inner, out); want == "decapsulated" && diff != "" {
			t.Errorf("%d words: frame (-want +got):\n%s", words, diff)
		}
	}
}
