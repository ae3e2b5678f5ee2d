package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/sluice-lb/sluice/vrrp"
)

// A HandoverOrder is an operator's wish to move VIPs between nodes.
type HandoverOrder struct {
	// Instance is whose VIPs, with those of its group; "": those of all that are Active, or with Release of
	// all that are held back.
	Instance string `json:"instance"`
	Hold     bool   `json:"hold"`    // stay Backup until Release
	Release  bool   `json:"release"` // end what an order has left
	Force    bool   `json:"force"`   // also where no other node is known
}

// A HandoverResult is what has become of one instance.
type HandoverResult struct {
	Instance string `json:"instance"`
	// Done: a peer holds the VIPs, or, with Release, the instance takes part again.
	Done bool   `json:"done"`
	Peer string `json:"peer,omitempty"` // who has taken over
	Text string `json:"text"`           // for people
}

// A MovableRouter is a virtual router that can give its VIPs away.
type MovableRouter interface {
	Status() vrrp.Status
	HandOver(context.Context) (vrrp.Handover, error)
	Hold(bool)
}

// A Movable is an instance whose VIPs an operator may move.
type Movable struct {
	Name   string
	Group  string // what it moves together with; "": nothing
	Router MovableRouter
	// Others: the configuration names another node.
	Others bool
	// Own: the addresses are the node's own, and so no others' ever.
	Own func() bool
	// Lacks says what no other node has of this one's connections; "": nothing. Nil:
	// none is shared.
	Lacks func() string
}

// Handovers carries out operators' wishes to move VIPs.
type Handovers struct {
	holds *Holds
	all   []Movable
	log   *slog.Logger
}

// NewHandovers has the instances that are held back know it; none may run yet.
func NewHandovers(holds *Holds, all []Movable, log *slog.Logger) *Handovers {
	for _, m := range all {
		if since, held := holds.Since(m.Name); held {
			m.Router.Hold(true)
			log.Info("an operator holds the instance back", "instance", m.Name, "since", since.Format(time.RFC3339))
		}
	}
	return &Handovers{holds: holds, all: all, log: log}
}

// Settle holds those instances back that an operator has said are to be. It is for
// what was ordered of others, which these have taken the place of meanwhile.
func (h *Handovers) Settle() {
	for _, m := range h.all {
		if _, held := h.holds.Since(m.Name); held != m.Router.Status().Held {
			m.Router.Hold(held)
		}
	}
}

// Do carries an order out and waits for its end. The error is for an order that
// makes no sense or is refused: nothing was begun then.
func (h *Handovers) Do(ctx context.Context, o HandoverOrder) ([]HandoverResult, error) {
	if o.Hold && o.Release {
		return nil, errors.New("hold and release are opposites: give one of them")
	}
	chosen, err := h.choose(o)
	if err != nil {
		return nil, err
	}
	results := make([]HandoverResult, len(chosen))
	var all sync.WaitGroup
	for i, m := range chosen {
		all.Go(func() {
			if o.Release {
				results[i] = h.release(m)
			} else {
				results[i] = h.move(ctx, m, o)
			}
		})
	}
	all.Wait()
	if !o.Release {
		h.keepTogether(chosen, results)
	}
	for i, m := range chosen {
		if o.Hold && results[i].Done {
			h.hold(m, &results[i])
		}
		h.log.Info("an operator's handover", "instance", m.Name, "done", results[i].Done, "result", results[i].Text)
	}
	return results, nil
}

// keepTogether takes the VIPs of a group back of which some have stayed here.
func (h *Handovers) keepTogether(chosen []Movable, results []HandoverResult) {
	stayed := map[string]string{} // by group, who has
	for i, m := range chosen {
		if !results[i].Done {
			stayed[m.Group] = m.Name
		}
	}
	for i, m := range chosen {
		if by := stayed[m.Group]; by != "" && m.Group != "" && results[i].Done {
			m.Router.Hold(false)
			results[i].Done = false
			results[i].Text = fmt.Sprintf("%s, but %s of the same group has stayed here: taking it back", results[i].taken(), by)
		}
	}
}

// choose finds whom an order is for, and refuses what cannot be done.
func (h *Handovers) choose(o HandoverOrder) ([]Movable, error) {
	var names []string
	wanted := map[string]bool{} // names
	groups := map[string]bool{} // that those are of
	for _, m := range h.all {
		names = append(names, m.Name)
		if o.Instance == m.Name || o.Instance == "" && fits(m, o) {
			wanted[m.Name] = true
			groups[m.Group] = m.Group != ""
		}
	}
	switch {
	case len(names) == 0:
		return nil, errors.New("the configuration has no VRRP instance")
	case o.Instance != "" && len(wanted) == 0:
		return nil, fmt.Errorf("there is no instance %q: there are %q", o.Instance, names)
	case len(wanted) == 0 && o.Release:
		return nil, errors.New("no instance is held back")
	case len(wanted) == 0:
		return nil, errors.New("no instance is active here: there is nothing to hand over")
	}
	var chosen []Movable
	for _, m := range h.all {
		along := groups[m.Group] && (fits(m, o) || o.Hold)
		if !wanted[m.Name] && !along {
			continue
		}
		if err := refuse(m, m.Router.Status(), o); err != nil {
			return nil, err
		}
		chosen = append(chosen, m)
	}
	return chosen, nil
}

// fits tells whether an order that names no instance is for this one.
func fits(m Movable, o HandoverOrder) bool {
	s := m.Router.Status()
	if o.Release {
		return s.Held || s.Yielded
	}
	return s.State == vrrp.Active
}

// refuse tells why an order makes no sense for an instance.
func refuse(m Movable, s vrrp.Status, o HandoverOrder) error {
	switch {
	case o.Release && !s.Held && !s.Yielded:
		return fmt.Errorf("%s is not held back", m.Name)
	case o.Release:
		return nil
	case s.Releasing:
		return fmt.Errorf("%s: %w", m.Name, vrrp.ErrBusy)
	case s.State == vrrp.Initialize:
		return fmt.Errorf("%s has not started yet: %s", m.Name, s.Reason)
	case s.State != vrrp.Active && !o.Hold:
		return fmt.Errorf("%s is %v (%s): there is nothing to hand over", m.Name, s.State, s.Reason)
	case s.State != vrrp.Active && !s.Peer.Address.IsValid() && !o.Force:
		return fmt.Errorf("%s is %v and has heard no active node: held back, nobody would have its addresses (--force if that is meant)", m.Name, s.State)
	case s.State == vrrp.Active && m.Own():
		return fmt.Errorf("the addresses of %s are this node's own: no other node can have them", m.Name)
	case s.State == vrrp.Active && !s.Peer.Address.IsValid() && !m.Others && !o.Force:
		return fmt.Errorf("%s: no peer is known: none was ever heard, and the configuration names none (--force tries it all the same, and interrupts nothing)", m.Name)
	}
	if s.State != vrrp.Active || o.Force || m.Lacks == nil {
		return nil
	}
	if why := m.Lacks(); why != "" {
		return fmt.Errorf("%s: connections would break: %s (--force hands over all the same)", m.Name, why)
	}
	return nil
}

// move hands the VIPs of an instance over, where it is Active.
func (h *Handovers) move(ctx context.Context, m Movable, o HandoverOrder) HandoverResult {
	r := HandoverResult{Instance: m.Name}
	began := time.Now()
	got, err := m.Router.HandOver(ctx)
	switch {
	case err != nil:
		r.Text = err.Error()
	case got.TookOver():
		r.Done, r.Peer = true, got.Peer.String()
		r.Text = r.taken() + "; this node stays backup while that one is active"
	case got.WasActive:
		r.Text = fmt.Sprintf("no peer has taken over within %v: this node holds the addresses as before, nothing was interrupted", time.Since(began).Round(100*time.Millisecond))
	case o.Hold:
		r.Done = true
	default:
		r.Text = "it was not active any more: there was nothing to hand over"
	}
	return r
}

// taken says in whose hands the VIPs are.
func (r HandoverResult) taken() string {
	if r.Peer == "" {
		return "it is not active"
	}
	return r.Peer + " has taken over"
}

// hold holds an instance back that is not Active any more.
func (h *Handovers) hold(m Movable, r *HandoverResult) {
	m.Router.Hold(true)
	r.Text = fmt.Sprintf("%s; this node stays backup until `sluice handover %s --release`", r.taken(), m.Name)
	if err := h.holds.Set(m.Name, true, time.Now()); err != nil {
		r.Done = false
		r.Text += fmt.Sprintf(", or until the daemon restarts: %v", err)
	}
}

// release lets an instance take part in the election as ever.
func (h *Handovers) release(m Movable) HandoverResult {
	r := HandoverResult{Instance: m.Name}
	if err := h.holds.Set(m.Name, false, time.Now()); err != nil {
		r.Text = fmt.Sprintf("%v: it is held back still", err)
		return r
	}
	m.Router.Hold(false)
	r.Done = true
	r.Text = fmt.Sprintf("takes part in the election again, with priority %d", m.Router.Status().Priority)
	return r
}

// SendHandover has the daemon behind the socket carry an order out, and waits for
// its end. Where there is no daemon, the error is ErrNotRunning.
func SendHandover(ctx context.Context, socket string, o HandoverOrder) ([]HandoverResult, error) {
	var results []HandoverResult
	// How long it takes is the protocol's; the daemon bounds it.
	err := ask(ctx, 0, socket, http.MethodPost, "/handover", o, &results)
	return results, err
}

// heldBack says why a Backup leaves the VIPs to others; "": it does not.
func heldBack(s vrrp.Status) string {
	var why []string
	if s.Held {
		why = append(why, fmt.Sprintf("by an operator, until `sluice handover %s --release`", s.Name))
	}
	if s.Yielded {
		why = append(why, "the addresses were handed over, and who took them is active")
	}
	if s.Waits != "" {
		why = append(why, fmt.Sprintf("%s of its group hears an active node", s.Waits))
	}
	if !s.AwaitsState.IsZero() {
		why = append(why, fmt.Sprintf("it does not hold the state of %v yet, or does not reach a server that serves there, and waits for it until %s at the latest (sync_wait)", s.Peer.Address, s.AwaitsState.Format(time.TimeOnly)))
	}
	return strings.Join(why, "; ")
}
