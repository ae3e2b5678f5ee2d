package testenv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestLongestSilence(t *testing.T) {
	const ms = time.Millisecond
	for _, tc := range []struct {
		name           string
		answers        []time.Duration
		from, to       time.Duration
		silence, began time.Duration
	}{
		{"no answer", nil, 0, 100 * ms, 100 * ms, 0},
		{"between two", []time.Duration{10 * ms, 20 * ms, 70 * ms, 90 * ms}, 0, 100 * ms, 50 * ms, 20 * ms},
		{"before the first", []time.Duration{60 * ms, 80 * ms}, 0, 100 * ms, 60 * ms, 0},
		{"after the last", []time.Duration{10 * ms, 20 * ms}, 0, 100 * ms, 80 * ms, 20 * ms},
		{"the first of two equal ones", []time.Duration{50 * ms}, 0, 100 * ms, 50 * ms, 0},
		{"cut at the start", []time.Duration{10 * ms, 90 * ms}, 60 * ms, 100 * ms, 30 * ms, 60 * ms},
		{"cut at the end", []time.Duration{10 * ms, 90 * ms}, 0, 30 * ms, 20 * ms, 10 * ms},
	} {
		t.Run(tc.name, func(t *testing.T) {
			start := time.Now()
			line := Timeline{Start: start, Length: 100 * ms, Answers: tc.answers}
			silence, began := line.LongestSilenceBetween(start.Add(tc.from), start.Add(tc.to))
			if silence != tc.silence || began != tc.began {
				t.Errorf("silence of %v from %v, want %v from %v", silence, began, tc.silence, tc.began)
			}
		})
	}
}

func TestWaitFor(t *testing.T) {
	errNotYet := errors.New("not yet")
	for _, tc := range []struct {
		name   string
		look   func(n int) (bool, error)
		took   time.Duration
		inErr  []string
		wanted error
	}{
		{"at once", func(int) (bool, error) { return true, nil }, 0, nil, nil},
		{"at the fifth look", func(n int) (bool, error) { return n == 5, nil }, 4 * pollInterval, nil, nil},
		{"an error means not yet", func(n int) (bool, error) {
			if n < 3 {
				return true, errNotYet
			}
			return true, nil
		}, 2 * pollInterval, nil, nil},
		{"never", func(int) (bool, error) { return false, nil }, time.Second, []string{"the moon", "1s"}, context.DeadlineExceeded},
		{"never, with a reason", func(int) (bool, error) { return false, errNotYet }, time.Second, []string{"the moon", "not yet"}, errNotYet},
		{"given up", func(int) (bool, error) { return false, fmt.Errorf("%w: gone", ErrGiveUp) }, 0, []string{"the moon", "gone"}, ErrGiveUp},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				start, looks := time.Now(), 0
				err := WaitFor(ctx, "the moon", func() (bool, error) { looks++; return tc.look(looks) })
				if took := time.Since(start); took != tc.took {
					t.Errorf("took %v, want %v", took, tc.took)
				}
				if !errors.Is(err, tc.wanted) {
					t.Fatalf("error %v, want %v", err, tc.wanted)
				}
				for _, part := range tc.inErr {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("error %q does not say %q", err, part)
					}
				}
			})
		})
	}
}

func TestParseAnswer(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\nServer: x\r\ncontent-length: 3\r\n\r\n"
	type answer struct {
		Body     string
		Complete bool
		Failure  string
	}
	for _, tc := range []struct {
		name   string
		data   string
		closed bool
		want   answer
	}{
		{"nothing yet", "", false, answer{}},
		{"half a head", head[:30], false, answer{}},
		{"head alone", head, false, answer{}},
		{"half a body", head + "b", false, answer{}},
		{"whole", head + "b1\n", false, answer{Body: "b1", Complete: true}},
		{"whole and closed", head + "b1\n", true, answer{Body: "b1", Complete: true}},
		{"closed at once", "", true, answer{Failure: "closed before the answer"}},
		{"closed in the body", head + "b", true, answer{Failure: "closed in the middle of the answer"}},
		{"another status", "HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", false, answer{Failure: "status 503"}},
		{"no length", "HTTP/1.1 200 OK\r\n\r\n", false, answer{Failure: "no content length"}},
		{"bad length", "HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\n", false, answer{Failure: "no content length"}},
		{"another protocol", "hello\r\n\r\n", false, answer{Failure: "status "}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			body, complete, failure := parseAnswer([]byte(tc.data), tc.closed)
			if diff := cmp.Diff(tc.want, answer{string(body), complete, failure}); diff != "" {
				t.Errorf("answer differs (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTail(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       string
	}{
		{"empty", "", ""},
		{"fewer", "one\n", "one"},
		{"exactly", "one\ntwo\n", "one\ntwo"},
		{"more", "zero\none\ntwo\n", "one\ntwo"},
		{"without the last line feed", "zero\none\ntwo", "one\ntwo"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "log")
			if err := os.WriteFile(file, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if got := tail(file, 2); got != tc.want {
				t.Errorf("tail is %q, want %q", got, tc.want)
			}
		})
	}
}

func TestSpecRefuses(t *testing.T) {
	for _, tc := range []struct {
		name string
		spec Spec
		want string
	}{
		{"a host without a name", Spec{Hosts: []HostSpec{{}}}, "empty"},
		{"two hosts of one name", Spec{Hosts: []HostSpec{{Name: "a"}, {Name: "a"}}}, "taken"},
		{"the switch's name", Spec{Hosts: []HostSpec{{Name: "switch"}}}, "reserved"},
		{"one interface twice", Spec{Hosts: []HostSpec{{Name: "a", Interfaces: []InterfaceSpec{{}, {Segment: "b"}}}}}, "twice"},
		{"a name too long for a port", Spec{Hosts: []HostSpec{{Name: "backend1234", Interfaces: []InterfaceSpec{{}}}}}, "longer"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := tc.spec.validate(); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one that says %q", err, tc.want)
			}
		})
	}
}

func TestOrphan(t *testing.T) {
	// Linux gives no process a number that high: it is at most 2^22.
	const dead = "99999999"
	self := fmt.Sprint(os.Getpid())
	for _, tc := range []struct {
		name, lab string
		want      bool
	}{
		{"sluice-test-" + dead + "-3-lb1", "sluice-test-" + dead + "-3", true},
		{"sluice-test-" + dead + "-3", "sluice-test-" + dead + "-3", true},
		{"sluice-demo-" + dead + "-b1", "sluice-demo-" + dead, true},
		{"sluice-demo-" + dead, "sluice-demo-" + dead, true},
		{"sluice-test-" + self + "-3-lb1", "sluice-test-" + self + "-3", false},
		{"sluice-lab-lb1", "", false},
		{"sluice-test-x", "", false},
	} {
		lab, got := orphan(tc.name)
		if got != tc.want || lab != tc.lab {
			t.Errorf("orphan(%q) = %q, %v; want %q, %v", tc.name, lab, got, tc.lab, tc.want)
		}
	}
}
