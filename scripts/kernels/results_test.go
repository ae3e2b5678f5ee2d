package main

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	type count struct{ Passed, Failed, Skipped int }
	tests := []struct {
		name    string
		output  string
		machine error
		want    count
		verdict string // "": good
	}{
		{
			name:   "passed",
			output: "=== RUN   TestA\r\n--- PASS: TestA (0.10s)\r\n=== RUN   TestB\r\n--- SKIP: TestB (0.00s)\r\nPASS\r\n\r\nkernels: exit code 0\r\n",
			want:   count{Passed: 1, Skipped: 1},
		},
		{
			name: "subtests count, their parents do not",
			output: "--- PASS: TestA (0.10s)\n    --- PASS: TestA/one (0.00s)\n    --- PASS: TestA/two (0.00s)\n" +
				"        --- PASS: TestA/two/deep (0.00s)\n--- PASS: TestAB (0.00s)\nkernels: exit code 0\n",
			want: count{Passed: 3},
		},
		{
			name:    "failed subtest",
			output:  "--- FAIL: TestA (0.10s)\n    --- PASS: TestA/one (0.00s)\n    --- FAIL: TestA/two (0.00s)\nFAIL\nkernels: exit code 1\n",
			want:    count{Passed: 1, Failed: 1},
			verdict: "tests failed: 1",
		},
		{
			name:    "parent that fails by itself",
			output:  "--- FAIL: TestA (0.10s)\n    --- PASS: TestA/one (0.00s)\nFAIL\nkernels: exit code 1\n",
			want:    count{Passed: 1, Failed: 1},
			verdict: "tests failed: 1",
		},
		{
			name:    "failed though the exit code is good",
			output:  "--- FAIL: TestA (0.10s)\nkernels: exit code 0\n",
			want:    count{Failed: 1},
			verdict: "tests failed: 1",
		},
		{
			name:    "panic in a test",
			output:  "--- PASS: TestA (0.10s)\npanic: index out of range\n\nkernels: exit code 2\n",
			want:    count{Passed: 1},
			verdict: "the tests ended with exit code 2",
		},
		{
			name:    "killed by a signal",
			output:  "--- PASS: TestA (0.10s)\n\nkernels: exit code -1\n",
			want:    count{Passed: 1},
			verdict: "the tests ended with exit code -1",
		},
		{
			name:    "all skipped",
			output:  "--- SKIP: TestA (0.00s)\nPASS\nkernels: exit code 0\n",
			want:    count{Skipped: 1},
			verdict: "no test was run",
		},
		{
			name:    "no result",
			output:  "--- PASS: TestA (0.10s)\n=== RUN   TestB\n",
			want:    count{Passed: 1},
			verdict: "the machine ended before the tests did",
		},
		{
			name:    "a result that a test printed",
			output:  "--- PASS: TestA (0.10s)\nkernels: exit code 0\n=== RUN   TestB\n",
			want:    count{Passed: 1},
			verdict: "the machine ended before the tests did",
		},
		{
			name:    "nothing",
			verdict: "the machine ended before the tests did",
		},
		{
			name:    "the machine failed after a good result",
			output:  "--- PASS: TestA (0.10s)\nkernels: exit code 0\n",
			machine: errors.New("no end"),
			want:    count{Passed: 1},
			verdict: "no end",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := parse(tt.output)
			if diff := cmp.Diff(tt.want, count{r.passed, r.failed, r.skipped}); diff != "" {
				t.Errorf("counts (-want +got):\n%s", diff)
			}
			verdict := ""
			if err := r.verdict(tt.machine); err != nil {
				verdict = err.Error()
			}
			if verdict != tt.verdict {
				t.Errorf("verdict is %q, want %q", verdict, tt.verdict)
			}
		})
	}
}

func TestFailures(t *testing.T) {
	r := parse("=== RUN   TestA\n    a_test.go:1: said\n--- FAIL: TestA (0.10s)\n    --- PASS: TestA/one (0.00s)\n" +
		"=== PAUSE TestB\n=== CONT  TestB\n--- SKIP: TestB (0.00s)\nFAIL\n\nkernels: exit code 1\n")
	want := []string{"    a_test.go:1: said", "--- FAIL: TestA (0.10s)", "FAIL"}
	if diff := cmp.Diff(want, r.failures()); diff != "" {
		t.Errorf("failures (-want +got):\n%s", diff)
	}
}

func TestShorten(t *testing.T) {
	lines := []string{"a", "b", "c", "d", "e"}
	if got, want := shorten(lines, 5), "a\nb\nc\nd\ne"; got != want {
		t.Errorf("five of five lines are %q, want %q", got, want)
	}
	if got, want := shorten(lines, 2), "a\n... 3 lines ...\ne"; got != want {
		t.Errorf("two of five lines are %q, want %q", got, want)
	}
}
