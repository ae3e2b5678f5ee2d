package l7

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"
)

// A plainConn is a connection to a server. It is one exchange's at a time.
type plainConn struct {
	net.Conn
	server string
	raw    syscall.RawConn  // nil: there is none
	look   func(fd uintptr) // sets silent
	silent bool             // nothing was there to be read at the last look
	asking asking
	reader bufio.Reader // of what Read reads
	reused bool         // an exchange has had it before
	heard  bool         // something has come of the answer
	left   int          // bytes that its head may still have; < 0: any number
	since  time.Time    // when it became idle

	mu        sync.Mutex
	uploading bool     // a body is on its way: until it is there, the server may be silent
	answering bool     // the head of the answer has come
	deadline  deadline // for reading
}

// Read reads what comes from the server, in the time that it has for it.
func (c *plainConn) Read(p []byte) (int, error) {
	if c.left == 0 {
		return 0, errLongHead
	}
	if c.left > 0 && len(p) > c.left {
		p = p[:c.left]
	}
	if err := c.patience(); err != nil {
		return 0, err
	}
	n, err := c.receive(p)
	if n > 0 {
		c.heard = true
		if c.left > 0 {
			c.left -= n
		}
	}
	return n, err
}

// receive reads, and sends before what is to be sent.
func (c *plainConn) receive(p []byte) (int, error) {
	if c.asking.request == nil {
		return c.Conn.Read(p)
	}
	n, rest, err := c.asking.run(c.raw, p)
	if rest == nil || err != nil {
		return n, err
	}
	if _, err := c.Write(rest); err != nil {
		return 0, err
	}
	c.asking.request = nil
	return c.Conn.Read(p)
}

// patience sets the deadline for what is read next.
func (c *plainConn) patience() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.uploading && !c.answering {
		return c.deadline.lift()
	}
	return c.deadline.extend()
}

// uploaded says that all of the request's body is on its way, or none of it any more:
// from now on there is a time for the answer.
func (c *plainConn) uploaded() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.uploading = false
	_ = c.deadline.extend() // the connection is closed: a read says so
}

// ask sends a request, or has the next read send it, if nothing is to follow.
func (c *plainConn) ask(request []byte, follows bool) error {
	if c.raw != nil && !follows {
		c.asking.request, c.asking.reused = request, c.reused
		return nil
	}
	if c.reused && !c.quiet() {
		return errStale
	}
	_, err := c.Write(request)
	return err
}

// begin makes the connection another exchange's.
func (c *plainConn) begin(uploads bool) {
	c.heard, c.left, c.asking.request = false, maxAnswerHead, nil
	c.mu.Lock()
	c.uploading, c.answering = uploads, false
	c.mu.Unlock()
}

// answered says that the head of the answer has come.
func (c *plainConn) answered() {
	c.left = -1
	c.mu.Lock()
	c.answering = true
	c.mu.Unlock()
}

// quiet tells whether the server has said nothing since the last answer, nor closed the
// connection: it may have another request.
func (c *plainConn) quiet() bool {
	if c.raw == nil {
		return true
	}
	return c.raw.Control(c.look) == nil && c.silent
}

func (c *plainConn) lookAt(fd uintptr) { c.silent = silentAt(fd) }

// A plainExchange is a request and its answer on a connection.
type plainExchange struct {
	transport *plainTransport
	conn      *plainConn
	request   *http.Request
	of        *exchange
	stop      func() bool // of HTTP/2: has the end of the request's context leave the connection alone; false: it has not
	upload    *upload     // nil: the whole request was sent at once
	body      io.ReadCloser
	keep      bool  // the connection may be used again behind the answer
	over      error // why nothing more is to be read; nil: something is
}

// run sends the beginning of a request, and the body if it is not in there, and reads the
// head of the answer.
func (e *plainExchange) run(text []byte, body io.ReadCloser, a *attempt) (*http.Response, error) {
	if !e.wait() {
		e.finish(false)
		return nil, context.Canceled
	}
	e.conn.begin(body != nil)
	a.sent.Store(true)
	if err := e.conn.ask(text, body != nil); err != nil {
		e.finish(false)
		return nil, err
	}
	if body != nil {
		e.upload = startUpload(e.conn, body, e.request)
	}
	res, err := e.answer()
	if err != nil {
		e.finish(false)
		if failure := e.upload.failure(); failure != nil {
			err = failure // the answer is missing for that reason
		}
		return nil, err
	}
	// HTTP/1.0 knows no chunks: where such an answer would end is not sure.
	e.keep = !res.Close && res.ProtoAtLeast(1, 1) && e.transport.keepalive > 0
	e.body, res.Body = res.Body, e
	return res, nil
}

// wait has the connection be closed when the client has gone; false: it has.
func (e *plainExchange) wait() bool {
	if f := e.of.conn.framed; f != nil {
		if f.wait(e) {
			return true
		}
		e.of.gone.Store(true)
		return false
	}
	e.stop = context.AfterFunc(e.of.request.Context(), e.abandon)
	return true
}

// leave ends wait; false: the connection has been closed, or will be.
func (e *plainExchange) leave() bool {
	if f := e.of.conn.framed; f != nil {
		return f.leave()
	}
	return e.stop()
}

// abandon closes the connection: the client has gone.
func (e *plainExchange) abandon() {
	e.of.gone.Store(true)
	e.conn.Close()
}

// answer reads the head of the answer. Interim ones go to the client.
func (e *plainExchange) answer() (*http.Response, error) {
	for {
		res, err := http.ReadResponse(&e.conn.reader, e.request)
		switch {
		case err != nil && e.conn.asking.request != nil:
			return nil, fmt.Errorf("send the request: %w", err)
		case err != nil:
			return nil, fmt.Errorf("read the answer: %w", err)
		case res.StatusCode == http.StatusSwitchingProtocols:
			return nil, errSwitched
		case res.StatusCode >= 200:
			e.conn.answered()
			return res, nil
		case res.StatusCode < 100:
			return nil, fmt.Errorf("read the answer: its status is %q", res.Status)
		}
		e.of.interim(res.StatusCode, res.Header)
	}
}

// Read reads the answer's body.
func (e *plainExchange) Read(p []byte) (int, error) {
	if e.over != nil {
		return 0, e.over
	}
	n, err := e.body.Read(p)
	switch {
	case err == io.EOF:
		e.finish(true)
	case err != nil:
		err = e.of.causeOf(err)
		e.finish(false)
	}
	return n, err
}

// Close ends the exchange. What has not been read of the answer nobody can read.
func (e *plainExchange) Close() error {
	e.finish(false)
	return nil
}

// allThere tells whether all of the answer that is not read yet has come.
func (e *plainExchange) allThere() bool {
	n := e.conn.reader.Buffered()
	if e.over != nil || n < len(lastChunk) {
		return e.over != nil
	}
	b, err := e.conn.reader.Peek(n)
	return err == nil && string(b[n-len(lastChunk):]) == lastChunk
}

// lastChunk ends a body in chunks.
const lastChunk = "0\r\n\r\n"

// finish lets go of the connection: it is kept if both request and answer have come to
// their ends.
func (e *plainExchange) finish(whole bool) {
	if e.over != nil {
		return
	}
	e.over = http.ErrBodyReadAfterClose
	if whole {
		e.over = io.EOF
	}
	uploaded := e.upload.end()
	if undisturbed := e.leave(); undisturbed && whole && uploaded && e.keep && e.conn.reader.Buffered() == 0 {
		e.transport.put(e.conn)
		return
	}
	e.conn.Close()
}
