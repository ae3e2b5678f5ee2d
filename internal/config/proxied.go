package config

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A proxiedDef is a service whose packets are left to the kernel, where http listens.
// The data plane knows nothing of it, unless it is spread over nodes.
type proxiedDef struct {
	name      string
	addresses []lb.Frontend
	at        []*node // parallel to addresses
	// Spread is where it says so; nil: it does not. Then it is a serviceDef, too.
	spread *node
}

// proxiedKeys are what such a service has; all else is said in http.
var proxiedKeys = []string{"name", "address", "protocol", "forward", "spread"}

// saysProxy tells whether a service is one of forward: proxy.
func (n *node) saysProxy() bool {
	if n.kind != mapping {
		return false
	}
	return slices.ContainsFunc(n.entries, func(e entry) bool {
		return e.key.text == "forward" && e.value.kind == scalar && e.value.text == "proxy"
	})
}

func (d *decoder) proxied(f fields) *proxiedDef {
	spread := f.own["spread"]
	if spread != nil {
		if on, ok := d.boolean(spread, "spread"); ok && !on {
			spread = nil
		}
	}
	for _, e := range f.n.entries {
		switch key := e.key.text; {
		case !slices.Contains(serviceSchema.keys, key), slices.Contains(proxiedKeys, key), spread != nil && slices.Contains(spreadKeys, key):
		case slices.Contains(spreadKeys, key):
			d.errorf(e.key, "%s goes with no forward: proxy without spread: true: what is done with requests is said in http", key)
		default:
			d.errorf(e.key, "%s goes with no forward: proxy: what is done with requests is said in http", key)
		}
	}
	if n := f.own["protocol"]; n != nil && n.kind == scalar && n.text != "tcp" {
		d.errorf(n, "forward: proxy is for protocol: tcp")
	}
	var s serviceDef
	if n := f.need("address"); n != nil {
		d.serviceAddresses(n, &s)
	}
	return &proxiedDef{addresses: s.Addresses, at: s.addresses, spread: spread}
}

// checkProxied finds addresses that two want to have, layer 4 and layer 7, and services
// that nothing serves.
func (d *decoder) checkProxied(h *httpDef, proxied []*proxiedDef, instances []*instanceDef, held map[listening][]holding) {
	owner := func(a netip.AddrPort) *holding {
		for i, other := range held[listening{a.Addr(), lb.TCP}] {
			if other.Ports.Contains(a.Port()) && other.service.Forward != lb.Proxy {
				return &held[listening{a.Addr(), lb.TCP}][i]
			}
		}
		return nil
	}
	for _, l := range h.listens {
		if o := owner(l.Address); o != nil {
			d.errorf(l.at, "listen %v is an address of service %q, whose packets never come here: %s; write forward: proxy there, or leave one of them out",
				l.Address, o.service.Name, o.at.elsewhere(l.at))
		}
	}
	names := map[string]bool{}
	for _, p := range proxied {
		names[p.name] = true
		for i, f := range p.addresses {
			if f.Ports.Count() != 1 {
				d.errorf(p.at[i], "forward: proxy is for single ports, not %v", f)
				continue
			}
			a := netip.AddrPortFrom(f.VIP, f.Port())
			if o := owner(a); o != nil && p.spread == nil {
				d.errorf(p.at[i], "address %v belongs to service %q already: %s", f, o.service.Name, o.at.elsewhere(p.at[i]))
			} else if !h.listensOn(a) {
				d.errorf(p.at[i], "nothing in http listens on %v: %s", f, fmt.Sprintf("write a server with listen: \"%v\"", a))
			}
			if p.spread != nil && !moves(f.VIP, instances) {
				d.errorf(p.at[i], "VIP %v is in no vrrp instance: spread: true is for a VIP that one node has at a time", f.VIP)
			}
		}
	}
	for _, i := range instances {
		for k, t := range i.Track {
			if t.Kind == lb.TrackService && names[t.Name] {
				d.errorf(i.tracked[k], "service %q has forward: proxy, and no backends that could fail: track the upstream that serves it, {upstream: NAME, weight: -20}", t.Name)
			}
		}
	}
}

// listensOn tells whether a connection to an address finds a listener.
func (h *httpDef) listensOn(a netip.AddrPort) bool {
	return slices.ContainsFunc(h.listens, func(l listenDef) bool {
		at := l.Address.Addr()
		return l.Address.Port() == a.Port() && (at == a.Addr() || at.IsUnspecified() && at.Is4() == a.Addr().Is4())
	})
}
