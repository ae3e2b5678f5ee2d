package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

// short is the timeout of probes that are to run into it, long that of the others.
const (
	short = 500 * time.Millisecond
	long  = 10 * time.Second
)

func addrPort(t *testing.T, a net.Addr) netip.AddrPort {
	t.Helper()
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		t.Fatal(err)
	}
	return ap
}

// listen returns a listener on a free port that nobody accepts from.
func listen(t *testing.T, address string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// serve answers every connection to a new listener by handle, and waits for all
// of them at the end of the test.
func serve(t *testing.T, address string, handle func(net.Conn)) netip.AddrPort {
	t.Helper()
	l := listen(t, address)
	accepted := make(chan struct{})
	go func() {
		defer close(accepted)
		var conns []chan struct{}
		for {
			conn, err := l.Accept()
			if err != nil {
				break
			}
			done := make(chan struct{})
			conns = append(conns, done)
			go func() {
				defer close(done)
				defer func() { _ = conn.Close() }()
				handle(conn)
			}()
		}
		for _, done := range conns {
			<-done
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-accepted
	})
	return addrPort(t, l.Addr())
}

// readRequest reads up to the end of a request's header.
func readRequest(conn net.Conn) string {
	var got []byte
	buf := make([]byte, 1024)
	for !strings.Contains(string(got), "\r\n\r\n") {
		n, err := conn.Read(buf)
		if err != nil {
			return string(got)
		}
		got = append(got, buf[:n]...)
	}
	return string(got)
}

// raw answers a request with the bytes of response and closes.
func raw(response string) func(net.Conn) {
	return func(conn net.Conn) {
		readRequest(conn)
		_, _ = io.WriteString(conn, response)
	}
}

// untilClosed waits for the other side to close or reset conn.
func untilClosed(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }

// bound returns a socket that has a port of 127.0.0.1 but does not listen.
func bound(t *testing.T) (fd int, address netip.AddrPort) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fd, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(name.(*syscall.SockaddrInet4).Port))
}

// closedPort returns an address on which nobody listens, nor can while the test
// runs.
func closedPort(t *testing.T) netip.AddrPort {
	t.Helper()
	_, address := bound(t)
	return address
}

// fullBacklog returns the address of a listener whose queue is full, so that the
// kernel ignores further SYNs.
func fullBacklog(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, address := bound(t)
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		conn, err := net.DialTimeout("tcp", address.String(), short)
		if err != nil {
			return address
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
	t.Fatal("a listener with a backlog of 0 took 10 connections")
	return netip.AddrPort{}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestRunTCP(t *testing.T) {
	for _, tt := range []struct {
		name    string
		address func(t *testing.T) netip.AddrPort
		timeout time.Duration
		want    string
	}{
		{
			"accepts",
			func(t *testing.T) netip.AddrPort { return addrPort(t, listen(t, "127.0.0.1:0").Addr()) },
			long, "",
		},
		{"refused", closedPort, long, "connect: connection refused"},
		{"does not answer", fullBacklog, short, "connect: no answer within 500ms"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			target := Target{Address: tt.address(t), Probe: lb.Probe{Type: lb.ProbeTCP, Timeout: tt.timeout}}
			if diff := cmp.Diff(tt.want, text(Run(t.Context(), target))); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
		})
	}
}

// A run leaves no socket behind, not even in TIME_WAIT: the server sees a reset.
func TestRunTCPResets(t *testing.T) {
	got := make(chan error, 1)
	address := serve(t, "127.0.0.1:0", func(conn net.Conn) {
		_, err := conn.Read(make([]byte, 1))
		got <- err
	})
	if err := Run(t.Context(), Target{Address: address, Probe: lb.Probe{Type: lb.ProbeTCP, Timeout: long}}); err != nil {
		t.Fatal(err)
	}
	if err := <-got; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("server's read: got %v, want %v", err, syscall.ECONNRESET)
	}
}

func TestRunProbePort(t *testing.T) {
	l := listen(t, "127.0.0.1:0")
	target := Target{
		Address: closedPort(t),
		Probe:   lb.Probe{Type: lb.ProbeTCP, Timeout: long, Port: addrPort(t, l.Addr()).Port()},
	}
	if err := Run(t.Context(), target); err != nil {
		t.Errorf("probe of a port of its own: %v", err)
	}
}

func TestRunUnknownType(t *testing.T) {
	target := Target{Address: closedPort(t), Probe: lb.Probe{Type: "icmp", Timeout: long}}
	if diff := cmp.Diff(`run probe: unknown type "icmp"`, text(Run(t.Context(), target))); diff != "" {
		t.Errorf("result (-want +got):\n%s", diff)
	}
}

func TestRunCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	address := serve(t, "127.0.0.1:0", func(conn net.Conn) {
		readRequest(conn)
		cancel() // while the probe waits for the answer
		untilClosed(conn)
	})
	target := Target{Address: address, Probe: lb.Probe{Type: lb.ProbeHTTP, Pages: []lb.Page{{Path: "/"}}, Timeout: time.Hour}}
	if err := Run(ctx, target); err == nil {
		t.Error("got success after the context was cancelled")
	}
}

func TestInconclusive(t *testing.T) {
	noFiles := explain("connect", &net.OpError{Op: "dial", Err: os.NewSyscallError("socket", syscall.EMFILE)}, nil)
	for _, tt := range []struct {
		name string
		err  error
		want bool
	}{
		{"success", nil, false},
		{"refused", os.NewSyscallError("connect", syscall.ECONNREFUSED), false},
		{"no more files", noFiles, true},
		{"no more processes", fmt.Errorf("start: %w", &os.PathError{Op: "fork/exec", Path: "/bin/true", Err: syscall.EAGAIN}), true},
		{"no more buffers", os.NewSyscallError("connect", syscall.ENOBUFS), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := inconclusive(tt.err); got != tt.want {
				t.Errorf("inconclusive(%v): got %v, want %v", tt.err, got, tt.want)
			}
		})
	}
	if diff := cmp.Diff("socket: too many open files", text(noFiles)); diff != "" {
		t.Errorf("text (-want +got):\n%s", diff)
	}
}
