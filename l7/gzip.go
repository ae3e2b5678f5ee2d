package l7

import (
	"compress/gzip"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A gzipWriter compresses an answer, if it is one that gains by it.
type gzipWriter struct {
	http.ResponseWriter
	config *lb.Gzip
	head   bool      // the request is HEAD
	answer *response // what it is the writer of
	z      *gzip.Writer
}

// newGzip returns a writer that compresses what goes to the writer of w; nil: the client or
// the configuration does not want it.
func newGzip(c *lb.Gzip, r *http.Request, w *response) *gzipWriter {
	if c == nil || !acceptsGzip(r.Header) {
		return nil
	}
	return &gzipWriter{ResponseWriter: w.ResponseWriter, config: c, head: r.Method == http.MethodHead, answer: w}
}

// acceptsGzip reads Accept-Encoding (RFC 9110, section 12.5.3).
func acceptsGzip(h http.Header) bool {
	any := false
	for _, item := range strings.Split(strings.Join(h["Accept-Encoding"], ","), ",") {
		coding, params, _ := strings.Cut(item, ";")
		q := 1.0
		if name, value, ok := strings.Cut(strings.TrimSpace(params), "="); ok && strings.EqualFold(strings.TrimSpace(name), "q") {
			if v, err := strconv.ParseFloat(strings.TrimSpace(value), 64); err == nil {
				q = v
			}
		}
		switch strings.ToLower(strings.TrimSpace(coding)) {
		case "gzip", "x-gzip":
			return q > 0
		case "*":
			any = q > 0
		}
	}
	return any
}

func (w *gzipWriter) WriteHeader(status int) {
	if status >= 200 {
		w.decide(status)
	}
	w.ResponseWriter.WriteHeader(status)
}

// decide looks at the head of the answer.
func (w *gzipWriter) decide(status int) {
	h := w.Header()
	if !w.compressible(h.Get("Content-Type")) {
		return
	}
	// Caches must know that others may get the answer in another form.
	if !strings.Contains(strings.ToLower(strings.Join(h["Vary"], ",")), "accept-encoding") {
		h.Add("Vary", "Accept-Encoding")
	}
	length, err := strconv.Atoi(h.Get("Content-Length"))
	if status == http.StatusNoContent || status == http.StatusPartialContent || status == http.StatusNotModified || w.head ||
		h.Get("Content-Encoding") != "" || h.Get("Content-Range") != "" || err == nil && length < w.config.MinLength ||
		strings.Contains(strings.ToLower(strings.Join(h["Cache-Control"], ",")), "no-transform") {
		return
	}
	h.Del("Content-Length")
	h.Del("Accept-Ranges")
	h.Set("Content-Encoding", "gzip")
	if tag := h.Get("Etag"); tag != "" && !strings.HasPrefix(tag, "W/") {
		h.Set("Etag", "W/"+tag)
	}
	w.answer.compressed = true
	w.z = gzipOf(w.config.Level, compressedTo{w.answer, w.ResponseWriter})
}

// A compressedTo counts what is sent of an answer that is compressed.
type compressedTo struct {
	answer *response
	to     io.Writer
}

func (w compressedTo) Write(p []byte) (int, error) {
	n, err := w.to.Write(p)
	w.answer.bytes += int64(n)
	return n, err
}

// compressible tells whether answers of a media type are to be compressed.
func (w *gzipWriter) compressible(contentType string) bool {
	kind, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return false
	}
	group, _, _ := strings.Cut(kind, "/")
	for _, t := range w.config.Types {
		if t == kind || t == group+"/*" || t == "*" {
			return true
		}
	}
	return false
}

func (w *gzipWriter) Write(p []byte) (int, error) {
	if w.z == nil {
		return w.ResponseWriter.Write(p)
	}
	return w.z.Write(p)
}

// FlushError sends what there is: an answer that comes piece by piece stays one.
func (w *gzipWriter) FlushError() error {
	if w.z != nil {
		if err := w.z.Flush(); err != nil {
			return err
		}
	}
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Unwrap is for http.ResponseController.
func (w *gzipWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// close ends the answer.
func (w *gzipWriter) close() {
	if w.z == nil {
		return
	}
	_ = w.z.Close() // the client may be gone
	gzips[w.config.Level].Put(w.z)
	w.z = nil
}

// gzips are compressors that wait, by level.
var gzips [gzip.BestCompression + 1]sync.Pool

func gzipOf(level int, w io.Writer) *gzip.Writer {
	if z, ok := gzips[level].Get().(*gzip.Writer); ok {
		z.Reset(w)
		return z
	}
	z, err := gzip.NewWriterLevel(w, level)
	if err != nil { // a level that there is not
		return gzip.NewWriter(w)
	}
	return z
}
