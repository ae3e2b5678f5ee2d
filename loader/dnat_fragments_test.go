package loader

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// All fragments get the other address, and the first one's checksum is right for
// the whole.
func TestDNATFragments(t *testing.T) {
	for _, c := range natCases {
		t.Run(c.String(), func(t *testing.T) {
			onDNATNode(t, func(r *dnatRig) {
				var whole, answer testenv.Frame
				for _, size := range []int{
					splitAt + 2 - len(parseL4Header(c.fromClient())), // two bytes are left for the last fragment
					2000,
				} {
					whole = c.fromClient(func(f *testenv.Frame) { f.Payload = noise(size) })
					translated := sendPieces(r, whole, 7)
					want := parse(t, whole.Bytes())
					want.SrcMAC, want.DstMAC, want.TTL = hardware(nicMAC), hardware(backendMAC(1)), 63
					want.Dst = netip.AddrPortFrom(c.backend(), 8080)
					if diff := cmp.Diff(want, translated, equateAddrs); diff != "" {
						t.Errorf("%d bytes to the backend (-want +got):\n%s", size, diff)
					}
					answer = reply(translated, func(f *testenv.Frame) { f.Payload = noise(size) })
					back := sendPieces(r, answer, 8)
					want = parse(t, answer.Bytes())
					want.SrcMAC, want.DstMAC, want.TTL = wayMAC, hardware(clientMAC), 63
					want.Src = whole.Dst
					if diff := cmp.Diff(want, back, equateAddrs); diff != "" {
						t.Errorf("%d bytes to the client (-want +got):\n%s", size, diff)
					}
				}

				// A later one without its first is dropped, and passes on the way back, where
				// it may be anybody's.
				_, later := split(t, whole, 9)
				if got := try(t, r.Datapath, later); got.Outcome != "early_fragment" {
					t.Errorf("a later fragment alone: %s", got.Outcome)
				}
				_, later = split(t, answer, 9)
				if got := try(t, r.Datapath, later); got.Outcome != "not_vip" {
					t.Errorf("a later fragment alone, of the backend: %s", got.Outcome)
				}
				// So does what follows a first one to the node itself.
				answer.Dst = netip.AddrPortFrom(clientNet4.Addr(), 4000)
				if c.v6 {
					answer.Dst = netip.AddrPortFrom(clientNet6.Addr(), 4000)
				}
				first, later := split(t, answer, 10)
				for i, f := range [][]byte{first, later} {
					if got := try(t, r.Datapath, f); got.Outcome != "not_vip" {
						t.Errorf("fragment %d to the node: %s", i+1, got.Outcome)
					}
				}
			}, c.dnat(8080))
		})
	}
}

func noise(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * i >> 3)
	}
	return b
}

// headers is how long those of Ethernet and IP are.
func headers(f testenv.Frame) int {
	if f.Src.Addr().Is6() {
		return 14 + 40
	}
	return 14 + 20
}

// splitAt is how much of a packet's transport segment the first fragment has.
const splitAt = 1208

// split makes two fragments of a packet, the checksum in the first that of the
// whole.
func split(t *testing.T, whole testenv.Frame, id uint16) (first, later []byte) {
	t.Helper()
	l4 := whole.Bytes()[headers(whole):]
	f := whole
	f.ID, f.MoreFragments, f.Payload = id, true, nil
	empty := len(f.Bytes())
	header := len(parseL4Header(whole))
	f.Payload = make([]byte, splitAt-header)
	first = f.Bytes()
	copy(first[empty-header:], l4[:splitAt])
	f.MoreFragments, f.FragOffset, f.Payload = false, splitAt, l4[splitAt:]
	return first, f.Bytes()
}

func parseL4Header(f testenv.Frame) []byte {
	f.Payload = nil
	return f.Bytes()[headers(f):]
}

// sendPieces sends a packet in two fragments, and puts together what leaves.
func sendPieces(r *dnatRig, whole testenv.Frame, id uint16) testenv.Frame {
	r.Helper()
	first, later := split(r.T, whole, id)
	var l4 []byte
	var head testenv.Frame
	for i, piece := range [][]byte{first, later} {
		verdict, out := send(r, r.Datapath, piece)
		if verdict != xdpTX && verdict != xdpRedirect {
			r.Fatalf("fragment %d: verdict %d: %v", i+1, verdict, outcomes(r, r.Datapath))
		}
		f := parse(r, out)
		if i == 0 {
			head = f
		} else if f.Src.Addr() != head.Src.Addr() || f.Dst.Addr() != head.Dst.Addr() || f.TTL != head.TTL || f.DstMAC.String() != head.DstMAC.String() {
			r.Errorf("the fragments leave from %v to %v, and from %v to %v", head.Src, head.Dst, f.Src, f.Dst)
		}
		at := headers(f)
		if f.Src.Addr().Is6() {
			at += 8
		}
		l4 = append(l4, out[at:len(piece)]...)
	}
	head.MoreFragments, head.TotalLength = false, 0
	head.Payload = l4[len(parseL4Header(head)):]
	joined := head.Bytes()
	copy(joined[headers(head):], l4)
	if err := testenv.VerifyChecksums(joined); err != nil {
		r.Errorf("put together: %v", err)
	}
	got := parse(r, joined)
	got.ID = 0
	return got
}

// Errors about either side's packets reach the other, with what they quote as
// that side knows it.
func TestDNATErrors(t *testing.T) {
	for _, c := range natCases {
		t.Run(c.String(), func(t *testing.T) {
			onDNATNode(t, func(r *dnatRig) {
				in := c.fromClient()
				there := try(t, r.Datapath, in.Bytes())
				backend := there.Frame.Dst
				header := headers(in) - 14
				for _, size := range []int{header + 8, header + 12, header + 17, header + 18, header + 20, 10000} {
					e := quote(answerTo(in.Src, in.Dst, uint8(c.protocol)), size)
					got := try(t, r.Datapath, e.Bytes())
					if got.Outcome != "sent" {
						t.Fatalf("%d bytes quoted, to the backend: %s", size, got.Outcome)
					}
					src, dst := quoted(t, got.Frame)
					ends := []any{got.Frame.Src.Addr(), got.Frame.Dst.Addr(), src, dst, got.Frame.TTL, got.Frame.DstMAC.String()}
					want := []any{e.Src.Addr(), backend.Addr(), backend, in.Src, uint8(63), hardware(backendMAC(1)).String()}
					if diff := cmp.Diff(want, ends, equateAddrs); diff != "" {
						t.Errorf("%d bytes quoted, to the backend: source, destination, quoted source and destination, hops, MAC (-want +got):\n%s", size, diff)
					}

					e = quote(answerTo(backend, in.Src, uint8(c.protocol)), size)
					e.Dst = netip.AddrPortFrom(in.Src.Addr(), 0)
					got = try(t, r.Datapath, e.Bytes())
					if got.Outcome != "sent" {
						t.Fatalf("%d bytes quoted, to the client: %s", size, got.Outcome)
					}
					src, dst = quoted(t, got.Frame)
					ends = []any{got.Frame.Src.Addr(), got.Frame.Dst.Addr(), src, dst, got.Frame.TTL, got.Frame.DstMAC.String()}
					want = []any{in.Dst.Addr(), in.Src.Addr(), in.Src, in.Dst, uint8(63), hardware(clientMAC).String()}
					if diff := cmp.Diff(want, ends, equateAddrs); diff != "" {
						t.Errorf("%d bytes quoted, to the client: source, destination, quoted source and destination, hops, MAC (-want +got):\n%s", size, diff)
					}
				}
				// What is quoted whole has right checksums afterwards, too.
				got := try(t, r.Datapath, quote(answerTo(in.Src, in.Dst, uint8(c.protocol)), 10000).Bytes())
				inner := append(append([]byte(nil), got.Frame.DstMAC...), got.Frame.SrcMAC...)
				inner = binary.BigEndian.AppendUint16(inner, got.Frame.EtherType)
				if err := testenv.VerifyChecksums(append(inner, got.Frame.Payload[8:]...)); err != nil {
					t.Errorf("the quoted packet: %v", err)
				}
				for name, e := range map[string]testenv.Frame{
					"about another server's packet": quote(answerTo(netip.AddrPortFrom(backend.Addr(), 9999), in.Src, uint8(c.protocol)), 100),
					"to another than the sender": func() testenv.Frame {
						e := quote(answerTo(backend, in.Src, uint8(c.protocol)), 100)
						e.Dst = netip.AddrPortFrom(in.Src.Addr().Next(), 0)
						return e
					}(),
					"cut short": quote(answerTo(backend, in.Src, uint8(c.protocol)), header+7),
				} {
					e.Payload = append([]byte(nil), e.Payload...)
					if got := try(t, r.Datapath, e.Bytes()); got.Outcome != "not_vip" {
						t.Errorf("%s: %s", name, got.Outcome)
					}
				}
			}, c.dnat(8080))
		})
	}
}
