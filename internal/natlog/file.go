package natlog

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// A file is appended to under one name, whatever becomes of the file that had it.
type file struct {
	path   string
	open   *os.File  // nil: it could not be opened
	size   int64     // when its name was looked at last
	buffer []byte    // lines that wait
	torn   bool      // the last line is half written
	failed time.Time // when it could not be written; zero: it could
}

// The modes of the log, and of a directory that is made for it.
const (
	fileMode = 0o640
	dirMode  = 0o750
)

// follow opens the file where it is not open, was renamed or removed, or if asked. Fresh
// tells that another one has begun, also where it was truncated.
func (f *file) follow(asked bool) (fresh bool, err error) {
	same := false
	if f.open != nil {
		named, err := os.Stat(f.path)
		mine, mineErr := f.open.Stat()
		switch {
		case errors.Is(err, fs.ErrNotExist), err == nil && mineErr == nil && !os.SameFile(named, mine):
		case err != nil || mineErr != nil:
			return false, fmt.Errorf("look at the file: %w", errors.Join(err, mineErr))
		case asked:
			same = true
		default:
			fresh = mine.Size() < f.size
			f.size = mine.Size()
			return fresh, nil
		}
	}
	if err := os.MkdirAll(filepath.Dir(f.path), dirMode); err != nil {
		return false, fmt.Errorf("make its directory: %w", err)
	}
	next, err := os.OpenFile(f.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, fileMode)
	if err != nil {
		return false, err
	}
	if f.open != nil {
		_ = f.write()  // what waits is older than the new file, which gets what can't be written
		f.open.Close() // nothing is lost that a write has not told
	}
	info, err := next.Stat()
	if err != nil {
		next.Close()
		f.open = nil
		return false, err
	}
	f.open, f.size, f.torn, f.failed = next, info.Size(), f.torn && same, time.Time{}
	return true, nil
}

// flush writes the lines that wait. Those that it could not write are dropped.
func (f *file) flush() (lost uint64, err error) {
	if err = f.write(); err != nil {
		lost = f.drop()
	}
	return lost, err
}

// drop forgets the lines that wait, and counts them.
func (f *file) drop() uint64 {
	n := uint64(bytes.Count(f.buffer, []byte{'\n'}))
	f.buffer = f.buffer[:0]
	return n
}

// writeLine writes a line by itself, when none waits.
func (f *file) writeLine(line []byte) error {
	f.buffer = append(f.buffer[:0], line...)
	err := f.write()
	f.buffer = f.buffer[:0]
	return err
}

// write writes the lines that wait, as far as it can.
func (f *file) write() (err error) {
	if len(f.buffer) == 0 {
		return nil
	}
	defer func() {
		f.failed = time.Time{}
		if err != nil {
			f.failed = time.Now()
		}
	}()
	if f.torn {
		if _, err := f.open.Write([]byte{'\n'}); err != nil {
			return err
		}
		f.torn = false
	}
	n, err := f.open.Write(f.buffer)
	if n > 0 {
		f.torn = f.buffer[n-1] != '\n'
	}
	// Of a line that is half written the rest is what could not be: it counts as lost.
	f.buffer = f.buffer[:copy(f.buffer, f.buffer[n:])]
	return err
}

// written tells whether the last attempt to write has succeeded.
func (f *file) written() bool { return f.failed.IsZero() }

func (f *file) close() {
	if f.open != nil {
		f.open.Close() // nothing is lost that a write has not told
	}
}
