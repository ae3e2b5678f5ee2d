package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxDatagram is how much of an answer is read, in bytes.
const maxDatagram = 4096

// probeUDP sends one datagram. Without Probe.Expect it succeeds with any answer, and
// also with none: only an ICMP error says that nobody is there. With it, an answer
// must match.
func probeUDP(ctx context.Context, t Target, to netip.AddrPort) (answer string, err error) {
	conn, err := dialUDP(ctx, to)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	defer endWith(ctx, conn)()
	if _, err := conn.Write([]byte(t.Probe.Send)); err != nil {
		return "", explain("send", err, fmt.Errorf("not sent within %v", t.Probe.Timeout))
	}
	buf := make([]byte, maxDatagram)
	for {
		n, err := conn.Read(buf)
		switch {
		case err == nil:
			answer = fmt.Sprintf("answer of %d bytes", n)
			if t.Probe.Expect == nil || t.Probe.Expect.Match(buf[:n]) {
				return answer, nil
			}
		case !isTimeout(err):
			return answer, explain("read", err, nil)
		case t.Probe.Expect == nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
			return "no refusal", nil
		case answer != "":
			return answer, fmt.Errorf("answer does not match %q", t.Probe.Expect)
		default:
			return "", fmt.Errorf("%w within %v", errSilent, t.Probe.Timeout)
		}
	}
}

// dialUDP returns a socket that hears of each ICMP error, also of those that may pass
// by themselves: a router that has lost a server says that it is unreachable.
func dialUDP(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) (err error) {
		level, option := unix.IPPROTO_IP, unix.IP_RECVERR
		if to.Addr().Is6() {
			level, option = unix.IPPROTO_IPV6, unix.IPV6_RECVERR
		}
		if e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) }); e != nil {
			return e
		}
		return err
	}}
	conn, err := d.DialContext(ctx, "udp", to.String())
	if err != nil {
		return nil, explain("connect", err, errors.New("no time was left for it"))
	}
	return conn, nil
}

func isTimeout(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}
