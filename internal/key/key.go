// Package key has the secret that the nodes of a cluster share: how its file is
// made and read.
package key

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Size is the length of a key in bytes.
const Size = 32

// A Key authenticates what nodes tell each other.
type Key [Size]byte

// New makes a random key.
func New() Key {
	var k Key
	_, _ = rand.Read(k[:]) // never fails (crypto/rand)
	return k
}

// header is what a file's key stands behind: a file that is something else is
// noticed, and so is a version that does not exist yet.
const header = "sluice-key-v1:"

// Text is the content of k's file.
func (k Key) Text() []byte {
	return append(base64.StdEncoding.AppendEncode([]byte(header), k[:]), '\n')
}

// ErrFormat is the error for a file that holds no key.
var ErrFormat = errors.New("it holds no sluice key: make one with `sluice keygen FILE`")

// Parse reads the content of a key file.
func Parse(text []byte) (Key, error) {
	encoded, ok := bytes.CutPrefix(bytes.TrimSpace(text), []byte(header))
	if !ok {
		return Key{}, ErrFormat
	}
	b, err := base64.StdEncoding.Strict().AppendDecode(nil, encoded)
	if err != nil || len(b) != Size {
		return Key{}, ErrFormat
	}
	return Key(b), nil
}

// CheckMode refuses a file that others than its owner and root may read or
// change.
func CheckMode(mode fs.FileMode) error {
	switch open := mode.Perm() & 0o077; {
	case !mode.IsRegular():
		return errors.New("it is no regular file")
	case open != 0:
		return fmt.Errorf("others than its owner may use it (mode %04o): chmod 600", mode.Perm())
	}
	return nil
}

// Write writes a new key to a file that must not exist yet. The file appears as
// a whole, readable by its owner only.
func Write(path string, k Key) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(k.Text())
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Link(f.Name(), path) // unlike rename, it replaces nothing
	}
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("write key: %s exists already, and other nodes may have it: remove it first, or take another name", path)
	}
	if err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	return nil
}
