package l7

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// tcpPair returns a connection of TCP, from both ends.
func tcpPair(t *testing.T) (client, server *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

// A request is sent and its answer waited for in one go, whatever the server has done before.
func TestAsking(t *testing.T) {
	long := bytes.Repeat([]byte("long "), 1<<15)
	say := func(text string) func(*testing.T, *net.TCPConn) {
		return func(t *testing.T, s *net.TCPConn) {
			if _, err := io.WriteString(s, text); err != nil {
				t.Error(err)
			}
		}
	}
	hear := func(request []byte, then func(*testing.T, *net.TCPConn)) func(*testing.T, *net.TCPConn) {
		return func(t *testing.T, s *net.TCPConn) {
			got := make([]byte, len(request))
			if _, err := io.ReadFull(s, got); err != nil || !bytes.Equal(got, request) {
				t.Errorf("the server gets %d bytes, %v; want the %d of the request", len(got), err, len(request))
			}
			then(t, s)
		}
	}
	shut := func(_ *testing.T, s *net.TCPConn) { s.Close() }
	half := func(_ *testing.T, s *net.TCPConn) { _ = s.CloseWrite() } // its other end finds out
	reset := func(_ *testing.T, s *net.TCPConn) {
		_ = s.SetLinger(0)
		s.Close()
	}
	nothing := func(*testing.T, *net.TCPConn) {}
	short := []byte("request")
	for _, tt := range []struct {
		name    string
		reused  bool
		before  func(*testing.T, *net.TCPConn) // what the server does, and is known of
		request []byte
		server  func(*testing.T, *net.TCPConn)
		want    string
		err     error
	}{
		{name: "a question and an answer", request: short, server: hear(short, say("answer")), want: "answer"},
		{name: "on a connection that was used before", reused: true, request: short, server: hear(short, say("answer")), want: "answer"},
		{name: "more than there is room for", request: long, server: hear(long, say("answer")), want: "answer"},
		{name: "no answer", request: short, server: hear(short, shut), err: io.EOF},
		{name: "half closed behind the request", request: short, server: hear(short, half), err: io.EOF},
		{name: "reset behind the request", request: short, server: hear(short, reset), err: syscall.ECONNRESET},
		{name: "silence", request: short, server: nothing, err: os.ErrDeadlineExceeded},
		{name: "an answer before the question", before: say("answer"), request: short, server: nothing, want: "answer"},
		{name: "closed before the question", before: half, request: short, server: nothing, err: io.EOF},
		{name: "used before, something unasked", reused: true, before: say("answer"), request: short, server: nothing, err: errStale},
		{name: "used before, closed", reused: true, before: shut, request: short, server: nothing, err: errStale},
		{name: "used before, half closed", reused: true, before: half, request: short, server: nothing, err: errStale},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client, server := tcpPair(t)
			if err := client.SetWriteBuffer(4 << 10); err != nil {
				t.Fatal(err)
			}
			c := newPlainConn(client, "", 10*time.Second)
			if c.raw == nil {
				t.Fatal("there is no raw connection")
			}
			if tt.before != nil {
				tt.before(t, server)
				waitForSomething(t, c)
			}
			if errors.Is(tt.err, os.ErrDeadlineExceeded) {
				c.deadline.timeout = time.Millisecond
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				tt.server(t, server)
			}()
			c.reused = tt.reused
			c.begin(false)
			if err := c.ask(tt.request, false); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 100)
			n, err := c.Read(got)
			if string(got[:n]) != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("got %q, %v; want %q, %v", got[:n], err, tt.want, tt.err)
			}
			<-done
		})
	}
}

// waitForSomething returns when something can be read, or the end.
func waitForSomething(t *testing.T, c *plainConn) {
	t.Helper()
	err := c.raw.Read(func(fd uintptr) bool { return !silentAt(fd) })
	if err != nil {
		t.Fatal(err)
	}
}

// Who has gone breaks the wait off.
func TestAskingIsBrokenOff(t *testing.T) {
	client, server := tcpPair(t)
	c := newPlainConn(client, "", time.Hour)
	c.begin(false)
	if err := c.ask([]byte("request"), false); err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = io.ReadFull(server, make([]byte, len("request")))
		c.Close()
	}()
	if _, err := c.Read(make([]byte, 100)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("error %v, want %v", err, net.ErrClosed)
	}
}
