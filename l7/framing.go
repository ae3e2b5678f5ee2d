package l7

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// errFraming is what a connection ends with whose bytes are no request, or could be
// two different ones.
var errFraming = errors.New("the request is malformed")

// Poison is put in the place of what is refused: net/http finds it wrong when its turn
// has come. An error would be found at once, and would break off the requests before.
const (
	// In a head it may stand nowhere, and does not end it: the answer is 400.
	poison = "\x01\r\n\r\n"
	// In a chunked body it is no size, no end of a chunk and no trailer, and it ends an
	// extension as none may end.
	bodyPoison = "\x01\n\n"
)

// A framedConn is a connection of HTTP/1 that lets requests pass only if they are
// delimited in one way alone (RFC 9112, sections 2 to 7): no line folded, no line
// that ends with a bare CR or LF, no control characters, one Host, either one
// Content-Length or "Transfer-Encoding: chunked" and the latter in HTTP/1.1 only,
// chunks to the letter. It follows where each request ends, and so sees every head.
//
// Reads are by one goroutine at a time.
type framedConn struct {
	net.Conn
	sending deadline

	scanner scanner
	pending string // to be read before anything else
	failed  bool   // nothing is read any more

	malformed *atomic.Uint64 // counts what is refused; nil: nobody wants to know

	mu      sync.Mutex
	raw     bool           // it is no HTTP any more
	over    bool           // nothing can be read any more
	waiting *plainExchange // is told then; nil: nobody
}

func newFramedConn(c net.Conn, maxHead int, sendTimeout time.Duration) *framedConn {
	return &framedConn{Conn: &lazyConn{Conn: c}, sending: deadline{set: c.SetWriteDeadline, timeout: sendTimeout}, scanner: scanner{maxHead: maxHead}}
}

// release ends the look at what is read: the connection is that of an upgrade now.
func (c *framedConn) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.raw = true
}

func (c *framedConn) isRaw() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.raw
}

// Read reads what is right, and poison in the place of what is wrong.
func (c *framedConn) Read(p []byte) (int, error) {
	n, err := c.read(p)
	if n == 0 && err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.ended()
	}
	return n, err
}

// wait has an exchange be told when the client has gone; false: it has. net/http, which
// reads beside the handler to find that out, would tell by the request's context; that
// is what HTTP/2 needs, and a dearer way.
func (c *framedConn) wait(e *plainExchange) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.over {
		c.waiting = e
	}
	return !c.over
}

// leave ends wait; false: the client has gone.
func (c *framedConn) leave() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = nil
	return !c.over
}

// ended says that nothing can be read any more.
func (c *framedConn) ended() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	if c.waiting != nil {
		c.waiting.abandon()
		c.waiting = nil
	}
}

func (c *framedConn) read(p []byte) (int, error) {
	if c.pending != "" {
		n := copy(p, c.pending)
		c.pending = c.pending[n:]
		return n, nil
	}
	if c.failed {
		return 0, errFraming
	}
	n, err := c.Conn.Read(p)
	if n == 0 || c.isRaw() {
		return n, err
	}
	good, wrong := c.scanner.scan(p[:n])
	if !wrong {
		return n, err
	}
	c.failed, c.pending = true, poison
	if c.malformed != nil {
		c.malformed.Add(1)
	}
	if c.scanner.inBody() {
		c.pending = bodyPoison
	}
	if good == 0 {
		return c.read(p)
	}
	return good, nil
}

// Write gives a client that does not read no more than sendTimeout for each piece.
func (c *framedConn) Write(p []byte) (int, error) {
	if !c.isRaw() {
		if err := c.sending.extend(); err != nil {
			return 0, err
		}
	}
	return c.Conn.Write(p)
}

// CloseWrite is for net/http, which lets a client read why it is closed.
func (c *framedConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}
