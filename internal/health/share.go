package health

import "slices"

// A Share is what one of several users of a Checker wants to have probed. What they
// have in common is probed once. Its methods may be called from several goroutines.
type Share struct {
	checker *Checker
	targets []Target // guarded by checker.sharing
	changed chan struct{}
}

// Share returns a share without targets. Who shares a Checker does not call its Set.
func (c *Checker) Share() *Share {
	c.sharing.Lock()
	defer c.sharing.Unlock()
	s := &Share{checker: c, changed: make(chan struct{}, 1)}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shares = append(c.shares, s)
	return s
}

// Set makes targets those of this share, as Checker.Set does for all.
func (s *Share) Set(targets []Target) {
	c := s.checker
	c.sharing.Lock()
	defer c.sharing.Unlock()
	left := leaving(s.targets, targets)
	s.targets = slices.Clone(targets)
	var all []Target
	for _, o := range c.shares {
		all = append(all, o.targets...)
	}
	c.set(all, left)
}

// leaving returns the targets of before that are none of after.
func leaving(before, after []Target) []Target {
	stays := map[string]bool{}
	for _, t := range after {
		stays[t.Identity()] = true
	}
	return slices.DeleteFunc(slices.Clone(before), func(t Target) bool { return stays[t.Identity()] })
}

// Status is Checker.Status.
func (s *Share) Status(t Target) (Status, bool) { return s.checker.Status(t) }

// Changed is Checker.Changed, with a channel of the share's own.
func (s *Share) Changed() <-chan struct{} { return s.changed }

// Ready is Checker.Ready: it waits for the targets of all shares.
func (s *Share) Ready() <-chan struct{} { return s.checker.Ready() }
