package l7

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// overHTTP2 is a configuration of one server that speaks HTTP/2.
func overHTTP2(t *testing.T, at netip.AddrPort, h http.HandlerFunc, l lb.Location) lb.HTTP {
	t.Helper()
	files := tlsFiles(t, "a.example")
	c := one(at, []lb.Upstream{upstreamOf("u", backend(t, h))}, l)
	c.Servers[0].Listen[0].TLS = &files
	return c
}

// A framer is a client of HTTP/2 that does as the test says, frame by frame.
type framer struct {
	*http2.Framer
	block bytes.Buffer
	hpack *hpack.Encoder
}

func dialHTTP2(t *testing.T, at netip.AddrPort, settings ...http2.Setting) *framer {
	t.Helper()
	conn, err := tls.Dial("tcp", at.String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	f := &framer{Framer: http2.NewFramer(conn, conn)}
	f.hpack = hpack.NewEncoder(&f.block)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := f.WriteSettings(settings...); err != nil {
		t.Fatal(err)
	}
	return f
}

// ask begins a request; a POST has a body.
func (f *framer) ask(t *testing.T, stream uint32, method string, header ...hpack.HeaderField) {
	t.Helper()
	f.block.Reset()
	fields := append([]hpack.HeaderField{
		{Name: ":method", Value: method}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: "a"}, {Name: ":path", Value: "/"},
	}, header...)
	for _, h := range fields {
		if err := f.hpack.WriteField(h); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.WriteHeaders(http2.HeadersFrameParam{
		StreamID: stream, BlockFragment: f.block.Bytes(), EndHeaders: true, EndStream: method != http.MethodPost,
	}); err != nil {
		t.Fatal(err)
	}
}

// next returns the next frame of a stream.
func (f *framer) next(t *testing.T, stream uint32) http2.Frame {
	t.Helper()
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatalf("stream %d: %v", stream, err)
		}
		if _, ok := frame.(*http2.GoAwayFrame); ok {
			t.Fatalf("stream %d: %v", stream, frame)
		}
		if frame.Header().StreamID == stream {
			return frame
		}
	}
}

// ends tells whether a stream's answer ends with a frame.
func ends(frame http2.Frame) bool {
	_, reset := frame.(*http2.RSTStreamFrame)
	return reset || frame.Header().Flags.Has(http2.FlagDataEndStream) // the same bit in HEADERS
}

// A client that takes back a request, or whose connection ends, counts against no server,
// and the server learns of it.
func TestClientGoneOverHTTP2(t *testing.T) {
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		t.Run(method, func(t *testing.T) {
			entered, left := make(chan struct{}), make(chan struct{})
			at := freePort(t)
			l := prefix("/", "u")
			l.RequestBuffering = false
			p := start(t, overHTTP2(t, at, func(_ http.ResponseWriter, r *http.Request) {
				close(entered)
				if _, err := io.Copy(io.Discard, r.Body); err == nil {
					<-r.Context().Done()
				}
				close(left)
			}, l))
			f := dialHTTP2(t, at)
			f.ask(t, 1, method)
			<-entered
			if err := f.WriteRSTStream(1, http2.ErrCodeCancel); err != nil {
				t.Fatal(err)
			}
			<-left
			testenv.Eventually(t, time.Minute, "the request is over", func() (bool, error) { return p.Status().Servers[0].InFlight == 0, nil })
			if s := p.Status().Upstreams[0].Servers[0]; s.Failures != 0 || s.InFlight != 0 {
				t.Errorf("the server: %+v", s)
			}
		})
	}
}

// A lateEnd is a body that keeps its end for itself until it may tell.
type lateEnd struct {
	io.ReadCloser
	reached, tell chan struct{}
}

func (l lateEnd) Read(p []byte) (int, error) {
	n, err := l.ReadCloser.Read(p)
	if err != nil {
		close(l.reached)
		<-l.tell
	}
	return n, err
}

// A goroutine of the transport's that comes to the end of a body when the handler has
// returned finds nothing of the stream any more, and leaves it alone.
func TestBodyEndsAfterItsHandler(t *testing.T) {
	at := freePort(t)
	l := prefix("/", "u")
	l.RequestBuffering = false
	reached, tell := make(chan struct{}), make(chan struct{})
	c := overHTTP2(t, at, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close") // not to wait for the end of the body
		<-reached
		_, _ = io.WriteString(w, "ok")
	}, l)
	p := start(t, c)
	late := newServers(at, &c, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			r.Body = lateEnd{r.Body, reached, tell}
		}
		p.ServeHTTP(w, r)
	}), quiet)
	on := p.now.Load().listeners[at]
	before := on.now.Swap(late)
	t.Cleanup(func() { before.shutdown(t.Context()) })
	f := dialHTTP2(t, at)
	f.ask(t, 1, http.MethodPost)
	if err := f.WriteData(1, true, []byte("x")); err != nil {
		t.Fatal(err)
	}
	frame := f.next(t, 1)
	for !ends(frame) {
		frame = f.next(t, 1)
	}
	if _, ok := frame.(*http2.DataFrame); !ok {
		t.Errorf("the answer ends with %v", frame)
	}
	if err := f.WritePing(false, [8]byte{}); err != nil { // what the handler had to do is done before the answer to it
		t.Fatal(err)
	}
	for frame = f.next(t, 0); frame.Header().Type != http2.FramePing; frame = f.next(t, 0) {
	}
	close(tell)
	// The goroutine has its turn while others are asked for, and a panic of it is the end
	// of everything.
	for stream := uint32(3); stream < 13; stream += 2 {
		f.ask(t, stream, http.MethodGet)
		for frame = f.next(t, stream); !ends(frame); frame = f.next(t, stream) {
		}
	}
}

// A client that gives no window for its answer is given up, and the server is free
// again. It is not the server's failure.
func TestClientWithoutAWindow(t *testing.T) {
	noise := make([]byte, 30<<10) // that gzip cannot make small, and keeps until the end
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	for _, tt := range []struct {
		name   string
		coding string // that the client takes
		answer http.HandlerFunc
	}{
		{"an answer without an end", "identity", func(w http.ResponseWriter, _ *http.Request) {
			for {
				if _, err := w.Write(noise); err != nil {
					return
				}
			}
		}},
		{"an event", "identity", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, "data: 1\n\n")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}},
		{"what the handler leaves when it returns", "identity", named2},
		{"what gzip leaves when the answer ends", "gzip", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain")
			w.Header().Set("Content-Length", strconv.Itoa(len(noise))) // or it would be flushed
			_, _ = w.Write(noise)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			at := freePort(t)
			gone := make(chan struct{})
			l := prefix("/", "u")
			l.Gzip = &lb.Gzip{Level: 1, Types: []string{"text/plain"}}
			c := overHTTP2(t, at, func(w http.ResponseWriter, r *http.Request) {
				defer close(gone)
				tt.answer(w, r)
			}, l)
			c.Client.SendTimeout = 300 * time.Millisecond
			p := start(t, c)
			f := dialHTTP2(t, at, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
			f.ask(t, 1, http.MethodGet, hpack.HeaderField{Name: "accept-encoding", Value: tt.coding})
			frame := f.next(t, 1)
			for !ends(frame) {
				frame = f.next(t, 1)
			}
			if _, ok := frame.(*http2.RSTStreamFrame); !ok {
				t.Errorf("the answer ends with %v", frame)
			}
			<-gone
			testenv.Eventually(t, time.Minute, "nothing is in flight", func() (bool, error) {
				s := p.Status()
				return s.Servers[0].InFlight == 0 && s.Upstreams[0].Servers[0].InFlight == 0, nil
			})
			if s := p.Status().Upstreams[0].Servers[0]; s.Failures != 0 || s.State == StateFailing {
				t.Errorf("the server: %+v", s)
			}
		})
	}
}

// Silence between two events is not the client's doing: the stream goes on.
func TestSilentEventStream(t *testing.T) {
	const sendTimeout = 200 * time.Millisecond
	at := freePort(t)
	c := overHTTP2(t, at, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			if i > 0 {
				<-time.After(3 * sendTimeout) // the silence
			}
			fmt.Fprintf(w, "data: %d\n\n", i)
			w.(http.Flusher).Flush()
		}
	}, prefix("/", "u"))
	c.Client.SendTimeout = sendTimeout
	start(t, c)
	client := insecure(true)
	defer client.CloseIdleConnections()
	res, err := client.Get(fmt.Sprintf("https://%v/", at))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if body, err := io.ReadAll(res.Body); string(body) != "data: 0\n\ndata: 1\n\ndata: 2\n\n" || err != nil || res.ProtoMajor != 2 {
		t.Errorf("%s %q, %v", res.Proto, body, err)
	}
}

// Answers that have no body have none over HTTP/2, whatever a server says of its length.
func TestNoBodyOverHTTP2(t *testing.T) {
	for _, tt := range []struct{ name, answer, want string }{
		{"204 with a length", "HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\nabc", "204 []"},
		{"204 with chunks", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "204 []"},
		{"204 with a length of 0", "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", "204 []"},
		{"304, whose length is that of the page", "HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n", "304 [3]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			at := freePort(t)
			c := overHTTP2(t, at, named2, prefix("/", "u"))
			c.Upstreams[0] = upstreamOf("u", says(t, tt.answer))
			start(t, c)
			client := insecure(true)
			defer client.CloseIdleConnections()
			res, err := client.Get(fmt.Sprintf("https://%v/", at))
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if got := fmt.Sprint(res.StatusCode, " ", res.Header["Content-Length"]); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}
