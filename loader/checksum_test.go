package loader

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// The checksums of what nat has rewritten are those of a full computation over
// the frame that left, whatever the packet holds.
func TestNATChecksums(t *testing.T) {
	d := newDatapath(t, service("web", lb.NAT, 80, backends(3, 8080)))
	r := rand.New(rand.NewPCG(1, 1))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	check := func(f testenv.Frame) {
		t.Helper()
		in := f.Bytes()
		verdict, out := send(t, d, in)
		if verdict != xdpTX {
			t.Fatalf("verdict %d for\n%x", verdict, in)
		}
		if err := testenv.VerifyChecksums(out); err != nil {
			t.Fatalf("%v:\nin  %x\nout %x", err, in, out)
		}
	}
	for range 30 {
		a := r.Uint32()
		var addr [4]byte
		binary.BigEndian.PutUint32(addr[:], a)
		c := openConn(t, d, netip.AddrPortFrom(netip.AddrFrom4(addr), uint16(1+r.IntN(65535))))
		for range 200 {
			for _, f := range []testenv.Frame{
				c.fromClient(testenv.ACK, string(random(r.IntN(80)))),
				c.fromBackend(testenv.ACK, string(random(r.IntN(80)))),
			} {
				f.Seq, f.Ack, f.Window, f.ID = r.Uint32(), r.Uint32(), uint16(r.Uint32()), uint16(r.Uint32())
				f.TTL = uint8(2 + r.IntN(254))
				f.TOS = uint8(r.Uint32())
				f.DontFragment = r.IntN(2) == 0
				f.IPOptions, f.TCPOptions = random(4*r.IntN(11)), random(4*r.IntN(11))
				check(f)
			}
		}
	}
}

// The edges of one's complement arithmetic: checksums of 0x0000 and 0xffff-to-be
// before and after the rewrite, reached by a word of the payload, or of the IP
// header, that takes every value.
func TestNATChecksumEdges(t *testing.T) {
	d := newDatapath(t, service("web", lb.NAT, 80, backends(1, 8080)))
	c := openConn(t, d, clientPort)
	tcpSeen, ipSeen := map[uint16]bool{}, map[uint16]bool{}
	for _, build := range []func() testenv.Frame{
		func() testenv.Frame { return c.fromClient(testenv.ACK, "\x00\x00") },
		func() testenv.Frame { return c.fromBackend(testenv.ACK, "\x00\x00") },
	} {
		for v := range 1 << 16 {
			f := build()
			f.ID = uint16(v)
			binary.BigEndian.PutUint16(f.Payload, uint16(v))
			verdict, out := send(t, d, f.Bytes())
			if verdict != xdpTX {
				t.Fatalf("verdict %d", verdict)
			}
			if err := testenv.VerifyChecksums(out); err != nil {
				t.Fatalf("word %#x: %v", v, err)
			}
			ipSeen[binary.BigEndian.Uint16(out[24:])] = true
			tcpSeen[binary.BigEndian.Uint16(out[50:])] = true
			if ip, tcp := out[24:26], out[50:52]; string(ip) == "\xff\xff" || string(tcp) == "\xff\xff" {
				t.Fatalf("word %#x: a checksum of 0xffff, which a sum can't yield", v)
			}
		}
	}
	for name, seen := range map[string]map[uint16]bool{"ip": ipSeen, "tcp": tcpSeen} {
		if len(seen) != 1<<16-1 || !seen[0] {
			t.Errorf("%s: %d checksums were seen, want all but 0xffff", name, len(seen))
		}
	}
}
