package loader

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// Every packet of a nat flow is translated both ways, and otherwise left alone.
func TestNATPackets(t *testing.T) {
	tests := []struct {
		name    string
		changes []change
		reply   bool
		outcome string
	}{
		{"data", nil, false, "sent"},
		{"odd payload", []change{payload("x")}, false, "sent"},
		{"no payload", []change{payload("")}, false, "sent"},
		{"ip options", []change{func(f *testenv.Frame) { f.IPOptions = []byte{7, 7, 4, 0, 0, 0, 0, 1} }}, false, "sent"},
		{"tcp options", []change{func(f *testenv.Frame) { f.TCPOptions = []byte{1, 1, 1, 0} }}, false, "sent"},
		{"full frame", []change{func(f *testenv.Frame) { f.Payload = make([]byte, 1460) }}, false, "sent"},
		{"time to live 2", []change{ttl(2)}, false, "sent"},
		{"time to live 255", []change{ttl(255)}, false, "sent"},
		{"time to live 1", []change{ttl(1)}, false, "ttl"},
		{"one tag", []change{vlans(100)}, false, "sent"},
		{"two tags", []change{vlans(100, 200)}, false, "sent"},
		{"another client port", []change{func(f *testenv.Frame) { f.Src = netip.AddrPortFrom(clientIP, 40001) }}, false, "no_flow"},
		{"another client address", []change{func(f *testenv.Frame) { f.Src = netip.MustParseAddrPort("198.51.100.8:40000") }}, false, "no_flow"},
		{"another service of the vip", []change{port(81)}, false, "no_flow"},
		{"a port that is no service", []change{port(82)}, false, "no_service"},
		{"later fragment", []change{func(f *testenv.Frame) { f.FragOffset = 1480 }}, false, "early_fragment"},
		{"icmp", []change{func(f *testenv.Frame) { f.Protocol = testenv.ProtocolICMP }}, false, "protocol"},

		{"reply", nil, true, "sent"},
		{"reply, odd payload", []change{payload("xyz")}, true, "sent"},
		{"reply, time to live 2", []change{ttl(2)}, true, "sent"},
		{"reply, time to live 1", []change{ttl(1)}, true, "ttl"},
		{"reply, tagged", []change{vlans(7)}, true, "sent"},
		{"reply, later fragment", []change{func(f *testenv.Frame) { f.FragOffset = 1480 }}, true, "early_fragment"},
		{"reply of another address", []change{func(f *testenv.Frame) { f.Src = netip.MustParseAddrPort("192.0.2.12:8080") }}, true, "no_service"},
		{"reply from another port", []change{func(f *testenv.Frame) { f.Src = netip.MustParseAddrPort("192.0.2.11:8081") }}, true, "no_service"},
		{"reply to a port without a flow", []change{func(f *testenv.Frame) {
			f.Dst = netip.AddrPortFrom(vipIP, f.Dst.Port()^1)
		}}, true, "no_service"},
		{"reply to another nic", []change{toMAC("02:00:00:00:00:09")}, true, "other_mac"},
	}
	d := newDatapath(t,
		service("other", lb.NAT, 81, backends(1, 8081)),
		service("web", lb.NAT, 80, backends(1, 8080)))
	c := openConn(t, d, clientPort)
	var lastTags []uint16 // of the client's last packet
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			in := c.fromClient(testenv.ACK, "hello")
			if tc.reply {
				in = c.fromBackend(testenv.ACK, "hello")
			}
			for _, change := range tc.changes {
				change(&in)
			}
			got := try(t, d, in.Bytes())
			if got.Outcome != tc.outcome {
				t.Fatalf("outcome %s, want %s", got.Outcome, tc.outcome)
			}
			if tc.outcome != "sent" {
				return
			}
			want := parse(t, in.Bytes())
			want.SrcMAC, want.VLANs = hardware(nicMAC), nil
			want.TTL--
			if tc.reply {
				want.DstMAC, want.Src, want.Dst = hardware(clientMAC), vipPort, clientPort
				want.VLANs = lastTags
			} else {
				want.DstMAC, want.Src, want.Dst = hardware(backendMAC(1)), c.source, netip.MustParseAddrPort("192.0.2.11:8080")
				lastTags = in.VLANs
			}
			if diff := cmp.Diff(want, got.Frame, equateAddrs); diff != "" {
				t.Errorf("frame (-want +got):\n%s", diff)
			}
		})
	}
}

func payload(s string) change { return func(f *testenv.Frame) { f.Payload = []byte(s) } }

// A SYN opens a flow only if it means it.
func TestNATOpens(t *testing.T) {
	tests := []struct {
		flags testenv.TCPFlags
		want  string
	}{
		{testenv.SYN, "sent"},
		{testenv.SYN | testenv.PSH, "sent"},
		{testenv.SYN | testenv.ACK, "no_flow"},
		{testenv.SYN | testenv.RST, "no_flow"},
		{testenv.SYN | testenv.FIN, "no_flow"},
		{testenv.ACK, "no_flow"},
		{testenv.FIN | testenv.ACK, "no_flow"},
		{testenv.RST, "no_flow"},
		{0, "no_flow"},
	}
	d := newDatapath(t, service("web", lb.NAT, 80, backends(1, 80)))
	for i, tc := range tests {
		t.Run(tc.flags.String(), func(t *testing.T) {
			c := newConn(d, netip.AddrPortFrom(clientIP, uint16(1000+i)))
			if got := c.forward(t, tc.flags, ""); got.Outcome != tc.want {
				t.Errorf("outcome %s, want %s", got.Outcome, tc.want)
			}
		})
	}
	t.Run("not with its last hop used up", func(t *testing.T) {
		c := newConn(d, netip.AddrPortFrom(clientIP, 2000))
		c.changes = []change{ttl(1)}
		before := viewPair(t, d, 1).count(lbNatStateNAT_SYN_SENT)
		if got := c.forward(t, testenv.SYN, ""); got.Outcome != "ttl" {
			t.Errorf("outcome %s, want ttl", got.Outcome)
		}
		if got := viewPair(t, d, 1).count(lbNatStateNAT_SYN_SENT); got != before {
			t.Errorf("%d handshakes are open, want %d", got, before)
		}
	})
}

func TestCounters(t *testing.T) {
	tests := []struct {
		name    string
		forward lb.Forward
		want    BackendStats
	}{
		// SYN 40 bytes, ACK 40, data 45 each.
		{"dsr", lb.DSR, BackendStats{Packets: 4, Bytes: 40 + 40 + 45 + 45, Flows: 1}},
		{"nat", lb.NAT, BackendStats{Packets: 4, Bytes: 40 + 40 + 45 + 45, Flows: 1, ReplyPackets: 3, ReplyBytes: 40 + 45 + 45}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			d := newDatapath(t, service("web", tc.forward, 80, backends(1, 80)))
			c := newConn(d, clientPort)
			c.mustForward(t, testenv.SYN, "")
			if tc.forward == lb.NAT {
				c.mustReply(t, testenv.SYN|testenv.ACK, "")
			}
			c.mustForward(t, testenv.ACK, "")
			for range 2 {
				c.mustForward(t, testenv.ACK, "hello")
				if tc.forward == lb.NAT {
					c.mustReply(t, testenv.ACK, "hello")
				}
			}
			if diff := cmp.Diff(tc.want, traffic(t, d), equateAddrs); diff != "" {
				t.Errorf("traffic (-want +got):\n%s", diff)
			}
			s := stats(t, d).Services[0]
			b := s.Backends[0]
			if got, want := []any{s.Name, s.Forward, b.Address, b.Slots, b.Alive}, []any{"web", tc.forward, backends(1, 80)[0].Address, lb.DefaultTableSize, true}; !cmp.Equal(got, want, equateAddrs) {
				t.Errorf("got %v, want %v", got, want)
			}
			all, err := d.Traffic()
			want := map[ServiceBackend]Traffic{{"web", b.Address}: {tc.want.Packets, tc.want.Bytes, tc.want.Flows, tc.want.ReplyPackets, tc.want.ReplyBytes}}
			if diff := cmp.Diff(want, all, equateAddrs); diff != "" || err != nil {
				t.Errorf("traffic of all, error %v (-want +got):\n%s", err, diff)
			}
		})
	}
}

// A number that is used again starts at zero.
func TestCountersStartAtZero(t *testing.T) {
	d := newDatapath(t, service("web", lb.DSR, 80, backends(1, 80)))
	try(t, d, toVIP().Bytes())
	bs := backends(1, 80)
	bs[0].Failed = true
	apply(t, d, service("web", lb.DSR, 80, bs))
	try(t, d, toVIP().Bytes())
	if got := losses(t, d).NoBackend; got != 1 {
		t.Fatalf("%d packets lost, want 1", got)
	}
	if got := traffic(t, d).Packets; got != 1 {
		t.Fatalf("%d packets forwarded, want 1: a failure must not reset the counter", got)
	}
	apply(t, d)
	apply(t, d, service("other", lb.DSR, 81, backends(1, 81)))
	if diff := cmp.Diff(Losses{}, losses(t, d)); diff != "" {
		t.Errorf("losses (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(BackendStats{}, traffic(t, d), equateAddrs); diff != "" {
		t.Errorf("traffic (-want +got):\n%s", diff)
	}
}
