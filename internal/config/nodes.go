package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/sluice-lb/sluice/internal/lb"
)

type nodeDef struct {
	Node
	at     *node
	nameAt *node
}

var nodeSchema = schema{
	what: "a node",
	keys: []string{"name", "address", "priority", "interfaces"},
}

// nodes decodes the roster. A node whose name cannot be read is left out.
func (d *decoder) nodes(items []*node) []nodeDef {
	var all []nodeDef
	names := map[string]*node{}
	addresses := map[netip.Addr]string{}
	for _, item := range items {
		f, ok := d.fields(item, &nodeSchema)
		if !ok {
			d.incomplete = true
			continue
		}
		def := nodeDef{Node: Node{Priority: DefaultPriority}, at: item}
		if n := f.need("address"); n != nil {
			if a, ok := d.address(n, "address"); ok {
				def.Address = a
				if other, dup := addresses[a]; dup {
					d.errorf(n, "address %v is the one of node %q already", a, other)
				}
			}
		}
		if n := f.own["priority"]; n != nil {
			if p, ok := d.integer(n, "priority", 1, 255); ok {
				def.Priority = p
			}
		}
		if n := f.own["interfaces"]; n != nil {
			def.Interfaces, _ = d.interfaceNames(n, "interfaces")
			if def.Interfaces == nil {
				def.Interfaces = []string{} // set, if wrongly: not a second mistake
			}
		}
		n := f.need("name")
		if n == nil {
			d.incomplete = true
			continue
		}
		name, ok := d.name(n, "node name")
		if !ok {
			d.incomplete = true
			continue
		}
		if first, dup := names[name]; dup {
			d.duplicate(n, item, first, "node")
			continue
		}
		names[name] = n
		if def.Address.IsValid() {
			if _, dup := addresses[def.Address]; !dup {
				addresses[def.Address] = name
			}
		}
		def.Name, def.nameAt = name, n
		all = append(all, def)
	}
	return all
}

// duplicate reports that the name at n is taken by the one at first. item is
// what has the name: where an alias repeats a whole item, both names are one
// and the alias is the mistake.
func (d *decoder) duplicate(n, item, first *node, what string) {
	at := n
	if n.samePlace(first) {
		at = item
	}
	d.errorf(at, "duplicate %s %q: %s", what, n.text, first.elsewhere(n))
}

// elsewhere says where n stands, as seen from other.
func (n *node) elsewhere(other *node) string {
	switch {
	case n.samePlace(other):
		return "an alias repeats it"
	case n.src == other.src:
		return fmt.Sprintf("the first one is on line %d", n.line)
	}
	return fmt.Sprintf("the first one is at %s:%d", n.src.name, n.line)
}

// self is this node.
type self struct {
	name     string
	def      *nodeDef // nil where there is no roster, or the name is not in it
	priority int
}

// self finds out which node this is: --node, or the key node, or the host's
// name (with or without its domain). With a roster it must be in it.
func (d *decoder) self(doc *document, nodes []nodeDef, opts Options) self {
	find := func(name string) (self, bool) {
		for i := range nodes {
			if nodes[i].Name == name {
				return self{name, &nodes[i], nodes[i].Priority}, true
			}
		}
		return self{name, nil, DefaultPriority}, len(nodes) == 0 || d.incomplete
	}
	at := doc.keys["nodes"]
	key := doc.set["node"]
	keyName, keyOK := "", true
	if key != nil {
		keyName, keyOK = d.name(key, "node")
	}
	keySelf, listed := find(keyName)
	if key != nil && keyOK && !listed {
		d.unlisted(key, fmt.Sprintf("node %q", keyName), keyName, nodes)
	}
	switch {
	case opts.Node != "":
		s, listed := find(opts.Node)
		if !listed {
			d.unlisted(at, fmt.Sprintf("node %q, given with --node,", opts.Node), opts.Node, nodes)
		}
		return s
	case key != nil:
		return keySelf
	}
	s, listed := find(opts.Hostname)
	if s.def == nil && len(nodes) > 0 {
		host, _, _ := strings.Cut(opts.Hostname, ".")
		if byHost, _ := find(host); byHost.def != nil {
			return byHost
		}
	}
	if !listed {
		d.errorf(at, "this host's name %q is not listed in nodes: say with --node, or with the key node, which of them it is", opts.Hostname)
	}
	return s
}

func (d *decoder) unlisted(at *node, who, name string, nodes []nodeDef) {
	names := make([]string, len(nodes))
	for i, n := range nodes {
		names[i] = n.Name
	}
	hint := ""
	if near := nearest(name, names); near != "" {
		hint = fmt.Sprintf("; did you mean %q?", near)
	}
	d.errorf(at, "%s is not listed in nodes%s", who, hint)
}

// share gives this node its part of the source ports. The order of the names
// decides, not the order of the file: nodes need not have the same file.
func (d *decoder) share(c *Config, doc *document, s self) {
	c.ShareIndex, c.ShareCount = 0, 2
	if names := c.shareOrder(); len(names) > 0 {
		c.ShareCount = len(names)
		c.ShareIndex = max(0, slices.Index(names, s.name))
	}
	ports := c.Datapath.Ports
	if ports.Count() < c.ShareCount {
		at := doc.keys["nodes"]
		if at == nil {
			at = doc.keys["datapath"]
		}
		d.errorf(at, "nat ports %d-%d are %d: too few to give each of %d nodes a share", ports.First, ports.Last, ports.Count(), c.ShareCount)
		return
	}
	c.PortShare = share(ports, c.ShareIndex, c.ShareCount)
}

// shareOrder returns the names of the nodes in the order of their shares.
func (c *Config) shareOrder() []string {
	var names []string
	for _, n := range c.Nodes {
		names = append(names, n.Name)
	}
	slices.Sort(names)
	return names
}

// share returns part i of n parts of the range, whose sizes differ by one port
// at most.
func share(r lb.PortRange, i, n int) lb.PortRange {
	count, first := r.Count(), int(r.First)
	return lb.PortRange{
		First: uint16(first + count*i/n),
		Last:  uint16(first + count*(i+1)/n - 1),
	}
}
