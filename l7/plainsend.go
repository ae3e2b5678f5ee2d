package l7

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/net/http/httpguts"
)

// mostInline is the longest body that is sent with the head, in bytes. A server that
// answers before it reads cannot be in its way: it fits into any socket's buffer.
const mostInline = 4 << 10

// appendHead writes the head of a request. One that cannot be sent is an error.
func appendHead(b []byte, r *http.Request, keep bool) ([]byte, error) {
	host, err := hostOf(r)
	if err != nil {
		return b, err
	}
	target := r.URL.RequestURI()
	if strings.IndexFunc(target, func(c rune) bool { return c <= ' ' || c == 0x7f }) >= 0 {
		return b, errors.New("the request's target has a space or a control character")
	}
	b = append(append(b, r.Method...), ' ')
	b = append(append(b, target...), " HTTP/1.1\r\nHost: "...)
	b = append(append(b, host...), "\r\n"...)
	if b, err = appendLength(b, r); err != nil {
		return b, err
	}
	if !keep {
		b = append(b, "Connection: close\r\n"...)
	}
	var room [32]string
	names := room[:0]
	for name := range r.Header {
		switch name {
		case "Host", "Content-Length", "Transfer-Encoding", "Trailer":
		default:
			names = append(names, name)
		}
	}
	slices.Sort(names) // a server gets the same request for the same one
	for _, name := range names {
		if !isName(name) {
			return b, fmt.Errorf("%q is no name of a header", name)
		}
		for _, v := range r.Header[name] {
			b = append(append(b, name...), ": "...)
			from := len(b)
			b = append(b, v...)
			if invalidValue(b[from:]) >= 0 {
				return b, fmt.Errorf("the value of header %s has a control character", name)
			}
			b = append(b, "\r\n"...)
		}
	}
	return append(b, "\r\n"...), nil
}

// isName tells whether a header may have the name.
func isName(name string) bool {
	for i := range len(name) {
		if !tokens[name[i]] {
			return false
		}
	}
	return name != ""
}

// hostOf is the Host of a request: in ASCII, and without an IPv6 zone, which means
// nothing on another host (RFC 6874). One that can be no host is empty.
func hostOf(r *http.Request) (string, error) {
	host, err := httpguts.PunycodeHostPort(r.Host)
	if err != nil {
		return "", fmt.Errorf("the host: %w", err)
	}
	if !httpguts.ValidHostHeader(host) {
		return "", nil
	}
	if end := strings.LastIndexByte(host, ']'); end >= 0 && host[0] == '[' {
		if zone := strings.LastIndexByte(host[:end], '%'); zone >= 0 {
			host = host[:zone] + host[end:]
		}
	}
	return host, nil
}

// appendLength writes how the end of the body is found.
func appendLength(b []byte, r *http.Request) ([]byte, error) {
	switch {
	case r.Body == nil:
		switch r.Method {
		case http.MethodPost, http.MethodPut, http.MethodPatch: // some servers want to know
			b = append(b, "Content-Length: 0\r\n"...)
		}
	case r.ContentLength >= 0:
		b = strconv.AppendInt(append(b, "Content-Length: "...), r.ContentLength, 10)
		b = append(b, "\r\n"...)
	default:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
		names := make([]string, 0, len(r.Trailer))
		for name := range r.Trailer {
			if !isName(name) {
				return b, fmt.Errorf("%q is no name of a trailer", name)
			}
			names = append(names, name)
		}
		if slices.Sort(names); len(names) > 0 {
			b = append(append(b, "Trailer: "...), strings.Join(names, ", ")...)
			b = append(b, "\r\n"...)
		}
	}
	return b, nil
}

// inline returns what is sent at once: the head, and the body where that is small and
// has been read. Else the body is returned, which is to be sent beside the reading of the
// answer.
func inline(head []byte, r *http.Request) ([]byte, io.ReadCloser, error) {
	switch b, known := r.Body.(*bodyReader); {
	case r.Body == nil:
		return head, nil, nil
	case !known || !b.of.whole() || r.ContentLength < 0 || r.ContentLength > mostInline:
		return head, r.Body, nil
	}
	text := slices.Grow(head, int(r.ContentLength))[:len(head)+int(r.ContentLength)]
	if _, err := io.ReadFull(r.Body, text[len(head):]); err != nil {
		return nil, nil, fmt.Errorf("read the request's body: %w", err)
	}
	return text, nil, r.Body.Close()
}

// An upload is a body on its way to a server.
type upload struct {
	conn *plainConn
	body io.ReadCloser
	over atomic.Bool // all of it was sent
	err  atomic.Pointer[error]
}

// startUpload begins to send a body behind its head.
func startUpload(c *plainConn, body io.ReadCloser, r *http.Request) *upload {
	u := &upload{conn: c, body: body}
	go u.run(r)
	return u
}

// run sends the body. What is wrong with the body itself ends the connection: the server
// must not take what came for all of it. So does a server that does not read; of one that
// has closed the connection the answer may still come.
func (u *upload) run(r *http.Request) {
	defer u.body.Close()
	source := &noted{Reader: u.body}
	err := u.send(source, r)
	if err == nil {
		u.conn.uploaded()
		u.over.Store(true) // last: then the connection may be another exchange's
		return
	}
	u.err.Store(&err)
	if source.err != nil || timedOut(err) {
		u.conn.Close()
	}
	u.conn.uploaded()
}

// A noted reader remembers what was wrong with its source.
type noted struct {
	io.Reader
	err error
}

func (n *noted) Read(p []byte) (int, error) {
	k, err := n.Reader.Read(p)
	if err != nil && err != io.EOF {
		n.err = err
	}
	return k, err
}

// send writes the body as the head has announced it.
func (u *upload) send(source *noted, r *http.Request) error {
	buffer := uploads.Get()
	defer uploads.Put(buffer)
	if r.ContentLength >= 0 {
		n, err := io.CopyBuffer(struct{ io.Writer }{u.conn.Conn}, source, buffer)
		if err == nil && n != r.ContentLength {
			source.err = fmt.Errorf("the request's body has %d bytes, %d were announced", n, r.ContentLength)
			err = source.err
		}
		return err
	}
	w := bufio.NewWriter(u.conn.Conn)
	chunks := httputil.NewChunkedWriter(w)
	for {
		n, err := source.Read(buffer)
		if n > 0 { // an empty chunk would be the last one
			if _, err := chunks.Write(buffer[:n]); err != nil {
				return err
			}
			if err := w.Flush(); err != nil {
				return err
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	err := errors.Join(chunks.Close(), r.Trailer.Write(w))
	if err == nil {
		_, err = io.WriteString(w, "\r\n")
	}
	return errors.Join(err, w.Flush())
}

// uploads are what bodies are copied by.
var uploads buffers

// failure is why the body was not sent; nil: it was, or is still on its way.
func (u *upload) failure() error {
	if u == nil {
		return nil
	}
	if err := u.err.Load(); err != nil {
		return *err
	}
	return nil
}

// end has nobody read the body any more, and tells whether all of it was sent.
func (u *upload) end() bool {
	if u == nil {
		return true
	}
	_ = u.body.Close() // a bodyReader, which cannot fail
	return u.over.Load()
}
