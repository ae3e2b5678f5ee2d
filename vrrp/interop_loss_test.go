// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"bytes"
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// lose makes the network lose all advertisements that the namespace sends, until
// heal.
func (ns *namespace) lose() {
	ns.t.Helper()
	ns.nft(`table netdev lossy {
	chain out {
		type filter hook egress device "eth0" priority 0
		ip protocol 112 drop
		ip6 nexthdr 112 drop
	}
}`)
}

func (ns *namespace) heal() {
	ns.t.Helper()
	ns.nft("delete table netdev lossy")
}

// nft runs commands of nftables.
func (ns *namespace) nft(commands string) {
	ns.t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(commands)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := ns.run(cmd.Run); err != nil {
		ns.t.Fatalf("nft: %v\n%s", err, &out)
	}
}

func needNftables(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft: install nftables")
	}
}

// A mixedPair is a virtual router with sluice on one node and keepalived on the
// other.
type mixedPair struct {
	t          *testing.T
	cfg        Config // sluice's
	sluice     *namespace
	keepalived *namespace
	router     *Router
	peer       *keepalived
}

// mixedPairOf joins two nodes that are to speak a protocol. With sluiceLast sluice
// has the higher IPv4 address of the two.
func mixedPairOf(t *testing.T, p protocol, ours uint8, sluiceLast bool) *mixedPair {
	t.Helper()
	var a, b *namespace
	if p.sluice.v6() {
		a, b, _ = interopNodes(t)
	} else {
		a, b = cable(t) // no second of waiting for addresses
	}
	m := &mixedPair{t: t, cfg: p.sluice, sluice: a, keepalived: b}
	if sluiceLast {
		m.sluice, m.keepalived = b, a
	}
	m.cfg.Priority = ours
	return m
}

func (m *mixedPair) startSluice() {
	m.t.Helper()
	m.router, _ = m.sluice.start(m.cfg, m.t.TempDir())
}

func (m *mixedPair) startKeepalived(p protocol, state string, theirs uint8) {
	m.t.Helper()
	m.peer = m.keepalived.keepalived(p.config(state, theirs))
}

// has reports whether each of the two has all of the VIPs, or none where it is not
// to have them.
func (m *mixedPair) has(sluice, keepalived bool) bool {
	m.t.Helper()
	for _, vip := range m.cfg.Addresses {
		if m.sluice.has(vip.String()) != sluice || m.keepalived.has(vip.String()) != keepalived {
			return false
		}
	}
	return true
}

// Where the network loses the Active node's advertisements, both are Active; once
// it is mended, one of them is, without delay and for good. That it loses what a
// Backup does not send is no matter.
func TestInteropOneWayLoss(t *testing.T) {
	needKeepalived(t)
	needNftables(t)
	for _, p := range []protocol{
		v3protocol("ipv4", "", "192.0.2.2", "192.0.2.100/32"),
		v3protocol("ipv6", "", "", "fe80::100/64", "2001:db8::100/64"),
	} {
		for _, ours := range []uint8{100, 99} {
			t.Run(fmt.Sprintf("%s, sluice has priority %d", p.name, ours), func(t *testing.T) {
				t.Parallel()
				oneWayLoss(t, p, ours)
			})
		}
	}
}

func oneWayLoss(t *testing.T, p protocol, ours uint8) {
	m := mixedPairOf(t, p, ours, false)
	first := ours == 100 // sluice is to be Active
	holds := func() bool { return m.has(first, !first) }
	holder, other := m.sluice, m.keepalived
	if first {
		m.startSluice()
		eventually(t, "sluice has the vip", holds)
		m.startKeepalived(p, "BACKUP", 99)
		m.peer.becameBackup()
	} else {
		holder, other = other, holder
		m.startKeepalived(p, "MASTER", 100)
		eventually(t, "keepalived has the vip", holds)
		m.startSluice()
		eventually(t, "sluice has heard keepalived", func() bool { return m.router.Status().Received > 0 })
	}

	other.lose()
	always(t, "one has the vip while the other one cannot be heard", 5*m.cfg.Interval, holds)
	other.heal()

	holder.lose()
	eventually(t, "both have the vip while the first one is not heard", func() bool { return m.has(true, true) })
	holder.heal()
	eventually(t, "one has the vip again", holds)
	always(t, "one has the vip", 10*m.cfg.Interval, holds)
	want := Backup
	if first {
		want = Active
	}
	if s := m.router.Status(); s.State != want || len(s.Dropped) > 0 {
		t.Errorf("sluice is %v and has dropped %v, want %v and nothing", s.State, s.Dropped, want)
	}
}

// With equal priorities nobody takes the VIP from the other one; after a time in
// which neither has heard the other, the higher address keeps it (RFC 9568, 6.4.3).
func TestInteropEqualPriorities(t *testing.T) {
	needKeepalived(t)
	needNftables(t)
	for _, sluiceLast := range []bool{true, false} {
		for _, sluiceFirst := range []bool{true, false} {
			name := fmt.Sprintf("sluice has the higher address: %v, and starts first: %v", sluiceLast, sluiceFirst)
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				equalPriorities(t, sluiceLast, sluiceFirst)
			})
		}
	}
}

func equalPriorities(t *testing.T, sluiceLast, sluiceFirst bool) {
	p := v3protocol("", "", "", "192.0.2.100/32")
	m := mixedPairOf(t, p, 100, sluiceLast)
	if sluiceFirst {
		m.startSluice()
		eventually(t, "sluice has the vip", func() bool { return m.has(true, false) })
		m.startKeepalived(p, "BACKUP", 100)
		m.peer.becameBackup()
	} else {
		m.startKeepalived(p, "BACKUP", 100)
		eventually(t, "keepalived has the vip", func() bool { return m.has(false, true) })
		m.startSluice()
		eventually(t, "sluice has heard keepalived", func() bool { return m.router.Status().Received > 0 })
	}
	always(t, "the first one has the vip", 6*m.cfg.Interval, func() bool { return m.has(sluiceFirst, !sluiceFirst) })

	m.sluice.lose()
	m.keepalived.lose()
	eventually(t, "both have the vip while neither hears the other", func() bool { return m.has(true, true) })
	m.sluice.heal()
	m.keepalived.heal()
	winner := func() bool { return m.has(sluiceLast, !sluiceLast) }
	eventually(t, "the higher address has the vip", winner)
	always(t, "the higher address has the vip", 6*m.cfg.Interval, winner)
}

// Both start at the same moment: in the end one of them has the VIP, that of the
// higher priority if there is one.
func TestInteropColdStart(t *testing.T) {
	needKeepalived(t)
	p := v3protocol("", "", "", "192.0.2.100/32")
	for n := range 20 {
		ours, theirs := uint8(100), uint8(100)
		switch n % 3 {
		case 1:
			theirs = 99
		case 2:
			ours = 99
		}
		t.Run(fmt.Sprintf("%d, priorities %d and %d", n+1, ours, theirs), func(t *testing.T) {
			t.Parallel()
			m := mixedPairOf(t, p, ours, n%2 == 0)
			m.startKeepalived(p, "MASTER", theirs)
			m.startSluice()
			one := func() bool {
				switch {
				case ours > theirs:
					return m.has(true, false)
				case theirs > ours:
					return m.has(false, true)
				}
				return m.has(true, false) || m.has(false, true)
			}
			// They have heard of each other, or it means nothing.
			eventually(t, "both take part", func() bool {
				s := m.router.Status()
				return s.Received > 0 || s.State == Active && m.peer.said("(VI_1) Entering ")
			})
			eventually(t, "one has the vip", one)
			always(t, "one has the vip", 6*m.cfg.Interval, one)
		})
	}
}
