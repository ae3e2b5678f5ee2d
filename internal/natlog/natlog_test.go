package natlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
	"github.com/sluice-lb/sluice/loader"
)

// translation is one of client i, at a time of the minute.
func translation(i int, event loader.TranslationEvent, at time.Duration) loader.Translation {
	return loader.Translation{
		Time: time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC).Add(at), Event: event, Protocol: lb.TCP,
		Client: netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), 40000),
		VIP:    netip.MustParseAddrPort("192.0.2.100:80"), Source: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.100"), uint16(40000+i)),
		Backend: netip.MustParseAddrPort("192.0.2.11:8080"),
	}
}

// line is how the log has it.
func line(i int, event loader.TranslationEvent, seconds string) string {
	return fmt.Sprintf("2026-01-02T03:04:%sZ %s proto=tcp client=198.51.100.%d:40000 vip=192.0.2.100:80 "+
		"source=192.0.2.100:%d backend=192.0.2.11:8080 service=web\n", seconds, event, i, 40000+i)
}

func nameOf(p lb.Protocol, vip netip.AddrPort) string {
	if p == lb.TCP && vip == netip.MustParseAddrPort("192.0.2.100:80") {
		return "web"
	}
	return ""
}

func TestAppendLine(t *testing.T) {
	first := translation(7, loader.TranslationBegin, 5678901*time.Microsecond)
	for _, tc := range []struct {
		name   string
		change func(*loader.Translation)
		want   string
	}{
		{"begin", func(*loader.Translation) {}, line(7, "begin", "05.678901")},
		{"end", func(t *loader.Translation) { t.Event = loader.TranslationEnd }, line(7, "end", "05.678901")},
		{"whole seconds have six digits", func(t *loader.Translation) { t.Time = t.Time.Truncate(time.Second) }, line(7, "begin", "05.000000")},
		{"another zone", func(t *loader.Translation) { t.Time = t.Time.In(time.FixedZone("", 3600)) }, line(7, "begin", "05.678901")},
		{"the VIP is gone", func(t *loader.Translation) { t.VIP = netip.AddrPort{} },
			"2026-01-02T03:04:05.678901Z begin proto=tcp client=198.51.100.7:40000 vip=- source=192.0.2.100:40007 backend=192.0.2.11:8080 service=-\n"},
		{"IPv6 and UDP", func(t *loader.Translation) {
			t.Protocol = lb.UDP
			t.Client, t.VIP = netip.MustParseAddrPort("[2001:db8::7]:4"), netip.MustParseAddrPort("[2001:db8::100]:53")
			t.Source, t.Backend = netip.MustParseAddrPort("[2001:db8::9]:5"), netip.MustParseAddrPort("[2001:db8::11]:53")
		}, "2026-01-02T03:04:05.678901Z begin proto=udp client=[2001:db8::7]:4 vip=[2001:db8::100]:53 source=[2001:db8::9]:5 backend=[2001:db8::11]:53 service=-\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := &Log{service: nameOf}
			in := first
			tc.change(&in)
			l.add(in)
			if diff := cmp.Diff(tc.want, string(l.file.buffer)); diff != "" {
				t.Errorf("line (-want +got):\n%s", diff)
			}
		})
	}
}

// A fakeSource has what a test gives it.
type fakeSource struct {
	mu     sync.Mutex
	fresh  []loader.Translation
	held   []loader.Translation
	lost   uint64
	broken error
}

func (s *fakeSource) Read(into []loader.Translation, until time.Time) ([]loader.Translation, error) {
	time.Sleep(time.Until(until))
	s.mu.Lock()
	defer s.mu.Unlock()
	into = append(into, s.fresh...)
	s.fresh = nil
	return into, s.broken
}

func (s *fakeSource) Held() iter.Seq2[loader.Translation, error] {
	return func(yield func(loader.Translation, error) bool) {
		s.mu.Lock()
		held := s.held
		s.mu.Unlock()
		for _, t := range held {
			if !yield(t, nil) {
				return
			}
		}
	}
}

func (s *fakeSource) Lost() (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost, nil
}

func (s *fakeSource) set(change func(*fakeSource)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

func (s *fakeSource) tell(ts ...loader.Translation) {
	s.set(func(s *fakeSource) { s.fresh = append(s.fresh, ts...) })
}

// A rig is a log that runs in virtual time.
type rig struct {
	*testing.T
	source *fakeSource
	log    *Log
	path   string
	logged bytes.Buffer
	stop   func()
}

// inTime runs a test of a log at path in virtual time.
func inTime(t *testing.T, path string, source *fakeSource, test func(*rig)) {
	synctest.Test(t, func(t *testing.T) {
		r := &rig{T: t, source: source, path: path}
		r.log = New(path, source, nameOf, slog.New(slog.NewTextHandler(&r.logged, nil)))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); r.log.Run(ctx) }()
		r.stop = sync.OnceFunc(func() { cancel(); <-done })
		defer r.stop()
		test(r)
	})
}

// pass lets time pass.
func (r *rig) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (r *rig) want(path string, lines ...string) {
	r.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		r.Fatal(err)
	}
	if diff := cmp.Diff(strings.Join(lines, ""), string(got)); diff != "" {
		r.Errorf("%s (-want +got):\n%s", filepath.Base(path), diff)
	}
}

// wantProblems fails unless there is one problem for each of the words.
func (r *rig) wantProblems(words ...string) {
	r.Helper()
	got := r.log.Problems()
	if len(got) != len(words) {
		r.Fatalf("problems %q, want %d", got, len(words))
	}
	for i, w := range words {
		if !strings.Contains(got[i], w) {
			r.Errorf("problem %q does not tell of %q", got[i], w)
		}
	}
}

var (
	begin1 = translation(1, loader.TranslationBegin, time.Second)
	end1   = translation(1, loader.TranslationEnd, 2*time.Second)
	begin2 = translation(2, loader.TranslationBegin, 3*time.Second)
	held9  = translation(9, loader.TranslationHeld, 0)

	begin1Line = line(1, "begin", "01.000000")
	end1Line   = line(1, "end", "02.000000")
	begin2Line = line(2, "begin", "03.000000")
	held9Line  = line(9, "held", "00.000000")
)

// bothKinds has something new and something held before the log's first look, so that
// their order in the file is known.
func bothKinds() *fakeSource {
	return &fakeSource{fresh: []loader.Translation{begin1}, held: []loader.Translation{held9}}
}

func TestLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "nat.log")
	old := unix.Umask(0o022)
	defer unix.Umask(old)
	inTime(t, path, bothKinds(), func(r *rig) {
		r.pass(time.Second)
		r.want(path, begin1Line, held9Line)
		r.source.tell(end1)
		r.pass(time.Second)
		r.want(path, begin1Line, held9Line, end1Line)
		r.source.tell(begin2)
		r.stop() // what there is still is written
		r.want(path, begin1Line, held9Line, end1Line, begin2Line)
		r.wantProblems()
	})
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o640 {
		t.Errorf("its mode is %o, want 640", got)
	}
}

// A log that another daemon has begun is gone on with.
func TestLogIsAppendedTo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "nat.log")
	if err := os.WriteFile(path, []byte("before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	inTime(t, path, &fakeSource{}, func(r *rig) {
		r.source.tell(begin1)
		r.stop()
		r.want(path, "before\n", begin1Line)
	})
}

func TestRotation(t *testing.T) {
	for _, tc := range []struct {
		name   string
		rotate func(path string, l *Log) error
		old    []string // where the first lines are; nil: gone
		want   []string
	}{
		{"renamed", func(path string, _ *Log) error { return os.Rename(path, path+".1") },
			[]string{begin1Line, held9Line}, []string{held9Line}},
		{"removed", func(path string, _ *Log) error { return os.Remove(path) }, nil, []string{held9Line}},
		{"renamed, and another one made", func(path string, _ *Log) error {
			return errors.Join(os.Rename(path, path+".1"), os.WriteFile(path, nil, 0o640))
		}, []string{begin1Line, held9Line}, []string{held9Line}},
		{"copied and truncated", func(path string, _ *Log) error { return os.Truncate(path, 0) }, nil, []string{held9Line}},
		{"on request", func(_ string, l *Log) error { l.Reopen(); return nil }, nil,
			[]string{begin1Line, held9Line, held9Line}},
		{"the directory is gone", func(path string, _ *Log) error { return os.RemoveAll(filepath.Dir(path)) }, nil, []string{held9Line}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "dir", "nat.log")
			inTime(t, path, bothKinds(), func(r *rig) {
				r.pass(2 * time.Second)
				r.want(path, begin1Line, held9Line)
				if err := tc.rotate(path, r.log); err != nil {
					t.Fatal(err)
				}
				r.pass(2 * time.Second)
				r.source.tell(end1)
				r.pass(time.Second)
				r.want(path, append(tc.want, end1Line)...)
				if tc.old != nil {
					r.want(path+".1", tc.old...)
				}
				r.wantProblems()
			})
		})
	}
}

// A file that can't be opened is an alarm, and the log tells what it lacks once it
// can.
func TestFileThatCannotBeOpened(t *testing.T) {
	path := filepath.Join(t.TempDir(), "nat.log")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	inTime(t, path, &fakeSource{held: []loader.Translation{held9}}, func(r *rig) {
		r.source.tell(begin1, end1)
		r.pass(2 * time.Second)
		r.wantProblems("is a directory", "lacks 2 lines")
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		r.pass(2 * time.Second)
		r.source.tell(begin2)
		r.pass(time.Second)
		r.wantProblems("lacks 2 lines")
		r.wantGap(held9Line, "2", "", begin2Line)
		if n := strings.Count(r.logged.String(), "level=ERROR"); n != 1 {
			t.Errorf("it was logged %d times, want once:\n%s", n, &r.logged)
		}
		r.pass(time.Hour)
		r.wantProblems()
	})
}

// wantGap wants a log with one line that tells of a gap.
func (r *rig) wantGap(before, lost, between, after string) {
	r.Helper()
	got, err := os.ReadFile(r.path)
	if err != nil {
		r.Fatal(err)
	}
	rest, ok := strings.CutPrefix(string(got), before)
	gap, rest, _ := strings.Cut(rest, "\n")
	if !ok || !strings.HasSuffix(gap, "Z lost lines="+lost) || rest != between+after {
		r.Errorf("the log is\n%swant\n%s... lost lines=%s\n%s%s", got, before, lost, between, after)
	}
}

// A full disk is an alarm, and no line is torn.
func TestFullDisk(t *testing.T) {
	testenv.RequireRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8k"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	path := filepath.Join(dir, "nat.log")
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	inTime(t, path, &fakeSource{}, func(r *rig) {
		const count = 100
		for range count {
			r.source.tell(begin1)
		}
		r.pass(1100 * time.Millisecond)
		fit := 4096 / len(begin1Line)
		r.wantProblems("no space left on device", fmt.Sprintf("lacks %d lines", count-fit))
		r.source.set(func(s *fakeSource) { s.held = []loader.Translation{held9} })
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
		r.pass(3 * time.Second)
		r.wantProblems(fmt.Sprintf("lacks %d lines", count-fit))
		torn := begin1Line[:4096-fit*len(begin1Line)] + "\n"
		r.wantGap(strings.Repeat(begin1Line, fit)+torn, fmt.Sprint(count-fit), held9Line, "")
		r.stop()
	})
}

// What the source has lost is told, in the log as well.
func TestLostBySource(t *testing.T) {
	path := filepath.Join(t.TempDir(), "nat.log")
	inTime(t, path, &fakeSource{}, func(r *rig) {
		r.source.tell(begin1)
		r.pass(time.Second)
		r.source.set(func(s *fakeSource) { s.lost = 3 })
		r.pass(2 * time.Second)
		r.source.tell(begin2)
		r.pass(time.Second)
		r.wantProblems("lacks 3 lines")
		r.wantGap(begin1Line, "3", begin2Line, "")
	})
}

// A source that fails is an alarm; the log goes on when it does.
func TestSourceThatFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "nat.log")
	inTime(t, path, &fakeSource{broken: errors.New("broken")}, func(r *rig) {
		r.pass(5 * time.Second)
		r.wantProblems("broken")
		if n := strings.Count(r.logged.String(), "level=ERROR"); n != 1 {
			t.Errorf("it was logged %d times, want once:\n%s", n, &r.logged)
		}
		r.source.set(func(s *fakeSource) { s.broken = nil })
		r.source.tell(begin1)
		r.pass(2 * time.Second)
		r.wantProblems()
		r.want(path, begin1Line)
	})
}

// A long list of what is held does not keep what is new waiting.
func TestNewComesBetweenWhatIsHeld(t *testing.T) {
	path := filepath.Join(t.TempDir(), "nat.log")
	source := &fakeSource{}
	for range 3 * heldAtATime {
		source.held = append(source.held, held9)
	}
	source.fresh = []loader.Translation{begin1}
	inTime(t, path, source, func(r *rig) {
		r.pass(time.Second)
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(got, []byte(held9Line)); n != 3*heldAtATime {
			t.Errorf("%d lines of what is held, want %d", n, 3*heldAtATime)
		}
		if at := bytes.Index(got, []byte(begin1Line)); at < 0 || at > heldAtATime*len(held9Line) {
			t.Errorf("what is new stands at byte %d", at)
		}
	})
}
