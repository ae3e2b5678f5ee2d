package testenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// dialAndEcho sends a line over a fresh connection and wants it back.
func dialAndEcho(ctx context.Context, from *Host, to netip.AddrPort) error {
	conn, err := from.Dial(ctx, "tcp", to.String())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	if _, err := io.WriteString(conn, "hello\n"); err != nil {
		return err
	}
	got := make([]byte, 6)
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if string(got) != "hello\n" {
		return errors.New("the echo says " + string(got))
	}
	return nil
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestSegmentCutAndRestored(t *testing.T) {
	lab := New(t, Default(1))
	client, b1 := lab.Host("client"), lab.Host("b1")
	server, err := b1.StartTCP(netip.MustParseAddrPort("192.0.2.11:7"), Echo)
	if err != nil {
		t.Fatal(err)
	}
	if err := dialAndEcho(within(t, 5*time.Second), client, server.Addr()); err != nil {
		t.Fatalf("before the cut: %v", err)
	}
	if err := b1.LinkDown(); err != nil {
		t.Fatal(err)
	}
	nic, err := b1.Netlink().LinkByName(DefaultInterface)
	if err != nil {
		t.Fatal(err)
	}
	if nic.Attrs().RawFlags&unix.IFF_RUNNING != 0 {
		t.Error("the host still has a carrier after LinkDown")
	}
	if err := dialAndEcho(within(t, 300*time.Millisecond), client, server.Addr()); err == nil {
		t.Error("a connection goes through a cut link")
	}
	if err := b1.LinkUp(); err != nil {
		t.Fatal(err)
	}
	if err := dialAndEcho(within(t, 5*time.Second), client, server.Addr()); err != nil {
		t.Errorf("after the cut: %v", err)
	}
}

func TestHostAddresses(t *testing.T) {
	lab := New(t, Default(1))
	b1 := lab.Host("b1")
	if err := b1.AddVIPOnLoopback(VIP); err != nil {
		t.Fatal(err)
	}
	got := make(map[string]bool)
	for _, a := range []string{"192.0.2.11", "192.0.2.100", "192.0.2.12", "127.0.0.1"} {
		on, err := b1.AddrOn(netip.MustParseAddr(a))
		if err != nil {
			t.Fatal(err)
		}
		got[a] = on
	}
	want := map[string]bool{"192.0.2.11": true, "192.0.2.100": true, "192.0.2.12": false, "127.0.0.1": true}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("addresses of b1 differ (-want +got):\n%s", diff)
	}
	// A DSR backend must not answer ARP for the VIP: the client finds nobody.
	server, err := b1.StartTCP(netip.AddrPortFrom(VIP, 7), Echo)
	if err != nil {
		t.Fatal(err)
	}
	if err := dialAndEcho(within(t, 300*time.Millisecond), lab.Host("client"), server.Addr()); err == nil {
		t.Error("the client reaches the VIP on a backend's lo")
	}
}

// routed is a client and a backend on two segments, with a router between.
func routed() Spec {
	on := func(segment, name, addr string) InterfaceSpec {
		return InterfaceSpec{Name: name, Segment: segment, Addresses: []netip.Prefix{netip.MustParsePrefix(addr)}}
	}
	return Spec{Hosts: []HostSpec{
		{
			Name: "client", Interfaces: []InterfaceSpec{on("front", "", "192.0.2.200/24")},
			Routes: []RouteSpec{{Via: netip.MustParseAddr("192.0.2.254")}},
		},
		{
			Name: "gw", Forward: true,
			Interfaces: []InterfaceSpec{on("front", "eth0", "192.0.2.254/24"), on("back", "eth1", "198.51.100.254/24")},
		},
		{
			Name: "b1", Interfaces: []InterfaceSpec{on("back", "", "198.51.100.11/24")},
			Routes: []RouteSpec{{To: netip.MustParsePrefix("192.0.2.0/24"), Via: netip.MustParseAddr("198.51.100.254")}},
		},
	}}
}

func TestTwoSegmentsAndRouter(t *testing.T) {
	lab := New(t, routed())
	server, err := lab.Host("b1").StartTCP(netip.MustParseAddrPort("198.51.100.11:7"), Echo)
	if err != nil {
		t.Fatal(err)
	}
	client := lab.Host("client")
	if err := dialAndEcho(within(t, 5*time.Second), client, server.Addr()); err != nil {
		t.Fatalf("through the router: %v", err)
	}
	if err := lab.Host("gw").LinkDown("eth1"); err != nil {
		t.Fatal(err)
	}
	if err := dialAndEcho(within(t, 300*time.Millisecond), client, server.Addr()); err == nil {
		t.Error("a connection goes through the router's cut link")
	}
}

func TestIPv6(t *testing.T) {
	if !hasIPv6() {
		t.Skip("this kernel has no IPv6")
	}
	for _, ipv6 := range []bool{false, true} {
		spec := Default(1)
		spec.IPv6 = ipv6
		lab := New(t, spec)
		b1 := lab.Host("b1")
		err := b1.AddAddress(DefaultInterface, netip.MustParsePrefix("2001:db8::11/64"))
		if (err == nil) != ipv6 {
			t.Errorf("IPv6 %v: add an address: %v", ipv6, err)
		}
		if !ipv6 {
			continue
		}
		if err := lab.Host("client").AddAddress(DefaultInterface, netip.MustParsePrefix("2001:db8::200/64")); err != nil {
			t.Fatal(err)
		}
		server, err := b1.StartTCP(netip.MustParseAddrPort("[2001:db8::11]:7"), Echo)
		if err != nil {
			t.Fatal(err)
		}
		if err := dialAndEcho(within(t, 5*time.Second), lab.Host("client"), server.Addr()); err != nil {
			t.Error(err)
		}
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	RequireRoot(t)
	lab, err := Build(TestPrefix(), Default(1))
	if err != nil {
		t.Fatal(err)
	}
	lb1, b1 := lab.Host("lb1"), lab.Host("b1")
	// A child that leaves its parent's session and ignores SIGTERM.
	p, err := lb1.Start("stubborn", exec.Command("sh", "-c", `trap "" TERM; setsid sleep 1000 & echo started; wait`))
	if err != nil {
		t.Error(err)
	}
	if _, err := b1.StartTCP(netip.MustParseAddrPort("192.0.2.11:7"), Echo); err != nil {
		t.Error(err)
	}
	if _, err := lab.Host("client").StartStream(within(t, 5*time.Second), netip.MustParseAddrPort("192.0.2.11:7"), time.Millisecond); err != nil {
		t.Error(err)
	}
	if _, err := lab.Host("client").StartProber(ProbeConfig{Target: netip.MustParseAddrPort("192.0.2.11:81"), Interval: time.Millisecond}); err != nil {
		t.Error(err)
	}
	if err := os.Mkdir(lb1.PinDir, 0o700); err != nil {
		t.Error(err)
	}
	names := []string{lb1.Namespace(), b1.Namespace()}
	inside := func() []int {
		pids, err := processesIn(names)
		if err != nil {
			t.Error(err)
		}
		return pids
	}
	Eventually(t, 5*time.Second, "the shell and its child in a session of its own", func() (bool, error) {
		return slices.ContainsFunc(inside(), func(pid int) bool {
			comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			return string(comm) == "sleep\n" // setsid has become it
		}), nil
	})
	// Its own SIGKILL, not Stop's grace, is what ends the shell here: the test
	// is about the child.
	if err := p.Kill(); err != nil {
		t.Error(err)
	}
	left := inside()
	if len(left) != 1 {
		t.Errorf("processes %v outlive the shell, want one", left)
	}
	prefix := lab.Prefix()
	if got := Leftovers(prefix + "-"); len(got) == 0 {
		t.Error("Leftovers does not see a lab that is up")
	}
	if err := lab.Close(); err != nil {
		t.Error(err)
	}
	for _, pid := range left {
		// Not its number: whoever has inherited it may not have waited for it.
		if _, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", pid)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("process %d is still there: %v", pid, err)
		}
	}
	if got := append(Leftovers(prefix+"-"), Leftovers(prefix)...); len(got) != 0 {
		t.Errorf("Close has left behind:\n%s", strings.Join(got, "\n"))
	}
}

func TestBuildFailureLeavesNothing(t *testing.T) {
	RequireRoot(t)
	spec := routed()
	spec.Hosts[2].Routes[0].Via = netip.MustParseAddr("203.0.113.1") // not on any link
	prefix := TestPrefix()
	lab, err := Build(prefix, spec)
	if err == nil || !strings.Contains(err.Error(), "203.0.113.1") {
		t.Errorf("error %v does not name the gateway", err)
	}
	if lab != nil {
		t.Error("Build returns a lab with its error")
	}
	if got := Leftovers(prefix); len(got) != 0 {
		t.Errorf("Build has left behind:\n%s", strings.Join(got, "\n"))
	}
}

func TestSameLabTwice(t *testing.T) {
	lab := New(t, Default(0))
	if _, err := Build(lab.Prefix(), Default(0)); !errors.Is(err, ErrExists) {
		t.Errorf("build it again: %v, want %v", err, ErrExists)
	}
	if _, err := os.Stat(lab.Dir()); err != nil {
		t.Errorf("the first lab has lost its directory: %v", err)
	}
}

func TestReleaseAndOpen(t *testing.T) {
	RequireRoot(t)
	spec := Default(1)
	built, err := Build(TestPrefix(), spec)
	if err != nil {
		t.Fatal(err)
	}
	built.Release()
	lab, err := Open(built.Prefix(), spec)
	if err != nil {
		t.Fatal(errors.Join(err, built.Close()))
	}
	if _, err := lab.Host("b1").StartTCP(netip.MustParseAddrPort("192.0.2.11:7"), Echo); err != nil {
		t.Error(err)
	} else if err := dialAndEcho(within(t, 5*time.Second), lab.Host("client"), netip.MustParseAddrPort("192.0.2.11:7")); err != nil {
		t.Error(err)
	}
	if err := lab.Close(); err != nil {
		t.Error(err)
	}
	if got := Leftovers(built.Prefix()); len(got) != 0 {
		t.Errorf("Close has left behind:\n%s", strings.Join(got, "\n"))
	}
}

func TestRemove(t *testing.T) {
	RequireRoot(t)
	lab, err := Build(TestPrefix(), Default(1))
	if err != nil {
		t.Fatal(err)
	}
	p, err := lab.Host("b1").Start("left", exec.Command("sleep", "1000"))
	if err != nil {
		t.Error(err)
	}
	lab.Release()
	for range 2 { // nothing there is no error
		if err := Remove(lab.Prefix()); err != nil {
			t.Error(err)
		}
	}
	if got := Leftovers(lab.Prefix()); len(got) != 0 {
		t.Errorf("Remove has left behind:\n%s", strings.Join(got, "\n"))
	}
	if p != nil {
		_ = p.Wait() // ended by Remove; the test hangs if it is not
	}
}

func TestProcess(t *testing.T) {
	lab := New(t, Default(0))
	lb1 := lab.Host("lb1")
	script := func(name, text string) *Process {
		t.Helper()
		p, err := lb1.Start(name, exec.Command("sh", "-c", text))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	t.Run("runs in the namespace with the node's directories", func(t *testing.T) {
		p := script("env", `readlink /proc/self/ns/net; echo $SLUICE_RUN_DIR $SLUICE_PIN_DIR`)
		if err := p.Wait(); err != nil {
			t.Fatal(err)
		}
		var ns string
		if err := lb1.Do(func() (err error) { ns, err = os.Readlink("/proc/thread-self/ns/net"); return err }); err != nil {
			t.Fatal(err)
		}
		want := ns + "\n" + lb1.RunDir + " " + lb1.PinDir
		if diff := cmp.Diff(want, p.Tail(10)); diff != "" {
			t.Errorf("output differs (-want +got):\n%s", diff)
		}
		if got := lab.Logs(10)["lb1/env"]; got != want {
			t.Errorf("the lab's log of it is %q, want %q", got, want)
		}
	})
	t.Run("Stop lets it clean up", func(t *testing.T) {
		p := script("polite", `trap "echo bye; exit 3" TERM; echo ready; while :; do sleep 0.02; done`)
		Eventually(t, 5*time.Second, "the script", func() (bool, error) { return p.Tail(1) == "ready", nil })
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
		var exit *exec.ExitError
		if err := p.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 3 || p.Tail(1) != "bye" {
			t.Errorf("ended with %v and %q, want exit status 3 and bye", err, p.Tail(1))
		}
		if err := p.Stop(); err != nil {
			t.Errorf("stop it again: %v", err)
		}
	})
	t.Run("Kill takes the group", func(t *testing.T) {
		p := script("group", `sleep 1000 & echo $!; wait`)
		Eventually(t, 5*time.Second, "the child's id", func() (bool, error) { return p.Tail(1) != "", nil })
		if err := p.Kill(); err != nil {
			t.Error(err)
		}
		Eventually(t, 5*time.Second, "the end of the child", func() (bool, error) {
			_, err := os.Stat("/proc/" + p.Tail(1) + "/ns/net")
			return errors.Is(err, os.ErrNotExist), nil
		})
	})
	t.Run("End ends the process of that id only", func(t *testing.T) {
		p := script("id", `exec sleep 1000`)
		stale := p.ID()
		stale.Start--
		if err := stale.End(0); err != nil {
			t.Error(err)
		}
		if p.ended() {
			t.Fatal("a stale id has ended a process")
		}
		if err := p.ID().End(5 * time.Second); err != nil {
			t.Error(err)
		}
		var exit *exec.ExitError
		if err := p.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
			t.Errorf("ended with %v, want SIGTERM", err)
		}
		if err := p.ID().End(0); err != nil {
			t.Errorf("end it again: %v", err)
		}
	})
	t.Run("Run returns the output with the error", func(t *testing.T) {
		out, err := lb1.Run(t.Context(), "sh", "-c", "echo one; echo two >&2; exit 4")
		if out != "one\ntwo\n" || err == nil || !strings.Contains(err.Error(), "exit status 4") || !strings.Contains(err.Error(), "two") {
			t.Errorf("output %q, error %v", out, err)
		}
	})
	t.Run("Run ends with its context", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		start := time.Now()
		if _, err := lb1.Run(ctx, "sleep", "1000"); err == nil || time.Since(start) > 10*time.Second {
			t.Errorf("error %v after %v", err, time.Since(start))
		}
	})
	t.Run("a program that is not there", func(t *testing.T) {
		if _, err := lb1.Start("none", exec.Command("/nonexistent")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("error %v, want %v", err, os.ErrNotExist)
		}
	})
}
