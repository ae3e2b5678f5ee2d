// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-lb/sluice/internal/key"
	"github.com/sluice-lb/sluice/internal/testenv"
	"github.com/sluice-lb/sluice/vrrp"
)

// Of three nodes with one key, somebody between them passes one node's question on to
// another one than it was for. The answer is authentic, and fresh, and counts for nothing:
// else the node that was asked would seem to be gone.
func TestAnAnswerOfAnotherNodeDoesNotCount(t *testing.T) {
	k := key.New()
	for _, tc := range []struct {
		name  string
		names []string // who may be where b is
	}{
		{"the address is in the roster", []string{"c"}},
		{"it is another address of one of them", []string{"c", "d"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, b, c := newSide(1, k), newSide(2, k), newSide(3, k) // named b, c, d
			a.names = tc.names
			meet(t, a, b)
			relayed := a.challenge(epochStart, &a.identity)
			v := a.take(slices.Clone(c.take(relayed).reply))
			if len(tc.names) == 1 && (v.met || a.peer != b.epoch || a.counts.Replayed != 1) {
				t.Errorf("c is taken for b: trusts %v, counters %+v", a.peer, a.counts)
			}
			if !v.left.isZero() {
				t.Errorf("b counts as gone: %v", v.left)
			}
		})
	}
}

// A node answers nobody who may not be there, and nobody who has its own name.
func TestQuestionsOfStrangersAreNotAnswered(t *testing.T) {
	k := key.New()
	for _, tc := range []struct {
		name  string
		names []string
		asked bool // by b, which is named c
	}{
		{"whoever", nil, true},
		{"one of several", []string{"x", "c"}, true},
		{"another one", []string{"x"}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, b := newSide(1, k), newSide(2, k)
			a.names = tc.names
			if got := a.take(b.challenge(epochStart, &b.identity)).reply != nil; got != tc.asked {
				t.Errorf("it is answered: %v, want %v", got, tc.asked)
			}
		})
	}
	a, b := newSide(1, k), newSide(2, k)
	b.identity.name = a.identity.name
	if a.take(b.challenge(epochStart, &b.identity)).reply != nil {
		t.Error("who has this node's name is answered")
	}
}

// A roster that does not say who is where is named.
func TestAnotherNameIsNamed(t *testing.T) {
	port, k := freePort(t), key.New()
	a, b := joinFrom(t, "lb9", port, one, two, k), join(t, port, two, one, k)
	a.handle.Tell(vrrp.Active, 100)
	testenv.Eventually(t, soon, "the mistake", func() (bool, error) {
		s := b.Status()[0]
		return is(strings.Contains(s.Mistake, `who answers at 127.0.0.1 calls itself "lb9", and should be n127.0.0.1: give all nodes the same list of nodes`), "status %+v", s)
	})
	if got := b.last(); got != (vrrp.Beat{}) {
		t.Errorf("it hears %+v", got)
	}
}

func TestNamesAtAnAddress(t *testing.T) {
	long := strings.Repeat("x", 2*maxName)
	n := New(Config{Name: long, Roster: []Peer{{"lb2", one}, {long, two}}})
	for _, tc := range []struct {
		name string
		at   netip.Addr
		want []string
	}{
		{"one of the roster's", one, []string{"lb2"}},
		{"of a long name", two, []string{long[:maxName]}},
		{"another one", netip.MustParseAddr("192.0.2.9"), []string{"lb2", long[:maxName]}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := n.namesAt(tc.at); !slices.Equal(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
	if got := New(Config{}).namesAt(one); got != nil {
		t.Errorf("without a roster: %q", got)
	}
	if len(n.own.name) != maxName {
		t.Errorf("it calls itself %q", n.own.name)
	}
}
