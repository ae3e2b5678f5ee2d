package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"github.com/sluice-lb/sluice/internal/lb"
)

// Run runs the probe of t once, bounded by its timeout and by ctx. It returns nil
// if the server is healthy, and else in a few words why not.
func Run(ctx context.Context, t Target) error {
	t.Probe.Timeout = positive(t.Probe.Timeout)
	return bounded(ctx, t, probe)
}

// bounded runs run for t within its timeout.
func bounded(ctx context.Context, t Target, run func(context.Context, Target) error) error {
	ctx, cancel := context.WithTimeout(ctx, t.Probe.Timeout)
	defer cancel()
	return run(ctx, t)
}

func probe(ctx context.Context, t Target) error {
	switch t.Probe.Type {
	case lb.ProbeTCP:
		return probeTCP(ctx, t)
	case lb.ProbeHTTP:
		return probeHTTP(ctx, t)
	}
	return fmt.Errorf("run probe: unknown type %q", t.Probe.Type)
}

// probeTCP succeeds if the server accepts a connection.
func probeTCP(ctx context.Context, t Target) error {
	conn, err := dial(ctx, t)
	if err != nil {
		return err
	}
	return conn.Close()
}

// dial connects to the endpoint of t.
func dial(ctx context.Context, t Target) (*net.TCPConn, error) {
	// Without keepalive, which would be two system calls for nothing.
	d := net.Dialer{KeepAlive: -1}
	conn, err := d.DialContext(ctx, "tcp", t.Endpoint().String())
	if err != nil {
		return nil, explain("connect", err, fmt.Errorf("connect: no answer within %v", t.Probe.Timeout))
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

// inconclusive reports whether err says something about this node only. If the
// daemon runs out of file descriptors, that must not take all servers out of
// service.
func inconclusive(err error) bool {
	for _, local := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		if errors.Is(err, local) {
			return true
		}
	}
	return false
}
