package testenv

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestLeaksAreSeen(t *testing.T) {
	contains := func(lines []string, part string) bool {
		return strings.Contains(strings.Join(lines, "\n"), part)
	}
	t.Run("goroutine", func(t *testing.T) {
		quit, ended := make(chan struct{}), make(chan struct{})
		go func() { defer close(ended); leakedForATest(quit) }()
		Eventually(t, 5*time.Second, "the goroutine in the list", func() (bool, error) {
			return contains(leftGoroutines(), "leakedForATest"), nil
		})
		close(quit)
		<-ended
		if contains(leftGoroutines(), "leakedForATest") {
			t.Error("a goroutine that has ended is in the list")
		}
	})
	t.Run("child process", func(t *testing.T) {
		cmd := exec.Command("sleep", "1000")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("child process %d ", cmd.Process.Pid)
		if got := leftChildren(); !contains(got, want) {
			t.Errorf("children %q lack %q", got, want)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // killed
		if got := leftChildren(); contains(got, want) {
			t.Errorf("children %q still have %q", got, want)
		}
	})
	t.Run("pins", func(t *testing.T) {
		var prefix string
		t.Run("test", func(t *testing.T) {
			dir := PinDir(t)
			prefix = strings.Split(strings.TrimPrefix(dir, Root+"/"), "/")[0]
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if got := Leftovers(prefix); !contains(got, "mount "+Root+"/"+prefix) {
				t.Errorf("leftovers %q lack the mount", got)
			}
		})
		if prefix == "" {
			return // skipped
		}
		if got := Leftovers(prefix); len(got) != 0 {
			t.Errorf("left behind: %q", got)
		}
	})
}

func leakedForATest(quit chan struct{}) { <-quit }

func TestSweep(t *testing.T) {
	RequireRoot(t)
	// A process that has ended gives its number, which is not in use again yet.
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	prefix := fmt.Sprintf("%s%d-1", testPrefix, cmd.Process.Pid)
	lab, err := Build(prefix, Default(1))
	if err != nil {
		t.Fatal(err)
	}
	left, err := lab.Host("b1").Start("orphan", exec.Command("sleep", "1000"))
	if err != nil {
		t.Error(err)
	}
	lab.Release()
	if err := Sweep(); err != nil {
		t.Error(err)
	}
	if got := Leftovers(prefix); len(got) != 0 {
		t.Errorf("left behind:\n%s", strings.Join(got, "\n"))
	}
	if left != nil {
		_ = left.Wait() // ended by Sweep; the test hangs if it is not
	}
}

// recorder stands in for a test that is about to be skipped or failed.
type recorder struct {
	testing.TB
	did string
}

func (r *recorder) Helper()                      {}
func (r *recorder) Skip(args ...any)             { r.did = "skip: " + fmt.Sprint(args...) }
func (r *recorder) Fatalf(f string, args ...any) { r.did = "fail: " + fmt.Sprintf(f, args...) }
func (r *recorder) verdict() (how, why string) {
	how, why, _ = strings.Cut(r.did, ": ")
	return how, why
}

func TestRequire(t *testing.T) {
	for _, tc := range []struct{ variable, want string }{{"", "skip"}, {"0", "skip"}, {"1", "fail"}} {
		t.Setenv(requireVar, tc.variable)
		r := &recorder{TB: t}
		RequireProgram(r, "no-such-program")
		if how, why := r.verdict(); how != tc.want || !strings.Contains(why, "no-such-program") {
			t.Errorf("%s=%q: %q, want %s and the program's name", requireVar, tc.variable, r.did, tc.want)
		}
		r = &recorder{TB: t}
		if path := RequireProgram(r, "sh"); r.did != "" || path == "" {
			t.Errorf("a program that is there: %q, path %q", r.did, path)
		}
	}
}
