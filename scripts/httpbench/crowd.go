package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// actAsCrowd makes this program a crowd: clients are a process of their own, since a
// process may have only so many files.
const actAsCrowd = "SLUICE_HTTPBENCH_CROWD"

// What a crowd's clients do.
const (
	idle = "idle" // they have had an answer, and keep the connection
	slow = "slow" // they send a byte a second: every other one of a head, the others of a body
)

// crowdPatience is how long a crowd may take to come together.
const crowdPatience = 2 * time.Minute

// A crowd is many clients of a proxy.
type crowd struct {
	process *testenv.Process
	in      io.WriteCloser
}

// startCrowd returns when all clients are connected, and have done what they do once.
func (b *bench) startCrowd(ctx context.Context, kind string, at netip.AddrPort, clients int) (_ *crowd, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, kind, at.String(), strconv.Itoa(clients))
	cmd.Env = append(b.host.Env(), actAsCrowd+"=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd.Stdout = w
	c := &crowd{in: in}
	err = testenv.OnCPUs(b.ofLoad, func() (err error) {
		c.process, err = b.host.Start("crowd", cmd)
		return err
	})
	w.Close()
	if err != nil {
		return nil, err
	}
	c.process.GiveWay()
	stop := context.AfterFunc(ctx, func() { _ = out.SetReadDeadline(time.Now()) })
	defer stop()
	if err := out.SetReadDeadline(time.Now().Add(crowdPatience)); err != nil {
		return nil, errors.Join(err, c.end())
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != ready {
		return nil, errors.Join(fmt.Errorf("a crowd of %d has not come together: %q, %w\n%s", clients, line, err, c.process.Tail(20)), c.end())
	}
	return c, nil
}

// end ends the crowd. That a client has lost its connection before is an error.
func (c *crowd) end() error {
	c.in.Close()
	if err := c.process.Wait(); err != nil {
		return fmt.Errorf("crowd: %w: %s", err, c.process.Tail(20))
	}
	return nil
}

// ready is what a crowd says when it is one.
const ready = "ready\n"

// beCrowd is a crowd until in ends.
func beCrowd(in io.Reader, out io.Writer, args []string) error {
	if len(args) != 3 {
		return errors.New("a crowd needs kind, address and number")
	}
	clients, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	// Who measures is not to wait for a crowd.
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, 19); err != nil {
		return fmt.Errorf("give way to others: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var all sync.WaitGroup
	var lost atomic.Int64
	began := make(chan error, clients)
	// So many at a time: a listener's backlog is finite, and so are the connections to servers that
	// the proxy may have open beside those of clients.
	beginning := make(chan struct{}, 64)
	for i := range clients {
		all.Go(func() {
			beginning <- struct{}{}
			begin := func(err error) {
				<-beginning
				began <- err
			}
			c, err := net.Dial("tcp", args[1])
			if err != nil {
				begin(err)
				return
			}
			defer c.Close()
			act := beIdle
			if args[0] == slow {
				act = beSlow
			}
			if act(ctx, c, i, begin) != nil && ctx.Err() == nil {
				lost.Add(1)
			}
		})
	}
	for range clients {
		if err := <-began; err != nil {
			return err
		}
	}
	if _, err := io.WriteString(out, ready); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, in)
	cancel()
	all.Wait()
	if n := lost.Load(); n > 0 {
		err = errors.Join(err, fmt.Errorf("%d of %d clients have lost their connections", n, clients))
	}
	return err
}

// beIdle has a request answered and then waits. It returns an error when the connection
// ends before ctx does.
func beIdle(ctx context.Context, c net.Conn, _ int, began func(error)) error {
	if _, err := io.WriteString(c, "GET /1k HTTP/1.1\r\nHost: a\r\n"+strings.Join(browser, "\r\n")+"\r\n\r\n"); err != nil {
		began(err)
		return nil
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err == nil {
		_, err = io.Copy(io.Discard, res.Body)
	}
	began(err)
	if err != nil {
		return nil
	}
	return untilClosed(ctx, c)
}

// untilClosed waits for the end of ctx, or of the connection, which is an error.
func untilClosed(ctx context.Context, c net.Conn) error {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	_, err := c.Read(make([]byte, 1))
	if err == nil {
		err = errors.New("a byte that nobody has asked for")
	}
	return err
}

// beSlow sends a byte a second.
func beSlow(ctx context.Context, c net.Conn, i int, began func(error)) error {
	text := "GET /1k HTTP/1.1\r\nHost: a\r\nX-Slow: "
	if i%2 == 1 {
		text = "POST /1k HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n"
	}
	_, err := io.WriteString(c, text)
	began(err)
	if err != nil {
		return nil
	}
	// Not all of them in the same moment.
	select {
	case <-ctx.Done():
		return nil
	case <-time.After(time.Duration(i%1000) * time.Millisecond):
	}
	second := time.NewTicker(time.Second)
	defer second.Stop()
	for {
		if _, err := c.Write([]byte{'x'}); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-second.C:
		}
	}
}
