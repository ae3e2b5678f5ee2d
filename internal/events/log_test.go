package events

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// open opens a log, which the test's end closes.
func open(t *testing.T, path string) *Log {
	t.Helper()
	l := Open(path, slog.New(slog.DiscardHandler))
	t.Cleanup(func() {
		select {
		case <-l.quit: // closed by the test
		default:
			l.Close()
		}
	})
	return l
}

// texts are the texts of lines.
func texts(t *testing.T, lines [][]byte) []string {
	t.Helper()
	var all []string
	for _, line := range lines {
		e, err := Decode(line)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		all = append(all, e.Text)
	}
	return all
}

func inFile(t *testing.T, path string) []string {
	t.Helper()
	kept, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range kept {
		all = append(all, e.Text)
	}
	return all
}

func TestEventsOutliveTheDaemon(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "events.jsonl")
	at := time.Date(2026, 1, 2, 3, 4, 5, 678, time.FixedZone("east", 3600))
	l := open(t, path)
	if b := l.Before(); b != (Event{}) {
		t.Errorf("before the first one there was %+v", b)
	}
	l.Record(Event{Type: VRRPState, Time: at, Instance: "VI_1", From: "backup", To: "active", Text: "one"})
	l.Record(Event{Type: DaemonStop, Text: "two"})
	l.Close()

	want := `{"seq":1,"time":"2026-01-02T02:04:05.000000678Z","type":"vrrp.state","instance":"VI_1","from":"backup","to":"active","text":"one"}`
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if first, _, _ := strings.Cut(string(text), "\n"); first != want {
		t.Errorf("the first line is\n%s, want\n%s", first, want)
	}

	l = open(t, path)
	if b := l.Before(); b.Type != DaemonStop || b.Seq != 2 {
		t.Errorf("the last one before is %+v, want number 2", b)
	}
	l.Record(Event{Type: DaemonStart, Text: "three"})
	lines, last, _ := l.After(1)
	if diff := cmp.Diff([]string{"two", "three"}, texts(t, lines)); diff != "" || last != 3 {
		t.Errorf("last %d, behind the first (-want +got):\n%s", last, diff)
	}
	if diff := cmp.Diff(map[Type]uint64{DaemonStart: 1}, l.Counts()); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
	l.Close()
	if diff := cmp.Diff([]string{"one", "two", "three"}, inFile(t, path)); diff != "" {
		t.Errorf("in the file (-want +got):\n%s", diff)
	}
}

// What a crash or somebody's editor has left in the file is skipped, and the file
// is put right with the next event.
func TestTornLines(t *testing.T) {
	line := func(seq int, text string) string {
		return fmt.Sprintf(`{"seq":%d,"time":"2026-01-02T03:04:05Z","type":"vrrp.state","text":%q}`+"\n", seq, text)
	}
	for _, tc := range []struct {
		name, file string
		want       []string
		next       uint64
	}{
		{"none", "", nil, 1},
		{"whole", line(1, "a") + line(2, "b"), []string{"a", "b"}, 3},
		{"the last is torn", line(1, "a") + line(2, "b")[:20], []string{"a"}, 2},
		{"the last lacks its end", line(1, "a") + strings.TrimSuffix(line(2, "b"), "\n"), []string{"a", "b"}, 3},
		{"one in the middle is torn", line(1, "a") + line(2, "b")[:20] + "\n" + line(3, "c"), []string{"a", "c"}, 4},
		{"zeros, as after a power failure", line(7, "a") + strings.Repeat("\x00", 500), []string{"a"}, 8},
		{"without a time", line(1, "a") + `{"seq":2,"type":"vrrp.state"}` + "\n", []string{"a"}, 2},
		{"numbers go back", line(5, "a") + line(2, "b"), []string{"a", "b"}, 7},
		{"a large gap", line(1, "a") + line(3*Kept+1, "b") + line(3*Kept+2, "c"), []string{"b", "c"}, 3*Kept + 3},
		{"a number beyond all that can be", line(1, "a") + strings.Replace(line(2, "b"), `"seq":2`, `"seq":18446744073709551615`, 1), []string{"a"}, 2},
		{"number 0", line(0, "a") + line(1, "b"), []string{"a", "b"}, 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "events.jsonl")
			if err := os.WriteFile(path, []byte(tc.file), 0o600); err != nil {
				t.Fatal(err)
			}
			l := open(t, path)
			l.Record(Event{Type: DaemonStart, Text: "new"})
			lines, last, _ := l.After(0)
			want := append(tc.want, "new")
			if diff := cmp.Diff(want, texts(t, lines)); diff != "" || last != tc.next {
				t.Errorf("the last is %d, want %d; events (-want +got):\n%s", last, tc.next, diff)
			}
			l.Close()
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for line := range bytes.Lines(text) {
				if !json.Valid(line) || line[len(line)-1] != '\n' {
					t.Errorf("the file has the line %q", line)
				}
			}
			got := inFile(t, path)
			if diff := cmp.Diff(want, got[max(0, len(got)-len(want)):]); diff != "" {
				t.Errorf("in the file (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTheLatestAreKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	l := open(t, path)
	const all = 3*Kept + 5
	for i := range all {
		l.Record(Event{Type: ServerState, Text: fmt.Sprint(i)})
	}
	l.Close()
	lines, last, _ := l.After(0)
	if len(lines) != Kept || last != all || texts(t, lines[:1])[0] != fmt.Sprint(all-Kept) {
		t.Errorf("%d are kept, up to %d, want %d, up to %d", len(lines), last, Kept, all)
	}
	got := inFile(t, path)
	if len(got) != Kept || got[0] != fmt.Sprint(all-Kept) || got[Kept-1] != fmt.Sprint(all-1) {
		t.Errorf("the file has %d, from %s on", len(got), got[0])
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(text, []byte{'\n'}); n > most {
		t.Errorf("the file has %d lines, want at most %d", n, most)
	}
}

// The text of an event is bounded, and stays what it is otherwise.
func TestTextsAreBounded(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"short", "a\nb \"c\" é", "a\nb \"c\" é"},
		{"just fits", strings.Repeat("a", maxText), strings.Repeat("a", maxText)},
		{"too long", strings.Repeat("a", maxText+1), strings.Repeat("a", maxText) + "..."},
		{"a letter across the end", strings.Repeat("é", maxText/2) + "é", strings.Repeat("é", maxText/2) + "..."},
		{"cut in a letter", "a" + strings.Repeat("é", maxText), "a" + strings.Repeat("é", maxText/2-1) + "..."},
	} {
		t.Run(tc.name, func(t *testing.T) {
			line := encode(Event{Seq: 1, Time: time.Now(), Type: DaemonStart, Text: tc.text})
			e, err := Decode(line)
			if err != nil || bytes.Count(line, []byte{'\n'}) != 1 {
				t.Fatalf("%q: %v", line, err)
			}
			if diff := cmp.Diff(tc.want, e.Text); diff != "" {
				t.Errorf("text (-want +got):\n%s", diff)
			}
		})
	}
}

// A file that cannot be written is a problem and stops nothing; what happened
// meanwhile is written as soon as it can be.
func TestAFileThatCannotBeWritten(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "events.jsonl")
	synctest.Test(t, func(t *testing.T) {
		l := Open(path, slog.New(slog.DiscardHandler))
		l.Record(Event{Type: DaemonStart, Text: "one"})
		synctest.Wait()
		if p := l.Problem(); p != "" {
			t.Errorf("problem %q", p)
		}
		// Where the next whole file would be made there is a directory that is not empty.
		block := path + ".new"
		if err := os.MkdirAll(filepath.Join(block, "x"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(path); err != nil { // as an operator may
			t.Fatal(err)
		}
		for i := range 5 {
			l.Record(Event{Type: AlarmBegin, Text: fmt.Sprint(i)})
			time.Sleep(retryAfter / 2)
		}
		synctest.Wait()
		if p := l.Problem(); !strings.Contains(p, "is a directory") {
			t.Errorf("problem %q does not say why", p)
		}
		if lines, _, _ := l.After(0); len(lines) != 6 {
			t.Errorf("%d events are there, want 6", len(lines))
		}
		// It is tried less and less often, however much happens.
		for _, most := range []int64{65, 60} { // in an hour
			before := l.file.wholes.Load()
			for range 3600 {
				l.Record(Event{Type: AlarmBegin, Text: "more"})
				time.Sleep(time.Second)
			}
			synctest.Wait()
			if tries := l.file.wholes.Load() - before; tries > most || tries < 55 {
				t.Errorf("%d tries in an hour, want some 60", tries)
			}
		}
		if err := os.RemoveAll(block); err != nil {
			t.Fatal(err)
		}
		time.Sleep(retryMost)
		synctest.Wait()
		if p := l.Problem(); p != "" {
			t.Errorf("problem %q after the file can be written again", p)
		}
		l.Close()
	})
	if diff := cmp.Diff([]string{"one", "0", "1", "2", "3", "4", "more"}, inFile(t, path)[:7]); diff != "" {
		t.Errorf("in the file (-want +got):\n%s", diff)
	}
}

// A disk that is full in the middle of a line is one.
func TestADiskThatIsFull(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	path := filepath.Join(t.TempDir(), "events.jsonl")
	f := file{path: path, open: full}
	if err := f.add([][]byte{[]byte("{}\n")}); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("the error is %v", err)
	}
	if f.fit() {
		t.Error("the file is gone on with after a failure: a line may be torn")
	}
}

// Whoever follows is told of each event, once.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := Open(filepath.Join(t.TempDir(), "events.jsonl"), slog.New(slog.DiscardHandler))
		defer l.Close()
		var writer sync.WaitGroup
		defer writer.Wait()
		writer.Go(func() {
			for i := range 100 {
				l.Record(Event{Type: ServerState, Text: fmt.Sprint(i)})
				time.Sleep(time.Millisecond)
			}
		})
		var got []string
		for seq := uint64(0); len(got) < 100; {
			lines, last, more := l.After(seq)
			got, seq = append(got, texts(t, lines)...), last
			if len(got) < 100 {
				<-more
			}
		}
		for i, text := range got {
			if text != fmt.Sprint(i) {
				t.Fatalf("number %d is %s", i, text)
			}
		}
		// A number of a file that is gone.
		if lines, _, _ := l.After(5000); len(lines) != 100 {
			t.Errorf("%d events behind a number that was never given, want all", len(lines))
		}
	})
}

func TestNilLogRecordsNothing(t *testing.T) {
	var l *Log
	l.Record(Event{Type: DaemonStart})
}

func TestEventForPeople(t *testing.T) {
	for _, tc := range []struct {
		name string
		e    Event
		want string
	}{
		{"state", Event{Type: VRRPState, Instance: "VI_1", From: "backup", To: "active", Text: "192.0.2.2 gave up"},
			"VI_1: backup -> active: 192.0.2.2 gave up"},
		{"server", Event{Type: ServerState, Service: "web", Server: "192.0.2.11:80", From: "up", To: "down", Text: "refused"},
			"web 192.0.2.11:80: up -> down: refused"},
		{"alarm", Event{Type: AlarmBegin, Instance: "VI_1", Peer: "192.0.2.2", Alarm: "version", Text: "another version"},
			"VI_1 192.0.2.2 version: another version"},
		{"only a text", Event{Type: DaemonStart, Text: "sluice 1"}, "sluice 1"},
		{"without a text", Event{Type: ServiceState, Service: "web", From: "down", To: "up"}, "web: down -> up"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := tc.e.String(); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}
