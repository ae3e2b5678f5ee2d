// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

const keepalivedPath = "/usr/sbin/keepalived"

// A keepalived is a running one.
type keepalived struct {
	t    *testing.T
	cmd  *exec.Cmd
	done chan struct{}
	once sync.Once
}

// keepalived starts one in the namespace, in the foreground.
func (ns *namespace) keepalived(config string) *keepalived {
	ns.t.Helper()
	dir := ns.t.TempDir()
	file := filepath.Join(dir, "keepalived.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		ns.t.Fatal(err)
	}
	cmd := exec.Command(keepalivedPath, "-n", "-l", "-D", "-P", "-f", file,
		"-p", filepath.Join(dir, "keepalived.pid"), "-r", filepath.Join(dir, "vrrp.pid"))
	// Read only after the process has ended, which Wait orders.
	output := &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = output, output
	// A group of its own, so that its child can be ended with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	ns.do(cmd.Start)
	k := &keepalived{t: ns.t, cmd: cmd, done: make(chan struct{})}
	go func() {
		defer close(k.done)
		_ = cmd.Wait() // that it was ended by a signal is no news
	}()
	ns.t.Cleanup(func() {
		k.stop()
		if ns.t.Failed() {
			ns.t.Logf("keepalived said:\n%s", output)
		}
	})
	return k
}

// stop ends it as an operator would, and by force if that does not help.
func (k *keepalived) stop() {
	k.once.Do(func() {
		if err := k.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			k.t.Logf("stop keepalived: %v", err)
		}
		select {
		case <-k.done:
		case <-time.After(patience):
			k.t.Errorf("keepalived did not stop within %v", patience)
			if err := syscall.Kill(-k.cmd.Process.Pid, syscall.SIGKILL); err != nil {
				k.t.Errorf("kill keepalived: %v", err)
			}
			<-k.done
		}
	})
}

// protocol is a way of speaking VRRP that both sides are configured for.
type protocol struct {
	name   string
	sluice Config
	global string // keepalived's lines
	lines  string
}

// One of them stands in each role, starts first or second, and stops first.
func TestInteropKeepalived(t *testing.T) {
	needRoot(t)
	if _, err := os.Stat(keepalivedPath); err != nil {
		t.Skipf("needs %s: install keepalived", keepalivedPath)
	}
	vips := prefixes("192.0.2.100/32")
	for _, p := range []protocol{
		{
			name: "v2 with password",
			sluice: Config{Name: "VI_1", Interface: "eth0", VRID: 51, Version: V2, Interval: time.Second, Password: "1111",
				Addresses: vips, Preempt: true},
			lines: "advert_int 1\n authentication {\n auth_type PASS\n auth_pass 1111\n }\n",
		},
		{
			name: "v3",
			sluice: Config{Name: "VI_1", Interface: "eth0", VRID: 51, Version: V3, Interval: 200 * time.Millisecond,
				Addresses: vips, Preempt: true},
			global: "vrrp_version 3\n",
			lines:  "advert_int 0.2\n",
		},
	} {
		for _, ours := range []uint8{100, 99} {
			for _, first := range []string{"sluice", "keepalived"} {
				name := fmt.Sprintf("%s, sluice has priority %d, %s starts first", p.name, ours, first)
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					interop(t, p, ours, first == "sluice")
				})
			}
		}
	}
}

func interop(t *testing.T, p protocol, ours uint8, sluiceFirst bool) {
	a, b := cable(t)
	theirs, state := 199-ours, "BACKUP"
	if theirs > ours {
		state = "MASTER"
	}
	config := fmt.Sprintf("global_defs {\n router_id interop\n %s}\n"+
		"vrrp_instance VI_1 {\n state %s\n interface eth0\n virtual_router_id 51\n priority %d\n %s"+
		" virtual_ipaddress {\n 192.0.2.100\n }\n}\n", p.global, state, theirs, p.lines)
	const vip = "192.0.2.100/32"
	onA := func() bool { return a.has(vip) && !b.has(vip) }
	onB := func() bool { return b.has(vip) && !a.has(vip) }
	cfg := p.sluice
	cfg.Priority = ours
	var router *Router
	var peer *keepalived
	start := map[bool]func(){
		true:  func() { router, _ = a.start(cfg, t.TempDir()) },
		false: func() { peer = b.keepalived(config) },
	}

	start[sluiceFirst]()
	if sluiceFirst {
		eventually(t, "the vip is on sluice, which is alone", onA)
	} else {
		eventually(t, "the vip is on keepalived, which is alone", onB)
	}
	start[!sluiceFirst]()
	// The one with the higher priority has it, whoever came first.
	holder, name := onA, "the vip is on sluice"
	if theirs > ours {
		holder, name = onB, "the vip is on keepalived"
	}
	if sluiceFirst && ours > theirs {
		// The second starts as Backup and understands sluice at once: in version 3
		// the form of the checksum decides about that.
		always(t, name, 6*cfg.Interval, holder)
	}
	eventually(t, name, holder)
	wait := 5 * cfg.Interval
	always(t, name, wait, holder)

	if ours > theirs {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		h, err := router.Release(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if !h.TookOver() || h.Peer != addr("192.0.2.2") {
			t.Errorf("got handover %+v, want that keepalived took over", h)
		}
		eventually(t, "the vip is on keepalived after sluice was released", onB)
		always(t, "the vip is on keepalived", wait, onB)
		return
	}
	peer.stop()
	eventually(t, "the vip is on sluice after keepalived was stopped", onA)
	always(t, "the vip is on sluice", wait, onA)
	for reason, n := range router.Status().Dropped {
		t.Errorf("%d advertisements of keepalived were dropped: %v", n, reason)
	}
}
