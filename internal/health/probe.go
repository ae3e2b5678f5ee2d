package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"github.com/sluice-lb/sluice/internal/lb"
)

// Paths finds the address to dial for a VIP at a server. It may wait for one until
// ctx ends. Its methods may be called from several goroutines.
type Paths interface {
	Find(context.Context, lb.ProbePath) (netip.Addr, error)
}

// Run runs the probe of t once, bounded by its timeout and by ctx. It returns nil
// if the server is healthy, and else in a few words why not. T has no path.
func Run(ctx context.Context, t Target) error {
	t.Probe.Timeout = positive(t.Probe.Timeout)
	return bounded(ctx, t, prober{}.probe)
}

// Ask runs the probe of t once, as Run does, also through a path, which paths knows.
// Answer is what came back, in a few words; "" if nothing did.
func Ask(ctx context.Context, t Target, paths Paths) (answer string, err error) {
	t.Probe.Timeout = positive(t.Probe.Timeout)
	ctx, cancel := context.WithTimeout(ctx, t.Probe.Timeout)
	defer cancel()
	return prober{paths}.ask(ctx, t)
}

// bounded runs run for t within its timeout.
func bounded(ctx context.Context, t Target, run func(context.Context, Target) error) error {
	ctx, cancel := context.WithTimeout(ctx, t.Probe.Timeout)
	defer cancel()
	return run(ctx, t)
}

// A prober runs probes of any kind.
type prober struct{ paths Paths }

func (p prober) probe(ctx context.Context, t Target) error {
	_, err := p.ask(ctx, t)
	return err
}

// ask is probe with what the server answered, in a few words, if it did.
func (p prober) ask(ctx context.Context, t Target) (answer string, err error) {
	to := t.Endpoint()
	if !t.viaVIP() {
		return probeAt(ctx, t, to)
	}
	if p.paths == nil {
		return "", fmt.Errorf("%v: nobody knows the way to a VIP at a server", t)
	}
	address, err := p.paths.Find(ctx, t.Path)
	if err != nil {
		err = wayError{err}
	} else {
		answer, err = probeAt(ctx, t, netip.AddrPortFrom(address, to.Port()))
	}
	switch {
	case err == nil:
		return answer, nil
	case !errors.Is(err, errSilent):
		return answer, fmt.Errorf("%v: %w", t, err)
	case t.Path.Forward == lb.Tunnel:
		return answer, fmt.Errorf("%v: %w: is the VIP on its lo, and does it decapsulate?", t, err)
	}
	return answer, fmt.Errorf("%v: %w: is the VIP on its lo?", t, err)
}

// probeAt runs the probe of t at an address that leads to its server.
func probeAt(ctx context.Context, t Target, to netip.AddrPort) (answer string, err error) {
	switch t.Probe.Type {
	case lb.ProbeTCP:
		return probeTCP(ctx, t, to)
	case lb.ProbeHTTP, lb.ProbeHTTPS:
		return probeHTTP(ctx, t, to)
	case lb.ProbeDNS:
		return probeDNS(ctx, t, to)
	case lb.ProbeUDP:
		return probeUDP(ctx, t, to)
	case lb.ProbeExec:
		return probeExec(ctx, t)
	}
	return "", fmt.Errorf("run probe: unknown type %q", t.Probe.Type)
}

// probeTCP succeeds if the server accepts a connection.
func probeTCP(ctx context.Context, t Target, to netip.AddrPort) (answer string, err error) {
	conn, err := dial(ctx, t, to)
	if err != nil {
		return "", err
	}
	return "connected", conn.Close()
}

// errSilent says that nothing came back, not even a refusal.
var errSilent = errors.New("no answer")

// dial connects to an address that leads to the server of t.
func dial(ctx context.Context, t Target, to netip.AddrPort) (*net.TCPConn, error) {
	// Without keepalive, which would be two system calls for nothing.
	d := net.Dialer{KeepAlive: -1}
	if t.viaVIP() {
		// All servers answer such probes from the VIP, so each probe needs a port of
		// its own. A port that is bound is no other socket's; one that connect
		// chooses may be, if only the peers differ.
		d.LocalAddr = &net.TCPAddr{}
	}
	conn, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, explain("connect", err, fmt.Errorf("connect: %w within %v", errSilent, t.Probe.Timeout))
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("connect: got a %T", conn), conn.Close())
	}
	// Close is to reset the connection. A regular close would leave a socket in
	// TIME_WAIT here for a minute after every run: 60,000 of them for a
	// thousand targets that are probed once a second.
	if err := tcp.SetLinger(0); err != nil {
		return nil, errors.Join(fmt.Errorf("set linger: %w", err), tcp.Close())
	}
	return tcp, nil
}

// explain says why what failed, in words that help an operator who sees the
// address beside them: late if time ran out.
func explain(what string, err, late error) error {
	if short := shorten(err, late); short != nil {
		return short
	}
	return fmt.Errorf("%s: %w", what, err)
}

// shorten picks the failed system call out of an error of package net, as in
// "connect: connection refused", or replaces the error by late if time ran out.
// It returns nil for other errors.
func shorten(err, late error) error {
	if call, ok := errors.AsType[*os.SyscallError](err); ok {
		return call
	}
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return late
	}
	return nil
}

// A wayError is why there is no way to a VIP at a server.
type wayError struct{ error }

func (e wayError) Unwrap() error { return e.error }

// unreached reports whether err may come of the way to a server, and says nothing of the
// server then: nothing has come back from it.
func unreached(err error) bool {
	if _, ok := errors.AsType[wayError](err); ok {
		return true
	}
	for _, silent := range []error{errSilent, syscall.ETIMEDOUT, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EHOSTDOWN, syscall.ENETDOWN} {
		if errors.Is(err, silent) {
			return true
		}
	}
	return false
}

// inconclusive reports whether err says something about this node only. If the
// daemon runs out of file descriptors, or no process can be started, that must not
// take all servers out of service.
func inconclusive(err error) bool {
	for _, local := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EAGAIN} {
		if errors.Is(err, local) {
			return true
		}
	}
	return false
}
