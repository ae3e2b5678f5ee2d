package loader

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

// testTable deals the slots out in turns, by weight: easy to tell in one's head.
func testTable(size int, bs []lb.Backend) ([]int32, error) {
	var turns []int32
	for i, b := range bs {
		for range b.Weight {
			turns = append(turns, int32(i))
		}
	}
	slots := make([]int32, size)
	for i := range slots {
		slots[i] = -1
		if len(turns) > 0 {
			slots[i] = turns[i%len(turns)]
		}
	}
	return slots, nil
}

// snapshot reads a text, a service a line:
//
//	NAME MODE ADDRESS,... [from SOURCE,...] [slots N]: BACKEND...
//
// Mode kept is nat that keeps the ports.
//
// A backend is the last byte of its address, with port 80, and *WEIGHT, ! for
// failed, and >INTERFACE for its next hop where they are not 1, healthy and none.
func snapshot(t *testing.T, text string) lb.Snapshot {
	t.Helper()
	var s lb.Snapshot
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		head, tail, _ := strings.Cut(line, ": ")
		words := strings.Fields(strings.TrimSuffix(head, ":"))
		service := lb.ServiceState{Service: lb.Service{
			Name: words[0], Protocol: lb.TCP, TableSize: 6, Forward: map[string]lb.Forward{"dsr": lb.DSR, "nat": lb.NAT, "kept": lb.NAT, "dnat": lb.DNAT}[words[1]],
			KeepsPorts: words[1] == "kept",
		}}
		for a := range strings.SplitSeq(words[2], ",") {
			service.Addresses = append(service.Addresses, lb.FrontendOf(netip.MustParseAddrPort(a)))
		}
		for i := 3; i < len(words); i += 2 {
			switch words[i] {
			case "from":
				for a := range strings.SplitSeq(words[i+1], ",") {
					service.SourceAddresses = append(service.SourceAddresses, netip.MustParseAddr(a))
				}
			case "slots":
				service.TableSize = number(t, words[i+1])
			}
		}
		for word := range strings.FieldsSeq(tail) {
			service.Backends = append(service.Backends, parseBackend(t, word))
		}
		s.Services = append(s.Services, service)
	}
	return s
}

func parseBackend(t *testing.T, word string) lb.Backend {
	t.Helper()
	word, hop, _ := strings.Cut(word, ">")
	word, failed := strings.CutSuffix(word, "!")
	last, weight, ok := strings.Cut(word, "*")
	b := lb.Backend{Weight: 1, Failed: failed}
	if ok {
		b.Weight = number(t, weight)
	}
	if hop != "" {
		b.NextHop = lb.NextHop{Interface: number(t, hop), Destination: backendMAC(number(t, last)), Source: nicMAC}
	}
	b.Address = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(number(t, last))}), 80)
	return b
}

func number(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

var testLimits = limits{now: 1000 * time.Second, slots: 1000, share: lb.PortRange{First: 1024, Last: 65535}}

func mustPlan(t *testing.T, have *State, want lb.Snapshot) ([]string, *State) {
	t.Helper()
	steps, next, err := plan(have, want, testLimits, testTable)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, s := range steps {
		lines = append(lines, place1(s.String()))
	}
	return lines, next
}

// place1 hides what depends on hashes alone.
func place1(s string) string {
	words := strings.Fields(s)
	for i := range words[:len(words)-1] {
		if words[i] == "place" {
			words[i+1] = "N"
		}
	}
	return strings.Join(words, " ")
}

func TestPlan(t *testing.T) {
	tests := []struct {
		name, have, want string
		steps            string
	}{
		{"nothing", "", "", ""},
		{"the first service", "", "web dsr 192.0.2.100:80: 11 12", `
			set vip 192.0.2.100 place N ports 1 source false
			set backend 1 192.0.2.11:80 of service 1 alive generation 1
			set backend 2 192.0.2.12:80 of service 1 alive generation 2
			set 6 slots of service 1
			set service 1 dsr slots 0+6
			set port 80 of table 1 to service 1`},
		{"the same again", "web dsr 192.0.2.100:80: 11 12", "web dsr 192.0.2.100:80: 11 12", ""},
		{"no backends", "", "web dsr 192.0.2.100:80:", `
			set vip 192.0.2.100 place N ports 1 source false
			set 6 slots of service 1
			set service 1 dsr slots 0+6
			set port 80 of table 1 to service 1`},
		{"a second port of a vip", "web dsr 192.0.2.100:80: 11", "tls dsr 192.0.2.100:443: 11\nweb dsr 192.0.2.100:80: 11", `
			set backend 2 192.0.2.11:80 of service 2 alive generation 2
			set 6 slots of service 2
			set service 2 dsr slots 6+6
			set port 443 of table 1 to service 2`},
		{"a service of two addresses", "", "web dsr 192.0.2.100:80,192.0.2.101:81: 11", `
			set vip 192.0.2.100 place N ports 1 source false
			set vip 192.0.2.101 place N ports 2 source false
			set backend 1 192.0.2.11:80 of service 1 alive generation 1
			set 6 slots of service 1
			set service 1 dsr slots 0+6
			set port 80 of table 1 to service 1
			set port 81 of table 2 to service 1`},
		{"a backend joins", "web dsr 192.0.2.100:80: 11", "web dsr 192.0.2.100:80: 11 12", `
			set backend 2 192.0.2.12:80 of service 1 alive generation 2
			set 3 slots of service 1`},
		{"a backend leaves", "web dsr 192.0.2.100:80: 11 12", "web dsr 192.0.2.100:80: 12", `
			set backend 1 192.0.2.11:80 of service 1 alive leaving generation 1
			set 3 slots of service 1`},
		{"a backend fails", "web dsr 192.0.2.100:80: 11 12", "web dsr 192.0.2.100:80: 11! 12", `
			set 3 slots of service 1
			set backend 1 192.0.2.11:80 of service 1 failed generation 3`},
		{"a backend is back", "web dsr 192.0.2.100:80: 11! 12", "web dsr 192.0.2.100:80: 11 12", `
			set backend 1 192.0.2.11:80 of service 1 alive generation 1
			set 3 slots of service 1`},
		{"the last backend fails", "web dsr 192.0.2.100:80: 11", "web dsr 192.0.2.100:80: 11!", `
			set 6 slots of service 1
			set backend 1 192.0.2.11:80 of service 1 failed generation 2`},
		{"a weight changes", "web dsr 192.0.2.100:80: 11*1 12*1", "web dsr 192.0.2.100:80: 11*2 12*1", `
			set 3 slots of service 1`},
		{"a weight of 0", "web dsr 192.0.2.100:80: 11 12", "web dsr 192.0.2.100:80: 11*0 12", `
			set 3 slots of service 1`},
		{"a next hop is found", "web dsr 192.0.2.100:80: 11", "web dsr 192.0.2.100:80: 11>7", `
			set backend 1 192.0.2.11:80 of service 1 alive generation 1`},
		{"a next hop is lost", "web dsr 192.0.2.100:80: 11>7", "web dsr 192.0.2.100:80: 11", ""},
		{"one service of two goes", "a dsr 192.0.2.100:80: 11\nb dsr 192.0.2.101:80: 12", "b dsr 192.0.2.101:80: 12", `
			set port 80 of table 1 to service 0
			clear vip 192.0.2.100 place N
			clear service 1
			clear backend 1`},
		{"one port of two goes", "web dsr 192.0.2.100:80,192.0.2.100:81: 11", "web dsr 192.0.2.100:80: 11", `
			set port 81 of table 1 to service 0`},
		{"a service moves to another vip", "web dsr 192.0.2.100:80: 11", "web dsr 192.0.2.101:80: 11", `
			set vip 192.0.2.101 place N ports 2 source false
			set backend 2 192.0.2.11:80 of service 2 alive generation 2
			set 6 slots of service 2
			set service 2 dsr slots 6+6
			set port 80 of table 2 to service 2
			set port 80 of table 1 to service 0
			clear vip 192.0.2.100 place N
			clear service 1
			clear backend 1`},
		{"a service gets another vip as well", "web dsr 192.0.2.100:80: 11", "web dsr 192.0.2.100:80,192.0.2.101:80: 11", `
			set vip 192.0.2.101 place N ports 2 source false
			set port 80 of table 2 to service 1`},
		{"a service has another name", "web dsr 192.0.2.100:80: 11", "other dsr 192.0.2.100:80: 11", ""},
		{"two services swap their ports", "a dsr 192.0.2.100:80: 11\nb dsr 192.0.2.100:81: 12",
			"a dsr 192.0.2.100:81: 11\nb dsr 192.0.2.100:80: 12", `
			set backend 3 192.0.2.11:80 of service 2 alive generation 3
			set backend 2 192.0.2.12:80 of service 2 alive leaving generation 2
			set backend 4 192.0.2.12:80 of service 1 alive generation 4
			set backend 1 192.0.2.11:80 of service 1 alive leaving generation 1
			set 6 slots of service 2
			set 6 slots of service 1`},
		{"another table size", "web dsr 192.0.2.100:80: 11", "web dsr 192.0.2.100:80 slots 8: 11", `
			set backend 2 192.0.2.11:80 of service 2 alive generation 2
			set 8 slots of service 2
			set service 2 dsr slots 6+8
			set port 80 of table 1 to service 2
			clear service 1
			clear backend 1`},

		{"nat", "", "web nat 192.0.2.100:80 from 192.0.2.100: 11 12", `
			set vip 192.0.2.100 place N ports 1 source true
			add pair 1 from 192.0.2.100 to 192.0.2.11:80 ports 1024-65535
			set choices 0 to pairs [1]
			set backend 1 192.0.2.11:80 of service 1 alive generation 1
			add pair 2 from 192.0.2.100 to 192.0.2.12:80 ports 1024-65535
			set choices 1 to pairs [2]
			set backend 2 192.0.2.12:80 of service 1 alive generation 2
			set 6 slots of service 1
			set service 1 nat slots 0+6
			set port 80 of table 1 to service 1`},
		{"nat from an address of its own", "", "web nat 192.0.2.100:80 from 192.0.2.101: 11", `
			set vip 192.0.2.100 place N ports 1 source false
			set vip 192.0.2.101 place N ports 0 source true
			add pair 1 from 192.0.2.101 to 192.0.2.11:80 ports 1024-65535
			set choices 0 to pairs [1]
			set backend 1 192.0.2.11:80 of service 1 alive generation 1
			set 6 slots of service 1
			set service 1 nat slots 0+6
			set port 80 of table 1 to service 1`},
		{"two nat services on one backend", "a nat 192.0.2.100:80 from 192.0.2.100: 11",
			"a nat 192.0.2.100:80 from 192.0.2.100: 11\nb nat 192.0.2.100:81 from 192.0.2.100: 11", `
			set choices 1 to pairs [1]
			set backend 2 192.0.2.11:80 of service 2 alive generation 2
			set 6 slots of service 2
			set service 2 nat slots 6+6
			set port 81 of table 1 to service 2`},
		{"one of two nat services on one backend goes",
			"a nat 192.0.2.100:80 from 192.0.2.100: 11\nb nat 192.0.2.100:81 from 192.0.2.100: 11",
			"a nat 192.0.2.100:80 from 192.0.2.100: 11", `
			set port 81 of table 1 to service 0
			clear service 2
			clear backend 2`},
		{"another source address", "web nat 192.0.2.100:80 from 192.0.2.100: 11",
			"web nat 192.0.2.100:80 from 192.0.2.100,192.0.2.101: 11", `
			set vip 192.0.2.101 place N ports 0 source true
			add pair 2 from 192.0.2.101 to 192.0.2.11:80 ports 1024-65535
			set choices 1 to pairs [1 2]
			set backend 1 192.0.2.11:80 of service 1 alive generation 1`},
		{"a nat backend that leaves keeps its pair beside a service with the same one",
			"a nat 192.0.2.100:80 from 192.0.2.100: 11 12", "a nat 192.0.2.100:80 from 192.0.2.100: 12\nb nat 192.0.2.100:81 from 192.0.2.100: 11", `
			set backend 1 192.0.2.11:80 of service 1 alive leaving generation 1
			set choices 2 to pairs [1]
			set backend 3 192.0.2.11:80 of service 2 alive generation 3
			set 3 slots of service 1
			set 6 slots of service 2
			set service 2 nat slots 6+6
			set port 81 of table 1 to service 2`},
		{"not beside one that has all ports of the server from the same address",
			"a nat 192.0.2.100:80 from 192.0.2.100: 11 12", "a nat 192.0.2.100:80 from 192.0.2.100: 12\nb kept 192.0.2.101:80,192.0.2.101:81 from 192.0.2.100: 11", `
			set vip 192.0.2.101 place N ports 2 source false
			add pair 3 from 192.0.2.100 to 192.0.2.11:0 ports 1024-65535
			set choices 2 to pairs [3]
			set backend 3 192.0.2.11:80 of service 2 alive generation 3
			set 3 slots of service 1
			set 6 slots of service 2
			set service 2 nat slots 6+6
			set ports 80-81 of table 2 to service 2
			clear backend 1: what is left of the connections of service a with 192.0.2.11:80 breaks: service b sends to that server from 192.0.2.100, too, and one of the two keeps the ports: to keep them give that one source_addresses of its own, or add it when they are over
			remove pair 1 from 192.0.2.100 to 192.0.2.11:80`},
		{"nor the other way round",
			"b kept 192.0.2.101:80,192.0.2.101:81 from 192.0.2.100: 11", "a nat 192.0.2.100:80 from 192.0.2.100: 11\nb kept 192.0.2.101:80,192.0.2.101:81 from 192.0.2.100:", `
			set vip 192.0.2.100 place N ports 2 source true
			add pair 2 from 192.0.2.100 to 192.0.2.11:80 ports 1024-65535
			set choices 1 to pairs [2]
			set backend 2 192.0.2.11:80 of service 2 alive generation 2
			set 6 slots of service 2
			set 6 slots of service 1
			set service 2 nat slots 6+6
			set port 80 of table 2 to service 2
			clear backend 1: what is left of the connections of service b with 192.0.2.11:80 breaks: service a sends to that server from 192.0.2.100, too, and one of the two keeps the ports: to keep them give that one source_addresses of its own, or add it when they are over
			remove pair 1 from 192.0.2.100 to 192.0.2.11:0`},
		{"beside one that has them from another address, or another server's",
			"a nat 192.0.2.100:80 from 192.0.2.100: 11 12", "a nat 192.0.2.100:80 from 192.0.2.100: 12\nb kept 192.0.2.101:80,192.0.2.101:81 from 192.0.2.101: 11\nc kept 192.0.2.102:80,192.0.2.102:81 from 192.0.2.100: 13", `
			set vip 192.0.2.101 place N ports 2 source true
			set vip 192.0.2.102 place N ports 3 source false
			set backend 1 192.0.2.11:80 of service 1 alive leaving generation 1
			add pair 3 from 192.0.2.101 to 192.0.2.11:0 ports 1024-65535
			set choices 2 to pairs [3]
			set backend 3 192.0.2.11:80 of service 2 alive generation 3
			add pair 4 from 192.0.2.100 to 192.0.2.13:0 ports 1024-65535
			set choices 3 to pairs [4]
			set backend 4 192.0.2.13:80 of service 3 alive generation 4
			set 3 slots of service 1
			set 6 slots of service 2
			set 6 slots of service 3
			set service 2 nat slots 6+6
			set service 3 nat slots 12+6
			set ports 80-81 of table 2 to service 2
			set ports 80-81 of table 3 to service 3`},
		{"nat goes", "web nat 192.0.2.100:80 from 192.0.2.101: 11", "", `
			set port 80 of table 1 to service 0
			clear vip 192.0.2.100 place N
			clear vip 192.0.2.101 place N
			clear service 1
			clear backend 1
			remove pair 1 from 192.0.2.101 to 192.0.2.11:80`},
		{"nat becomes dsr", "web nat 192.0.2.100:80 from 192.0.2.100: 11", "web dsr 192.0.2.100:80: 11", `
			set backend 2 192.0.2.11:80 of service 2 alive generation 2
			set 6 slots of service 2
			set service 2 dsr slots 6+6
			set port 80 of table 1 to service 2
			set vip 192.0.2.100 place N ports 1 source false
			clear service 1
			clear backend 1
			remove pair 1 from 192.0.2.100 to 192.0.2.11:80`},
		{"dsr becomes nat", "web dsr 192.0.2.100:80: 11", "web nat 192.0.2.100:80 from 192.0.2.100: 11", `
			set vip 192.0.2.100 place N ports 1 source true
			add pair 1 from 192.0.2.100 to 192.0.2.11:80 ports 1024-65535
			set choices 0 to pairs [1]
			set backend 2 192.0.2.11:80 of service 2 alive generation 2
			set 6 slots of service 2
			set service 2 nat slots 6+6
			set port 80 of table 1 to service 2
			clear service 1
			clear backend 1`},
		{"nat without source NAT", "", "web dnat 192.0.2.100:80: 11 12", `
			set vip 192.0.2.100 place N ports 1 source false
			set backend 1 192.0.2.11:80 of service 1 alive generation 1
			set backend 2 192.0.2.12:80 of service 1 alive generation 2
			take what comes from 192.0.2.11 tcp port 80 for replies of backend 1 from port 80
			take what comes from 192.0.2.12 tcp port 80 for replies of backend 2 from port 80
			look for replies
			set 6 slots of service 1
			set service 1 nat, source_nat: false slots 0+6
			set port 80 of table 1 to service 1`},
		{"the same to another port", "", "web dnat 192.0.2.100:8080: 11", `
			set vip 192.0.2.100 place N ports 1 source false
			set backend 1 192.0.2.11:80 of service 1 alive generation 1
			take what comes from 192.0.2.11 tcp port 80 for replies of backend 1 from port 8080
			look for replies
			set 6 slots of service 1
			set service 1 nat, source_nat: false slots 0+6
			set port 8080 of table 1 to service 1`},
		{"the same of several ports", "", "web dnat 192.0.2.100:80,192.0.2.100:443: 11", `
			set vip 192.0.2.100 place N ports 1 source false
			set backend 1 192.0.2.11:80 of service 1 alive generation 1
			take what comes from 192.0.2.11 tcp any port for replies of backend 1 from its own port
			look for replies
			set 6 slots of service 1
			set service 1 nat, source_nat: false slots 0+6
			set port 80 of table 1 to service 1
			set port 443 of table 1 to service 1`},
		{"it gets another port", "web dnat 192.0.2.100:80: 11", "web dnat 192.0.2.100:80,192.0.2.100:443: 11", `
			take what comes from 192.0.2.11 tcp any port for replies of backend 1 from its own port
			set service 1 nat, source_nat: false slots 0+6
			set port 443 of table 1 to service 1
			expect no replies from 192.0.2.11 tcp port 80`},
		{"a backend that fails may still reply", "web dnat 192.0.2.100:80: 11 12", "web dnat 192.0.2.100:80: 11! 12", `
			set 3 slots of service 1
			set backend 1 192.0.2.11:80 of service 1 failed generation 3`},
		{"so may one that leaves", "web dnat 192.0.2.100:80: 11 12", "web dnat 192.0.2.100:80: 12", `
			set backend 1 192.0.2.11:80 of service 1 alive leaving generation 1
			set 3 slots of service 1`},
		{"unless another service has it now", "a dnat 192.0.2.100:80: 11 12\nb dnat 192.0.2.101:80: 13",
			"a dnat 192.0.2.100:80: 12\nb dnat 192.0.2.101:80: 11 13", `
			set backend 4 192.0.2.11:80 of service 2 alive generation 4
			take what comes from 192.0.2.11 tcp port 80 for replies of backend 4 from port 80
			set 3 slots of service 1
			set 3 slots of service 2
			clear backend 1: what is left of the connections of service a with 192.0.2.11:80 breaks: what comes from there is taken for answers of service b: to keep them give that one another server or port, or add it when they are over`},
		{"its VIP changes", "web dnat 192.0.2.100:80: 11", "web dnat 192.0.2.101:80: 11", `
			set vip 192.0.2.101 place N ports 2 source false
			set backend 2 192.0.2.11:80 of service 2 alive generation 2
			take what comes from 192.0.2.11 tcp port 80 for replies of backend 2 from port 80
			set 6 slots of service 2
			set service 2 nat, source_nat: false slots 6+6
			set port 80 of table 2 to service 2
			set port 80 of table 1 to service 0
			clear vip 192.0.2.100 place N
			clear service 1
			clear backend 1`},
		{"it gets source NAT", "web dnat 192.0.2.100:80: 11", "web nat 192.0.2.100:80 from 192.0.2.100: 11", `
			set vip 192.0.2.100 place N ports 1 source true
			add pair 1 from 192.0.2.100 to 192.0.2.11:80 ports 1024-65535
			set choices 0 to pairs [1]
			set backend 2 192.0.2.11:80 of service 2 alive generation 2
			set 6 slots of service 2
			set service 2 nat slots 6+6
			set port 80 of table 1 to service 2
			clear service 1
			clear backend 1
			expect no replies from 192.0.2.11 tcp port 80
			look for no replies`},
		{"a nat backend fails", "web nat 192.0.2.100:80 from 192.0.2.100: 11 12", "web nat 192.0.2.100:80 from 192.0.2.100: 11! 12", `
			set 3 slots of service 1
			set backend 1 192.0.2.11:80 of service 1 failed generation 3`},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			_, have := mustPlan(t, newState(), snapshot(t, tc.have))
			kept := have.clone()
			got, next := mustPlan(t, have, snapshot(t, tc.want))
			var want []string
			for line := range strings.Lines(tc.steps) {
				if line = strings.TrimSpace(line); line != "" {
					want = append(want, line)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("steps (-want +got):\n%s", diff)
			}
			if diff := diffStates(kept, have); diff != "" {
				t.Errorf("planning has changed the state it started from (-before +after):\n%s", diff)
			}
			if again, _ := mustPlan(t, next, snapshot(t, tc.want)); len(again) != 0 {
				t.Errorf("planned again, there is more to do: %v", again)
			}
		})
	}
}

// A failed backend that comes back has its number, and a new generation.
func TestPlanGenerations(t *testing.T) {
	_, s := mustPlan(t, newState(), snapshot(t, "web dsr 192.0.2.100:80: 11 12"))
	var got []string
	for _, text := range []string{"11 12", "11! 12", "11! 12", "11 12", "12", "11 12", "11*0 12"} {
		_, s = mustPlan(t, s, snapshot(t, "web dsr 192.0.2.100:80: "+text))
		line := text + ":"
		for _, n := range []uint32{1, 2} {
			if b, ok := s.Backends[n]; ok {
				line += fmt.Sprintf(" %v generation %d", b.Address.Addr(), b.Generation)
			}
		}
		got = append(got, line)
	}
	want := []string{
		"11 12: 192.0.2.11 generation 1 192.0.2.12 generation 2",
		"11! 12: 192.0.2.11 generation 3 192.0.2.12 generation 2",
		"11! 12: 192.0.2.11 generation 3 192.0.2.12 generation 2",
		"11 12: 192.0.2.11 generation 3 192.0.2.12 generation 2",
		"12: 192.0.2.11 generation 3 192.0.2.12 generation 2",
		"11 12: 192.0.2.11 generation 3 192.0.2.12 generation 2",
		"11*0 12: 192.0.2.11 generation 3 192.0.2.12 generation 2",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("generations (-want +got):\n%s", diff)
	}
}

// Only the slots whose owner changes are written, with a window or without.
func TestPlanSlots(t *testing.T) {
	moved := func(owner, previous uint32) slot {
		return makeSlot(owner, previous, lbSlotStateSLOT_TRACKED).closing(testLimits.now + testWindow)
	}
	at := func(owner, _ uint32) slot { return makeSlot(owner, 0, lbSlotStateSLOT_CLEAN) }
	for _, tc := range []struct {
		name   string
		window time.Duration
		want   func(owner, previous uint32) slot
	}{
		{"a window", testWindow, moved},
		{"no window", 0, at},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, have := mustPlan(t, newState(), snapshot(t, "web dsr 192.0.2.100:80: 11 12"))
			next := snapshot(t, "web dsr 192.0.2.100:80: 11 12 13")
			next.Services[0].TrackWindow = tc.window
			steps, _, err := plan(have, next, testLimits, testTable)
			if err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(steps, func(s step) bool { _, ok := s.(setSlots); return ok })
			// 1 2 1 2 1 2 becomes 1 2 3 1 2 3.
			want := setSlots{Service: 1, First: 0, Changes: []slotChange{
				{2, tc.want(3, 1)}, {3, tc.want(1, 2)}, {4, tc.want(2, 1)}, {5, tc.want(3, 2)}}}
			if diff := cmp.Diff(step(want), steps[i]); diff != "" {
				t.Errorf("slots (-want +got):\n%s", diff)
			}
		})
	}
}
