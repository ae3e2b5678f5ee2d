package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Holds are the VRRP instances that an operator keeps from becoming Active. They
// are kept in a file, so that they outlive the daemon. Methods may be called from
// several goroutines.
type Holds struct {
	path string

	mu    sync.Mutex
	all   []Hold // in the order of their names
	alarm string
}

// A Hold is an instance that is held back.
type Hold struct {
	Instance string    `json:"instance"`
	Since    time.Time `json:"since"`
}

// holdsFile is how they are kept.
type holdsFile struct {
	Version int    `json:"version"`
	Holds   []Hold `json:"holds"`
}

const holdsVersion = 1

// OpenHolds reads what is held back from a file. One that is not there holds
// nothing. One that cannot be understood is moved aside, and is an alarm; the
// daemon starts with nothing held back.
func OpenHolds(path string) (*Holds, error) {
	h := &Holds{path: path}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return h, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read which instances are held back: %w", err)
	}
	var f holdsFile
	err = json.Unmarshal(text, &f)
	if err == nil && f.Version != holdsVersion {
		err = fmt.Errorf("version %d, want %d", f.Version, holdsVersion)
	}
	if err == nil && slices.ContainsFunc(f.Holds, func(o Hold) bool { return o.Instance == "" }) {
		err = errors.New("an entry without an instance")
	}
	if err != nil {
		aside := path + ".corrupt"
		if moveErr := os.Rename(path, aside); moveErr != nil {
			return nil, fmt.Errorf("read which instances are held back from %s: %w", path, errors.Join(err, moveErr))
		}
		h.alarm = fmt.Sprintf("which instances are held back, in %s, could not be read (%v): it is in %s, and none is", path, err, aside)
		return h, nil
	}
	h.all = f.Holds
	return h, nil
}

// Alarm tells what is wrong with the file; "": nothing.
func (h *Holds) Alarm() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.alarm
}

// Since tells since when an instance is held back. False: it is not.
func (h *Holds) Since(instance string) (time.Time, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, o := range h.all {
		if o.Instance == instance {
			return o.Since, true
		}
	}
	return time.Time{}, false
}

// Set holds an instance back, or ends that, and keeps it.
func (h *Holds) Set(instance string, on bool, now time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	i := slices.IndexFunc(h.all, func(o Hold) bool { return o.Instance == instance })
	if (i >= 0) == on {
		return nil
	}
	next := slices.Clone(h.all)
	if on {
		next = append(next, Hold{Instance: instance, Since: now})
		slices.SortFunc(next, func(a, b Hold) int { return strings.Compare(a.Instance, b.Instance) })
	} else {
		next = slices.Delete(next, i, i+1)
	}
	if err := writeWhole(h.path, holdsFile{Version: holdsVersion, Holds: next}); err != nil {
		return fmt.Errorf("keep in %s what is held back: %w", h.path, err)
	}
	h.all = next
	return nil
}

// writeWhole writes a value as JSON into a file, whole or not at all.
func writeWhole(path string, value any) error {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	fresh, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(fresh.Name()) // renamed away, where all goes well
	_, err = fresh.Write(append(text, '\n'))
	err = errors.Join(err, fresh.Sync(), fresh.Close())
	if err != nil {
		return err
	}
	return os.Rename(fresh.Name(), path)
}
