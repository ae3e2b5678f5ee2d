package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"github.com/sluice-lb/sluice/internal/lb"
)

// Epochs are those of the tables that this node holds, by service. They are kept in a
// file, so that a daemon that starts anew goes on where the one before has ended.
// Methods may be called from several goroutines.
type Epochs struct {
	path string

	mu      sync.Mutex
	all     map[string]heldEpoch
	unsaved bool
}

// A heldEpoch is the epoch of the table of a service.
type heldEpoch struct {
	lb.Epoch
	Peer string // the node whose table it is, if it is followed
	// Seen is the highest term that any node has told of.
	Seen uint64
}

// epochsFile is how they are kept.
type epochsFile struct {
	Version  int                   `json:"version"`
	Services map[string]savedEpoch `json:"services"`
}

// A savedEpoch has no number: after a restart the term is another one, or that of the
// node which is followed.
type savedEpoch struct {
	Term uint64 `json:"term"`
	Peer string `json:"follows,omitempty"`
	Seen uint64 `json:"seen"`
}

const epochsVersion = 1

// OpenEpochs reads epochs from a file. One that is not there, or that cannot be
// understood, holds none: the nodes agree on later ones as soon as they talk. Fresh
// tells that the data plane is new, too: no table that was followed is in it.
func OpenEpochs(path string, fresh bool) (*Epochs, error) {
	e := &Epochs{path: path, all: map[string]heldEpoch{}}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return e, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the epochs of tables: %w", err)
	}
	var f epochsFile
	if err := json.Unmarshal(text, &f); err != nil || f.Version != epochsVersion {
		return e, nil
	}
	for name, s := range f.Services {
		if fresh {
			s.Peer = ""
		}
		e.all[name] = heldEpoch{lb.Epoch{Term: s.Term}, s.Peer, max(s.Seen, s.Term)}
	}
	return e, nil
}

// of returns the epoch of a service's table.
func (e *Epochs) of(service string) heldEpoch {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.all[service]
}

// set notes it, until save.
func (e *Epochs) set(service string, h heldEpoch) {
	e.mu.Lock()
	defer e.mu.Unlock()
	h.Seen = max(h.Seen, h.Term)
	before := e.all[service]
	e.all[service] = h
	e.unsaved = e.unsaved || before.Term != h.Term || before.Peer != h.Peer || before.Seen != h.Seen
}

// save writes down what has been noted.
func (e *Epochs) save() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.unsaved {
		return nil
	}
	f := epochsFile{Version: epochsVersion, Services: map[string]savedEpoch{}}
	for name, h := range e.all {
		f.Services[name] = savedEpoch{h.Term, h.Peer, h.Seen}
	}
	if err := writeWhole(e.path, f); err != nil {
		return fmt.Errorf("keep the epochs of tables in %s: %w", e.path, err)
	}
	e.unsaved = false
	return nil
}
