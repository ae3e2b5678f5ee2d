package loader

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// newFragmentNAT is a data plane with a service of each family and protocol.
func newFragmentNAT(t *testing.T) *Datapath {
	t.Helper()
	var all []lb.ServiceState
	for _, c := range natCases {
		all = append(all, c.service(8080))
	}
	return newDatapath(t, all...)
}

// opened makes a flow of the client and returns the source that it has at the
// backend.
func (c natCase) opened(t *testing.T, d *Datapath, client netip.AddrPort) netip.AddrPort {
	t.Helper()
	hello := c.fromClient(ofClient(client))
	out := try(t, d, hello.Bytes())
	if out.Outcome != "sent" {
		t.Fatalf("the first packet of %v: %s", client, out.Outcome)
	}
	answer := c.fromBackend(out.Frame.Src, func(f *testenv.Frame) { f.Flags, f.Seq = testenv.SYN|testenv.ACK, backendISN })
	if out := try(t, d, answer.Bytes()); out.Outcome != "sent" {
		t.Fatalf("the answer to %v: %s", client, out.Outcome)
	}
	return out.Frame.Src
}

func ofClient(client netip.AddrPort) change { return func(f *testenv.Frame) { f.Src = client } }

// fromBackend is a packet of the backend to a source address and port.
func (c natCase) fromBackend(source netip.AddrPort, changes ...change) testenv.Frame {
	f := c.fromClient()
	f.SrcMAC, f.Src, f.Dst, f.Flags = hardware(backendMAC(1)), c.service(8080).Backends[0].Address, source, testenv.ACK
	for _, change := range changes {
		change(&f)
	}
	return f
}

// big is a packet that comes in four fragments.
func big(id uint16) change {
	return func(f *testenv.Frame) {
		f.ID, f.Flags, f.TTL = id, testenv.ACK, 17
		f.Payload = bytes.Repeat([]byte("fragments!"), 500)
	}
}

const pieceSize = 1400

// through sends fragments, all of which must leave, and returns the whole of them
// and their identification.
func through(t *testing.T, d *Datapath, pieces [][]byte) (testenv.Frame, uint32) {
	t.Helper()
	var out [][]byte
	for i, piece := range pieces {
		before := outcomes(t, d)
		verdict, frame := send(t, d, piece)
		if verdict != xdpTX {
			t.Fatalf("fragment %d: verdict %d, %s", i+1, verdict, cmp.Diff(before, outcomes(t, d)))
		}
		if err := testenv.VerifyChecksums(frame); err != nil {
			t.Errorf("fragment %d: %v", i+1, err)
		}
		out = append(out, frame)
	}
	whole, id, err := testenv.Reassemble(out)
	if err != nil {
		t.Fatal(err)
	}
	if err := testenv.VerifyChecksums(whole); err != nil {
		t.Errorf("the whole packet: %v", err)
	}
	return parse(t, whole), id
}

// A fragmented packet is translated both ways as a whole one is, but for its
// identification.
func TestNATFragments(t *testing.T) {
	d := newFragmentNAT(t)
	for _, c := range natCases {
		t.Run(c.String(), func(t *testing.T) {
			client := c.fromClient().Src
			s := c.service(8080)
			vip := c.fromClient().Dst
			source := c.opened(t, d, client)
			for _, way := range []struct {
				name     string
				in       testenv.Frame
				src, dst netip.AddrPort
				mac      [6]byte
			}{
				{"towards the backend", c.fromClient(big(7)), source, s.Backends[0].Address, backendMAC(1)},
				{"back", c.fromBackend(source, big(7)), vip, client, clientMAC},
				{"tagged", c.fromClient(big(8), vlans(9)), source, s.Backends[0].Address, backendMAC(1)},
			} {
				traffic := func() uint64 {
					b := serviceStats(t, d, s.Name).Backends[0]
					return b.Packets + b.ReplyPackets
				}
				counted := traffic()
				got, _ := through(t, d, way.in.Fragments(pieceSize))
				want := parse(t, way.in.Bytes())
				want.DstMAC, want.SrcMAC, want.Src, want.Dst, want.TTL = hardware(way.mac), hardware(nicMAC), way.src, way.dst, 16
				want.VLANs = nil
				got.ID = want.ID
				if diff := cmp.Diff(want, got, equateAddrs); diff != "" {
					t.Errorf("%s (-want +got):\n%s", way.name, diff)
				}
				if n := traffic() - counted; n != 4 {
					t.Errorf("%s: %d packets were counted, want 4", way.name, n)
				}
			}

			// What is whole keeps its identification.
			whole := try(t, d, c.fromClient(func(f *testenv.Frame) { f.ID, f.Flags = 4242, testenv.ACK }).Bytes())
			if want := uint16(4242); !c.v6 && whole.Frame.ID != want {
				t.Errorf("the identification of a whole packet became %d", whole.Frame.ID)
			}
		})
	}
}

func serviceStats(t *testing.T, d *Datapath, name string) ServiceStats {
	t.Helper()
	for _, s := range stats(t, d).Services {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("no service %s", name)
	return ServiceStats{}
}

// Packets of two clients with the same identification, whose fragments come in
// turns, are two packets at the backend; likewise those of two backends at a
// client.
func TestNATFragmentsWithTheSameIdentification(t *testing.T) {
	d := newFragmentNAT(t)
	for _, c := range natCases {
		t.Run(c.String(), func(t *testing.T) {
			one, two := c.fromClient().Src, netip.AddrPortFrom(c.fromClient().Src.Addr().Next(), 40001)
			ids := map[uint32]bool{}
			const rounds = 20
			for round := range rounds {
				a := c.fromClient(ofClient(one), big(99)).Fragments(pieceSize)
				b := c.fromClient(ofClient(two), big(99)).Fragments(pieceSize)
				if round == 0 {
					c.opened(t, d, one)
					c.opened(t, d, two)
				}
				var outA, outB [][]byte
				for i := range a {
					for _, x := range []struct {
						in  []byte
						out *[][]byte
					}{{a[i], &outA}, {b[i], &outB}} {
						verdict, frame := send(t, d, x.in)
						if verdict != xdpTX {
							t.Fatalf("fragment %d: %v", i+1, outcomes(t, d))
						}
						*x.out = append(*x.out, frame)
					}
				}
				for _, out := range [][][]byte{outA, outB} {
					_, id, err := testenv.Reassemble(out)
					if err != nil {
						t.Fatal(err)
					}
					if ids[id] {
						t.Errorf("identification %#x was given twice", id)
					}
					ids[id] = true
				}
				forgetFragments(t, d) // the same client may not use one again while it lasts
			}
			if len(ids) != 2*rounds {
				t.Errorf("%d identifications, want %d", len(ids), 2*rounds)
			}
		})
	}

	s := natCases[1].service(8080)
	s.Backends = backends(2, 8080)
	d = newDatapath(t, s)
	sources := map[netip.AddrPort]netip.AddrPort{} // of one client at each backend
	for port := uint16(41000); len(sources) < 2; port++ {
		out := try(t, d, natCases[1].fromClient(ofClient(netip.AddrPortFrom(clientIP, port))).Bytes())
		sources[out.Frame.Dst] = out.Frame.Src
	}
	seen := map[uint32]bool{}
	for backend, source := range sources {
		_, id := through(t, d, natCases[1].fromBackend(source, ofClient(backend), big(5)).Fragments(pieceSize))
		if seen[id] {
			t.Errorf("the replies of both backends have identification %#x", id)
		}
		seen[id] = true
	}
}

func forgetFragments(t *testing.T, d *Datapath) {
	t.Helper()
	var k lbFragmentKey
	var v lbFragmented
	var all []lbFragmentKey
	for it := d.objects.Fragments.Iterate(); it.Next(&k, &v); {
		all = append(all, k)
	}
	for _, k := range all {
		if err := d.objects.Fragments.Delete(&k); err != nil {
			t.Fatal(err)
		}
	}
}

// A first fragment that the network has doubled is the same packet's.
func TestNATFragmentComesTwice(t *testing.T) {
	d := newFragmentNAT(t)
	c := natCases[1]
	c.opened(t, d, clientPort)
	pieces := c.fromClient(big(3)).Fragments(pieceSize)
	_, first := send(t, d, pieces[0])
	_, again := send(t, d, pieces[0])
	if a, b := parse(t, first).ID, parse(t, again).ID; a != b {
		t.Errorf("its identifications are %#x and %#x", a, b)
	}
}

func TestNATFragmentsThatGoNowhere(t *testing.T) {
	for _, c := range natCases {
		t.Run(c.String(), func(t *testing.T) {
			d := newFragmentNAT(t)
			step := func(name string, frame []byte, want string) {
				t.Helper()
				if got := try(t, d, frame); got.Outcome != want {
					t.Errorf("%s: %s, want %s", name, got.Outcome, want)
				}
			}
			tcp := c.protocol == lb.TCP
			pieces := c.fromClient(big(1)).Fragments(pieceSize)
			if tcp {
				step("the first one, of no connection", pieces[0], "no_flow")
				step("the next one follows it to the kernel", pieces[1], "later_fragment")
				syn := c.fromClient(big(2), func(f *testenv.Frame) { f.Flags = testenv.SYN }).Fragments(pieceSize)
				step("a SYN in a fragment", syn[0], "fragment")
				step("what follows it", syn[1], "early_fragment")
				// Ended within the TCP header, or at the flags (RFC 1858).
				tiny := c.fromClient(func(f *testenv.Frame) { f.ID, f.Flags = 3, testenv.ACK }).Fragments(16)
				step("a first one without the whole TCP header", tiny[0], "malformed_tcp")
				overwrite := c.fromClient(func(f *testenv.Frame) { f.ID, f.FragOffset, f.MoreFragments, f.Payload = 4, 8, true, zeros(64) })
				step("one that would overwrite TCP flags", overwrite.Bytes(), "fragment")
			}
			source := c.opened(t, d, c.fromClient().Src)
			if tcp {
				answer := c.fromBackend(source, big(5), func(f *testenv.Frame) { f.Flags = testenv.SYN | testenv.ACK })
				step("a backend's SYN in a fragment", answer.Fragments(pieceSize)[0], "fragment")
			}
			pieces = c.fromClient(big(6)).Fragments(pieceSize)
			step("a later one before the first", pieces[1], "early_fragment")
			step("the first one", pieces[0], "sent")
			step("a later one", pieces[1], "sent")
			other := c.fromClient(big(6), func(f *testenv.Frame) {
				f.Src = netip.AddrPortFrom(f.Src.Addr().Next(), f.Src.Port())
			}).Fragments(pieceSize)
			step("one of another client with this identification", other[1], "early_fragment")
			last := c.fromClient(big(6), ttl(1)).Fragments(pieceSize)
			step("one with its last hop used up", last[1], "ttl")

			// Replies, and a port that has become another client's.
			replies := c.fromBackend(source, big(7)).Fragments(pieceSize)
			step("a later reply before the first", replies[1], "early_fragment")
			step("the first reply", replies[0], "sent")
			step("a later reply", replies[1], "sent")
			pair := uint32(0)
			for n, e := range d.state.Pairs {
				if e.Protocol == c.protocol && e.Source == source.Addr() {
					pair = n
				}
			}
			flow := viewPair(t, d, pair).flow(source.Port())
			flow.Client[1] ^= 1 << 63
			step("a later reply, the port is another client's", replies[2], "early_fragment")
			flow.Client[1] ^= 1 << 63

			// They are remembered for 30 s.
			ageFragments(t, d, 28*time.Second)
			step("a later one after 28 s", pieces[2], "sent")
			ageFragments(t, d, 4*time.Second)
			step("a later one after 32 s", pieces[3], "early_fragment")

			// Their backend may fail meanwhile.
			pieces = c.fromClient(big(8)).Fragments(pieceSize)
			step("the first one", pieces[0], "sent")
			s := c.service(8080)
			s.Backends[0].Failed = true
			apply(t, d, s)
			step("a later one after the backend's failure", pieces[1], "early_fragment")
		})
	}
}

// A dry run of fragments remembers nothing and takes no identification.
func TestNATFragmentsDry(t *testing.T) {
	d := newFragmentNAT(t)
	c := natCases[1]
	c.opened(t, d, clientPort)
	pieces := c.fromClient(big(3)).Fragments(pieceSize)
	before := rest[uint32](t, d.objects.FragmentIds)
	if got := runDry(t, d, pieces[0]); got.verdict != xdpTX {
		t.Fatalf("verdict %d", got.verdict)
	}
	if after := rest[uint32](t, d.objects.FragmentIds); after != before {
		t.Errorf("%d counters of identifications are in use, want %d", after, before)
	}
	if got := try(t, d, pieces[1]); got.Outcome != "early_fragment" {
		t.Errorf("a later one after a dry run of the first: %s", got.Outcome)
	}
}
