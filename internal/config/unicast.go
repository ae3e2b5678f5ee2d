package config

import "net/netip"

// unicast decodes who gets advertisements where they are not multicast: the
// other nodes of the roster, or a list.
func (d *decoder) unicast(f fields, i *instanceDef, roster []nodeDef, s self) {
	list, at := f.own["unicast_peers"], f.own["unicast"]
	on := false
	if at != nil {
		on, _ = d.boolean(at, "unicast")
	}
	switch {
	case list != nil && at != nil:
		d.errorf(f.keys["unicast_peers"], "unicast and unicast_peers are both set: take one of them")
		return
	case list != nil:
		d.unicastPeers(list, i, s)
	case on:
		d.peersOfRoster(at, i, roster, s)
	}
	if len(i.Peers) > 0 && s.def != nil && s.def.Address.IsValid() && s.def.Address.Is4() == i.Peers[0].Is4() {
		i.Source = s.def.Address
	}
}

// unicastPeers decodes unicast_peers.
func (d *decoder) unicastPeers(n *node, i *instanceDef, s self) {
	d.peerList(n, s, peerAdvice{
		key:   "unicast_peers",
		empty: "name the other nodes, or leave it out for multicast",
		own:   "list the others, or write unicast: true, which leaves it out",
	}, func(a netip.Addr, item *node) {
		if len(i.Addresses) > 0 && a.Is4() != i.Addresses[0].Addr().Is4() {
			d.errorf(item, "peer %v is %s, the addresses of the instance are %s", a, familyOf(a), familyOf(i.Addresses[0].Addr()))
			return
		}
		i.Peers, i.peers = append(i.Peers, a), append(i.peers, item)
	})
}

// peerAdvice is the key of a list of peers, and what to do where it is empty or names
// this node.
type peerAdvice struct{ key, empty, own string }

// peerList decodes addresses of other nodes and adds each of them once.
func (d *decoder) peerList(n *node, s self, do peerAdvice, add func(netip.Addr, *node)) {
	items, ok := d.list(n, do.key)
	if !ok {
		return
	}
	if len(items) == 0 {
		d.errorf(n, "%s is empty: %s", do.key, do.empty)
		return
	}
	seen := map[netip.Addr]*node{}
	for _, item := range items {
		a, ok := d.address(item, "peer")
		if !ok {
			continue
		}
		first, dup := seen[a]
		switch {
		case dup:
			d.errorf(item, "peer %v is listed twice: %s", a, first.elsewhere(item))
		case s.def != nil && a == s.def.Address:
			d.errorf(item, "peer %v is this node, %q: %s", a, s.name, do.own)
		default:
			seen[a] = item
			add(a, item)
		}
	}
}

// peersOfRoster takes all nodes but this one.
func (d *decoder) peersOfRoster(at *node, i *instanceDef, roster []nodeDef, s self) {
	if d.incomplete || len(roster) > 0 && s.def == nil || len(i.Addresses) == 0 {
		return // reported already
	}
	family := familyOf(i.Addresses[0].Addr())
	others := 0
	for k := range roster {
		other := &roster[k]
		if other == s.def || !other.Address.IsValid() {
			continue
		}
		others++
		if familyOf(other.Address) != family {
			d.errorf(at, "node %q has no %s address in nodes: name the peers in unicast_peers", other.Name, family)
			continue
		}
		i.Peers, i.peers = append(i.Peers, other.Address), append(i.peers, at)
	}
	if others == 0 {
		d.errorf(at, "unicast needs another node in nodes, or unicast_peers instead")
	}
}
