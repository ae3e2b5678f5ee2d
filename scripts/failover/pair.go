package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// daemonName is what the daemons are called in the lab.
const daemonName = "daemon"

// A pair is a lab with a daemon on each of its two nodes.
type pair struct {
	program program
	lab     *testenv.Lab
	wire    *wire
	daemons map[string]*testenv.Process
}

// newPair builds the network, starts both daemons and waits until they have come
// to rest.
func newPair(ctx context.Context, program program) (_ *pair, err error) {
	lab, err := testenv.Build(testenv.TestPrefix(), testenv.Default(1))
	if err != nil {
		return nil, err
	}
	p := &pair{program: program, lab: lab, daemons: map[string]*testenv.Process{}}
	defer func() {
		if err != nil {
			p.printLogs(errorOutput)
			err = errors.Join(err, p.close())
		}
	}()
	if err := program.prepare(lab); err != nil {
		return nil, err
	}
	if p.wire, err = listen(lab.Host("client")); err != nil {
		return nil, err
	}
	for _, node := range []string{first, second} {
		if err := p.start(node); err != nil {
			return nil, err
		}
	}
	return p, p.wait(ctx, "rest", p.atRest)
}

// close ends all of it.
func (p *pair) close() error {
	var err error
	if p.wire != nil {
		err = p.wire.close()
	}
	return errors.Join(err, p.lab.Close())
}

// printLogs shows the end of every process's output.
func (p *pair) printLogs(w io.Writer) {
	for name, text := range p.lab.Logs(40) {
		fmt.Fprintf(w, "--- log of %s (last lines), %s\n%s\n", name, p.program.name(), text)
	}
}

func (p *pair) start(node string) error {
	h := p.lab.Host(node)
	cmd, err := p.program.command(h)
	if err != nil {
		return err
	}
	all, err := testenv.CPUs()
	if err != nil {
		return err
	}
	if s, ok := p.program.(*sluice); !ok || !s.crowd {
		all = share(node, all)
	}
	return testenv.OnCPUs(all, func() (err error) {
		p.daemons[node], err = h.Start(daemonName, cmd)
		return err
	})
}

// share is a node's half of the CPUs: what a node does at its start must not delay
// the other one, which would be another machine. The client is on the last CPU.
func share(node string, cpus []int) []int {
	half := len(cpus) / 2
	switch {
	case half == 0:
		return cpus
	case node == first:
		return cpus[:half]
	}
	return cpus[half:]
}

// patience is how long the nodes may take to do what they are to do: many times
// what the protocol allows.
const patience = 20 * time.Second

// wait waits until f returns no error.
func (p *pair) wait(ctx context.Context, what string, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return testenv.WaitFor(ctx, what, func() (bool, error) {
		if err := p.alive(second); err != nil {
			return false, err
		}
		err := f(ctx)
		return err == nil, err
	})
}

// alive returns an error that ends a wait when a node's daemon has ended.
func (p *pair) alive(node string) error {
	select {
	case <-p.daemons[node].Done():
		return fmt.Errorf("%w: %s on %s has ended: %v", testenv.ErrGiveUp, p.program.name(), node, p.daemons[node].Wait())
	default:
		return nil
	}
}

// atRest returns an error unless the first node has the VIPs, the second one has
// taken note of it, and the client knows.
func (p *pair) atRest(ctx context.Context) error {
	if err := p.alive(first); err != nil {
		return err
	}
	if err := p.advertises(first, second); err != nil {
		return err
	}
	for node, want := range map[string]bool{first: true, second: false} {
		if err := p.wantVIPs(node, want); err != nil {
			return err
		}
	}
	if err := p.wantKnown(p.lab.Host(first)); err != nil {
		return err
	}
	return p.program.ready(ctx, p.lab)
}

// advertises returns an error unless a node was heard after the other one. It looks
// at nothing outside of this process, so it comes first where that is asked often.
func (p *pair) advertises(node, other string) error {
	ours, theirs := p.wire.last(p.lab.Host(node).Address()), p.wire.last(p.lab.Host(other).Address())
	if !ours.After(theirs) {
		return fmt.Errorf("%s was not heard since %s", node, other)
	}
	return nil
}

// wantVIPs returns an error unless a node has all VIPs, or none.
func (p *pair) wantVIPs(node string, want bool) error {
	for _, vip := range vips {
		if has, err := p.lab.Host(node).AddrOn(vip); err != nil {
			return err
		} else if has != want {
			return fmt.Errorf("%s has %v: %v", node, vip, has)
		}
	}
	return nil
}

// wantKnown returns an error if the client would send to the VIPs by another MAC
// address than that of a node. One that has not asked yet will ask.
func (p *pair) wantKnown(h *testenv.Host) error {
	neighbours, err := p.lab.Host("client").Netlink().NeighList(0, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list the client's neighbours: %w", err)
	}
	want := h.MAC(testenv.DefaultInterface)
	for _, n := range neighbours {
		ip, ok := netip.AddrFromSlice(n.IP)
		if !ok || n.State&(unix.NUD_FAILED|unix.NUD_INCOMPLETE) != 0 {
			continue
		}
		for _, vip := range vips {
			if ip.Unmap() == vip && !bytes.Equal(n.HardwareAddr, want) {
				return fmt.Errorf("the client has %v at %v, want %v of %s", vip, n.HardwareAddr, want, h.Name)
			}
		}
	}
	return nil
}

// removeVIPs takes what is left of the VIPs off a node.
func (p *pair) removeVIPs(h *testenv.Host) error {
	nl := h.Netlink()
	link, err := nl.LinkByName(testenv.DefaultInterface)
	if err != nil {
		return fmt.Errorf("find %s on %s: %w", testenv.DefaultInterface, h.Name, err)
	}
	addresses, err := nl.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", h.Name, err)
	}
	for _, a := range addresses {
		ip, _ := netip.AddrFromSlice(a.IP)
		for _, vip := range vips {
			if ip.Unmap() != vip {
				continue
			}
			if err := nl.AddrDel(link, &a); err != nil {
				return fmt.Errorf("remove %v from %s: %w", vip, h.Name, err)
			}
		}
	}
	return nil
}
