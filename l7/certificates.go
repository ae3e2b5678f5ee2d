package l7

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// lookAtFiles is how often a certificate's files are looked at, at most: when somebody
// connects.
const lookAtFiles = time.Second

// A certificate is one from files, which is read again when they change.
type certificate struct {
	files lb.ServerTLS
	log   *slog.Logger

	mu      sync.Mutex
	now     *tls.Certificate
	seen    [2]version
	looked  time.Time
	problem string
}

// A version of a file is what changes with its content.
type version struct {
	modified time.Time
	size     int64
	inode    os.FileInfo
}

func (v version) same(o version) bool {
	return v.modified.Equal(o.modified) && v.size == o.size && v.inode != nil && o.inode != nil && os.SameFile(v.inode, o.inode)
}

func loadCertificate(files lb.ServerTLS, log *slog.Logger) (*certificate, error) {
	c := &certificate{files: files, log: log, looked: time.Now()}
	c.seen = c.versions()
	now, err := tls.LoadX509KeyPair(files.Certificate, files.Key)
	if err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", files.Certificate, files.Key, err)
	}
	c.now = &now
	return c, nil
}

func (c *certificate) versions() (vs [2]version) {
	for i, path := range []string{c.files.Certificate, c.files.Key} {
		if info, err := os.Stat(path); err == nil {
			vs[i] = version{info.ModTime(), info.Size(), info}
		}
	}
	return vs
}

// get returns the certificate. While new files do not fit together, as between the
// writing of one and of the other, the old one stays.
func (c *certificate) get() *tls.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.looked) < lookAtFiles {
		return c.now
	}
	c.looked = time.Now()
	seen := c.versions()
	if seen[0].same(c.seen[0]) && seen[1].same(c.seen[1]) {
		return c.now
	}
	now, err := tls.LoadX509KeyPair(c.files.Certificate, c.files.Key)
	if err != nil {
		if c.problem == "" {
			c.log.Error("the old certificate stays", "certificate", c.files.Certificate, "error", err)
		}
		c.problem = fmt.Sprintf("certificate %s is not renewed: %v", c.files.Certificate, err)
		return c.now
	}
	c.now, c.seen, c.problem = &now, seen, ""
	c.log.Info("certificate renewed", "certificate", c.files.Certificate)
	return c.now
}

// Problem tells why the files are not what is in use; "": they are. It also tells when
// the certificate is over.
func (c *certificate) Problem(now time.Time) string {
	cert := c.get()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.problem != "" {
		return c.problem
	}
	leaf := cert.Leaf
	if leaf == nil {
		var err error
		if leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return ""
		}
	}
	if now.After(leaf.NotAfter) {
		return fmt.Sprintf("certificate %s has expired on %s", c.files.Certificate, leaf.NotAfter.UTC().Format(time.DateOnly))
	}
	return ""
}

// Certificates are those of one listen, by the names of its servers.
type certificates struct {
	exact, wildcards map[string]*certificate
	byDefault        *certificate
	config           *tls.Config
}

var errNoCertificate = errors.New("there is no certificate")

func newCertificates(http2 bool) *certificates {
	cs := &certificates{exact: map[string]*certificate{}, wildcards: map[string]*certificate{}}
	cs.config = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: cs.get, NextProtos: []string{"http/1.1"}}
	if http2 {
		cs.config.NextProtos = []string{"h2", "http/1.1"}
	}
	return cs
}

// get chooses by SNI.
func (cs *certificates) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := hostName(hello.ServerName)
	c := cs.exact[name]
	for rest := name; c == nil; {
		i := strings.IndexByte(rest, '.')
		if i < 0 {
			break
		}
		c, rest = cs.wildcards[rest[i:]], rest[i+1:]
	}
	if c == nil {
		c = cs.byDefault
	}
	if c == nil {
		return nil, errNoCertificate
	}
	return c.get(), nil
}

// add has a server's names answered with its certificate.
func (cs *certificates) add(v *virtualHost, c *certificate, byDefault bool) {
	for _, name := range v.config.Names {
		into := cs.exact
		if suffix, ok := strings.CutPrefix(name, "*"); ok {
			into, name = cs.wildcards, suffix
		}
		if into[name] == nil {
			into[name] = c
		}
	}
	if byDefault || cs.byDefault == nil {
		cs.byDefault = c
	}
}
