package track

import (
	"context"
	"errors"
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

	"github.com/sluice-lb/sluice/internal/command"
	"github.com/sluice-lb/sluice/vrrp"
)

func change(from, to vrrp.State) vrrp.Change {
	return vrrp.Change{Instance: "VI_1", From: from, To: to, Reason: "a test"}
}

// Hooks run one at a time, in order, with what they want to know; one that fails
// or takes its time keeps nobody from telling of more.
func TestHooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var ran []string
		running := 0
		n := newNotifier(Hooks{Active: []string{"a"}, Fault: []string{"f"}, Any: []string{"any", "x"}}, slog.New(slog.DiscardHandler),
			func(ctx context.Context, c command.Command) error {
				mu.Lock()
				if running++; running > 1 {
					ran = append(ran, "two at a time")
				}
				ran = append(ran, fmt.Sprint(c.Args, c.Env[1:3]))
				mu.Unlock()
				<-ctx.Done() // none ever ends by itself
				mu.Lock()
				running--
				mu.Unlock()
				return ctx.Err()
			})
		began := time.Now()
		n.Notify(change(vrrp.Initialize, vrrp.Backup))
		n.Notify(change(vrrp.Backup, vrrp.Active))
		n.Notify(change(vrrp.Active, vrrp.Fault))
		if took := time.Since(began); took != 0 {
			t.Errorf("telling of changes took %v", took)
		}
		time.Sleep(5*hookTimeout + time.Second)
		synctest.Wait()
		want := []string{
			"[any x] [SLUICE_OLD_STATE=initialize SLUICE_NEW_STATE=backup]",
			"[a] [SLUICE_OLD_STATE=backup SLUICE_NEW_STATE=active]",
			"[any x] [SLUICE_OLD_STATE=backup SLUICE_NEW_STATE=active]",
			"[f] [SLUICE_OLD_STATE=active SLUICE_NEW_STATE=fault]",
			"[any x] [SLUICE_OLD_STATE=active SLUICE_NEW_STATE=fault]",
		}
		mu.Lock()
		if diff := cmp.Diff(want, ran); diff != "" {
			t.Errorf("hooks (-want +got):\n%s", diff)
		}
		mu.Unlock()
		// What waits at the end has its time, and no more.
		n.Notify(change(vrrp.Fault, vrrp.Initialize))
		n.Notify(change(vrrp.Initialize, vrrp.Backup))
		began = time.Now()
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took != LastHooks {
			t.Errorf("closing took %v, want %v", took, LastHooks)
		}
		n.Notify(change(vrrp.Backup, vrrp.Active)) // nobody is there
	})
}

// Of too many changes the last ones count.
func TestHooksFallBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var ran []string
		n := newNotifier(Hooks{Any: []string{"any"}}, slog.New(slog.DiscardHandler), func(ctx context.Context, c command.Command) error {
			mu.Lock()
			ran = append(ran, c.Env[0])
			mu.Unlock()
			wait(ctx, time.Second)
			return errors.New("failed")
		})
		for i := range maxHooks + 10 {
			n.Notify(vrrp.Change{Instance: fmt.Sprint(i)})
			synctest.Wait() // the first one begins
		}
		time.Sleep(time.Hour)
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		if len(ran) != maxHooks+1 || ran[0] != "SLUICE_INSTANCE=0" || ran[1] != "SLUICE_INSTANCE=10" || ran[maxHooks] != fmt.Sprint("SLUICE_INSTANCE=", maxHooks+9) {
			t.Errorf("%d hooks ran: %v", len(ran), ran)
		}
	})
}

// A real program sees its environment.
func TestRealHook(t *testing.T) {
	file := filepath.Join(t.TempDir(), "out")
	n := NewNotifier(Hooks{Backup: []string{"/bin/sh", "-c", "env | grep -E '^SLUICE_(INSTANCE|NEW_STATE|OLD_STATE|REASON)=' | sort > " + file}}, slog.New(slog.DiscardHandler))
	n.Notify(change(vrrp.Active, vrrp.Backup))
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want := "SLUICE_INSTANCE=VI_1\nSLUICE_NEW_STATE=backup\nSLUICE_OLD_STATE=active\nSLUICE_REASON=a test\n"
	if diff := cmp.Diff(strings.TrimSpace(want), strings.TrimSpace(string(got))); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
}
