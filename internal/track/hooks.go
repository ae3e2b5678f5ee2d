package track

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/sluice-lb/sluice/internal/command"
	"github.com/sluice-lb/sluice/vrrp"
)

// Limits of hooks.
const (
	maxHooks    = 64               // changes that wait; the oldest are left out
	hookTimeout = 30 * time.Second // of a hook; then its process group is killed
	// What waits when the daemon stops has this time together.
	LastHooks = 10 * time.Second
)

// Hooks are the programs to run when an instance has changed its state, with
// their arguments: one for each state, and one for any, which comes after it.
type Hooks struct {
	Active, Backup, Fault, Any []string
}

func (h Hooks) none() bool {
	return h.Active == nil && h.Backup == nil && h.Fault == nil && h.Any == nil
}

// of returns what runs when the state is s.
func (h Hooks) of(s vrrp.State) (all [][]string) {
	own := map[vrrp.State][]string{vrrp.Active: h.Active, vrrp.Backup: h.Backup, vrrp.Fault: h.Fault}[s]
	for _, args := range [][]string{own, h.Any} {
		if args != nil {
			all = append(all, args)
		}
	}
	return all
}

// A Notifier runs the hooks of one instance, one at a time and in order, in a
// goroutine of its own.
type Notifier struct {
	run  func(context.Context, command.Command) error
	log  *slog.Logger
	done chan struct{}

	mu      sync.Mutex
	hooks   Hooks
	waiting []vrrp.Change
	closed  bool
	wake    chan struct{} // has a value when there is something new

	ctx    context.Context // of the hooks that run
	cancel context.CancelFunc
}

// NewNotifier returns a Notifier. Close it.
func NewNotifier(h Hooks, log *slog.Logger) *Notifier {
	return newNotifier(h, log, func(ctx context.Context, c command.Command) error { return c.Run(ctx) })
}

func newNotifier(h Hooks, log *slog.Logger, run func(context.Context, command.Command) error) *Notifier {
	n := &Notifier{hooks: h, run: run, log: log, done: make(chan struct{}), wake: make(chan struct{}, 1)}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	go n.loop()
	return n
}

// Notify has the hooks of a change run. It never waits.
func (n *Notifier) Notify(c vrrp.Change) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed || n.hooks.none() {
		return
	}
	if len(n.waiting) == maxHooks {
		n.log.Error("hooks are too slow: the oldest change is left out", "instance", c.Instance, "waiting", maxHooks)
		n.waiting = append(n.waiting[:0], n.waiting[1:]...)
	}
	n.waiting = append(n.waiting, c)
	n.signal()
}

// signal wakes the loop. n.mu is held.
func (n *Notifier) signal() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// Set makes these the hooks from now on, also of changes that wait.
func (n *Notifier) Set(h Hooks) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hooks = h
}

// Close runs what waits, and kills what has not ended after 10 seconds.
func (n *Notifier) Close() error {
	n.mu.Lock()
	n.closed = true
	n.signal()
	n.mu.Unlock()
	timer := time.AfterFunc(LastHooks, n.cancel)
	defer timer.Stop()
	<-n.done
	n.cancel()
	return nil
}

func (n *Notifier) loop() {
	defer close(n.done)
	for range n.wake {
		for {
			c, ok, closed := n.next()
			if ok {
				n.handle(c)
				continue
			}
			if closed {
				return
			}
			break
		}
	}
}

func (n *Notifier) next() (c vrrp.Change, ok, closed bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.waiting) == 0 {
		return c, false, n.closed
	}
	c = n.waiting[0]
	n.waiting = n.waiting[1:]
	return c, true, n.closed
}

func (n *Notifier) handle(c vrrp.Change) {
	n.mu.Lock()
	hooks := n.hooks
	n.mu.Unlock()
	for _, args := range hooks.of(c.To) {
		ctx, cancel := context.WithTimeout(n.ctx, hookTimeout)
		err := n.run(ctx, command.Command{Args: args, Env: []string{
			"SLUICE_INSTANCE=" + c.Instance,
			"SLUICE_OLD_STATE=" + c.From.String(),
			"SLUICE_NEW_STATE=" + c.To.String(),
			"SLUICE_REASON=" + c.Reason,
		}})
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("no end within %v: killed", hookTimeout)
		}
		if err != nil {
			n.log.Error("hook failed", "instance", c.Instance, "state", c.To, "command", args, "error", err)
		}
	}
}
