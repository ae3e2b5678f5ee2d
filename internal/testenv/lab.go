// Package testenv builds networks out of network namespaces: hosts joined by
// switches, with the programs, servers, probers and packets that tests and the
// lab need. It imports nothing of sluice.
//
// A [Lab] is the root of everything: whatever is started on one of its hosts
// ends with [Lab.Close]. Everything but the packet builders needs root.
package testenv

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

// Root holds one directory per lab: logs, run directories, bpffs mounts.
const Root = "/run/sluice-lab"

// stopper is what a lab ends at Close: a process, a server, a prober. Stopping
// one that has already ended is no error.
type stopper interface{ stop() error }

// A Lab is a running topology. Its methods are safe for concurrent use.
type Lab struct {
	prefix string
	dir    string
	spec   Spec
	sw     *namespace
	hosts  []*Host

	mu       sync.Mutex
	stoppers []stopper

	closeOnce sync.Once
	closeErr  error
}

var testCounter atomic.Int64

// TestPrefix returns a prefix that no other lab of this machine uses. It names
// the process, so that a later run can sweep up after one that was killed.
func TestPrefix() string {
	return fmt.Sprintf("%s%d-%d", testPrefix, os.Getpid(), testCounter.Add(1))
}

// New builds a lab for a test. It skips the test without root, ends the lab
// when the test ends, and shows the logs of all its processes if it failed.
func New(t testing.TB, spec Spec) *Lab {
	t.Helper()
	RequireRoot(t)
	lab, err := Build(TestPrefix(), spec)
	if err != nil {
		t.Fatalf("build lab: %v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for name, tail := range lab.Logs(40) {
				t.Logf("log of %s:\n%s", name, tail)
			}
		}
		if err := lab.Close(); err != nil {
			t.Errorf("close lab: %v", err)
		}
	})
	return lab
}

// Build makes the namespaces PREFIX-HOST, one more for the switches, and all
// that spec says. A lab of the same prefix must not exist. After an error
// nothing is left behind.
func Build(prefix string, spec Spec) (_ *Lab, err error) {
	if err := spec.validate(); err != nil {
		return nil, err
	}
	dir := filepath.Join(Root, prefix)
	if err := makeLabDir(dir); err != nil {
		return nil, fmt.Errorf("create directory of lab %s: %w", prefix, err)
	}
	l := &Lab{prefix: prefix, dir: dir, spec: spec}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()

	if l.sw, err = createNamespace(prefix+"-switch", false); err != nil {
		return nil, err
	}
	for _, hs := range spec.Hosts {
		ns, err := createNamespace(prefix+"-"+hs.Name, spec.IPv6)
		if err != nil {
			return nil, err
		}
		l.hosts = append(l.hosts, newHost(l, hs, ns))
	}
	if err := l.wire(); err != nil {
		return nil, err
	}
	for _, h := range l.hosts {
		if err := h.prepare(); err != nil {
			return nil, fmt.Errorf("prepare host %s: %w", h.Name, err)
		}
	}
	return l, nil
}

// ErrExists says that a lab of this name is there already.
var ErrExists = errors.New("a lab of this name is up already")

// makeLabDir makes the lab's directory. It is the lock, too: of two that build
// the same lab, one wins.
func makeLabDir(dir string) error {
	const tries = 10
	var err error
	for range tries {
		if err := os.MkdirAll(Root, 0o755); err != nil {
			return err
		}
		err = os.Mkdir(dir, 0o755)
		if errors.Is(err, os.ErrExist) {
			return ErrExists
		}
		if !errors.Is(err, os.ErrNotExist) {
			return err
		}
		// Another process has closed its last lab and removed Root.
	}
	return err
}

// Open takes hold of a lab that another process has built with the same spec.
// Release lets go of it; Close ends it, with every process inside it, as Remove
// does.
func Open(prefix string, spec Spec) (*Lab, error) {
	if err := spec.validate(); err != nil {
		return nil, err
	}
	l := &Lab{prefix: prefix, dir: filepath.Join(Root, prefix), spec: spec}
	if _, err := os.Stat(l.dir); err != nil {
		return nil, fmt.Errorf("find lab %s: %w", prefix, err)
	}
	var err error
	if l.sw, err = openNamespace(prefix + "-switch"); err != nil {
		return nil, err
	}
	for _, hs := range spec.Hosts {
		ns, err := openNamespace(prefix + "-" + hs.Name)
		if err != nil {
			l.Release()
			return nil, err
		}
		l.hosts = append(l.hosts, newHost(l, hs, ns))
	}
	return l, nil
}

// Prefix returns what the names of the lab's namespaces start with.
func (l *Lab) Prefix() string { return l.prefix }

// Dir returns the lab's directory, which Close removes.
func (l *Lab) Dir() string { return l.dir }

// Hosts returns the hosts in the order of the spec.
func (l *Lab) Hosts() []*Host { return slices.Clone(l.hosts) }

// Host returns the host of that name, or nil.
func (l *Lab) Host(name string) *Host {
	for _, h := range l.hosts {
		if h.Name == name {
			return h
		}
	}
	return nil
}

// Logs returns the last lines of every process's output, by "HOST/NAME".
func (l *Lab) Logs(lines int) map[string]string {
	logs := make(map[string]string)
	for _, h := range l.hosts {
		files, err := filepath.Glob(filepath.Join(h.dir, "log", "*.log"))
		if err != nil {
			continue // only a bad pattern does that
		}
		for _, file := range files {
			name := filepath.Base(file)
			logs[h.Name+"/"+name[:len(name)-len(".log")]] = tail(file, lines)
		}
	}
	return logs
}

// adopt has Close stop s.
func (l *Lab) adopt(s stopper) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stoppers = append(l.stoppers, s)
}

// Release lets go of the lab and leaves it as it is: namespaces, processes and
// mounts stay. In-process servers and probers end with this process.
func (l *Lab) Release() {
	for _, h := range l.hosts {
		h.ns.release()
	}
	if l.sw != nil {
		l.sw.release()
	}
}

// Close ends everything that was started in the lab, last started first, then
// any process still inside its namespaces, and removes namespaces, mounts and
// files. It goes on after an error and returns all of them. Later calls return
// the same.
func (l *Lab) Close() error {
	l.closeOnce.Do(func() { l.closeErr = l.close() })
	return l.closeErr
}

func (l *Lab) close() error {
	var errs []error
	l.mu.Lock()
	stoppers := l.stoppers
	l.stoppers = nil
	l.mu.Unlock()
	for _, s := range slices.Backward(stoppers) {
		errs = append(errs, s.stop())
	}

	var names []string
	for _, h := range l.hosts {
		names = append(names, h.ns.name)
	}
	if l.sw != nil {
		names = append(names, l.sw.name)
	}
	l.Release()
	errs = append(errs, removeLab(l.dir, names))
	return errors.Join(errs...)
}

// Remove removes a lab that another process has built, or what is left of it:
// its processes, namespaces, mounts and files. One that is not there is no
// error.
func Remove(prefix string) error {
	names, err := namesWithPrefix(netnsDir, prefix+"-")
	if err != nil {
		return err
	}
	return removeLab(filepath.Join(Root, prefix), names)
}

// removeLab ends all processes inside the namespaces, then removes these, the
// mounts under dir and dir itself.
func removeLab(dir string, namespaces []string) error {
	errs := []error{endProcessesIn(namespaces)}
	for _, name := range namespaces {
		errs = append(errs, deleteNamespace(name))
	}
	errs = append(errs, unmountUnder(dir))
	if err := os.RemoveAll(dir); err != nil {
		errs = append(errs, fmt.Errorf("remove lab directory: %w", err))
	}
	// The last lab takes the common directory along.
	if err := os.Remove(Root); err != nil && !errors.Is(err, os.ErrNotExist) && !isNotEmpty(err) {
		errs = append(errs, fmt.Errorf("remove directory for labs: %w", err))
	}
	return errors.Join(errs...)
}
