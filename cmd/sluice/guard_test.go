package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/sluice-lb/sluice/internal/control"
)

// alone is a configuration without VRRP, whose one server nobody is.
func (r *rig) alone(datapath, rest string) string {
	return r.file("alone.yaml", strings.Replace(roster, "interfaces: [eth0]", datapath, 1),
		`services:
  - {name: web, address: "192.0.2.100:80", forward: dsr, backends: [{address: 192.0.2.11}]}`, rest)
}

// A driver that is loaded again deletes its interfaces and makes them anew.
func TestInterfaceThatIsMadeAnew(t *testing.T) {
	r := newRig(t, lab1())
	nl := r.host("lb1").Netlink()
	plug := func() {
		t.Helper()
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "x0"}, PeerName: "x1"}
		if err := nl.LinkAdd(veth); err != nil {
			t.Fatal(err)
		}
	}
	plug()
	r.start("lb1", r.alone("interfaces: [eth0, x0]", ""))
	problem := func(want bool) func(control.Status) error {
		return func(s control.Status) error {
			if slices.ContainsFunc(s.Problems, func(p string) bool { return strings.Contains(p, "x0") }) == want {
				return nil
			}
			return fmt.Errorf("problems %v, want one of x0: %v", s.Problems, want)
		}
	}
	r.waitStatus("lb1", soon, "the program on x0", func(s control.Status) error {
		if len(s.Interfaces) != 2 || len(s.Services) == 0 {
			return fmt.Errorf("it is on %v", s.Interfaces)
		}
		return nil
	})
	before := r.xdpProgram("lb1", "eth0")

	link, err := nl.LinkByName("x0")
	if err != nil {
		t.Fatal(err)
	}
	if err := nl.LinkDel(link); err != nil {
		t.Fatal(err)
	}
	r.waitStatus("lb1", soon, "a problem that names x0", problem(true))
	plug()
	r.waitStatus("lb1", soon, "no problem of x0", problem(false))
	if got := r.xdpProgram("lb1", "x0"); got == 0 || got != before {
		t.Errorf("the program on x0 is %d, want that of eth0, %d", got, before)
	}
	if got := r.xdpProgram("lb1", "eth0"); got != before {
		t.Errorf("the program on eth0 is %d, was %d", got, before)
	}
}

// A run directory of its own does not make a second daemon safe.
func TestOneDaemonPerPinDirectory(t *testing.T) {
	r := newRig(t, lab1())
	file := r.alone("interfaces: [eth0]", "")
	first := r.start("lb1", file)
	r.eventually(soon, "the first daemon", func() (bool, error) { _, err := r.status("lb1"); return err == nil, nil })
	program := r.xdpProgram("lb1", "eth0")
	other := filepath.Join(r.host("lb1").RunDir, "other")
	for _, args := range [][]string{
		{"--run-dir", other, "run", "-c", file, "--node", "lb1"},
		{"--run-dir", other, "detach", "--force"},
	} {
		got := r.wantRun(exitFailed, "lb1", args...)
		if !strings.Contains(got.stderr, "another sluice runs with the pin directory "+r.host("lb1").PinDir) {
			t.Errorf("%v: stderr %q does not say that another one runs, and where", args, got.stderr)
		}
	}
	if now := r.xdpProgram("lb1", "eth0"); now != program {
		t.Errorf("the XDP program is %d, was %d", now, program)
	}
	// A lock goes with its daemon.
	r.kill(first)
	r.wantRun(0, "lb1", "--run-dir", other, "detach")
	r.wantNothing("lb1")
}

// What is no longer configured is no longer forwarded.
func TestRestartWithoutServices(t *testing.T) {
	r := newRig(t, lab1())
	daemon := r.start("lb1", r.alone("interfaces: [eth0]", ""))
	r.eventually(soon, "the daemon", func() (bool, error) { _, err := r.status("lb1"); return err == nil, nil })
	if r.xdpProgram("lb1", "eth0") == 0 {
		t.Fatal("no XDP program is on eth0")
	}
	r.stop(daemon)
	r.start("lb1", r.file("vrrp.yaml", roster, vrrps(pair)))
	r.waitStatus("lb1", soon, "an instance without services", func(s control.Status) error {
		if len(s.Services) > 0 || s.Forwarding {
			return fmt.Errorf("services %v, forwarding %v", s.Services, s.Forwarding)
		}
		_, err := instanceOf(s, "VI_1")
		return err
	})
	r.wantNothing("lb1")
}

// startLoggingTo starts the daemon on lb1, which has VRRP alone, with its log on a pipe.
func (r *rig) startLoggingTo(writer *os.File) *exec.Cmd {
	r.Helper()
	h := r.host("lb1")
	cmd := sluice(h, "run", "-c", r.file("vrrp.yaml", roster, vrrps(pair)), "--node", "lb1")
	cmd.Stderr = writer
	err := h.Do(cmd.Start)
	if err := errors.Join(err, writer.Close()); err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { _ = cmd.Process.Kill() }) // it has ended, if all went well
	return cmd
}

// Whoever reads the log may go before the daemon.
func TestDaemonOutlivesTheReaderOfItsLog(t *testing.T) {
	r := newRig(t, lab1())
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := r.startLoggingTo(writer)
	r.eventually(soon, "the daemon", func() (bool, error) { _, err := r.status("lb1"); return err == nil, nil })
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	// There is something to say about it.
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("sluice ended with %v, want exit code 0", err)
	}
	r.wantRun(0, "lb1", "detach", "--force")
}

// "not running" would be wrong.
func TestStatusOfADaemonWithAnotherSocket(t *testing.T) {
	r := newRig(t, lab1())
	path := filepath.Join(r.host("lb1").RunDir, "other.sock")
	file := r.alone("interfaces: [eth0]", fmt.Sprintf("admin: {socket: %q}", path))
	r.start("lb1", file)
	r.eventually(soon, "the daemon", func() (bool, error) {
		return r.runSluice("lb1", "status", "-c", file, "--node", "lb1").code == 0, nil
	})
	got := r.wantRun(exitFailed, "lb1", "status")
	if !strings.Contains(got.stderr, "a daemon runs") || !strings.Contains(got.stderr, "-c") || strings.Contains(got.stderr, "not running") {
		t.Errorf("stderr %q, want that a daemon runs and that -c finds it", got.stderr)
	}
}

func TestAdvice(t *testing.T) {
	for _, tc := range []struct {
		name string
		err  error
		want string
	}{
		{"not allowed", &fs.PathError{Op: "open", Path: "/run/sluice/lock", Err: syscall.EACCES}, ": run sluice as root"},
		{"read-only", &fs.PathError{Op: "mkdir", Path: "/run/sluice", Err: syscall.EROFS}, ": give a --run-dir that can be written"},
		{"something else", &fs.PathError{Op: "open", Path: "/run/sluice/lock", Err: syscall.EIO}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := advice(fmt.Errorf("lock: %w", tc.err)); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}
