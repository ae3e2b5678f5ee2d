package main

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

var (
	testLine = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): (\S+) \(`)
	// What `go test` says about a test that did not fail.
	quietLine = regexp.MustCompile(`^\s*(=== (RUN|PAUSE|CONT|NAME)\s|--- (PASS|SKIP): )`)
	endLine   = regexp.MustCompile(`^kernels: exit code (-?\d+)$`)
)

// Results are what a run of a test binary with -test.v came to. A test with
// subtests is not counted beside them.
type results struct {
	passed, failed, skipped int
	ended                   bool   // the test binary came to its end
	code                    string // its exit code
	lines                   []string
}

// lines splits the text of a serial port, which ends lines with CR and LF.
func lines(text string) []string {
	text = strings.TrimRight(strings.ReplaceAll(text, "\r", ""), "\n")
	if text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}

// parse reads the output of a run.
func parse(output string) results {
	r := results{lines: lines(output)}
	outcome := map[string]string{} // by test
	for _, line := range r.lines {
		if m := testLine.FindStringSubmatch(line); m != nil {
			outcome[m[2]] = m[1]
		}
	}
	// Only the last line counts: a test may print anything.
	if n := len(r.lines); n > 0 {
		if m := endLine.FindStringSubmatch(r.lines[n-1]); m != nil {
			r.ended, r.code = true, m[1]
		}
	}
	// A test is a parent where one of its subtests explains its outcome.
	parent := map[string]bool{}
	for name, o := range outcome {
		for up, found := cutLast(name); found; up, found = cutLast(up) {
			if outcome[up] != "FAIL" || o == "FAIL" {
				parent[up] = true
			}
		}
	}
	for name, o := range outcome {
		switch {
		case parent[name]:
		case o == "PASS":
			r.passed++
		case o == "FAIL":
			r.failed++
		default:
			r.skipped++
		}
	}
	return r
}

// cutLast returns the name of the test that a subtest belongs to.
func cutLast(name string) (string, bool) {
	i := strings.LastIndexByte(name, '/')
	if i < 0 {
		return "", false
	}
	return name[:i], true
}

// verdict tells what is wrong with a run, if anything; err is that of the
// machine itself.
func (r results) verdict(err error) error {
	switch {
	case err != nil:
		return err
	case !r.ended:
		return errors.New("the machine ended before the tests did")
	case r.failed > 0:
		return fmt.Errorf("tests failed: %d", r.failed)
	case r.code != "0":
		return fmt.Errorf("the tests ended with exit code %s", r.code)
	case r.passed == 0:
		return errors.New("no test was run")
	}
	return nil
}

// failures returns the output without the lines about tests that did not fail.
func (r results) failures() []string {
	var kept []string
	for _, line := range r.lines {
		if line != "" && line != "PASS" && !quietLine.MatchString(line) && !endLine.MatchString(line) {
			kept = append(kept, line)
		}
	}
	return kept
}

// summary is the line about a kernel, without its verdict.
func (r results) summary(kernel string, took time.Duration) string {
	return fmt.Sprintf("kernel %s: %d passed, %d failed, %d skipped, %.0f s", kernel, r.passed, r.failed, r.skipped, took.Seconds())
}

// shorten joins lines, and leaves out the middle of more than n: the first
// failure often explains all, and a panic comes last.
func shorten(lines []string, n int) string {
	if left := len(lines) - n; left > 0 {
		lines = slices.Concat(lines[:n/2], []string{fmt.Sprintf("... %d lines ...", left)}, lines[len(lines)-n/2:])
	}
	return strings.Join(lines, "\n")
}
