package l7

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// watch1 reads a byte, as net/http does beside a request, and returns what gets the error.
func watch1(c net.Conn) <-chan error {
	done := make(chan error, 1)
	go func() {
		_, err := c.Read(make([]byte, 1))
		done <- err
	}()
	return done
}

// A request that lasts is watched, and its watch ends like any read.
func TestWatches(t *testing.T) {
	never := errors.New("not yet")
	for _, tt := range []struct {
		name  string
		do    func(c *lazyConn, client net.Conn)
		after time.Duration // when the read must have ended
		want  error
	}{
		{"the client goes", func(_ *lazyConn, client net.Conn) { client.Close() }, 2 * watchAfter, io.EOF},
		{"the client goes at last", func(_ *lazyConn, client net.Conn) {
			time.Sleep(time.Hour)
			client.Close()
		}, 0, io.EOF},
		{"the client says something", func(_ *lazyConn, client net.Conn) { _, _ = client.Write([]byte{'x'}) }, 0, nil},
		{"the client does nothing", func(*lazyConn, net.Conn) {}, time.Hour, never},
		{"the request ends soon", func(c *lazyConn, _ net.Conn) { _ = c.SetReadDeadline(time.Unix(1, 0)) }, 0, os.ErrDeadlineExceeded},
		{"the request ends late", func(c *lazyConn, _ net.Conn) {
			time.Sleep(time.Hour)
			_ = c.SetReadDeadline(time.Unix(1, 0))
		}, 0, os.ErrDeadlineExceeded},
		{"a deadline that comes", func(c *lazyConn, _ net.Conn) { _ = c.SetReadDeadline(time.Now().Add(time.Hour)) }, time.Hour, os.ErrDeadlineExceeded},
		{"the connection is closed", func(c *lazyConn, _ net.Conn) { c.Close() }, 0, io.ErrClosedPipe},
		{"the connection is closed late", func(c *lazyConn, _ net.Conn) {
			time.Sleep(time.Hour)
			c.Close()
		}, 0, io.ErrClosedPipe},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				here, client := net.Pipe()
				c := &lazyConn{Conn: here}
				done := watch1(c)
				synctest.Wait()
				tt.do(c, client)
				time.Sleep(tt.after)
				synctest.Wait()
				err := never
				select {
				case err = <-done:
				default:
				}
				if !errors.Is(err, tt.want) {
					t.Errorf("the watch ends with %v, want %v", err, tt.want)
				}
				c.Close()
				client.Close()
				time.Sleep(2 * watchAfter)
			})
		})
	}
}

// What comes while a watch waits is there for the next read, also where requests follow
// each other without a pause.
func TestAWatchTakesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, client := net.Pipe()
		defer here.Close()
		c := &lazyConn{Conn: here}
		go func() {
			defer client.Close()
			for range 1000 {
				_, _ = client.Write([]byte("request"))
			}
		}()
		var got int
		for {
			if err := c.SetReadDeadline(time.Time{}); err != nil {
				t.Fatal(err)
			}
			n, err := c.Read(make([]byte, 10))
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			got += n
			watched := watch1(c)
			time.Sleep(time.Millisecond)
			if err := c.SetReadDeadline(time.Unix(1, 0)); err != nil {
				t.Fatal(err)
			}
			if err := <-watched; !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
		}
		if want := 1000 * len("request"); got != want {
			t.Errorf("%d bytes, want %d", got, want)
		}
		time.Sleep(2 * watchAfter)
	})
}
