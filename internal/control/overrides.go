package control

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/sluice-lb/sluice/internal/lb"
)

// An Action is what an operator does to a backend.
type Action string

// The actions.
const (
	Drain   Action = "drain"   // no new connections; what it serves goes on
	Disable Action = "disable" // as if it had failed
	Enable  Action = "enable"  // undoes Drain and Disable
	Weight  Action = "weight"  // another weight than the configured one
	Reset   Action = "reset"   // undoes all of them
)

// An Override is what an operator has changed about a backend. The zero value
// changes nothing.
type Override struct {
	State  Action `json:"state,omitempty"`  // Drain or Disable
	Weight *int   `json:"weight,omitempty"` // nil: the configured one
}

func (o Override) none() bool { return o.State == "" && o.Weight == nil }

func (o Override) valid() bool {
	return (o.State == "" || o.State == Drain || o.State == Disable) && (o.Weight == nil || *o.Weight >= 0 && *o.Weight <= MaxWeight)
}

// MaxWeight is the largest weight of a backend.
const MaxWeight = 65535

// A target is whom an override is for: a backend of a pool, or of one service.
type target struct {
	scope   string // name of a pool or a service
	address string // of the server, with a port where two have one address
}

// Overrides are the operator's changes. They are kept in a file, so that they
// outlive the daemon. Methods may be called from several goroutines.
type Overrides struct {
	path string
	node string // this one

	mu     sync.Mutex
	all    map[target]Override
	stamps map[target]stamp // of all, and of what was undone
	alarm  string
}

// overridesFile is how they are kept.
type overridesFile struct {
	Version   int             `json:"version"`
	Overrides []savedOverride `json:"overrides"`
	// Undone are those that are not in force any more.
	Undone []savedOverride `json:"undone,omitempty"`
}

type savedOverride struct {
	Scope   string `json:"scope"`
	Address string `json:"address"`
	Override
	stamp
}

const overridesVersion = 1

// OpenOverrides reads the operator's changes from a file. One that is not there
// holds none. One that cannot be understood is moved aside, and is an alarm; the
// daemon starts without changes. Node is the name of this node, for changes that are made
// from now on.
func OpenOverrides(path, node string) (*Overrides, error) {
	o := &Overrides{path: path, node: node, all: map[target]Override{}, stamps: map[target]stamp{}}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return o, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the operator's changes: %w", err)
	}
	if err := o.parse(text); err != nil {
		aside := path + ".corrupt"
		if moveErr := os.Rename(path, aside); moveErr != nil {
			return nil, fmt.Errorf("read the operator's changes from %s: %w", path, errors.Join(err, moveErr))
		}
		clear(o.all)
		clear(o.stamps)
		o.alarm = fmt.Sprintf("the operator's changes in %s could not be read (%v): they are in %s, and none is in force", path, err, aside)
	}
	return o, nil
}

func (o *Overrides) parse(text []byte) error {
	var f overridesFile
	if err := json.Unmarshal(text, &f); err != nil {
		return err
	}
	if f.Version != overridesVersion {
		return fmt.Errorf("version %d, want %d", f.Version, overridesVersion)
	}
	for _, s := range slices.Concat(f.Undone, f.Overrides) {
		if s.Scope == "" || s.Address == "" || !s.valid() {
			return fmt.Errorf("an entry for %q of %q that makes no sense", s.Address, s.Scope)
		}
		put(o.all, o.stamps, target{s.Scope, s.Address}, s.Override, s.stamp)
	}
	return nil
}

// save writes the file whole or not at all.
func (o *Overrides) save(all map[target]Override, stamps map[target]stamp) error {
	f := overridesFile{Version: overridesVersion, Overrides: []savedOverride{}}
	for t, s := range stamps {
		if v, ok := all[t]; ok {
			f.Overrides = append(f.Overrides, savedOverride{t.scope, t.address, v, s})
		} else {
			f.Undone = append(f.Undone, savedOverride{Scope: t.scope, Address: t.address, stamp: s})
		}
	}
	for _, list := range [][]savedOverride{f.Overrides, f.Undone} {
		slices.SortFunc(list, func(a, b savedOverride) int {
			return cmp.Or(cmp.Compare(a.Scope, b.Scope), cmp.Compare(a.Address, b.Address))
		})
	}
	return writeWhole(o.path, f)
}

// Alarm tells what is wrong with the operator's changes; "": nothing.
func (o *Overrides) Alarm() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.alarm
}

// Of returns what is in force for a server of a service. What was said of the
// service counts before what was said of its pool.
func (o *Overrides) Of(service lb.Service, s lb.Server) Override {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, scope := range []string{service.Name, service.Pool.Name} {
		for _, address := range []string{endpoint(service, s).String(), s.Address.String()} {
			if v, ok := o.all[target{scope, address}]; ok {
				return v
			}
		}
	}
	return Override{}
}

// A Change is an operator's command.
type Change struct {
	Action  Action `json:"action"`
	Scope   string `json:"scope"`   // name of a pool or a service
	Address string `json:"address"` // IP, or IP:port where two servers have one IP
	Weight  int    `json:"weight"`  // for Weight
}

// Apply makes a change for the services of a configuration, and keeps it. Text
// says what has become of it.
func (o *Overrides) Apply(c Change, services []lb.Service) (text string, err error) {
	t, err := resolve(c, services)
	if err != nil {
		return "", err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	v := o.all[t]
	switch c.Action {
	case Drain, Disable:
		v.State = c.Action
	case Enable:
		v.State = ""
	case Weight:
		if c.Weight < 0 || c.Weight > MaxWeight {
			return "", fmt.Errorf("weight %d: want 0 to %d", c.Weight, MaxWeight)
		}
		v.Weight = &c.Weight
	case Reset:
		v = Override{}
	default:
		return "", fmt.Errorf("%q is no action: want drain, disable, enable, weight or reset", c.Action)
	}
	next, stamps := maps.Clone(o.all), maps.Clone(o.stamps)
	put(next, stamps, t, v, o.now(t))
	if err := o.keep(next, stamps); err != nil {
		return "", fmt.Errorf("keep the change in %s: %w: nothing has been changed", o.path, err)
	}
	return fmt.Sprintf("%s of %s: %s", t.address, t.scope, v), nil
}

func (o Override) String() string {
	text := "as configured"
	switch o.State {
	case Drain:
		text = "drained"
	case Disable:
		text = "disabled"
	}
	if o.Weight == nil {
		return text
	}
	if o.State == "" {
		text = "enabled"
	}
	return fmt.Sprintf("%s, weight %d", text, *o.Weight)
}

// resolve finds out whom a change is for.
func resolve(c Change, services []lb.Service) (target, error) {
	var scopes, addresses []string
	t := target{scope: c.Scope}
	byIP := map[string][]netip.AddrPort{}
	for _, s := range services {
		scopes = append(scopes, s.Name, s.Pool.Name)
		if c.Scope != s.Name && c.Scope != s.Pool.Name {
			continue
		}
		for _, server := range s.Pool.Servers {
			e := endpoint(s, server)
			addresses = append(addresses, server.Address.String())
			ip := server.Address.String()
			if !slices.Contains(byIP[ip], e) {
				byIP[ip] = append(byIP[ip], e)
			}
			if c.Address == e.String() {
				t.address = c.Address
			}
		}
	}
	slices.Sort(scopes)
	if !slices.Contains(scopes, c.Scope) {
		return t, fmt.Errorf("there is no pool or service %q: there are %q", c.Scope, slices.Compact(scopes))
	}
	if t.address != "" {
		return t, nil
	}
	a, err := netip.ParseAddr(c.Address)
	if err != nil {
		return t, fmt.Errorf("%q is no address of a server of %s, with or without its port: those are %q", c.Address, c.Scope, compact(addresses))
	}
	ends := byIP[a.String()]
	if len(ends) == 0 {
		return t, fmt.Errorf("%s has no server %v: its servers are %q", c.Scope, a, compact(addresses))
	}
	t.address = a.String()
	// Services of one pool may reach a server at several ports; one service must
	// not mean two servers by one address.
	for _, s := range services {
		n := 0
		for _, server := range s.Pool.Servers {
			if server.Address == a && (c.Scope == s.Name || c.Scope == s.Pool.Name) {
				n++
			}
		}
		if n > 1 {
			return t, fmt.Errorf("%s has %d servers %v: say which one, by its port: %v", c.Scope, n, a, ends)
		}
	}
	return t, nil
}

func compact(texts []string) []string {
	slices.Sort(texts)
	return slices.Compact(texts)
}
