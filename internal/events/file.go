package events

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
)

// The modes of the file, and of a directory that is made for it.
const (
	fileMode = 0o640
	dirMode  = 0o755
)

// most is how many lines the file may have before it is written anew with the
// latest Kept of them.
const most = 2 * Kept

// A file holds events, one JSON object per line.
type file struct {
	path    string
	open    *os.File // nil: it is to be written anew
	lines   int
	written uint64       // number of the last event in it
	wholes  atomic.Int64 // how often it was to be written whole
}

// load reads what there is, and opens the file to go on with it, unless it has to
// be written anew: where it is missing, torn or too long.
func (f *file) load() ([]Event, error) {
	text, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	events, whole := parse(text)
	if !whole {
		return events, nil
	}
	if f.open, err = os.OpenFile(f.path, os.O_WRONLY|os.O_APPEND, 0); err != nil {
		return events, err
	}
	f.lines = bytes.Count(text, []byte{'\n'})
	return events, nil
}

// parse reads lines, the latest Kept of them. Those that make no sense, such as one
// that a crash has torn, are left out, and the whole is not whole.
func parse(text []byte) (events []Event, whole bool) {
	whole = true
	for line := range bytes.Lines(text) {
		e, err := Decode(line)
		if err != nil || line[len(line)-1] != '\n' {
			whole = false
		}
		if err == nil {
			events = append(events, e)
		}
	}
	return events[max(0, len(events)-Kept):], whole
}

// Read returns the events in the file of a daemon that is gone, oldest first.
func Read(path string) ([]Event, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	events, _ := parse(text)
	return events, nil
}

// fit tells whether lines may be added to the file as it is.
func (f *file) fit() bool {
	if f.open == nil {
		return false
	}
	named, err := os.Stat(f.path)
	mine, mineErr := f.open.Stat()
	if err == nil && mineErr == nil && os.SameFile(named, mine) {
		return true
	}
	f.close() // it was removed or renamed
	return false
}

// add adds lines to the file. After a failure it is to be written anew: a line may
// be torn.
func (f *file) add(lines [][]byte) error {
	_, err := f.open.Write(bytes.Join(lines, nil))
	if err == nil {
		err = f.open.Sync()
	}
	if err != nil {
		f.close()
		return err
	}
	f.lines += len(lines)
	return nil
}

// replace writes the file whole or not at all.
func (f *file) replace(lines [][]byte) error {
	f.wholes.Add(1)
	f.close()
	if err := os.MkdirAll(filepath.Dir(f.path), dirMode); err != nil {
		return fmt.Errorf("make its directory: %w", err)
	}
	// One name for all: what a crash leaves is overwritten, and never piles up.
	fresh, err := os.OpenFile(f.path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, fileMode)
	if err != nil {
		return err
	}
	_, err = fresh.Write(bytes.Join(lines, nil))
	if err == nil {
		err = fresh.Sync()
	}
	if err == nil {
		err = os.Rename(fresh.Name(), f.path)
	}
	if err != nil {
		return errors.Join(err, fresh.Close(), os.Remove(fresh.Name()))
	}
	// It goes on at its end, where alone it has been written so far.
	f.open, f.lines = fresh, len(lines)
	return nil
}

func (f *file) close() {
	if f.open != nil {
		f.open.Close() // a write has told already what is wrong
		f.open = nil
	}
}
