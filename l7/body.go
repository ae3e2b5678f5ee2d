package l7

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// What is wrong with a body that a client sends.
var (
	errTooLarge = errors.New("the body of the request is too large")
	errTooSlow  = errors.New("the body of the request comes too slowly")
	errBadBody  = errors.New("the body of the request is malformed or cut off")
)

// A clientBody is a body as it comes: bounded, and not too slow.
type clientBody struct {
	io.ReadCloser
	deadline func(time.Time) error // sets the one for reading; nil: there is none
	breaks   bool                  // one in the past breaks a read off, and nothing else is read by it
	limits   *lb.ClientLimits
	most     int64 // bytes; 0: any
	began    time.Time

	mu      sync.Mutex
	stopped sync.Cond // reading has become false
	reading bool
	read    int64
	ended   bool  // all of it was read
	err     error // why it ended before its time
	over    bool  // its handler returns: nothing is read, and deadline must not be called, any more
}

func newClientBody(body io.ReadCloser, limits *lb.ClientLimits, most int64, began time.Time) *clientBody {
	b := &clientBody{ReadCloser: body, limits: limits, most: most, began: began}
	b.stopped.L = &b.mu
	return b
}

// begin begins a read, and sets its deadline. A server may read on, in a goroutine of the
// transport's, when the handler returns, and what belongs to the answer is another
// request's then, or nobody's.
func (b *clientBody) begin() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.over:
		return errReaderClosed
	case b.ended: // net/http reads for the client's end now, which has no deadline
		return io.EOF
	case b.deadline != nil && b.deadline(b.patience(time.Now())) != nil:
		return b.failed(errBadBody)
	}
	b.reading = true
	return nil
}

// note takes down what a read has come to, and returns what its reader is told.
func (b *clientBody) note(n int, err error) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reading = false
	b.stopped.Broadcast()
	b.read += int64(n)
	switch {
	case b.most > 0 && b.read > b.most:
		return 0, b.failed(errTooLarge)
	case err == io.EOF:
		b.ended = true
		if b.deadline != nil && !b.over {
			_ = b.deadline(time.Time{}) // it would end the wait for an answer, too
		}
		return n, err
	case err == nil:
		return n, nil
	case b.over:
		return n, errReaderClosed
	case errors.Is(err, os.ErrDeadlineExceeded):
		return n, b.failed(errTooSlow)
	}
	return n, b.failed(errBadBody)
}

func (b *clientBody) Read(p []byte) (int, error) {
	if err := b.begin(); err != nil {
		return 0, err
	}
	return b.note(b.ReadCloser.Read(p))
}

// end has nobody read from now on. Of HTTP/1 no read is under way when it returns: one
// that is has been broken off.
func (b *clientBody) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.over = true
	if !b.breaks {
		return // the stream ends, and the read with it
	}
	if b.reading {
		_ = b.deadline(time.Unix(1, 0)) // it is closed: the read says so
	}
	for b.reading {
		b.stopped.Wait()
	}
}

// remains tells whether something of the body is not read yet.
func (b *clientBody) remains() bool {
	if b == nil {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.ended
}

// patience is until when the next piece has to come. b.mu is held.
func (b *clientBody) patience(now time.Time) time.Time {
	until := now.Add(b.limits.BodyTimeout)
	if b.limits.MinBodyRate > 0 {
		due := time.Duration(float64(b.read) / float64(b.limits.MinBodyRate) * float64(time.Second))
		if slow := b.began.Add(b.limits.HeaderTimeout + due); slow.Before(until) {
			until = slow
		}
	}
	return until
}

// failed remembers the first failure, and returns it. b.mu is held.
func (b *clientBody) failed(err error) error {
	if b.err == nil {
		b.err = err
	}
	return b.err
}

// failure tells why the body ended before its time; nil: it did not.
func (b *clientBody) failure() error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

func (b *clientBody) received() int64 {
	if b == nil {
		return 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.read
}

// statusOf is what a client gets whose body has failed.
func statusOf(bodyError error) int {
	switch {
	case errors.Is(bodyError, errTooLarge):
		return http.StatusRequestEntityTooLarge
	case errors.Is(bodyError, errTooSlow):
		return http.StatusRequestTimeout
	}
	return http.StatusBadRequest
}

// A requestBody is what servers are sent of a body: its beginning, which has been
// read, and the rest. It can be sent again as long as nobody has begun with the rest.
type requestBody struct {
	start []byte
	rest  *clientBody // nil: start is all of it

	mu     sync.Mutex
	reader *bodyReader // who has begun with the rest
	closed bool
}

// readAhead reads as much of a body as fits into limit bytes.
func readAhead(b *clientBody, length int64, limit int) (*requestBody, error) {
	if b == nil || length == 0 {
		return &requestBody{}, nil
	}
	if limit == 0 {
		return &requestBody{rest: b}, nil
	}
	if length > 0 {
		limit = int(min(int64(limit), length))
	}
	var buf bytes.Buffer
	if length > 0 { // but no more than that for a length that is only a claim
		buf.Grow(min(limit+bytes.MinRead, 4<<10))
	}
	n, err := io.Copy(&buf, io.LimitReader(b, int64(limit)))
	switch {
	case err != nil:
		return nil, err
	case n == length || n < int64(limit):
		// To the end: what is behind it, a bad chunk or trailers, shows there alone.
		if _, err := io.Copy(io.Discard, b); err != nil {
			return nil, err
		}
		return &requestBody{start: buf.Bytes()}, nil
	}
	return &requestBody{start: buf.Bytes(), rest: b}, nil
}

// whole tells whether all of the body has been read.
func (b *requestBody) whole() bool { return b.rest == nil }

// repeatable tells whether the body can be sent once more.
func (b *requestBody) repeatable() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rest == nil || b.reader == nil
}

// open returns the body from its beginning; nil: there is none.
func (b *requestBody) open() *bodyReader {
	if b.rest == nil && len(b.start) == 0 {
		return nil
	}
	return &bodyReader{of: b, left: b.start}
}

// close ends all readers: after its handler has returned, a request must not be read.
func (b *requestBody) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	if b.rest != nil {
		b.rest.end()
	}
}

// A bodyReader reads a body for one attempt.
type bodyReader struct {
	of     *requestBody
	left   []byte // of the start
	atEnd  func() // nil: nothing is to be done there
	closed bool   // guarded by of.mu
}

var errReaderClosed = errors.New("the body is read by nobody any more")

func (r *bodyReader) Read(p []byte) (int, error) {
	if len(r.left) > 0 {
		n := copy(p, r.left)
		r.left = r.left[n:]
		return n, nil
	}
	if r.of.rest == nil {
		return 0, r.end(io.EOF)
	}
	r.of.mu.Lock()
	if r.closed || r.of.closed || r.of.reader != nil && r.of.reader != r {
		r.of.mu.Unlock()
		return 0, errReaderClosed
	}
	r.of.reader = r
	r.of.mu.Unlock()
	n, err := r.of.rest.Read(p)
	return n, r.end(err)
}

// end does what is to be done at the end.
func (r *bodyReader) end(err error) error {
	if err == io.EOF && r.atEnd != nil {
		r.atEnd()
	}
	return err
}

// yield ends the reader, if another one can have the body from its beginning then.
func (r *bodyReader) yield() bool {
	if r == nil {
		return true // there is no body
	}
	r.of.mu.Lock()
	defer r.of.mu.Unlock()
	if r.of.rest != nil && r.of.reader != nil {
		return false
	}
	r.closed = true
	return true
}

func (r *bodyReader) Close() error {
	r.of.mu.Lock()
	defer r.of.mu.Unlock()
	r.closed = true
	return nil
}
