package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxFileSize bounds a configuration file, in bytes: ten thousand services fit,
// a file given by mistake does not fill the memory.
const maxFileSize = 8 << 20

// A fileSystem is where configurations come from.
type fileSystem interface {
	// ReadFile returns the content of a file.
	ReadFile(name string) ([]byte, error)
	// Glob returns the names that match, sorted, as filepath.Glob.
	Glob(pattern string) ([]string, error)
	// Identity returns the same string for two names of one file.
	Identity(name string) string
	// Mode returns what kind of file it is, and who may use it.
	Mode(name string) (fs.FileMode, error)
}

// osFiles is the fileSystem of the machine.
type osFiles struct{}

func (osFiles) ReadFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.IsDir() {
		return nil, errors.New("it is a directory")
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxFileSize {
		return nil, fmt.Errorf("it is larger than %d MiB", maxFileSize>>20)
	}
	return b, nil
}

func (osFiles) Glob(pattern string) ([]string, error) { return filepath.Glob(pattern) }

func (osFiles) Identity(name string) string {
	if abs, err := filepath.Abs(name); err == nil {
		name = abs
	}
	if real, err := filepath.EvalSymlinks(name); err == nil {
		name = real
	}
	return name
}

func (osFiles) Mode(name string) (fs.FileMode, error) {
	st, err := os.Stat(name)
	if err != nil {
		return 0, err
	}
	return st.Mode(), nil
}

// reason is what went wrong with a file, without the name that the message
// around it has already.
func reason(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}

// A source is one file.
type source struct {
	name  string
	text  string // LF line ends, no byte order mark
	lines []string
}

func newSource(name string, content []byte) *source {
	text := strings.TrimPrefix(string(content), "\uFEFF")
	text = strings.ReplaceAll(text, "\r\n", "\n")
	return &source{name: name, text: text, lines: strings.Split(text, "\n")}
}

// errorAt makes an Error for a place in the file. A place beyond the text (the
// YAML library may mean the end of the file) is moved to the text's end.
func (s *source) errorAt(line, column, width int, message string) *Error {
	line = min(max(line, 1), len(s.lines))
	text := s.lines[line-1]
	column = min(max(column, 1), utf8.RuneCountInString(text)+1)
	return &Error{File: s.name, Line: line, Column: column, Width: max(width, 1), Message: oneLine(message), Text: text}
}

// maxMessage bounds a message, in characters: it may quote a text of any length.
const maxMessage = 400

// oneLine makes a message fit for a log and a terminal.
func oneLine(message string) string {
	message = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, message)
	if runes := []rune(message); len(runes) > maxMessage {
		message = string(runes[:maxMessage]) + "…"
	}
	return message
}

// checkText finds what must not be in a text file at all: bytes that are not
// UTF-8 and control characters.
func (s *source) checkText() *Error {
	for i, line := range s.lines {
		column := 0
		for j := 0; j < len(line); {
			column++
			r, size := utf8.DecodeRuneInString(line[j:])
			switch {
			case r == utf8.RuneError && size == 1:
				return s.errorAt(i+1, column, 1, "this is not UTF-8 text: save the file as UTF-8")
			case r < ' ' && r != '\t' || r == 0x7F:
				return s.errorAt(i+1, column, 1, fmt.Sprintf("control character U+%04X is not allowed", r))
			case r == '\uFEFF':
				return s.errorAt(i+1, column, 1, "byte order mark in the middle of the file")
			}
			j += size
		}
	}
	return nil
}
