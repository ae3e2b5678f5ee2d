package l7

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// A lazyConn sets deadlines for reading when they matter. net/http sets one seven times
// for each request, mostly to take it back before anything is read. One that lies in the
// past is set at once, since it breaks off a read. Of others only one that is nearer than
// what is set; when that has come too early, the read goes on.
//
// Reads are by one goroutine at a time; deadlines may be set by another one.
type lazyConn struct {
	net.Conn

	mu      sync.Mutex
	wanted  time.Time // zero: none
	set     time.Time // the same, of the connection itself
	past    bool      // set is one that breaks off reads
	reading bool
}

// SetReadDeadline sets the deadline for reads, those under way included.
func (c *lazyConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wanted = t
	if !t.IsZero() && !t.After(time.Now()) {
		c.past, c.set = true, t
		return c.Conn.SetReadDeadline(t)
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

// apply sets the deadline that is wanted, if what is set would come too late, or breaks
// reads off. The lock is held.
func (c *lazyConn) apply() error {
	if !c.past {
		if c.wanted.IsZero() || !c.set.IsZero() && !c.set.After(c.wanted) {
			return nil
		}
	}
	c.set, c.past = c.wanted, false
	return c.Conn.SetReadDeadline(c.wanted)
}

// begin makes the deadline ready for a read.
func (c *lazyConn) begin() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reading = true
	if !c.wanted.IsZero() && !c.wanted.After(c.set) && c.past {
		return nil // it is this one that is wanted
	}
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

func (c *lazyConn) Read(p []byte) (int, error) {
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

// CloseWrite ends the direction to the client.
func (c *lazyConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}
