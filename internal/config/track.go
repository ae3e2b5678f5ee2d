package config

import (
	"fmt"
	"maps"
	"slices"

	"github.com/sluice-lb/sluice/internal/lb"
)

// Notify is what runs when an instance changes its state: a program and its
// arguments for each, or nothing.
type Notify struct {
	Active, Backup, Fault []string
	Any                   []string // at every change, after those
}

var trackSchema = schema{
	what: "a tracked item",
	keys: []string{"check", "interface", "service", "upstream", "weight"},
	hints: map[string]string{
		"script": "it is a check",
		"name":   "write check: NAME, interface: NAME, service: NAME or upstream: NAME",
	},
}

var notifySchema = schema{
	what: "notify",
	keys: []string{"active", "backup", "fault", "any"},
	hints: map[string]string{
		"master": "the state is called \"active\"",
		"stop":   "\"any\" is told of it",
	},
}

// maxTrackWeight bounds a weight: more than this moves any priority to an end of
// its range.
const maxTrackWeight = 253

// track decodes what an instance depends on.
func (d *decoder) track(n *node, i *instanceDef) {
	items, ok := d.mappings(n, "track")
	if !ok {
		return
	}
	seen := map[lb.Tracked]*node{}
	for _, item := range items {
		t, at, ok := d.tracked(item, i)
		if !ok {
			continue
		}
		key := lb.Tracked{Kind: t.Kind, Name: t.Name}
		if first := seen[key]; first != nil {
			d.errorf(at, "%s %q is tracked twice: %s", t.Kind, t.Name, first.elsewhere(at))
			continue
		}
		seen[key] = at
		i.Track, i.tracked = append(i.Track, t), append(i.tracked, at)
	}
}

// tracked decodes one item. At is where its name stands.
func (d *decoder) tracked(item *node, i *instanceDef) (t lb.Tracked, at *node, ok bool) {
	f, ok := d.fields(item, &trackSchema)
	if !ok {
		return t, nil, false
	}
	for _, kind := range []lb.TrackKind{lb.TrackCheck, lb.TrackInterface, lb.TrackService, lb.TrackUpstream} {
		n := f.own[string(kind)]
		switch {
		case n == nil:
			continue
		case at != nil:
			d.errorf(f.keys[string(kind)], "a tracked item is one thing: %s is another", kind)
			return t, nil, false
		}
		at, t.Kind = n, kind
	}
	if at == nil {
		d.errorf(item, "missing key \"check\": a tracked item needs it, or \"interface\", \"service\" or \"upstream\"")
		return t, nil, false
	}
	if t.Kind == lb.TrackInterface {
		t.Name, ok = d.interfaceName(at, "interface")
	} else {
		t.Name, ok = d.text(at, string(t.Kind))
	}
	return t, at, d.trackWeight(f, i, &t) && ok
}

func (d *decoder) trackWeight(f fields, i *instanceDef, t *lb.Tracked) bool {
	n := f.own["weight"]
	shared := t.Kind == lb.TrackService || t.Kind == lb.TrackUpstream
	if n == nil {
		if shared {
			d.errorf(f.n, "missing key \"weight\": a tracked %s needs it (a fault that all nodes share must not take the VIP from the last one)", t.Kind)
			return false
		}
		return true
	}
	w, ok := d.integer(n, "weight", -maxTrackWeight, maxTrackWeight)
	switch {
	case !ok:
		return false
	case w == 0 && shared:
		d.errorf(n, "weight 0 changes nothing")
		return false
	case w == 0:
		d.errorf(n, "weight 0 changes nothing: leave it out, and a failure is a fault of the instance")
		return false
	case i.Priority == 255:
		d.errorf(n, "weight: priority 255 belongs to the owner of the addresses and never changes")
		return false
	}
	t.Weight = w
	return true
}

// wholeServices tells whether all items have become services.
func wholeServices(items []*node, services []*serviceDef, proxied []*proxiedDef) bool {
	n := len(services)
	for _, p := range proxied {
		if p.spread == nil {
			n++ // else it is one of services, too
		}
	}
	return n == len(items)
}

// resolveTracked finds tracked checks, services and upstreams that are not there. Whole:
// all services can be read.
func (d *decoder) resolveTracked(instances []*instanceDef, checks []lb.Check, services []*serviceDef, whole bool, proxied []*proxiedDef, h *httpDef) {
	known := map[lb.TrackKind]map[string]bool{lb.TrackCheck: {}, lb.TrackService: {}, lb.TrackUpstream: {}}
	for _, u := range h.Upstreams {
		known[lb.TrackUpstream][u.Name] = true
	}
	for _, c := range checks {
		known[lb.TrackCheck][c.Name] = true
	}
	for _, s := range services {
		known[lb.TrackService][s.Name] = true
		whole = whole && s.Name != ""
	}
	for _, p := range proxied {
		known[lb.TrackService][p.name] = true // what is wrong with that is said elsewhere
	}
	for _, i := range instances {
		for k, t := range i.Track {
			names := known[t.Kind]
			if names == nil || names[t.Name] || d.incomplete || t.Kind == lb.TrackService && !whole || t.Kind == lb.TrackUpstream && h.broken {
				continue
			}
			hint := ""
			if near := nearest(t.Name, slices.Sorted(maps.Keys(names))); near != "" {
				hint = fmt.Sprintf("; did you mean %q?", near)
			}
			d.errorf(i.tracked[k], "there is no %s %q%s", t.Kind, t.Name, hint)
		}
	}
}

// notify decodes the hooks of an instance.
func (d *decoder) notify(n *node) Notify {
	var all Notify
	f, ok := d.fields(n, &notifySchema)
	if !ok {
		return all
	}
	for key, into := range map[string]*[]string{"active": &all.Active, "backup": &all.Backup, "fault": &all.Fault, "any": &all.Any} {
		if h := f.own[key]; h != nil {
			*into = d.argv(h, key)
		}
	}
	return all
}
