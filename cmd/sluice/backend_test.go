package main

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// actAsEcho in the environment makes this test binary a server that echoes on port
// 80: this process has too few descriptors for both ends of all connections.
const actAsEcho = "TEST_BINARY_IS_ECHO"

func echo() int {
	l, err := net.Listen("tcp4", ":80")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for {
		c, err := l.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		go testenv.Echo(c)
	}
}

func (r *rig) startEcho(on string) {
	r.Helper()
	self, err := os.Executable()
	if err != nil {
		r.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), actAsEcho+"=1")
	if _, err := r.host(on).Start("echo", cmd); err != nil {
		r.Fatal(err)
	}
}

// A crowd is many connections of the client to services that echo.
type crowd struct {
	r     *rig
	conns []*echoConn
}

type echoConn struct {
	net.Conn
	service netip.AddrPort
	replies *bufio.Reader
}

// open adds connections to a service.
func (c *crowd) open(service netip.AddrPort, count int) {
	c.r.Helper()
	var mu sync.Mutex
	c.each(count, func(int) error {
		conn, err := c.r.host("client").Dial(c.r.Context(), "tcp", service.String())
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		c.conns = append(c.conns, &echoConn{conn, service, bufio.NewReader(conn)})
		return nil
	}, "open connections to "+service.String())
}

// talk has every connection say something and hear it again.
func (c *crowd) talk(when string) {
	c.r.Helper()
	c.each(len(c.conns), func(i int) error {
		conn := c.conns[i]
		if err := conn.SetDeadline(time.Now().Add(soon)); err != nil {
			return err
		}
		line := fmt.Sprintf("%d %s\n", i, when)
		if _, err := conn.Write([]byte(line)); err != nil {
			return fmt.Errorf("%v: %w", conn.service, err)
		}
		got, err := conn.replies.ReadString('\n')
		if err != nil {
			return fmt.Errorf("%v: %w", conn.service, err)
		}
		if got != line {
			return fmt.Errorf("%v: got %q, want %q", conn.service, got, line)
		}
		return nil
	}, when)
}

// each runs f for many numbers, some at a time; none may fail.
func (c *crowd) each(count int, f func(i int) error, what string) {
	c.r.Helper()
	const atATime = 64
	var (
		workers sync.WaitGroup
		mu      sync.Mutex
		failed  int
		first   error
		next    = make(chan int)
	)
	for range atATime {
		workers.Go(func() {
			for i := range next {
				if err := f(i); err != nil {
					mu.Lock()
					if failed++; first == nil {
						first = err
					}
					mu.Unlock()
				}
			}
		})
	}
	for i := range count {
		next <- i
	}
	close(next)
	workers.Wait()
	if failed > 0 {
		c.r.Fatalf("%s: %d of %d connections failed: %v", what, failed, count, first)
	}
}

func (c *crowd) close() {
	for _, conn := range c.conns {
		conn.Close() // the test is over
	}
}

// Ten thousand connections outlive five planned changes in one window: backends
// are added, get other weights, drain and go. Slots follow the weights exactly.
func TestPlannedChangesBreakNothing(t *testing.T) {
	r := newRig(t, testenv.Default(4))
	for i := range 4 {
		name := fmt.Sprintf("b%d", i+1)
		if err := r.host(name).AddVIPOnLoopback(vip); err != nil {
			r.Fatal(err)
		}
		r.startEcho(name)
	}
	file := func(servers ...string) string {
		pool := "\npools:\n  - name: web\n    " + probes + "\n    servers:\n      - " + strings.Join(servers, "\n      - ") + "\n"
		return r.file("sluice.yaml", roster, pool, services(dsr, nat), vrrps(pair))
	}
	b1, b2, b3, b4 := "{address: 192.0.2.11, weight: 1}", "{address: 192.0.2.12, weight: 1}", "{address: 192.0.2.13, weight: 1}", "{address: 192.0.2.14, weight: 2}"
	daemon := r.start("lb1", file(b1, b2, b3))
	r.waitReady("lb1")

	c := &crowd{r: r}
	defer c.close()
	c.open(dsrService, 4000)
	c.open(natService, 4000)
	c.talk("before any change")

	wantSlots := func(weights map[string]int) {
		r.Helper()
		sum := 0
		for _, w := range weights {
			sum += w
		}
		s := r.mustStatus("lb1")
		for _, name := range []string{"dsr", "nat"} {
			v, err := serviceOf(s, name)
			if err != nil {
				r.Fatal(err)
			}
			for _, b := range v.Backends {
				w := weights[b.Address.Addr().String()]
				if low := 65537 * w / sum; b.Slots < low || b.Slots > low+1 || w == 0 && b.Slots != 0 {
					r.Errorf("%s: %v has %d slots of weight %d of %d", name, b.Address, b.Slots, w, sum)
				}
			}
		}
	}
	change := func(args ...string) {
		r.Helper()
		r.wantRun(0, "lb1", append([]string{"backend"}, args...)...)
	}
	restart := func(servers ...string) {
		r.Helper()
		r.kill(daemon)
		daemon = r.start("lb1", file(servers...))
		r.waitReady("lb1")
	}
	for _, step := range []struct {
		name    string
		do      func()
		weights map[string]int
	}{
		{"a backend is added", func() { restart(b1, b2, b3, b4) },
			map[string]int{"192.0.2.11": 1, "192.0.2.12": 1, "192.0.2.13": 1, "192.0.2.14": 2}},
		{"a weight is changed", func() { change("weight", "web", "192.0.2.12", "3") },
			map[string]int{"192.0.2.11": 1, "192.0.2.12": 3, "192.0.2.13": 1, "192.0.2.14": 2}},
		{"one is drained", func() { change("drain", "web", "192.0.2.11") },
			map[string]int{"192.0.2.11": 0, "192.0.2.12": 3, "192.0.2.13": 1, "192.0.2.14": 2}},
		{"it is removed", func() { restart(b2, b3, b4) },
			map[string]int{"192.0.2.12": 3, "192.0.2.13": 1, "192.0.2.14": 2}},
		{"the weight is reset", func() { change("reset", "web", "192.0.2.12") },
			map[string]int{"192.0.2.12": 1, "192.0.2.13": 1, "192.0.2.14": 2}},
	} {
		step.do()
		r.eventually(soon, "the slots to follow", func() (bool, error) {
			s, err := r.status("lb1")
			if err != nil {
				return false, nil
			}
			for _, v := range s.Services {
				for _, b := range v.Backends {
					if (b.Slots > 0) != (step.weights[b.Address.Addr().String()] > 0) || b.Weight != step.weights[b.Address.Addr().String()] && b.Override == "" {
						return false, nil
					}
				}
			}
			return true, nil
		})
		wantSlots(step.weights)
		c.open(dsrService, 200)
		c.open(natService, 200)
		c.talk(step.name)
	}
	r.stop(daemon)
}

// The command says what it has done, and what is wrong with what it was asked.
func TestBackendCommand(t *testing.T) {
	r := webRig(t, 3)
	if got := r.wantRun(exitFailed, "lb1", "backend", "drain", "web", "192.0.2.11"); !strings.Contains(got.stderr, "not running") {
		t.Errorf("without a daemon: %q", got.stderr)
	}
	file := r.usual()
	daemon := r.start("lb1", file)
	r.waitReady("lb1")
	for _, tc := range []struct {
		name string
		code int
		args []string
		want string
	}{
		{"nothing", exitUsage, nil, "missing"},
		{"no such action", exitUsage, []string{"stop"}, `"stop" is no action`},
		{"no address", exitUsage, []string{"drain", "web"}, "want 2 arguments"},
		{"no weight", exitUsage, []string{"weight", "web", "192.0.2.11"}, "want 3 arguments"},
		{"a weight that is none", exitUsage, []string{"weight", "web", "192.0.2.11", "many"}, `weight "many"`},
		{"no such pool", exitFailed, []string{"drain", "wbe", "192.0.2.11"}, "there is no pool or service"},
		{"no such server", exitFailed, []string{"drain", "web", "192.0.2.99"}, "has no server"},
	} {
		if got := r.wantRun(tc.code, "lb1", append([]string{"backend"}, tc.args...)...); !strings.Contains(got.stderr, tc.want) {
			t.Errorf("%s: %q, want %q", tc.name, got.stderr, tc.want)
		}
	}
	// nat knows at once that no connection is left; so does a disabled backend.
	got := r.wantRun(0, "lb1", "backend", "drain", "nat", "192.0.2.11", "--wait", "--timeout", "30s")
	if !strings.Contains(got.stdout, "192.0.2.11 of nat: drained") || !strings.Contains(got.stdout, "nothing is left") {
		t.Errorf("drain --wait says %q", got.stdout)
	}
	r.wantServing(natService, "b2", "b3")
	r.wantServing(dsrService, "b1", "b2", "b3")
	r.wantRun(0, "lb1", "backend", "disable", "web", "192.0.2.12")
	r.eventually(soon, "the disabled backend to go", func() (bool, error) {
		s, err := r.status("lb1")
		if err != nil {
			return false, err
		}
		v, err := serviceOf(s, "dsr")
		return err == nil && v.Backends[1].State == "disabled" && v.Backends[1].Slots == 0, err
	})
	r.wantServing(dsrService, "b1", "b3")
	if text := r.wantRun(0, "lb1", "status").stdout; !strings.Contains(text, "disabled") || !strings.Contains(text, "drained") {
		t.Errorf("status says\n%s", text)
	}
	// Changes outlive the daemon.
	r.kill(daemon)
	daemon = r.start("lb1", file)
	r.waitStatus("lb1", soon, "the change again", func(s2 control.Status) error {
		v, err := serviceOf(s2, "dsr")
		if err == nil && v.Backends[1].State != "disabled" {
			err = fmt.Errorf("it is %s", v.Backends[1].State)
		}
		return err
	})
	r.wantRun(0, "lb1", "backend", "reset", "web", "192.0.2.12")
	r.wantRun(0, "lb1", "backend", "enable", "nat", "192.0.2.11")
	r.waitReady("lb1")
	r.wantServing(dsrService, "b1", "b2", "b3")
	r.wantServing(natService, "b1", "b2", "b3")
	r.stop(daemon)
}
