package l7

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A fakeConn is a connection of which only reading matters.
type fakeConn struct {
	net.Conn
	io.Reader
}

func (c fakeConn) Read(p []byte) (int, error) { return c.Reader.Read(p) }

// framed reads text through a framedConn, in pieces as the reader gives them.
func framed(r io.Reader, maxHead int) (string, error) {
	b, err := io.ReadAll(newFramedConn(fakeConn{Reader: r}, maxHead, 0))
	return string(b), err
}

// wellFramed are requests that must come out as they go in.
var wellFramed = map[string]string{
	"one":                "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
	"pipelined":          "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET /3 HTTP/1.1\r\nHost: a\r\n\r\n",
	"chunked":            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n\r\n\r\n\r\nA;x=\"y\"\r\n0123456789\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
	"trailers":           "POST / HTTP/1.1\r\nHost: a\r\nTrailer: X-Sum\r\nTransfer-Encoding: Chunked \r\n\r\n1\r\na\r\n0\r\nX-Sum: 1\r\n\r\n",
	"1.0 without a host": "GET / HTTP/1.0\r\n\r\n",
	"a zero length":      "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
	"bytes above 127":    "GET / HTTP/1.1\r\nHost: a\r\nX: \xc3\xa4\tb\r\n\r\n",
	"body like a head":   "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 19\r\n\r\nGET / HTTP/1.1\r\n \r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
	"an empty line":      "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\na\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
	"an empty value":     "GET / HTTP/1.1\r\nHost:\r\nX:\r\nY: \r\n\r\n",
}

func TestWellFramedPasses(t *testing.T) {
	for name, in := range wellFramed {
		t.Run(name, func(t *testing.T) {
			for piece, r := range map[string]io.Reader{
				"at once": strings.NewReader(in), "byte by byte": iotest.OneByteReader(strings.NewReader(in)), "by halves": iotest.HalfReader(strings.NewReader(in)),
			} {
				got, err := framed(r, 4096)
				if diff := cmp.Diff(in, got); diff != "" || err != nil {
					t.Errorf("%s: error %v, (-want +got):\n%s", piece, err, diff)
				}
			}
		})
	}
}

// Old clients send an empty line behind the body of a POST, which is let be there (RFC 9112,
// section 2.2): one, and nowhere else.
func TestEmptyLineBehindABody(t *testing.T) {
	server := newRecorder(t)
	at := freePort(t)
	start(t, one(at, []lb.Upstream{upstreamOf("u", server.at)}, prefix("/", "u")))
	const post, get = "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\na", "GET /2 HTTP/1.1\r\nHost: a\r\n\r\n"
	for _, tt := range []struct {
		name, first, between string
		want                 int
	}{
		{"behind a POST", post, "\r\n", http.StatusOK}, {"behind a GET", get, "\r\n", http.StatusBadRequest},
		{"two lines", post, "\r\n\r\n", http.StatusBadRequest}, {"a bare LF", post, "\n", http.StatusBadRequest}, {"a bare CR", post, "\r", http.StatusBadRequest},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server.take()
			c := dial(t, at)
			send(t, c, tt.first+tt.between+get)
			r := bufio.NewReader(c)
			first, _ := readAnswer(t, r, false)
			second, _ := readAnswer(t, r, false)
			if first.StatusCode != http.StatusOK || second.StatusCode != tt.want {
				t.Errorf("answered with %s and %s, want 200 and %d", first.Status, second.Status, tt.want)
			}
			got, _ := server.take()
			if n := strings.Count(got, " HTTP/1.1"); n != 1 && tt.want != http.StatusOK || n != 2 && tt.want == http.StatusOK {
				t.Errorf("the server has got %q", got)
			}
		})
	}
}

// What is wrong ends a connection where it is wrong, in however many pieces it comes.
func TestBadlyFramedEndsThere(t *testing.T) {
	const host = "Host: a\r\n"
	for _, tt := range []struct {
		name, good, rest string
		body             bool
	}{
		{"folded line", "GET / HTTP/1.1\r\n" + host + "X: a\r\n", " b\r\n\r\n", false},
		{"bare LF", "GET / HTTP/1.1", "\nHost: a\n\n", false},
		{"bare CR in a value", "GET / HTTP/1.1\r\nX: a\r", "b\r\n\r\n", false},
		{"both lengths", "POST / HTTP/1.1\r\n" + host + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r", "\n0\r\n\r\n", false},
		{"second request of a connection", "GET / HTTP/1.1\r\n" + host + "\r\nGET / HTTP/1.1\r\n" + host + "Host: b", "\r\n\r\n", false},
		{"chunk size", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n", "x\r\na\r\n0\r\n\r\n", true},
		{"chunk's end", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n1\r\na", "b\r\n0\r\n\r\n", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := tt.good + tt.rest
			for piece, r := range map[string]io.Reader{"at once": strings.NewReader(in), "byte by byte": iotest.OneByteReader(strings.NewReader(in))} {
				want := tt.good + poison
				if tt.body {
					want = tt.good + bodyPoison
				}
				got, err := framed(r, 4096)
				if diff := cmp.Diff(want, got); diff != "" || !errors.Is(err, errFraming) {
					t.Errorf("%s: error %v, (-want +got):\n%s", piece, err, diff)
				}
			}
		})
	}
}

// A head that is too long is left to net/http, which answers with 431.
func TestTooLongHeadPasses(t *testing.T) {
	in := "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 5000)
	if got, err := framed(strings.NewReader(in), 4096); got != in || err != nil {
		t.Errorf("got %d bytes of %d, error %v", len(got), len(in), err)
	}
}

// FuzzFraming demands that nothing that passes looks different when it comes in other
// pieces, and that what passes is what came, up to where it is refused.
func FuzzFraming(f *testing.F) {
	for _, in := range wellFramed {
		f.Add([]byte(in), 7)
	}
	for _, p := range smuggling {
		f.Add([]byte(p.request), 3)
	}
	f.Fuzz(func(t *testing.T, in []byte, size int) {
		atOnce, err := framed(bytes.NewReader(in), 4096)
		inPieces, err2 := framed(&pieces{in, 1 + (size%16+16)%16}, 4096)
		if atOnce != inPieces || (err == nil) != (err2 == nil) {
			t.Fatalf("at once %q (%v), in pieces %q (%v)", atOnce, err, inPieces, err2)
		}
		if passed := strings.TrimSuffix(strings.TrimSuffix(atOnce, poison), bodyPoison); err != nil && !bytes.HasPrefix(in, []byte(passed)) || err == nil && atOnce != string(in) {
			t.Fatalf("%q became %q, error %v", in, atOnce, err)
		}
	})
}

// Pieces are of one size.
type pieces struct {
	left []byte
	size int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.left) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.left[:min(p.size, len(p.left))])
	p.left = p.left[n:]
	return n, nil
}

// FuzzSameRequests demands that net/http finds the same requests in what passes as the
// scanner: it must end each where the scanner does, or refuse it.
func FuzzSameRequests(f *testing.F) {
	for _, in := range wellFramed {
		f.Add([]byte(in))
	}
	for _, p := range smuggling {
		f.Add([]byte("GET /good HTTP/1.1\r\nHost: a\r\n\r\n" + p.request))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		s := scanner{maxHead: 4096}
		var ends []int // where requests end
		for i := range in {
			if _, wrong := s.scan(in[i : i+1]); wrong || s.tooLong {
				break
			}
			if s.at == beforeRequest && !s.emptied {
				ends = append(ends, i+1)
			}
		}
		r := &countingReader{r: bytes.NewReader(in)}
		b := bufio.NewReaderSize(r, 16)
		for _, end := range ends {
			req, err := http.ReadRequest(b)
			if err != nil {
				return // refused, for a reason of its own
			}
			if _, err := io.Copy(io.Discard, req.Body); err != nil {
				return
			}
			if got := r.n - b.Buffered(); got != end {
				t.Fatalf("%q: a request ends at %d for net/http, at %d for the scanner", in, got, end)
			}
		}
	})
}

// A countingReader counts what is read.
type countingReader struct {
	r io.Reader
	n int
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += n
	return n, err
}
