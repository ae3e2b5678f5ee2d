package l7

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// A lazyConn does what net/http asks of a connection when it matters. net/http sets a
// deadline for reading seven times for each request, mostly to take it back before
// anything is read. Here one is set when there is a read, and only if it is nearer than
// what is set; when that has come too early, the read goes on. A read that net/http ends
// before it has begun ends without a look at the connection.
//
// Reads are by one goroutine at a time; deadlines may be set by another one.
type lazyConn struct {
	net.Conn

	mu      sync.Mutex
	watch   watch
	wanted  time.Time // zero: none
	over    bool      // wanted is one that ends reads at once
	set     time.Time // the same, of the connection itself
	past    bool      // set has come, or is one that ends reads at once
	reading bool
}

// longAgo is after each deadline by which net/http ends reads: those are of 1970-01-01. Of others
// nobody needs to know whether they have come already, which would cost a look at the clock.
var longAgo = time.Unix(1<<20, 0)

// SetReadDeadline sets the deadline for reads, those under way included.
func (c *lazyConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wanted = t
	if c.over = !t.IsZero() && t.Before(longAgo); c.over {
		c.watch.end(false)
	}
	if c.reading {
		return c.apply()
	}
	return nil
}

// SetDeadline sets the deadlines for reads and writes.
func (c *lazyConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// apply sets the deadline that is wanted, if what is set would come too late, or ends
// reads at once. The lock is held.
func (c *lazyConn) apply() error {
	if !c.past {
		if c.wanted.IsZero() || !c.set.IsZero() && !c.set.After(c.wanted) {
			return nil
		}
	}
	c.set, c.past = c.wanted, c.over
	return c.Conn.SetReadDeadline(c.wanted)
}

// begin makes the deadline ready for a read.
func (c *lazyConn) begin() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return os.ErrDeadlineExceeded
	}
	c.reading = true
	return c.apply()
}

// end ends a read, and tells whether its deadline has come too early.
func (c *lazyConn) end(n int, err error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reading = false
	if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	early := c.wanted.IsZero() || c.wanted.After(time.Now())
	if early {
		c.past = true // it is over, and must be set anew
	}
	return early
}

// Read reads. One of a single byte is taken for a watch; where it is none, which is rare (a
// line that fills net/http's buffer but for a byte), what is there comes a moment later.
func (c *lazyConn) Read(p []byte) (int, error) {
	if len(p) == 1 && !c.rest() {
		return 0, os.ErrDeadlineExceeded
	}
	for {
		if err := c.begin(); err != nil {
			return 0, err
		}
		n, err := c.Conn.Read(p)
		if !c.end(n, err) {
			return n, err
		}
	}
}

// rest waits before a watch begins; false: it is over before that.
func (c *lazyConn) rest() bool {
	c.mu.Lock()
	if c.over {
		c.mu.Unlock()
		return false
	}
	begun := c.watch.begin(&c.mu)
	c.mu.Unlock()
	return <-begun
}

// Close closes the connection, and ends reads.
func (c *lazyConn) Close() error {
	err := c.Conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watch.end(true) // to find it closed
	return err
}

// CloseWrite ends the direction to the client.
func (c *lazyConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}
