package loader

import (
	"errors"
	"fmt"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A Refusal is why a flow that another node has told of was not taken.
type Refusal string

// The refusals. The last two tell of flows that contradict each other, as after a time
// with two Active nodes.
const (
	RefusedMalformed Refusal = "malformed"       // no flow is like that
	RefusedVIP       Refusal = "unknown_vip"     // the VIP's port is no such service here
	RefusedBackend   Refusal = "unknown_backend" // the service has no such backend here, or it has failed
	RefusedPair      Refusal = "no_pair"         // the source address is none of the service's here
	RefusedBucket    Refusal = "bucket_full"     // no room in the flow table of nat
	RefusedRoom      Refusal = "table_full"      // no room in the table of single flows
	RefusedPort      Refusal = "port_in_use"     // a connection of this node has the source port
	RefusedOther     Refusal = "other_here"      // the client's connection goes elsewhere here
)

// Refused are flows that were not taken for one reason, and one of them.
type Refused struct {
	Flows   int    `json:"flows"`
	Example string `json:"example"` // for an operator
}

// An ApplyResult tells what became of flows that another node has told of.
type ApplyResult struct {
	Applied int // they are here as the other node has them
	Ended   int // of those that are over
	// Kept are flows that go on here, of which this node knows more than the other.
	Kept    int
	Refused map[Refusal]Refused // nil: none
	// Without are the flows that were refused, each as often as it was; Add leaves them out.
	Without []lb.FlowID
}

// Add adds another result.
func (r *ApplyResult) Add(o ApplyResult) {
	r.Applied += o.Applied
	r.Ended += o.Ended
	r.Kept += o.Kept
	for why, n := range o.Refused {
		r.add(why, n.Flows, func() string { return n.Example })
	}
}

func (r *ApplyResult) add(why Refusal, flows int, example func() string) {
	if r.Refused == nil {
		r.Refused = map[Refusal]Refused{}
	}
	n, ok := r.Refused[why]
	if !ok {
		n.Example = example()
	}
	n.Flows += flows
	r.Refused[why] = n
}

// refuse counts a flow. Here says what contradicts it; "": nothing does.
func (r *ApplyResult) refuse(s *lb.FlowState, why Refusal, here string) {
	r.Without = append(r.Without, s.FlowID)
	r.add(why, 1, func() string {
		text := fmt.Sprintf("%s %v of %v to %v", s.Protocol, s.Client, s.VIP, s.Backend)
		if s.Source.IsValid() {
			text += fmt.Sprintf(" from %v", s.Source)
		}
		if here != "" {
			text += ", here " + here
		}
		return text
	})
}

// ApplyFlows takes in what another node tells of its flows, in order: they are here
// then as they are there, so that a takeover has nothing left to do. A flow that is over
// goes. Nothing of it is told back. Applied twice, it does the same. The error is about this
// node's tables; a flow that can't be taken is counted.
//
// A flow of this node's own that is established stays: what contradicts it is
// refused, and what is older than its last packet changes nothing.
func (f *FlowFeed) ApplyFlows(flows []lb.FlowState) (ApplyResult, error) {
	f.lock()
	defer f.unlock()
	a := applying{FlowFeed: f, now: ticks()}
	if err := f.refresh(); err != nil {
		return a.result, err
	}
	for i := range flows {
		if err := a.apply(&flows[i]); err != nil {
			return a.result, err
		}
	}
	var errs []error
	for i := range pinTables {
		errs = append(errs, a.flush(i))
	}
	return a.result, errors.Join(errs...)
}

// An applying is a call of ApplyFlows.
type applying struct {
	*FlowFeed
	now     uint32
	result  ApplyResult
	waiting [3]pinWrites // for each of pinTables
	key     lbFlowKey    // of the entry in hand, and what it is: here, so that they need no memory of their own
	is      lbPin
}

func (a *applying) apply(s *lb.FlowState) error {
	if malformed(s) {
		a.result.refuse(s, RefusedMalformed, "")
		return nil
	}
	if s.Kind == lb.FlowTranslated {
		a.translated(s)
		return nil
	}
	for i, t := range pinTables {
		if t.kind == s.Kind {
			return a.pinned(i, s)
		}
	}
	a.result.refuse(s, RefusedMalformed, "")
	return nil
}

// malformed tells whether no flow is like that, of whatever kind.
func malformed(s *lb.FlowState) bool {
	return !s.Client.IsValid() || !s.VIP.IsValid() || s.Client.Addr().Is4() != s.VIP.Addr().Is4() ||
		s.Protocol != lb.TCP && s.Protocol != lb.UDP || s.Idle < 0 || s.Phase > lb.FlowClosed ||
		s.LastHop.Tags < 0 || s.LastHop.Tags > len(s.LastHop.VLANs)
}

// backendOf finds the backend of a flow; 0: it is refused.
func (a *applying) backendOf(s *lb.FlowState, ok func(serviceEntry) bool) (backend, vip uint32) {
	service, vip := a.index.service(s.VIP, s.Protocol)
	if service == 0 || !ok(a.index.state.Services[service]) {
		a.result.refuse(s, RefusedVIP, "")
		return 0, 0
	}
	backend = a.index.backends[serverKey{service, s.Backend}]
	if backend == 0 {
		a.result.refuse(s, RefusedBackend, "")
	}
	return backend, vip
}

// seen is when a flow's last packet came, by the clock of this node.
func (a *applying) seen(s *lb.FlowState) uint32 { return a.now - uint32(min(s.Idle/tick, 1<<30)) }

// newer tells whether this node has seen a packet that the other one, which knows of
// one at that time, can't have: ticks are coarse, and telling takes time.
func newer(here, there uint32) bool { return int32(here-there) > 2 }
