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
	limits   *lb.ClientLimits
	most     int64 // bytes; 0: any
	began    time.Time

	mu   sync.Mutex
	read int64
	err  error // why it ended before its time
	over bool  // its handler returns: deadline must not be called any more
}

// setDeadline sets the deadline for reading. A server may read on, in a goroutine of the
// transport's, when the handler returns, and what belongs to the answer is another
// request's then, or nobody's.
func (b *clientBody) setDeadline(t time.Time) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.over:
		return errReaderClosed
	case b.deadline == nil:
		return nil
	}
	return b.deadline(t)
}

// end has nobody set a deadline from now on.
func (b *clientBody) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.over = true
}

func (b *clientBody) Read(p []byte) (int, error) {
	if err := b.setDeadline(b.patience(time.Now())); err != nil {
		return 0, b.fail(errBadBody)
	}
	n, err := b.ReadCloser.Read(p)
	b.mu.Lock()
	b.read += int64(n)
	read := b.read
	b.mu.Unlock()
	switch {
	case b.most > 0 && read > b.most:
		return 0, b.fail(errTooLarge)
	case err == io.EOF:
		_ = b.setDeadline(time.Time{}) // it would end the wait for an answer, too
		return n, err
	case err == nil:
		return n, nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return n, b.fail(errTooSlow)
	}
	return n, b.fail(errBadBody)
}

// patience is until when the next piece has to come.
func (b *clientBody) patience(now time.Time) time.Time {
	until := now.Add(b.limits.BodyTimeout)
	if b.limits.MinBodyRate > 0 {
		b.mu.Lock()
		due := time.Duration(float64(b.read) / float64(b.limits.MinBodyRate) * float64(time.Second))
		b.mu.Unlock()
		if slow := b.began.Add(b.limits.HeaderTimeout + due); slow.Before(until) {
			until = slow
		}
	}
	return until
}

func (b *clientBody) fail(err error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
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
	defer b.mu.Unlock()
	b.closed = true
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

func (r *bodyReader) Close() error {
	r.of.mu.Lock()
	defer r.of.mu.Unlock()
	r.closed = true
	return nil
}
