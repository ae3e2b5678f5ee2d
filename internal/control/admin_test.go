package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/events"
)

type fakeDaemon struct {
	s      Status
	events *events.Log
	ended  chan struct{} // closed when a Probe has been given up
}

func (d fakeDaemon) Status() Status { return d.s }

func (d fakeDaemon) Events(after uint64) ([][]byte, uint64, <-chan struct{}) {
	return d.events.After(after)
}

// Reload refuses what is not dry.
func (d fakeDaemon) Reload(dry bool) ([]string, error) {
	if !dry {
		return nil, fmt.Errorf("a.yaml:1:1: one\nb.yaml:2:2: two: %w", errRefused)
	}
	return []string{"service web: quorum"}, nil
}

// HandOver refuses what is for "nobody", and tells what it was asked.
func (d fakeDaemon) HandOver(o HandoverOrder) ([]HandoverResult, error) {
	if o.Instance == "nobody" {
		return nil, errRefused
	}
	return []HandoverResult{{Instance: o.Instance, Done: true, Text: fmt.Sprintf("%+v", o)}}, nil
}

// Probe refuses what is for "nobody", and waits for its context's end for "ever".
func (d fakeDaemon) Probe(ctx context.Context, o ProbeOrder) ([]ProbeResult, error) {
	switch o.Service {
	case "nobody":
		return nil, errRefused
	case "ever":
		<-ctx.Done()
		close(d.ended)
	}
	return []ProbeResult{{Service: o.Service, Answer: "connected", OK: true}}, nil
}

// Change refuses what is for "nobody".
func (d fakeDaemon) Change(c Change) (string, error) {
	if c.Scope == "nobody" {
		return "", errRefused
	}
	return fmt.Sprint(c.Action, " ", c.Scope, " ", c.Address, " ", c.Weight), nil
}

func listen(t *testing.T, path string) *Admin {
	t.Helper()
	a, err := Listen(path, fakeDaemon{s: Status{Node: "lb1", Running: true, PID: 7}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestAdminAnswersStatus(t *testing.T) {
	path := filepath.Join(t.TempDir(), "made", "sluice.sock")
	a := listen(t, path)
	got, err := Ask(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Status{Node: "lb1", Running: true, PID: 7}, got, cmpAddresses); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := fs.ModeSocket | 0o600; info.Mode() != want {
		t.Errorf("the socket has mode %v, want %v", info.Mode(), want)
	}
	if err := a.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Close the socket file is still there: %v", err)
	}
}

// staleSocket leaves a socket file on which nobody listens, as a killed daemon
// does.
func staleSocket(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestAdminReplacesAStaleSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sluice.sock")
	staleSocket(t, path)
	a := listen(t, path)
	if _, err := Ask(t.Context(), path); err != nil {
		t.Error(err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}

// hungSocket makes a socket that is listened on, and accepts nothing: it is full.
func hungSocket(t *testing.T, path string) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		c, err := net.Dial("unix", path)
		if errors.Is(err, unix.EAGAIN) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("the socket is never full")
}

// Whoever asks a daemon that hangs is told so, at once where there is no room to wait.
func TestAskOfADaemonThatHangs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sluice.sock")
	hungSocket(t, path)
	if _, err := Ask(t.Context(), path); err == nil || errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), "it hangs") {
		t.Errorf("the error is %v", err)
	}
}

func TestAdminRefuses(t *testing.T) {
	for _, tc := range []struct {
		name string
		make func(t *testing.T, path string)
		want string
	}{
		{"a socket where somebody answers", func(t *testing.T, path string) {
			a := listen(t, path)
			t.Cleanup(func() {
				if err := a.Close(); err != nil {
					t.Error(err)
				}
			})
		}, "another process answers on "},
		{"a socket of a daemon that hangs", hungSocket, "hangs: end it, or name another admin.socket"},
		{"a file that is no socket", func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "is there and is no socket"},
		{"a link to a file", func(t *testing.T, path string) {
			if err := os.Symlink("/dev/null", path); err != nil {
				t.Fatal(err)
			}
		}, "is there and is no socket"},
		{"a folder", func(t *testing.T, path string) {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}, "is there and is no socket"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "sluice.sock")
			tc.make(t, path)
			before, err := os.Lstat(path)
			if err != nil {
				t.Fatal(err)
			}
			a, err := Listen(path, fakeDaemon{}, slog.New(slog.DiscardHandler))
			if err == nil {
				t.Fatalf("no error, want one with %q (close: %v)", tc.want, a.Close())
			}
			if !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("error %q, want %q and %s in it", err, tc.want, path)
			}
			after, err := os.Lstat(path)
			if err != nil || !os.SameFile(before, after) {
				t.Errorf("the file is another one, or gone: %v", err)
			}
		})
	}
}

// The socket is its owner's from its first moment on, whatever the umask is.
func TestAdminSocketIsItsOwners(t *testing.T) {
	before := syscall.Umask(0)
	defer syscall.Umask(before)
	path := filepath.Join(t.TempDir(), "sluice.sock")
	l, err := listenOwn(path) // nothing more is done about its mode
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := st.Mode().Perm(); got != 0o600 {
		t.Errorf("mode %04o, want 0600", got)
	}
}

func TestAskWithoutADaemon(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale.sock")
	staleSocket(t, stale)
	for _, tc := range []struct{ name, path string }{
		{"no socket", filepath.Join(dir, "absent.sock")},
		{"no folder", filepath.Join(dir, "absent", "sluice.sock")},
		{"a stale socket", stale},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Ask(t.Context(), tc.path)
			if !errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), tc.path) {
				t.Errorf("error %v, want %v with %s", err, ErrNotRunning, tc.path)
			}
		})
	}
}

func TestAskReportsAnAnswerItCannotUse(t *testing.T) {
	for _, tc := range []struct {
		name   string
		answer http.HandlerFunc
		want   string
	}{
		{"another status code", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "too early", http.StatusTeapot) }, "418 I'm a teapot: too early"},
		{"not JSON", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("hello")) }, "read the daemon's answer"},
		{"half an answer", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"node":"lb1"`)) }, "read the daemon's answer"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "sluice.sock")
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			server := &http.Server{Handler: tc.answer}
			done := make(chan error)
			go func() { done <- server.Serve(l) }()
			defer func() {
				if err := server.Close(); err != nil {
					t.Error(err)
				}
				<-done
			}()
			_, err = Ask(t.Context(), path)
			if err == nil || !strings.Contains(err.Error(), tc.want) || errors.Is(err, ErrNotRunning) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}

func TestAskEndsWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sluice.sock")
	l, err := net.Listen("unix", path) // accepts by itself, and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Ask(ctx, path); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
}

func TestAdminTakesChanges(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sluice.sock")
	if _, err := SendChange(t.Context(), path, Change{}); !errors.Is(err, ErrNotRunning) {
		t.Errorf("without a daemon: %v", err)
	}
	a := listen(t, path)
	defer a.Close()
	got, err := SendChange(t.Context(), path, Change{Weight, "web", "192.0.2.11", 7})
	if want := "weight web 192.0.2.11 7"; got != want || err != nil {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	if _, err := SendChange(t.Context(), path, Change{Drain, "nobody", "192.0.2.11", 0}); err == nil || err.Error() != errRefused.Error() {
		t.Errorf("a change that is refused: %v, want %v", err, errRefused)
	}
}

func TestAdminTellsOfEvents(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sluice.sock")
	use := func(events.Event) error { return nil }
	if err := AskEvents(t.Context(), path, 0, false, use); !errors.Is(err, ErrNotRunning) {
		t.Errorf("without a daemon: %v", err)
	}
	log := slog.New(slog.DiscardHandler)
	happened := events.Open(filepath.Join(dir, "events.jsonl"), log)
	defer happened.Close()
	for i := range 3 {
		happened.Record(events.Event{Type: events.ServerState, Text: fmt.Sprint(i + 1)})
	}
	a, err := Listen(path, fakeDaemon{events: happened}, log)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	take := func(e events.Event) error { got = append(got, e.Text); return nil }
	if err := AskEvents(t.Context(), path, 1, false, take); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"2", "3"}, got); diff != "" {
		t.Errorf("behind the first (-want +got):\n%s", diff)
	}

	// Who follows gets each once, until he has enough.
	got = nil
	enough := errors.New("enough")
	err = AskEvents(t.Context(), path, 0, true, func(e events.Event) error {
		got = append(got, e.Text)
		if len(got) == 6 {
			return enough
		}
		happened.Record(events.Event{Type: events.ServerState, Text: fmt.Sprint(3 + len(got))})
		return nil
	})
	if diff := cmp.Diff([]string{"1", "2", "3", "4", "5", "6"}, got); !errors.Is(err, enough) || diff != "" {
		t.Errorf("error %v; followed (-want +got):\n%s", err, diff)
	}

	// The end of the daemon is an end, and so is that of the context.
	err = AskEvents(t.Context(), path, 5, true, func(e events.Event) error {
		if e.Text == "8" {
			go a.Close()
		}
		return nil
	})
	if errors.Is(err, ErrNotRunning) || errors.Is(err, context.Canceled) {
		t.Errorf("when the daemon ends: %v", err)
	}
	a.Close()
	if a, err = Listen(path, fakeDaemon{events: happened}, log); err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err = AskEvents(ctx, path, 0, true, func(events.Event) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("when its context ends: %v", err)
	}
}

func TestAdminReloads(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sluice.sock")
	if _, err := SendReload(t.Context(), path, false); !errors.Is(err, ErrNotRunning) {
		t.Errorf("without a daemon: %v", err)
	}
	a := listen(t, path)
	defer a.Close()
	got, err := SendReload(t.Context(), path, true)
	if diff := cmp.Diff([]string{"service web: quorum"}, got); diff != "" || err != nil {
		t.Errorf("error %v, changes (-want +got):\n%s", err, diff)
	}
	_, err = SendReload(t.Context(), path, false)
	if want := "a.yaml:1:1: one\nb.yaml:2:2: two: no room"; !errors.Is(err, ErrRefused) || err.Error() != want {
		t.Errorf("refused with %q, want %q", err, want)
	}
}

func TestAdminTakesHandovers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sluice.sock")
	if _, err := SendHandover(t.Context(), path, HandoverOrder{}); !errors.Is(err, ErrNotRunning) {
		t.Errorf("without a daemon: %v", err)
	}
	a := listen(t, path)
	defer a.Close()
	got, err := SendHandover(t.Context(), path, HandoverOrder{Instance: "VI_1", Hold: true})
	want := []HandoverResult{{Instance: "VI_1", Done: true, Text: "{Instance:VI_1 Hold:true Release:false Force:false}"}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("error %v, (-want +got):\n%s", err, diff)
	}
	if _, err := SendHandover(t.Context(), path, HandoverOrder{Instance: "nobody"}); err == nil || err.Error() != errRefused.Error() {
		t.Errorf("an order that is refused: %v, want %v", err, errRefused)
	}
}
