package loader

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"regexp"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// An explained is a data plane with services of every mode and flows of every state.
type explained struct {
	d     *Datapath
	moved []dsrClient // whose slots backend 1 has lost to backend 2
	kept  dsrClient   // one whose slot has not changed
	nat   *conn       // established
	udp   netip.AddrPort
}

// The services of an explained, by port of the VIP.
const (
	worldDNS    = 53
	worldDSR    = 80
	worldTunnel = 81
	worldNAT    = 82
	worldRules  = 84
	worldLimit  = 85
	worldDown   = 86
	worldFull   = 88 // nat, without a free port
	worldNoHop  = 89
	worldSIP    = 5060
)

var denied = netip.MustParseAddr("203.0.113.9")

func worldServices(first int) []lb.ServiceState {
	udp := func(s lb.ServiceState, affinity lb.Affinity) lb.ServiceState {
		s.Protocol, s.Affinity = lb.UDP, affinity
		return s
	}
	at := func(name string, forward lb.Forward, port uint16, bs []lb.Backend) lb.ServiceState {
		s := service(name, forward, port, bs)
		s.TableSize, s.TrackWindow, s.DrainTimeout = 1009, testWindow, time.Hour
		return s
	}
	web := at("web", lb.DSR, worldDSR, weights(first, 1))
	tunnel := tunnelService(v4Backend, 1500)
	tunnel.Addresses = []lb.Frontend{
		lb.FrontendOf(netip.AddrPortFrom(vipIP, worldTunnel)), lb.FrontendOf(netip.AddrPortFrom(v6VIP.Addr(), worldTunnel)),
	}
	nat6 := at("nat6", lb.NAT, worldNAT, backends(1, 80))
	nat6.Addresses = []lb.Frontend{lb.FrontendOf(netip.AddrPortFrom(v6VIP.Addr(), worldNAT))}
	nat6.SourceAddresses, nat6.Backends[0].Address = []netip.Addr{v6VIP.Addr()}, v6Backend
	rules := at("rules", lb.DSR, worldRules, backends(1, worldRules))
	rules.Rules = []lb.Rule{deny("203.0.113.0/24")}
	limit := at("limit", lb.NAT, worldLimit, backends(1, 8085))
	limit.SourceLimit = lb.SourceLimit{Rate: 1, Burst: 1}
	noHop := at("nohop", lb.DSR, worldNoHop, backends(1, worldNoHop))
	noHop.Backends[0].NextHop = lb.NextHop{}
	return []lb.ServiceState{
		udp(at("dns", lb.DSR, worldDNS, backends(2, worldDNS)), lb.AffinityNone), at("down", lb.DSR, worldDown, nil),
		at("full", lb.NAT, worldFull, backends(1, 8088)), limit, at("nat", lb.NAT, worldNAT, backends(2, 8080)), nat6, noHop, rules,
		udp(at("sip", lb.DSR, worldSIP, backends(2, worldSIP)), lb.AffinityFlow), tunnel,
		udp(at("udpnat", lb.NAT, worldNAT, backends(1, 8082)), lb.AffinityNone), web,
	}
}

func newWorld(t *testing.T) *explained {
	t.Helper()
	share := freeShare(t, 64)
	w := &explained{d: newDatapathWith(t, Options{MaxFlows: 10000, Ports: share}, natTimeouts, worldServices(1)...)}
	slotOf := func(c dsrClient) slot {
		number := w.d.state.service(w.d.state.VIPs[vipIP].Tables[tcpTable], worldDSR)
		return w.d.state.Slots[number][Slot(FlowHash(c.addr, vipPort, lb.TCP), 1009)]
	}
	first := slot(0)
	for _, c := range clients(w.d, 0, 64) {
		s := slotOf(c)
		if w.d.state.Backends[s.owner()].Address.Addr() == backendAddr(1) {
			w.moved, first = append(w.moved, c), s
		} else {
			w.kept = c
		}
	}
	apply(t, w.d, worldServices(0)...) // backend 1 of web drains
	if s := slotOf(w.moved[0]); s.state() != lbSlotStateSLOT_TRACKED || s.previous() != first.owner() {
		t.Fatalf("slot %v after backend %d was drained", s, first.owner())
	}
	w.moved[0].open(t) // pinned
	w.moved[1].syn(t)  // a handshake
	w.moved[2].data(t) // a straggler
	// The handshake is one that Maintain would drop, and the program still goes by.
	if err := eachFlow(w.d.objects.Handshakes, func(k lbFlowKey, pin lbPin) {
		pin.Seen -= uint32(2 * handshakeIdle / tick)
		if err := w.d.objects.Handshakes.Put(&k, &pin); err != nil {
			t.Error(err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	w.nat = newConn(w.d, clientPort)
	w.nat.service = netip.AddrPortFrom(vipIP, worldNAT)
	w.nat.open(t)
	for i := range share.Count() {
		c := newConn(w.d, clientAddr(1000+i))
		c.service = netip.AddrPortFrom(vipIP, worldFull)
		c.open(t)
	}
	w.udp = clientAddr(0)
	sip := toVIP(udp, to(netip.AddrPortFrom(vipIP, worldSIP)), func(f *testenv.Frame) { f.Src = w.udp })
	testenv.Eventually(t, 10*time.Second, "a second datagram to count", func() (bool, error) {
		send(t, w.d, sip.Bytes())
		return entries(t, w.d.objects.UdpFlows) == 1, nil
	})
	again := toVIP(udp, to(netip.AddrPortFrom(vipIP, worldSIP)), func(f *testenv.Frame) { f.Src = clientAddr(1) })
	send(t, w.d, again.Bytes())
	limited := toVIP(flags(testenv.SYN), port(worldLimit))
	send(t, w.d, limited.Bytes())
	// It stays too fast, however slow this machine is.
	var key, due []byte
	all := w.d.objects.SourceBuckets.Iterate()
	for all.Next(&key, &due) {
		binary.NativeEndian.PutUint64(due, binary.NativeEndian.Uint64(due)+uint64(time.Hour))
		if err := w.d.objects.SourceBuckets.Put(key, due); err != nil {
			t.Fatal(err)
		}
	}
	if err := all.Err(); err != nil || key == nil {
		t.Fatalf("the client that opens too fast is not remembered: %v", err)
	}
	return w
}

// A said is the part of an explanation that tells one case from another.
type said struct {
	Outcome, XDP string
	Service      string // its VIP's port
	Slot         string // state
	Found        Found
	Flow         string // kind, state
	Backend      netip.Addr
	Sent         string // with %v for the source port of nat
	Rule         string
	Port         bool // a source port would be taken
}

func saidOf(x Explanation) said {
	s := said{Outcome: x.Outcome, XDP: x.XDP, Found: x.Found}
	if x.Service != nil {
		s.Service = fmt.Sprint(x.Service.Addresses[0].Port())
	}
	if x.Slot != nil {
		s.Slot = x.Slot.State
	}
	if x.Flow != nil {
		s.Flow = fmt.Sprint(x.Flow.Kind, " ", x.Flow.State)
	}
	if x.Backend != nil {
		s.Backend = x.Backend.Address.Addr()
	}
	if x.Sent != nil {
		s.Sent = x.Sent.Protocol + " to " + x.Sent.Destination
	}
	if x.Rule != nil {
		s.Rule = fmt.Sprint(x.Rule.Prefix, " ", x.Rule.Allow)
	}
	s.Port = x.NewFlow != nil && x.NewFlow.Port != 0
	return s
}

func TestExplain(t *testing.T) {
	w := newWorld(t)
	tcp := func(from netip.AddrPort, port uint16, flags TCPFlags) Packet {
		return Packet{Source: from, Destination: netip.AddrPortFrom(vipIP, port), Protocol: lb.TCP, Flags: flags}
	}
	datagram := func(from netip.AddrPort, port uint16) Packet {
		return Packet{Source: from, Destination: netip.AddrPortFrom(vipIP, port), Protocol: lb.UDP}
	}
	over6 := func(p Packet) Packet {
		p.Source, p.Destination = v6Client, netip.AddrPortFrom(v6VIP.Addr(), p.Destination.Port())
		return p
	}
	long := func(p Packet, length int) Packet { p.Length = length; return p }
	stranger := clientAddr(5000)
	b1, b2, b6 := backendAddr(1), backendAddr(2), v6Backend.Addr()
	client := w.nat.client.String()
	hop := func(p Packet, mac [6]byte) Packet { p.MAC = &mac; return p }
	answer := Packet{Source: w.nat.backend, Destination: w.nat.source, Protocol: lb.TCP, Flags: TCPAck}
	sequence := func(p Packet, n uint32) Packet { p.Sequence = &n; return p }
	tests := []struct {
		name   string
		packet Packet
		want   said
	}{
		{"a clean slot", tcp(w.kept.addr, worldDSR, TCPAck), said{"sent", "XDP_TX", "80", "clean", FoundSlot, "", b2, "tcp to 192.0.2.100:80", "", false}},
		{"a SYN in a tracked slot", tcp(w.moved[3].addr, worldDSR, TCPSyn), said{"sent", "XDP_TX", "80", "tracked", NewHandshake, "", b2, "tcp to 192.0.2.100:80", "", false}},
		{"an older flow in a tracked slot", tcp(w.moved[3].addr, worldDSR, TCPAck), said{"sent", "XDP_TX", "80", "tracked", NewStraggler, "", b1, "tcp to 192.0.2.100:80", "", false}},
		{"a pinned flow", tcp(w.moved[0].addr, worldDSR, TCPAck|TCPPsh), said{"sent", "XDP_TX", "80", "tracked", FoundPinned, "pinned open", b2, "tcp to 192.0.2.100:80", "", false}},
		{"a straggler", tcp(w.moved[2].addr, worldDSR, TCPAck), said{"sent", "XDP_TX", "80", "tracked", FoundStraggler, "straggler open", b1, "tcp to 192.0.2.100:80", "", false}},
		{"a SYN that comes again", tcp(w.moved[1].addr, worldDSR, TCPSyn), said{"sent", "XDP_TX", "80", "tracked", FoundHandshake, "handshake ", b2, "tcp to 192.0.2.100:80", "", false}},
		{"what completes a handshake", tcp(w.moved[1].addr, worldDSR, TCPAck), said{"sent", "XDP_TX", "80", "tracked", FoundHandshakeDone, "handshake ", b2, "tcp to 192.0.2.100:80", "", false}},
		{"what goes on from a handshake", sequence(tcp(w.moved[1].addr, worldDSR, TCPAck), w.moved[1].isn+500), said{"sent", "XDP_TX", "80", "tracked", FoundHandshakeData, "handshake ", b2, "tcp to 192.0.2.100:80", "", false}},
		{"udp without affinity", datagram(clientAddr(3), worldDNS), said{"sent", "XDP_TX", "53", "clean", FoundSlot, "", owner(w.d, clientAddr(3), worldDNS), "udp to 192.0.2.100:53", "", false}},
		{"a new udp flow", datagram(stranger, worldSIP), said{"sent", "XDP_TX", "5060", "clean", NewUDP, "", owner(w.d, stranger, worldSIP), "udp to 192.0.2.100:5060", "", false}},
		{"a udp flow of one datagram", datagram(clientAddr(1), worldSIP), said{"sent", "XDP_TX", "5060", "clean", FoundUDPNew, "udp new", owner(w.d, clientAddr(1), worldSIP), "udp to 192.0.2.100:5060", "", false}},
		{"a lasting udp flow", datagram(w.udp, worldSIP), said{"sent", "XDP_TX", "5060", "clean", FoundUDP, "udp lasting", owner(w.d, w.udp, worldSIP), "udp to 192.0.2.100:5060", "", false}},
		{"a tunnel", tcp(stranger, worldTunnel, TCPSyn), said{"sent", "XDP_TX", "81", "clean", FoundSlot, "", b1, "ipip to 192.0.2.11", "", false}},
		{"a tunnel of ipv6", over6(tcp(stranger, worldTunnel, TCPSyn)), said{"sent", "XDP_TX", "81", "clean", FoundSlot, "", b1, "ipv6 to 192.0.2.11", "", false}},
		{"too long for a tunnel", long(tcp(stranger, worldTunnel, TCPAck), 1490), said{"answered", "XDP_TX", "81", "clean", FoundSlot, "", b1, "icmp to " + stranger.Addr().String(), "", false}},
		{"too long for a tunnel, ipv6", over6(long(tcp(stranger, worldTunnel, TCPAck), 1490)), said{"answered", "XDP_TX", "81", "clean", FoundSlot, "", b1, "icmpv6 to 2001:db8:1::7", "", false}},
		{"an established nat flow", tcp(w.nat.client, worldNAT, TCPAck), said{"sent", "XDP_TX", "82", "", FoundNAT, "nat established", w.nat.backend.Addr(), "tcp to " + w.nat.backend.String(), "", false}},
		{"a reply of nat", answer, said{"sent", "XDP_TX", "82", "", FoundReply, "nat established", w.nat.backend.Addr(), "tcp to " + client, "", false}},
		{"a new nat flow", tcp(stranger, worldNAT, TCPSyn), said{"sent", "XDP_TX", "82", "clean", NewNAT, "", owner(w.d, stranger, worldNAT), "tcp to " + owner(w.d, stranger, worldNAT).String() + ":8080", "", true}},
		{"a new nat flow of udp", datagram(stranger, worldNAT), said{"sent", "XDP_TX", "82", "clean", NewNAT, "", b1, "udp to 192.0.2.11:8082", "", true}},
		{"a new nat flow of ipv6", over6(tcp(stranger, worldNAT, TCPSyn)), said{"sent", "XDP_TX", "82", "clean", NewNAT, "", b6, "tcp to [2001:db8::11]:80", "", true}},
		{"nat without a flow", tcp(stranger, worldNAT, TCPAck), said{"no_flow", "XDP_PASS", "82", "", "", "", netip.Addr{}, "", "", false}},
		{"nat without a free port", tcp(stranger, worldFull, TCPSyn), said{"no_port", "XDP_DROP", "88", "clean", NewNAT, "", b1, "", "", false}},
		{"who is kept out", tcp(netip.AddrPortFrom(denied, 4000), worldRules, TCPSyn), said{"denied", "XDP_DROP", "84", "", "", "", netip.Addr{}, "", "203.0.113.0/24 false", false}},
		{"who is not kept out", tcp(stranger, worldRules, TCPSyn), said{"sent", "XDP_TX", "84", "clean", FoundSlot, "", b1, "tcp to 192.0.2.100:84", "invalid Prefix true", false}},
		{"who opens too fast", tcp(netip.AddrPortFrom(clientIP, 5), worldLimit, TCPSyn), said{"source_limit", "XDP_DROP", "85", "", "", "", netip.Addr{}, "", "", false}},
		{"no backend", tcp(stranger, worldDown, TCPSyn), said{"no_backend", "XDP_DROP", "86", "clean", FoundSlot, "", netip.Addr{}, "", "", false}},
		{"no next hop", tcp(stranger, worldNoHop, TCPSyn), said{"no_next_hop", "XDP_DROP", "89", "clean", FoundSlot, "", b1, "", "", false}},
		{"another MAC address", hop(tcp(stranger, worldDSR, TCPSyn), [6]byte{2, 9}), said{"other_mac", "XDP_PASS", "80", "", "", "", netip.Addr{}, "", "", false}},
		{"no service", tcp(stranger, 22, TCPSyn), said{"no_service", "XDP_PASS", "", "", "", "", netip.Addr{}, "", "", false}},
		{"no VIP", Packet{Source: stranger, Destination: netip.MustParseAddrPort("192.0.2.1:22"), Protocol: lb.TCP}, said{"not_vip", "XDP_PASS", "", "", "", "", netip.Addr{}, "", "", false}},
		{"an echo request", Packet{Source: clientPort, Destination: vipPort, Protocol: ICMP}, said{"protocol", "XDP_PASS", "", "", "", "", netip.Addr{}, "", "", false}},
		{"an echo request of ipv6", over6(Packet{Source: clientPort, Destination: vipPort, Protocol: ICMP}), said{"protocol", "XDP_PASS", "", "", "", "", netip.Addr{}, "", "", false}},
	}
	e := explainerOf(t, w.d)
	before := fingerprint(t, w.d)
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			x, err := e.Explain(tc.packet)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, saidOf(x), equateAddrs); diff != "" {
				t.Errorf("explanation (-want +got):\n%s", diff)
			}
			frame := tc.packet.frame(x.MAC, e.sequence(tc.packet))
			if err := testenv.VerifyChecksums(frame); err != nil {
				t.Errorf("the packet that was made up: %v", err)
			}
			if x.Outcome != OutcomeSent && x.Outcome != OutcomeAnswered && x.Meaning == "" {
				t.Errorf("outcome %s is not explained", x.Outcome)
			}
		})
	}
	if diff := cmp.Diff(before, fingerprint(t, w.d)); diff != "" {
		t.Errorf("explaining has left a trace (-before +after):\n%s", diff)
	}
	// What the program then does is what was said, one by one, since it writes.
	for _, tc := range tests {
		t.Run("in earnest: "+tc.name, func(t *testing.T) {
			x, err := e.Explain(tc.packet)
			if err != nil {
				t.Fatal(err)
			}
			verdict, out := send(t, w.d, tc.packet.frame(x.MAC, e.sequence(tc.packet)))
			if xdpVerdicts[verdict] != x.XDP {
				t.Errorf("verdict %s, explained as %s", xdpVerdicts[verdict], x.XDP)
			}
			if x.Sent == nil {
				return
			}
			link, headers, err := readFrame(out)
			if err != nil {
				t.Fatal(err)
			}
			link.Interface = x.NextHop.Interface
			if diff := cmp.Diff(x.NextHop, &link) + cmp.Diff(x.Sent, &headers); diff != "" {
				t.Errorf("how it left (-explained +done):\n%s", diff)
			}
		})
	}
	if cmp.Equal(before, fingerprint(t, w.d)) {
		t.Error("the packets themselves have left no trace either: the comparison sees nothing")
	}
}

// owner is the backend that owns the slot of a client's flow.
func owner(d *Datapath, client netip.AddrPort, port uint16) netip.Addr {
	s := d.state
	for _, table := range s.VIPs[vipIP].Tables {
		number := s.service(table, port)
		e, ok := s.Services[number]
		if !ok || port == worldNAT && e.protocol() == lb.UDP {
			continue
		}
		slot := s.Slots[number][Slot(e.hash(client, netip.AddrPortFrom(vipIP, port)), e.Count)]
		return s.Backends[slot.owner()].Address.Addr()
	}
	return netip.Addr{}
}

// A packet that can't be built is an error, and so is an interface that the program
// is not on.
func TestExplainRefuses(t *testing.T) {
	for _, tc := range []struct {
		name   string
		packet Packet
		want   string
	}{
		{"two families", Packet{Source: clientPort, Destination: v6VIP, Protocol: lb.TCP}, "two families"},
		{"no source", Packet{Destination: vipPort, Protocol: lb.TCP}, "source and a destination"},
		{"a protocol that is none", Packet{Source: clientPort, Destination: vipPort, Protocol: 132}, "neither tcp, udp nor icmp"},
		{"too short", Packet{Source: clientPort, Destination: vipPort, Protocol: lb.TCP, Length: 39}, "want 40 to"},
		{"too long", Packet{Source: clientPort, Destination: vipPort, Protocol: lb.UDP, Length: 9000}, "want 28 to"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := tc.packet.Check(); err == nil || !regexp.MustCompile(tc.want).MatchString(err.Error()) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}

// Where another version's program forwards, this one's says what it would do, and that
// it is not the same.
func TestExplainOfAnotherVersion(t *testing.T) {
	d := newDatapath(t, service("web", lb.NAT, 80, backends(1, 8080)))
	c := openConn(t, d, clientPort)
	e := &Explainer{
		pinned: &Pinned{maps: *d.objects, tables: d.tables, state: d.state},
		nic:    lbInterface{Index: nicIndex, Mac: nicMAC}, name: "lo",
	}
	if err := e.load(decapProgram(t).program); err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	x, err := e.Explain(Packet{Source: c.client, Destination: vipPort, Protocol: lb.TCP, Flags: TCPAck})
	if err != nil {
		t.Fatal(err)
	}
	if x.Outcome != OutcomeSent || x.Found != FoundNAT || x.Sent.Source != c.source.String() {
		t.Errorf("a packet of an open connection: %+v", x)
	}
	if len(x.Notes) != 1 || !regexp.MustCompile("another version").MatchString(x.Notes[0]) {
		t.Errorf("notes %q, want one that says so", x.Notes)
	}
}

// Random packets of random clients, while backends change: a dry run says what the
// program then does. That every send compares the two is what this test is for.
func TestDryRunsAgree(t *testing.T) {
	w := newWorld(t)
	r := rand.New(rand.NewPCG(11, 12))
	ports := []uint16{worldDNS, worldDSR, worldDSR, worldTunnel, worldNAT, worldNAT, worldRules, worldDown, worldFull, worldNoHop, worldSIP, 22}
	var left []testenv.Frame // of nat, which a backend may answer to
	sent := 0
	for i := range 4000 {
		if i%500 == 499 {
			apply(t, w.d, worldServices(r.IntN(3))...)
		}
		f := toVIP(port(ports[r.IntN(len(ports))]), func(f *testenv.Frame) {
			f.Src, f.Flags = clientAddr(r.IntN(150)), testenv.TCPFlags(r.IntN(32))
			f.Seq, f.Ack = 1000+uint32(r.IntN(3)), uint32(backendISN+r.IntN(2))
			f.DontFragment = true
			if r.IntN(3) == 0 {
				f.Protocol = testenv.ProtocolUDP
			}
			if r.IntN(4) == 0 {
				f.Src, f.Dst = netip.AddrPortFrom(v6Client.Addr(), f.Src.Port()), netip.AddrPortFrom(v6VIP.Addr(), f.Dst.Port())
			}
		})
		if len(left) > 0 && r.IntN(3) == 0 {
			// The backend's side, of any flow so far.
			was := left[r.IntN(len(left))]
			f.Src, f.Dst, f.Protocol, f.Seq = was.Dst, was.Src, was.Protocol, backendISN-1+uint32(r.IntN(2))
		}
		verdict, out := send(t, w.d, f.Bytes())
		if t.Failed() {
			t.Fatalf("packet %d: %+v", i, f)
		}
		if verdict != xdpTX {
			continue
		}
		sent++
		if out := parse(t, out); out.Dst != f.Dst && (out.Protocol == testenv.ProtocolUDP || out.Protocol == testenv.ProtocolTCP) && out.Src.Addr() != out.Dst.Addr() {
			left = append(left, out)
		}
	}
	if sent < 1000 || len(left) < 100 {
		t.Errorf("of 4000 packets %d left, %d of them by nat: too few to prove anything", sent, len(left))
	}
}

// The meanings of outcomes are those of the document.
func TestOutcomesAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../bpf/DATAPATH.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]Meaning{}
	for _, row := range regexp.MustCompile("(?m)^\\| (`[a-z_`, ]+`) \\| (?:pass|drop|answer) \\| ([^|]+) \\| ([^|]+) \\|$").FindAllStringSubmatch(string(text), -1) {
		for _, name := range regexp.MustCompile("[a-z_]+").FindAllString(row[1], -1) {
			documented[name] = Meaning{row[2], row[3]}
		}
	}
	if diff := cmp.Diff(documented, OutcomeMeanings); diff != "" {
		t.Errorf("outcomes (-DATAPATH.md +OutcomeMeanings):\n%s", diff)
	}
	for _, name := range outcomeNames {
		if _, ok := OutcomeMeanings[name]; !ok {
			t.Errorf("outcome %s has no meaning", name)
		}
	}
}
