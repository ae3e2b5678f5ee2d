package l7

import (
	"bufio"
	"io"
	"maps"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A response counts what a client is sent.
type response struct {
	http.ResponseWriter
	conn   *connection
	status int // 0: nothing yet
	bytes  int64
	// compressed: who compresses the answer counts what is sent of it.
	compressed bool
	send       time.Duration // of HTTP/2: for a piece of the answer; 0: see patience

	incoming *clientBody // of HTTP/1: what is read for a server beside the answer; nil: nothing
}

// WriteHeader also has interim answers pass.
func (w *response) WriteHeader(status int) {
	if w.status == 0 && (status >= 200 || status == http.StatusSwitchingProtocols) {
		w.status = status
		if w.conn.servers.draining.Load() || w.conn.listener.room.full() || w.incoming.remains() {
			// Of HTTP/1 it closes the connection behind the answer; of HTTP/2 it is a
			// GOAWAY. Behind a body that may not come to its end is no next request.
			w.Header().Set("Connection", "close")
		}
		if h := w.Header(); h["Content-Type"] == nil {
			h["Content-Type"] = nil // net/http would guess one
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	w.patience(w.send)
	n, err := w.ResponseWriter.Write(p)
	w.patience(0)
	if !w.compressed {
		w.bytes += int64(n)
	}
	return n, err
}

// FlushError is for http.ResponseController.
func (w *response) FlushError() error {
	w.patience(w.send)
	defer w.patience(0)
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// closeBehind has net/http close the connection behind the answer, and wait a moment
// before it does: a client that still sends would lose the answer by a reset (RFC 9112,
// section 9.6). net/http does that where a body is too large, so it is told of one.
func (w *response) closeBehind() {
	inner := w.ResponseWriter
	for {
		u, ok := inner.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			break
		}
		inner = u.Unwrap()
	}
	_, _ = http.MaxBytesReader(inner, io.NopCloser(strings.NewReader("x")), 0).Read(make([]byte, 1)) // its error is what is wanted
}

// interim sends the client an interim answer, unless its HTTP is too old to know of them
// (RFC 9110, section 15.2).
func (x *exchange) interim(status int, answer http.Header) {
	if !x.request.ProtoAtLeast(1, 1) {
		return
	}
	h := x.writer.Header()
	removeHopByHop(answer)
	maps.Copy(h, answer)
	x.writer.WriteHeader(status)
	clear(h) // net/http would send it again with the final answer
}

// patience gives a client of HTTP/2 so long to let a piece of its answer through; 0: as
// long as it likes. Over HTTP/1 the connection has such a bound itself.
func (w *response) patience(d time.Duration) {
	if w.send == 0 {
		return
	}
	var until time.Time
	if d > 0 {
		until = time.Now().Add(d)
	}
	_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(until) // the stream is gone: a write will say so
}

// Unwrap is for http.ResponseController.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Hijack hands over the connection of an upgrade.
func (w *response) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if w.conn.framed != nil {
		w.conn.framed.release()
	}
	w.status = http.StatusSwitchingProtocols
	return http.NewResponseController(w.ResponseWriter).Hijack()
}

// fail answers with an error, in the words of the location's page for it.
func (x *exchange) fail(status int) {
	if x.writer.status != 0 {
		panic(http.ErrAbortHandler) // what has begun as an answer must not end as a whole one
	}
	if status == statusClientGone {
		x.writer.status = status
		panic(http.ErrAbortHandler)
	}
	h := x.writer.Header()
	clear(h)
	body, kind, as := strconv.Itoa(status)+" "+http.StatusText(status)+"\n", "text/plain; charset=utf-8", status
	if p := errorPage(x.location.config.ErrorPages, status); p != nil {
		body, kind = string(p.Body), p.ContentType
		if p.As != 0 {
			as = p.As
		}
	}
	if x.request.ProtoMajor == 1 && (status == http.StatusBadRequest || status == http.StatusRequestTimeout || status == http.StatusRequestEntityTooLarge) {
		h.Set("Connection", "close") // where the next request would begin is not known
	}
	x.say(as, kind, body)
}

// say answers with a text.
func (x *exchange) say(status int, contentType, body string) {
	h := x.writer.Header()
	if bodiless(status) {
		x.writer.WriteHeader(status)
		return
	}
	if body != "" {
		h.Set("Content-Type", contentType)
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	x.writer.WriteHeader(status)
	if x.request.Method != http.MethodHead {
		_, _ = x.writer.Write([]byte(body))
	}
}

// bodiless tells whether answers of a status have no body, not even an empty one.
func bodiless(status int) bool {
	return status == http.StatusNoContent || status == http.StatusNotModified
}

// giveBack answers as a location says.
func (x *exchange) giveBack(r *lb.Return) {
	newChanges(x.location.config.ResponseHeaders).apply(x.writer.Header(), x)
	x.say(r.Status, r.ContentType, newText(r.Body).expand(x))
}

// redirect sends the client elsewhere.
func (x *exchange) redirect(status int, to string) {
	h := x.writer.Header()
	newChanges(x.location.config.ResponseHeaders).apply(h, x)
	h.Set("Location", to)
	x.say(status, "text/plain; charset=utf-8", http.StatusText(status)+"\n")
}
