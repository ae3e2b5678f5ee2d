package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// A kernel is the content of a Debian package as far as a test needs it.
type kernel struct {
	name string // of the package
	dir  string
}

// image is the file that a boot loader loads.
func (k kernel) image() string { return filepath.Join(k.dir, "vmlinuz") }

// modules is the directory of the modules; they load in the order of their names.
func (k kernel) modules() string { return filepath.Join(k.dir, "modules") }

// A store keeps unpacked kernels, each in a directory NAME_VERSION_MODULES.
type store struct{ dir string }

// kernel returns the newest kernel of a series that this machine's apt knows;
// where it knows none or cannot get it, one that was kept, or one of the Debian
// release that has the series.
func (s store) kernel(ctx context.Context, series string) (kernel, error) {
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return kernel{}, fmt.Errorf("make the store of kernels: %w", err)
	}
	work, err := os.MkdirTemp(s.dir, "work-")
	if err != nil {
		return kernel{}, fmt.Errorf("make a working directory: %w", err)
	}
	defer os.RemoveAll(work)

	k, err := s.fetch(ctx, apt{}, work, series)
	if err == nil {
		return k, nil
	}
	errs := []error{err}
	if k, ok := s.kept(series); ok {
		fmt.Fprintf(os.Stderr, "kernels: using %s, which was kept: %v\n", k.name, err)
		return k, nil
	}
	// The machine's lists may be absent or old.
	fresh, err := refreshed(ctx, filepath.Join(work, "fresh"))
	if err == nil {
		if k, err = s.fetch(ctx, fresh, work, series); err == nil {
			return k, nil
		}
	}
	errs = append(errs, err)
	// Another release of Debian may have it, on the same mirror.
	other, err := release(ctx, filepath.Join(work, "release"), fresh, series)
	if err == nil {
		if k, err = s.fetch(ctx, other, work, series); err == nil {
			return k, nil
		}
	}
	return kernel{}, errors.Join(append(errs, err)...)
}

// fetch returns the newest kernel of a series that a knows, from the store if it
// is there.
func (s store) fetch(ctx context.Context, a apt, work, series string) (kernel, error) {
	p, err := a.newest(ctx, series)
	if err != nil {
		return kernel{}, err
	}
	k := kernel{name: p.name, dir: filepath.Join(s.dir, p.name+"_"+p.version+suffix())}
	if isDir(k.dir) {
		return k, nil
	}
	fmt.Fprintf(os.Stderr, "kernels: fetching %s %s\n", p.name, p.version)
	deb, err := a.download(ctx, p, work)
	if err != nil {
		return kernel{}, err
	}
	unpacked := filepath.Join(work, "unpacked")
	if err := unpack(ctx, deb, unpacked); err != nil {
		return kernel{}, err
	}
	// What is in the store is whole. Another process may have been faster.
	if err := os.Rename(unpacked, k.dir); err != nil && !isDir(k.dir) {
		return kernel{}, fmt.Errorf("store %s: %w", p.name, err)
	}
	return k, nil
}

// kept returns the newest kernel of a series in the store.
func (s store) kept(series string) (kernel, bool) {
	dirs, err := filepath.Glob(filepath.Join(s.dir, "linux-image-*"+suffix()))
	if err != nil {
		return kernel{}, false
	}
	var names []string
	pattern := imagePattern(series)
	for _, dir := range dirs {
		if name, _, _ := strings.Cut(filepath.Base(dir), "_"); pattern.MatchString(name) {
			names = append(names, filepath.Base(dir))
		}
	}
	if len(names) == 0 {
		return kernel{}, false
	}
	newest := slices.MaxFunc(names, naturally)
	name, _, _ := strings.Cut(newest, "_")
	return kernel{name: name, dir: filepath.Join(s.dir, newest)}, true
}

// suffix tells kernels apart that were unpacked with other modules.
func suffix() string {
	h := fnv.New32a()
	for _, m := range wantedModules {
		fmt.Fprintln(h, m)
	}
	return fmt.Sprintf("_%08x", h.Sum32())
}

// imagePattern matches the names of a series' packages for physical machines:
// neither the cloud's nor the real-time flavour, nor unsigned ones.
func imagePattern(series string) *regexp.Regexp {
	return regexp.MustCompile(`^linux-image-` + regexp.QuoteMeta(series) + `\.[0-9.]+(-[0-9][0-9a-z.]*)?(\+[0-9a-z.]+)?-amd64$`)
}

var digits = regexp.MustCompile(`[0-9]+|[^0-9]+`)

// naturally compares names with the numbers in them as numbers.
func naturally(a, b string) int {
	return slices.CompareFunc(digits.FindAllString(a, -1), digits.FindAllString(b, -1), func(a, b string) int {
		if isDigit(a[0]) && isDigit(b[0]) {
			a, b = strings.TrimLeft(a, "0"), strings.TrimLeft(b, "0")
			return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b))
		}
		return strings.Compare(a, b)
	})
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
