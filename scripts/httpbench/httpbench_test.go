package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/testenv"
	"github.com/sluice-lb/sluice/scripts/rounds"
)

func TestMain(m *testing.M) {
	if os.Getenv(actAsCrowd) != "" {
		main()
		os.Exit(0)
	}
	testenv.Main(m)
}

func TestCommandLine(t *testing.T) {
	for _, tt := range []struct {
		name   string
		args   []string
		want   task // but for sluice
		chosen string
		fails  bool
	}{
		{name: "nothing", want: task{rounds: usualRounds, length: usualLength, clients: usualClients}, chosen: "1k_keepalive 100k_keepalive close"},
		{name: "a short run", args: []string{"--rounds", "1", "--length", "1s", "--clients", "0", "--cases", "close,1k_keepalive"}, want: task{rounds: 1, length: time.Second}, chosen: "close 1k_keepalive"},
		{name: "no rounds", args: []string{"--rounds", "0"}, fails: true},
		{name: "too short", args: []string{"--length", "500ms"}, fails: true},
		{name: "too few clients", args: []string{"--clients", "9"}, fails: true},
		{name: "an unknown case", args: []string{"--cases", "1k"}, fails: true},
		{name: "a word", args: []string{"close"}, fails: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parse(tt.args)
			if tt.fails {
				if !errors.Is(err, errUsage) {
					t.Errorf("error %v, want %v", err, errUsage)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if chosen := strings.Join(rounds.Names(got.cases, nameOf), " "); chosen != tt.chosen || got.rounds != tt.want.rounds || got.length != tt.want.length || got.clients != tt.want.clients {
				t.Errorf("got %+v, want %+v of %s", got, tt.want, tt.chosen)
			}
		})
	}
}

func TestFiguresArePrinted(t *testing.T) {
	f := &figures{}
	for _, v := range []float64{60, 50, 66} {
		f.Add("http.close.sluice.cpu_us", "us", v)
	}
	f.Add("http.close.sluice.rps", "requests/s", 12345.678)
	for _, v := range []float64{30, 20, 44} {
		f.Add("http.close.nginx.cpu_us", "us", v)
	}
	f.comment("%d clients", 3)
	var out strings.Builder
	f.print(&out)
	const want = `figure: http.close.sluice.cpu_us 60 us
# http.close.sluice.cpu_us: median of 3, from 50 to 66
figure: http.close.sluice.rps 12346 requests/s
# http.close.sluice.rps: median of 1, from 12346 to 12346
figure: http.close.nginx.cpu_us 30 us
# http.close.nginx.cpu_us: median of 3, from 20 to 44
# http.close: sluice takes 2 times nginx's processor time, median of 3, from 1.50 to 2.50
# 3 clients
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("figures (-want +got):\n%s", diff)
	}
}

func TestWhatWrkSays(t *testing.T) {
	for _, tt := range []struct {
		name, out string
		want      loaded
		fails     bool
	}{
		{"a result", "Running 1s test\n  1 threads\n\n{\"requests\": 9, \"duration_us\": 1000, \"p99_us\": 3, \"errors\": 0}\n", loaded{9, 1000, 3, 0}, false},
		{"errors", "\n{\"requests\": 9, \"duration_us\": 1000, \"p99_us\": 3, \"errors\": 1}\n", loaded{9, 1000, 3, 1}, true},
		{"nothing was answered", "\n{\"requests\": 0, \"duration_us\": 1000, \"p99_us\": 0, \"errors\": 0}\n", loaded{0, 1000, 0, 0}, true},
		{"no result", "unable to connect", loaded{}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseLoad([]byte(tt.out))
			if diff := cmp.Diff(tt.want, got); diff != "" || (err != nil) != tt.fails {
				t.Errorf("error %v (-want +got):\n%s", err, diff)
			}
		})
	}
}

// A process's time is that of its children, too.
func TestProcessorTime(t *testing.T) {
	cmd := exec.Command("sh", "-c", "while :; do :; done & wait")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := cpuTime(-1); err == nil {
		t.Error("a process that there is not has a time")
	}
	children := func() []byte {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid))
		return b
	}
	defer func() {
		for pid := range strings.FieldsSeq(string(children())) {
			_ = exec.Command("kill", "-9", pid).Run()
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	testenv.Eventually(t, time.Minute, "the time of a child", func() (bool, error) {
		used, err := cpuTime(cmd.Process.Pid)
		return used >= 50*time.Millisecond, err
	})
}

// A round of all programs, and few slow and idle clients. What is checked does not depend
// on how fast the machine is: that there are figures, and that they can be.
func TestRound(t *testing.T) {
	testenv.RequireRoot(t)
	for _, name := range []string{"nginx", "haproxy", "wrk"} {
		testenv.RequireProgram(t, name)
	}
	if cpus, err := testenv.CPUs(); err != nil || len(cpus) < 2 {
		t.Skipf("the proxies need a CPU, and their load another one: %v, %v", cpus, err)
	}
	sluice := filepath.Join(t.TempDir(), "sluice")
	if out, err := exec.Command("go", "build", "-o", sluice, "github.com/sluice-lb/sluice/cmd/sluice").CombinedOutput(); err != nil {
		t.Fatalf("build sluice: %v\n%s", err, out)
	}
	var out strings.Builder
	if err := run(t.Context(), []string{"--rounds", "1", "--length", "1s", "--clients", "40", "--cases", "1k_keepalive", "--sluice", sluice}, &out); err != nil {
		t.Fatal(err)
	}
	t.Log(out.String())
	got := map[string]float64{}
	for line := range strings.Lines(out.String()) {
		var name, unit string
		var value float64
		if n, _ := fmt.Sscanf(line, "figure: %s %f %s", &name, &value, &unit); n == 3 {
			got[name] = value
		}
	}
	want := []string{"http.slow_clients.p99_ms", "http.slow_clients.none.p99_ms", "http.slow_clients.p99.ratio", "http.idle_connection.bytes"}
	for _, p := range []string{"sluice", "nginx", "haproxy"} {
		for _, f := range []string{"cpu_us", "rps", "p99_ms"} {
			want = append(want, "http.1k_keepalive."+p+"."+f)
		}
	}
	for _, name := range want {
		if v, ok := got[name]; !ok || v <= 0 && name != "http.idle_connection.bytes" {
			t.Errorf("%s is %v, there: %v", name, v, ok)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d figures, want %d", len(got), len(want))
	}
}

// A program that ends is an error, and says which one.
func TestProgramThatEnds(t *testing.T) {
	testenv.RequireRoot(t)
	for _, name := range []string{"nginx", "wrk"} {
		testenv.RequireProgram(t, name)
	}
	if cpus, err := testenv.CPUs(); err != nil || len(cpus) < 2 {
		t.Skipf("the proxies need a CPU, and their load another one: %v, %v", cpus, err)
	}
	path, err := exec.LookPath("false")
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	err = run(t.Context(), []string{"--sluice", path}, &out)
	if err == nil || !strings.Contains(err.Error(), "sluice") || !strings.Contains(err.Error(), "has ended") || out.Len() > 0 {
		t.Errorf("error %v, want one that says that sluice has ended; figures %q", err, out.String())
	}
}
