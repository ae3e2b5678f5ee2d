package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/internal/testenv"
	"github.com/sluice-lb/sluice/scripts/rounds"
)

func TestMain(m *testing.M) {
	if os.Getenv(actAsWatch) != "" {
		main()
		os.Exit(0)
	}
	testenv.Main(m)
}

func TestCommandLine(t *testing.T) {
	for _, tt := range []struct {
		name   string
		args   []string
		rounds int
		chosen string
		soak   time.Duration
		fails  bool
	}{
		{name: "nothing", rounds: usualRounds, chosen: "seed v3_100ms v3_10ms fast"},
		{name: "a short run", args: []string{"--rounds", "1", "--configurations", "v3_10ms,seed"}, rounds: 1, chosen: "v3_10ms seed"},
		{name: "a soaking", args: []string{"--soak", "10m"}, rounds: usualRounds, soak: 10 * time.Minute, chosen: "v3_10ms fast"},
		{name: "a soaking of another one", args: []string{"--soak", "1m", "--configurations", "seed"}, rounds: usualRounds, soak: time.Minute, chosen: "seed"},
		{name: "a soaking of no time", args: []string{"--soak", "-1s"}, fails: true},
		{name: "no rounds", args: []string{"--rounds", "0"}, fails: true},
		{name: "an unknown configuration", args: []string{"--configurations", "seed,v4"}, fails: true},
		{name: "an unknown flag", args: []string{"--fast"}, fails: true},
		{name: "a word", args: []string{"seed"}, fails: true},
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
			if chosen := strings.Join(rounds.Names(got.configurations, nameOf), " "); got.rounds != tt.rounds || got.soak != tt.soak || chosen != tt.chosen {
				t.Errorf("%d rounds and %v of %s, want %d and %v of %s", got.rounds, got.soak, chosen, tt.rounds, tt.soak, tt.chosen)
			}
		})
	}
}

func TestFiguresArePrinted(t *testing.T) {
	f := &figures{}
	for _, v := range []float64{3627.5, 3601, 3612.25} {
		f.Add("failover.sluice.seed.crash.ms", "ms", v)
	}
	f.pause("failover.sluice.seed.crash.ms", 1200*time.Microsecond)
	f.pause("failover.sluice.seed.crash.ms", 1100*time.Microsecond)
	for _, v := range []float64{4, 1, 0, 1} {
		f.Add("failover.sluice.seed.stop.lost", "probes", v)
	}
	f.Add("failover.keepalived.seed.crash.ms", "ms", 3010.2083)
	f.probes(testenv.DatagramResult{Sent: make([]time.Duration, 1000), Skipped: 3, Realtime: true})
	f.probes(testenv.DatagramResult{Sent: make([]time.Duration, 500)})
	var out strings.Builder
	f.print(&out)
	const want = `figure: failover.sluice.seed.crash.ms 3612.25 ms
# failover.sluice.seed.crash.ms: median of 3, from 3601 to 3627.50; the client paused for 1.20 ms at most
figure: failover.sluice.seed.stop.lost 1 probes
# failover.sluice.seed.stop.lost: median of 4, from 0 to 4
figure: failover.keepalived.seed.crash.ms 3010.21 ms
# failover.keepalived.seed.crash.ms: median of 1, from 3010.21 to 3010.21
figure: failover.sluice_over_keepalived.seed.crash.ratio 1.20 x
# the client sent 1500 probes, and was late for 3 others
# the client had no real-time priority: its own delays are in the figures
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("figures (-want +got):\n%s", diff)
	}
}

func TestEachNodeHasCPUs(t *testing.T) {
	for _, tt := range []struct {
		cpus              []int
		ofFirst, ofSecond string
	}{
		{[]int{3}, "[3]", "[3]"},
		{[]int{0, 1}, "[0]", "[1]"},
		{[]int{0, 2, 5}, "[0]", "[2 5]"},
		{[]int{0, 1, 2, 3}, "[0 1]", "[2 3]"},
	} {
		if a, b := fmt.Sprint(share(first, tt.cpus)), fmt.Sprint(share(second, tt.cpus)); a != tt.ofFirst || b != tt.ofSecond {
			t.Errorf("of %v the first node has %s and the second %s, want %s and %s", tt.cpus, a, b, tt.ofFirst, tt.ofSecond)
		}
	}
}

// build makes the program that is measured, as a user has it.
func build(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "sluice")
	if out, err := exec.Command("go", "build", "-o", program, "github.com/sluice-lb/sluice/cmd/sluice").CombinedOutput(); err != nil {
		t.Fatalf("build sluice: %v\n%s", err, out)
	}
	return program
}

// Nodes that need a key get one, from the program itself.
func TestKeyOfTheNodes(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	const script = "#!/bin/sh\n[ \"$1\" = keygen ] && echo secret >\"$2\"\n"
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, key := range []bool{false, true} {
		dir := t.TempDir()
		s := &sluice{path: program, keys: "version: 3", key: key}
		if err := s.write(dir); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(s.file)
		if err != nil {
			t.Fatal(err)
		}
		if names := strings.Contains(string(text), "\nsync: {key_file: sync.key}\n"); names != key {
			t.Errorf("key %v: the configuration names one: %v:\n%s", key, names, text)
		}
		secret, err := os.ReadFile(filepath.Join(dir, "sync.key"))
		if made := err == nil && string(secret) == "secret\n"; made != key {
			t.Errorf("key %v: one was made: %v (%v)", key, made, err)
		}
	}
	broken := &sluice{path: filepath.Join(dir, "none"), keys: "version: 3", key: true}
	if err := broken.write(t.TempDir()); err == nil {
		t.Error("a key that could not be made is no error")
	}
}

// Both programs take what they are to be measured with.
func TestConfigurationsAreTaken(t *testing.T) {
	program := build(t)
	for _, c := range configurations {
		s := &sluice{path: program, keys: c.sluice, key: c.key}
		if err := s.write(t.TempDir()); err != nil {
			t.Fatal(err)
		}
		for _, node := range []string{first, second} {
			cfg, err := config.Load(s.file, config.Options{Node: node})
			if err != nil {
				t.Errorf("%s: sluice says: %v", c.name, err)
			} else if got := int(cfg.VRRP[0].Priority); got != priorities[node] {
				t.Errorf("%s: sluice on %s has priority %d, want %d, as keepalived has", c.name, node, got, priorities[node])
			}
		}
	}
	lab := testenv.New(t, testenv.Default(0))
	path := testenv.RequireProgram(t, "keepalived")
	for _, c := range configurations {
		if c.keepalived == nil {
			continue
		}
		for _, node := range []string{first, second} {
			text, err := (&keepalived{dialect: *c.keepalived}).text(node)
			if err != nil {
				t.Fatal(err)
			}
			h := lab.Host(node)
			if err := os.WriteFile(keepalivedFile(h), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := h.Run(t.Context(), path, "-t", "-P", "-f", keepalivedFile(h)); err != nil {
				t.Errorf("%s: keepalived says: %v\n%s", c.name, err, out)
			}
		}
	}
}

// One round of both programs. What is checked does not depend on how fast the
// machine is: that each event was measured, and that it was that event.
func TestRound(t *testing.T) {
	testenv.RequireRoot(t)
	testenv.RequireProgram(t, "keepalived")
	program := build(t)
	i := slices.IndexFunc(configurations, func(c configuration) bool { return c.name == "v3_100ms" })
	f := &figures{}
	if err := measure(t.Context(), task{rounds: 1, sluice: program}, configurations[i], f); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"sluice.v3_100ms.stop.ms", "sluice.v3_100ms.stop.lost", "sluice.v3_100ms.stop.nat.ms", "sluice.v3_100ms.stop.nat.lost",
		"sluice.v3_100ms.handback.ms", "sluice.v3_100ms.handback.lost", "sluice.v3_100ms.handback.nat.ms", "sluice.v3_100ms.handback.nat.lost",
		"sluice.v3_100ms.crash.ms", "sluice.v3_100ms.crash.nat.ms", "sluice.v3_100ms.kill.ms", "sluice.v3_100ms.kill.nat.ms",
		"keepalived.v3_100ms.stop.ms", "keepalived.v3_100ms.stop.lost", "keepalived.v3_100ms.handback.ms", "keepalived.v3_100ms.handback.lost",
		"keepalived.v3_100ms.crash.ms", "keepalived.v3_100ms.kill.ms",
	}
	for i := range want {
		want[i] = "failover." + want[i]
	}
	if diff := cmp.Diff(want, f.Names); diff != "" {
		t.Errorf("figures (-want +got):\n%s", diff)
	}
	for name, values := range f.Values {
		t.Logf("%s: %v", name, values)
		switch {
		case len(values) != 1:
			t.Errorf("%s has %d values, want 1", name, len(values))
		case strings.Contains(name, ".crash.") && values[0] < 200:
			// After an advertisement the other node waits for three intervals more.
			t.Errorf("%s is %v: was the first node Active, and its link cut?", name, values[0])
		case strings.Contains(name, ".kill.") && values[0] > 300:
			t.Errorf("%s is %v: the node with the dead daemon should go on answering", name, values[0])
		case name == "failover.keepalived.v3_100ms.stop.lost" && values[0] == 0:
			t.Errorf("%s is 0, though keepalived takes its VIP away before the other node has it", name)
		}
	}
}

// What goes wrong is an error that names the event or the program, and nothing
// stays.
func TestDaemonThatEnds(t *testing.T) {
	testenv.RequireRoot(t)
	path, err := exec.LookPath("false")
	if err != nil {
		t.Fatal(err)
	}
	f := &figures{}
	err = measure(t.Context(), task{rounds: 1, sluice: path}, configuration{name: "broken"}, f)
	if err == nil || !strings.Contains(err.Error(), "sluice") || !strings.Contains(err.Error(), "has ended") {
		t.Errorf("error %v, want one that says that sluice has ended", err)
	}
	if len(f.Names) > 0 {
		t.Errorf("there are figures %v, want none", f.Names)
	}
}
