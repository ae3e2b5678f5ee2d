// Kernels runs the packet tests of the loader on other kernels than this
// machine's: Debian's, each booted in qemu with an initramfs that holds the
// tests and nothing else. It installs no kernel and needs neither root nor KVM.
//
//	kernels [-run PATTERN] [-timeout DURATION] [-v] [SERIES...]
//
// It ends with a line for each kernel, and fails unless every test passed on
// all of them.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const usage = `usage: kernels [-run PATTERN] [-timeout DURATION] [-v] [SERIES...]

Runs the packet tests on Debian's kernels of each SERIES (default 6.1 6.12).

  -run PATTERN        only the tests that match (default all)
  -timeout DURATION   for one kernel, from its start to its end (default 4h: qemu emulates)
  -v                  show the tests' whole output, also where they pass
`

// testPackage is what is tested. Its tests get -short: emulation is some ten
// times slower than the machine.
const testPackage = "./loader"

type options struct {
	run     string
	timeout time.Duration
	verbose bool
	series  []string
}

func main() {
	// Ctrl-C ends the virtual machine too.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	o := options{}
	flags := flag.NewFlagSet("kernels", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	flags.StringVar(&o.run, "run", ".", "")
	flags.DurationVar(&o.timeout, "timeout", 4*time.Hour, "")
	flags.BoolVar(&o.verbose, "v", false, "")
	if err := flags.Parse(os.Args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return
		}
		os.Exit(2)
	}
	if o.series = flags.Args(); len(o.series) == 0 {
		o.series = []string{"6.1", "6.12"}
	}
	if err := testAll(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "kernels:", err)
		os.Exit(1)
	}
}

// testAll tests one kernel after another, so that a small machine stays usable.
// All are tried, whatever becomes of the first.
func testAll(ctx context.Context, o options) error {
	cache, err := os.UserCacheDir()
	if err != nil {
		return fmt.Errorf("find a place for kernels: %w", err)
	}
	store := store{dir: filepath.Join(cache, "sluice", "kernels")}

	work, err := os.MkdirTemp("", "sluice-kernels-")
	if err != nil {
		return fmt.Errorf("make a working directory: %w", err)
	}
	defer os.RemoveAll(work)
	payload, err := build(ctx, work)
	if err != nil {
		return err
	}
	payload.args = []string{
		"-test.v", "-test.short", "-test.run=" + o.run,
		// A test that hangs shows where, before the machine's time is up.
		"-test.timeout=" + (o.timeout * 9 / 10).String(),
	}

	var summaries, failed []string
	for _, series := range o.series {
		s, err := testSeries(ctx, o, store, work, payload, series)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if s == "" {
			s = fmt.Sprintf("kernel %s: not tested", series)
		}
		if err != nil {
			s += ": FAILED: " + strings.ReplaceAll(err.Error(), "\n", "; ")
			failed = append(failed, series)
		} else {
			s += ": ok"
		}
		summaries = append(summaries, s)
	}
	for _, s := range summaries {
		fmt.Println(s)
	}
	if len(failed) > 0 {
		return fmt.Errorf("failed on %s", strings.Join(failed, " and "))
	}
	return nil
}

// testSeries tests the newest kernel of a series. The summary is empty where no
// kernel was started.
func testSeries(ctx context.Context, o options, s store, work string, p payload, series string) (summary string, err error) {
	k, err := s.kernel(ctx, series)
	if err != nil {
		return "", err
	}
	initramfs := filepath.Join(work, "initramfs-"+series)
	if err := writeInitramfs(initramfs, p, k); err != nil {
		return "", err
	}
	fmt.Fprintf(os.Stderr, "kernels: testing %s\n", k.name)
	m := machine{
		kernel: k.image(), initramfs: initramfs, timeout: o.timeout,
		console: filepath.Join(work, "console-"+series), output: filepath.Join(work, "output-"+series),
	}
	start := time.Now()
	runErr := m.run(ctx)
	took := time.Since(start)
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}

	output, err := os.ReadFile(m.output)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("read the tests' output: %w", err)
	}
	console, err := os.ReadFile(m.console)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("read the console: %w", err)
	}
	r := parse(string(output))
	verdict := r.verdict(runErr)
	if o.verbose {
		fmt.Printf("%s\n", output)
	} else if verdict != nil {
		fmt.Fprintf(os.Stderr, "%s\n", shorten(r.failures(), 200))
	}
	// Without a result of the tests it is the kernel that knows what happened.
	if verdict != nil && !r.ended {
		said := lines(string(console))
		said = said[max(0, len(said)-60):]
		fmt.Fprintf(os.Stderr, "kernels: the end of the console of %s:\n%s\n", k.name, strings.Join(said, "\n"))
	}
	return r.summary(k.name, took), verdict
}

// build makes the programs that run in the virtual machine. They are static:
// nothing else is there.
func build(ctx context.Context, work string) (payload, error) {
	p := payload{init: filepath.Join(work, "init"), test: filepath.Join(work, "test")}
	for _, args := range [][]string{
		{"build", "-o", p.init, "./scripts/kernels/init"},
		{"test", "-c", "-o", p.test, testPackage},
	} {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
		cmd.Stderr = os.Stderr
		if err := cmd.Run(); err != nil {
			return payload{}, fmt.Errorf("build %s: %w", args[len(args)-1], err)
		}
	}
	if dir := filepath.Join(testPackage, "testdata"); isDir(dir) {
		p.testdata = dir
	}
	p.documents = "bpf"
	return p, nil
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
