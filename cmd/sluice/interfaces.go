package main

import (
	"slices"
	"sync"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/loader"
)

// tables is the data plane as the control loop writes it: one that comes back to
// an interface that was deleted and made anew, as a driver that is loaded again
// does. VRRP would hold the VIPs there before long.
type tables struct {
	datapath   *loader.Datapath
	interfaces []string
	mode       loader.Mode

	mu          sync.Mutex
	attachments []loader.Attachment
}

// attach puts the program on the interfaces where it is not.
func (t *tables) attach() error {
	attachments, err := t.datapath.Attach(t.interfaces, t.mode)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.attachments = attachments
	return nil
}

// where returns the interfaces that the program is on.
func (t *tables) where() []loader.Attachment {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.attachments)
}

func (t *tables) Apply(s lb.Snapshot) error { return t.datapath.Apply(s) }

func (t *tables) Preview(s lb.Snapshot) ([]lb.TableState, error) { return t.datapath.Preview(s) }

func (t *tables) TableStates() []lb.TableState { return t.datapath.TableStates() }

func (t *tables) AdoptTables(states []lb.TableState) ([]loader.RefusedTable, error) {
	return t.datapath.AdoptTables(states)
}

func (t *tables) Maintain() error { return t.datapath.Maintain() }

func (t *tables) Stats() (loader.Stats, error) { return t.datapath.Stats() }

func (t *tables) Traffic() (map[loader.ServiceBackend]loader.Traffic, error) {
	return t.datapath.Traffic()
}

func (t *tables) Usage() ([]loader.Usage, error) { return t.datapath.Usage() }

func (t *tables) RefreshInterfaces() error {
	if t.datapath.RefreshInterfaces() != nil {
		if err := t.attach(); err != nil {
			return err
		}
	}
	return t.datapath.CheckForwarding()
}
