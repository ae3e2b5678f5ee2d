package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// memFiles are files in memory, by name.
type memFiles map[string]string

func (m memFiles) ReadFile(name string) ([]byte, error) {
	s, ok := m[path.Clean(name)]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return []byte(s), nil
}

func (m memFiles) Glob(pattern string) ([]string, error) {
	var names []string
	for name := range m {
		ok, err := filepath.Match(pattern, name)
		if err != nil {
			return nil, err
		}
		if ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

func (m memFiles) Identity(name string) string { return path.Clean(name) }

// Mode is that of a file of one's own, but for names that end with .open.
func (m memFiles) Mode(name string) (fs.FileMode, error) {
	if _, err := m.ReadFile(name); err != nil {
		return 0, err
	}
	if strings.HasSuffix(name, ".open") {
		return 0o644, nil
	}
	return 0o600, nil
}

// mistake is what a test compares of an Error: its place and message.
func mistake(e *Error) string {
	if e.Line == 0 {
		return e.Message
	}
	return fmt.Sprintf("%d:%d: %s", e.Line, e.Column, e.Message)
}

// Two keys, as their files hold them.
const (
	testKey  = "sluice-key-v1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"
	otherKey = "sluice-key-v1:HwECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"
)

// withKeys is a configuration beside files that are keys, or are meant to be.
func withKeys(yaml string) memFiles {
	return memFiles{
		"sluice.yaml": yaml, "sync.key": testKey, "other.key": otherKey, "copy.key": testKey,
		"sync.key.open": testKey, "empty.key": "",
		"cert.pem": testPair()[0], "cert.key": testPair()[1], "sorry.html": "<p>sorry",
	}
}

// testPair are a certificate and its key, made once.
var testPair = sync.OnceValue(func() [2]string {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"www.example.com"}, NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		panic(err)
	}
	return [2]string{
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	}
})

// mustLoad loads a configuration that has no mistakes.
func mustLoad(t *testing.T, yaml string) *Config {
	t.Helper()
	c, err := load(withKeys(yaml), "sluice.yaml", Options{Hostname: "lb1"})
	if err != nil {
		t.Fatalf("load:\n%v", err)
	}
	return c
}

// wantMistakes loads a configuration and compares the places and messages of
// all its mistakes.
func wantMistakes(t *testing.T, yaml string, want []string) {
	t.Helper()
	c, err := load(withKeys(yaml), "sluice.yaml", Options{Hostname: "lb1"})
	if err == nil {
		t.Fatalf("no mistake found in\n%s\nwant %q; got %+v", yaml, want, c)
	}
	var all Errors
	if !errors.As(err, &all) {
		t.Fatalf("error is a %T", err)
	}
	var got []string
	for _, e := range all {
		got = append(got, mistake(e))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("mistakes (-want +got):\n%s\nprinted:\n%v", diff, err)
	}
	for _, e := range all {
		if strings.TrimSpace(e.Text) == "" {
			t.Errorf("no source line is shown for %s", e.Summary())
		}
	}
}
