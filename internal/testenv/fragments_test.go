package testenv

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestFragmentsMakeTheWhole(t *testing.T) {
	for _, tc := range []struct {
		name     string
		src, dst string
		protocol uint8
	}{
		{"udp over ipv4", "198.51.100.7:40000", "192.0.2.100:53", ProtocolUDP},
		{"tcp over ipv4", "198.51.100.7:40000", "192.0.2.100:80", ProtocolTCP},
		{"udp over ipv6", "[2001:db8::7]:40000", "[2001:db8::100]:53", ProtocolUDP},
		{"tcp over ipv6", "[2001:db8::7]:40000", "[2001:db8::100]:80", ProtocolTCP},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := Frame{
				Src: netip.MustParseAddrPort(tc.src), Dst: netip.MustParseAddrPort(tc.dst), Protocol: tc.protocol,
				ID: 77, VLANs: []uint16{5}, Payload: bytes.Repeat([]byte("0123456789"), 100),
			}
			pieces := f.Fragments(400)
			if len(pieces) != 3 {
				t.Fatalf("%d fragments, want 3", len(pieces))
			}
			whole, id, err := Reassemble([][]byte{pieces[2], pieces[0], pieces[1]})
			if err != nil {
				t.Fatal(err)
			}
			if err := VerifyChecksums(whole); err != nil {
				t.Error(err)
			}
			want, err := ParseFrame(f.Bytes())
			if err != nil {
				t.Fatal(err)
			}
			got, err := ParseFrame(whole)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" || id != 77 {
				t.Errorf("identification %d (-want +got):\n%s", id, diff)
			}
			other := f
			other.ID = 78
			for name, wrong := range map[string][][]byte{
				"nothing":              nil,
				"one is missing":       {pieces[0], pieces[2]},
				"the last is missing":  {pieces[0], pieces[1]},
				"the first is missing": {pieces[1], pieces[2]},
				"one of another":       {pieces[0], other.Fragments(400)[1], pieces[2]},
			} {
				if _, _, err := Reassemble(wrong); err == nil {
					t.Errorf("%s: no error", name)
				}
			}
		})
	}
}
