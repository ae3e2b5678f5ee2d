package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// An apt is Debian's package manager with some package lists: by default the
// machine's own. It changes nothing of the machine.
type apt struct{ options []string }

// A debianPackage is one version of a package.
type debianPackage struct{ name, version string }

// releases are the names of the Debian releases that have a series.
var releases = map[string]string{"6.1": "bookworm", "6.12": "trixie"}

// command runs one of apt's programs in a directory ("": this one) and returns
// what it prints.
func (a apt) command(ctx context.Context, dir, program string, args ...string) (string, error) {
	// As root, apt would download as a user who cannot write to our directories.
	args = slices.Concat([]string{"-q", "-o", "APT::Sandbox::User=root"}, a.options, args)
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return "", fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
	}
	return string(out), err
}

// newest returns the newest kernel package of a series.
func (a apt) newest(ctx context.Context, series string) (debianPackage, error) {
	out, err := a.command(ctx, "", "apt-cache", "search", "--names-only", "^linux-image-")
	if err != nil {
		return debianPackage{}, fmt.Errorf("search for kernel %s: %w", series, err)
	}
	var names []string
	pattern := imagePattern(series)
	for line := range strings.Lines(out) {
		if name, _, _ := strings.Cut(line, " "); pattern.MatchString(name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return debianPackage{}, fmt.Errorf("search for kernel %s: no package of that series", series)
	}
	p := debianPackage{name: slices.MaxFunc(names, naturally)}
	out, err = a.command(ctx, "", "apt-cache", "show", "--no-all-versions", p.name)
	if err != nil {
		return debianPackage{}, fmt.Errorf("find the version of %s: %w", p.name, err)
	}
	for line := range strings.Lines(out) {
		if version, found := strings.CutPrefix(line, "Version: "); found {
			p.version = strings.TrimSpace(version)
			return p, nil
		}
	}
	return debianPackage{}, fmt.Errorf("find the version of %s: apt-cache names none", p.name)
}

// download fetches a package, without installing it, into a directory of its own
// below dir. The result is its file.
func (a apt) download(ctx context.Context, p debianPackage, dir string) (string, error) {
	dir, err := os.MkdirTemp(dir, "deb-")
	if err != nil {
		return "", fmt.Errorf("make a directory for %s: %w", p.name, err)
	}
	if _, err := a.command(ctx, dir, "apt-get", "download", p.name+"="+p.version); err != nil {
		return "", fmt.Errorf("download %s: %w", p.name, err)
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(debs) != 1 {
		return "", fmt.Errorf("download %s: %d files came", p.name, len(debs))
	}
	return debs[0], nil
}

// private returns an apt that keeps its lists in dir, and has none yet.
func private(dir string, options ...string) (apt, error) {
	for _, sub := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return apt{}, fmt.Errorf("make package lists: %w", err)
		}
	}
	status := filepath.Join(dir, "status")
	if err := os.WriteFile(status, nil, 0o644); err != nil {
		return apt{}, fmt.Errorf("make package lists: %w", err)
	}
	return apt{options: append([]string{
		"-o", "Dir::State=" + filepath.Join(dir, "state"),
		"-o", "Dir::State::status=" + status,
		"-o", "Dir::Cache=" + filepath.Join(dir, "cache"),
		"-o", "Acquire::Languages=none",
	}, options...)}, nil
}

// refreshed returns an apt with lists of its own of what the machine's
// configuration names, fetched now.
func refreshed(ctx context.Context, dir string) (apt, error) {
	a, err := private(dir)
	if err != nil {
		return apt{}, err
	}
	// One list that cannot be had need not be the one that matters.
	if _, err := a.command(ctx, "", "apt-get", "update"); ctx.Err() != nil {
		return apt{}, fmt.Errorf("fetch package lists: %w", err)
	}
	return a, nil
}

// release returns an apt for the Debian release that has a series, from the
// mirrors that the lists of a name.
func release(ctx context.Context, dir string, a apt, series string) (apt, error) {
	name := releases[series]
	if name == "" {
		return apt{}, fmt.Errorf("find a Debian release with kernel %s: none is known", series)
	}
	out, err := a.command(ctx, "", "apt-get", "indextargets", "--format", "$(REPO_URI) $(LABEL)", "Created-By: Packages")
	if err != nil {
		return apt{}, fmt.Errorf("find Debian's mirror: %w", err)
	}
	sources := sourcesOf(out, name)
	if sources == "" {
		return apt{}, errors.New("find Debian's mirror: apt is configured for none")
	}
	list := filepath.Join(dir, "sources.list")
	a, err = private(dir, "-o", "Dir::Etc::SourceList="+list, "-o", "Dir::Etc::SourceParts=-")
	if err != nil {
		return apt{}, err
	}
	if err := os.WriteFile(list, []byte(sources), 0o644); err != nil {
		return apt{}, fmt.Errorf("write package sources: %w", err)
	}
	if _, err := a.command(ctx, "", "apt-get", "update"); err != nil {
		return apt{}, fmt.Errorf("fetch the package lists of %s: %w", name, err)
	}
	return a, nil
}

// archiveKeys sign all releases.
const archiveKeys = "/usr/share/keyrings/debian-archive-keyring.gpg"

// sourcesOf returns a sources.list of a release, for the mirrors in targets,
// which has a line "URI LABEL" for each list.
func sourcesOf(targets, release string) string {
	suites := map[string]string{"Debian": release, "Debian-Security": release + "-security"}
	options := "arch=amd64"
	if _, err := os.Stat(archiveKeys); err == nil {
		options += " signed-by=" + archiveKeys
	}
	var sources []string
	for target := range strings.Lines(targets) {
		uri, label, _ := strings.Cut(strings.TrimSpace(target), " ")
		if suite := suites[label]; suite != "" {
			sources = append(sources, fmt.Sprintf("deb [%s] %s %s main\n", options, uri, suite))
		}
	}
	slices.Sort(sources)
	return strings.Join(slices.Compact(sources), "")
}
