package loader

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/sluice-lb/sluice/internal/lb"
)

// rules plans who may use the services. New rules come before the old ones go,
// the longest prefixes first, and the old ones go the shortest first: whatever a
// packet finds meanwhile is what the old or the new rules say.
func (p *planner) rules(want lb.Snapshot, numbers []uint16) error {
	wanted := map[ruleID]bool{}
	for i, s := range want.Services {
		for _, r := range s.Rules {
			wanted[ruleID{numbers[i], r.Prefix}] = r.Allow
		}
	}
	// Old and new ones must fit together.
	if n := len(wanted) + len(p.have.Rules); n > int(lbLimitsMAX_RULES) {
		return fmt.Errorf("no room for %d allow and deny prefixes of all services together, new and old: the table holds %d", n, lbLimitsMAX_RULES)
	}
	for _, id := range slices.Backward(slices.SortedFunc(maps.Keys(wanted), compareRules)) {
		allow := wanted[id]
		if have, ok := p.have.Rules[id]; !ok || have != allow {
			p.next.Rules[id] = allow
			p.add = append(p.add, setRule{id, allow})
		}
	}
	for _, id := range slices.SortedFunc(maps.Keys(p.have.Rules), compareRules) {
		if _, ok := wanted[id]; !ok {
			delete(p.next.Rules, id)
			p.close = append(p.close, clearRule{id})
		}
	}
	return nil
}

// compareRules puts short prefixes first.
func compareRules(a, b ruleID) int {
	return cmp.Or(cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()), cmp.Compare(a.Service, b.Service), a.Prefix.Addr().Compare(b.Prefix.Addr()))
}

func (id ruleID) key() lbRuleKey {
	const serviceBits = 32
	k := lbRuleKey{PrefixLength: uint32(serviceBits + id.Prefix.Bits()), Service: uint32(id.Service) << 1}
	if id.Prefix.Addr().Is6() {
		k.Service |= 1
	}
	for i, b := 0, id.Prefix.Addr().AsSlice(); i < len(b); i += 4 {
		k.Address[i/4] = binary.LittleEndian.Uint32(b[i:])
	}
	return k
}

func (k lbRuleKey) id() ruleID {
	var b [16]byte
	for i, w := range k.Address {
		binary.LittleEndian.PutUint32(b[4*i:], w)
	}
	a := netip.AddrFrom4([4]byte(b[:4]))
	if k.Service&1 != 0 {
		a = netip.AddrFrom16(b)
	}
	return ruleID{uint16(k.Service >> 1), netip.PrefixFrom(a, int(k.PrefixLength)-32)}
}

type setRule struct {
	Rule  ruleID
	Allow bool
}

func (s setRule) String() string {
	verb := "deny"
	if s.Allow {
		verb = "allow"
	}
	return fmt.Sprintf("%s %v service %d", verb, s.Rule.Prefix, s.Rule.Service)
}

func (s setRule) apply(t *tables) error {
	k, v := s.Rule.key(), uint32(lbRuleRULE_DENY)
	if s.Allow {
		v = uint32(lbRuleRULE_ALLOW)
	}
	if err := t.objects.AccessRules.Put(&k, v); err != nil {
		return fmt.Errorf("write a rule for %v: %w", s.Rule.Prefix, err)
	}
	return nil
}

type clearRule struct{ Rule ruleID }

func (s clearRule) String() string {
	return fmt.Sprintf("forget %v of service %d", s.Rule.Prefix, s.Rule.Service)
}

func (s clearRule) apply(t *tables) error {
	k := s.Rule.key()
	if err := t.objects.AccessRules.Delete(&k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("remove the rule for %v: %w", s.Rule.Prefix, err)
	}
	return nil
}

func (t *tables) readRules(s *State) error {
	var k lbRuleKey
	var v uint32
	all := t.objects.AccessRules.Iterate()
	for all.Next(&k, &v) {
		s.Rules[k.id()] = v == uint32(lbRuleRULE_ALLOW)
	}
	if err := all.Err(); err != nil {
		return fmt.Errorf("read the rules: %w", err)
	}
	return nil
}
