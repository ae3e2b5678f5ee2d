package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// A bench is a host with the proxies and what is around them.
type bench struct {
	task     task
	lab      *testenv.Lab
	host     *testenv.Host
	backend  *testenv.Process
	proxies  []*proxy // in the order in which they take turns
	ofProxy  []int    // CPUs
	ofLoad   []int    // the same, of all else
	wrk, lua string   // the program, and what it tells us its result with
}

// patience is how long a program may take to start.
const patience = 20 * time.Second

// newBench starts the backend and the proxies.
func newBench(ctx context.Context, t task) (_ *bench, err error) {
	cpus, err := testenv.CPUs()
	if err != nil {
		return nil, err
	}
	if len(cpus) < 2 {
		return nil, errors.New("there is one CPU; the proxies need one, and their load another one")
	}
	wrk, err := program("wrk")
	if err != nil {
		return nil, err
	}
	lab, err := testenv.Build(testenv.TestPrefix(), testenv.Spec{Hosts: []testenv.HostSpec{
		{Name: "node", Node: true, Interfaces: []testenv.InterfaceSpec{{Addresses: []netip.Prefix{address}}}},
	}})
	if err != nil {
		return nil, err
	}
	b := &bench{task: t, lab: lab, host: lab.Host("node"), ofProxy: cpus[:1], ofLoad: cpus[1:], wrk: wrk}
	defer func() {
		if err != nil {
			b.printLogs(os.Stderr)
			err = errors.Join(err, b.close())
		}
	}()
	// A connection for each request uses up many ports.
	if err := b.host.Sysctl("net/ipv4/ip_local_port_range", "10000 65000"); err != nil {
		return nil, err
	}
	b.lua = filepath.Join(lab.Dir(), "report.lua")
	if err := os.WriteFile(b.lua, []byte(report), 0o644); err != nil {
		return nil, fmt.Errorf("write wrk's script: %w", err)
	}
	if b.backend, err = b.startBackend(ctx); err != nil {
		return nil, fmt.Errorf("backend: %w", err)
	}
	for _, p := range []*proxy{newSluice(t.sluice), newNginx(), newHaproxy()} {
		if err := b.start(ctx, p); err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
		b.proxies = append(b.proxies, p)
	}
	return b, nil
}

// close ends all of it.
func (b *bench) close() error { return b.lab.Close() }

// printLogs shows the end of every process's output.
func (b *bench) printLogs(w io.Writer) {
	for name, text := range b.lab.Logs(40) {
		fmt.Fprintf(w, "--- log of %s (last lines)\n%s\n", name, text)
	}
}

// startBackend starts the nginx that the proxies are in front of.
func (b *bench) startBackend(ctx context.Context) (*testenv.Process, error) {
	dir := filepath.Join(b.lab.Dir(), "backend")
	if err := os.MkdirAll(filepath.Join(dir, "root"), 0o755); err != nil {
		return nil, err
	}
	for path, size := range sizes {
		f, err := os.Create(filepath.Join(dir, "root", path))
		if err != nil {
			return nil, err
		}
		_, err = io.Copy(f, testenv.DownloadBytes(size))
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
	}
	p := newBackend()
	err := b.startOn(ctx, p, dir, b.ofLoad)
	return p.process, err
}

// start starts a proxy, and returns when it has answered.
func (b *bench) start(ctx context.Context, p *proxy) error {
	dir := filepath.Join(b.lab.Dir(), p.name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return b.startOn(ctx, p, dir, b.ofProxy)
}

func (b *bench) startOn(ctx context.Context, p *proxy, dir string, cpus []int) error {
	cmd, err := p.command(b.host, dir)
	if err != nil {
		return err
	}
	if p.log { // of haproxy, which writes its access log there
		f, err := os.Create(filepath.Join(dir, "access.log"))
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }() // the child has its own descriptor
		cmd.Stdout = f
	}
	err = testenv.OnCPUs(cpus, func() (err error) {
		p.process, err = b.host.Start(p.name, cmd)
		return err
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	client := b.host.HTTPClient()
	defer client.CloseIdleConnections()
	return testenv.WaitFor(ctx, "an answer of "+p.name, func() (bool, error) {
		select {
		case <-p.process.Done():
			return false, fmt.Errorf("%w: it has ended: %s", testenv.ErrGiveUp, p.process.Tail(20))
		default:
		}
		res, err := client.Get(fmt.Sprintf("http://%v/1k", p.at))
		if err != nil {
			return false, err
		}
		n, err := io.Copy(io.Discard, res.Body)
		if err := errors.Join(err, res.Body.Close()); err != nil {
			return false, err
		}
		if res.StatusCode != 200 || n != sizes["/1k"] {
			return false, fmt.Errorf("%s, %d bytes", res.Status, n)
		}
		return true, nil
	})
}

// measure measures one case: all proxies, in turns.
func (b *bench) measure(ctx context.Context, c benchCase, f *figures) error {
	for n := range b.task.rounds {
		for _, p := range b.proxies {
			before, err := cpuTime(p.process.ID().PID)
			if err != nil {
				return err
			}
			l, err := b.load(ctx, p.at, c)
			if err != nil {
				return fmt.Errorf("round %d of %s: %w", n+1, p.name, err)
			}
			after, err := cpuTime(p.process.ID().PID)
			if err != nil {
				return err
			}
			name := "http." + c.name + "." + p.name
			f.Add(name+".cpu_us", "us", float64((after-before).Microseconds())/float64(l.Requests))
			f.Add(name+".rps", "requests/s", float64(l.Requests)/(float64(l.DurationUS)/1e6))
			f.Add(name+".p99_ms", "ms", float64(l.P99US)/1000)
		}
	}
	return nil
}

// program finds a program that a purpose of scripts/setup installs.
func program(name string) (string, error) {
	path, err := testenv.FindProgram(name)
	if err != nil {
		return "", fmt.Errorf("find %s (scripts/setup bench installs it): %w", name, err)
	}
	return path, nil
}

// write writes a file and returns a command that has it.
func write(file, text, name string, args ...string) (*exec.Cmd, error) {
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return nil, fmt.Errorf("write configuration: %w", err)
	}
	path := name
	if !filepath.IsAbs(name) {
		var err error
		if path, err = program(name); err != nil {
			return nil, err
		}
	}
	return exec.Command(path, args...), nil
}
