package l7

import (
	"bytes"
	"crypto/tls"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/sluice-lb/sluice/internal/lb"
)

// Smuggling2 are requests of HTTP/2 that would be two, or another one, in HTTP/1. Body
// is sent behind the headers where there is one.
var smuggling2 = []struct {
	name   string
	fields [][2]string // beside those of a plain request, or in their place
	body   string
}{
	{"transfer encoding", [][2]string{{"transfer-encoding", "chunked"}}, "0\r\n\r\n"},
	{"connection", [][2]string{{"connection", "x-a"}, {"x-a", "1"}}, ""},
	{"upgrade", [][2]string{{"upgrade", "h2c"}}, ""},
	{"te", [][2]string{{"te", "gzip"}}, ""},
	{"a line break in a value", [][2]string{{"x-a", "1\r\nx-b: 2"}}, ""},
	{"NUL in a value", [][2]string{{"x-a", "1\x002"}}, ""},
	{"a line break in a name", [][2]string{{"x-a: 1\r\nx-b", "2"}}, ""},
	{"a colon in a name", [][2]string{{"x-a: b", "2"}}, ""},
	{"a name in upper case", [][2]string{{"X-A", "1"}}, ""},
	{"a space in the method", [][2]string{{":method", "GET / HTTP/1.1 X"}}, ""},
	{"a line break in the method", [][2]string{{":method", "GET / HTTP/1.1\r\nhost: b\r\n\r\nGET"}}, ""},
	{"a line break in the path", [][2]string{{":path", "/ HTTP/1.1\r\nhost: b\r\n\r\nGET /"}}, ""},
	{"no path", [][2]string{{":path", ""}}, ""},
	{"a path that is none", [][2]string{{":path", "x"}}, ""},
	{"out of the root", [][2]string{{":path", "/a/../../b"}}, ""},
	{"a path in the host", [][2]string{{":authority", "a/b"}}, ""},
	{"a user in the host", [][2]string{{":authority", "a@b"}}, ""},
	{"a space in the host", [][2]string{{":authority", "a b"}}, ""},
	{"a brace in the host", [][2]string{{":authority", "a{b"}}, ""},
	{"two hosts in one", [][2]string{{":authority", "a,b"}}, ""},
	{"no port in the host", [][2]string{{":authority", "a:x"}}, ""},
	{"another host", [][2]string{{"host", "b"}}, ""},
	{"the host, and another one", [][2]string{{"host", "a"}, {"host", "b"}}, ""},
	{"a URL for a path", [][2]string{{":path", "http://b/x"}}, ""},
	{"a pseudo-header that is none", [][2]string{{":x", "1"}}, ""},
	{"a body longer than it says", [][2]string{{":method", "POST"}, {"content-length", "1"}}, "abcGET / HTTP/1.1\r\nHost: b\r\n\r\n"},
	{"a body shorter than it says", [][2]string{{":method", "POST"}, {"content-length", "100"}}, "abc"},
	{"a length that is no number", [][2]string{{":method", "POST"}, {"content-length", "+3"}}, "abc"},
}

// Nothing of HTTP/2 reaches a server as something else: the answer is 400, or the stream
// or connection ends.
func TestSmugglingByHTTP2(t *testing.T) {
	server := newRecorder(t)
	at := freePort(t)
	files := tlsFiles(t, "a.example")
	c := one(at, []lb.Upstream{upstreamOf("u", server.at)}, prefix("/", "u"))
	c.Servers[0].Listen[0].TLS = &files
	start(t, c)
	ask := func(t *testing.T, fields [][2]string, body string) (status string) {
		t.Helper()
		conn, err := tls.Dial("tcp", at.String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte(http2.ClientPreface)); err != nil {
			t.Fatal(err)
		}
		f := http2.NewFramer(conn, conn)
		f.AllowIllegalWrites = true
		f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		if err := f.WriteSettings(); err != nil {
			t.Fatal(err)
		}
		var block bytes.Buffer
		e := hpack.NewEncoder(&block)
		plain := [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "a"}, {":path", "/"}}
		for i, p := range plain {
			for _, other := range fields {
				if other[0] == p[0] {
					plain[i] = other
				}
			}
		}
		for _, other := range fields {
			if !strings.HasPrefix(other[0], ":") || other[0] == ":x" {
				plain = append(plain, other)
			}
		}
		for _, p := range plain {
			if err := e.WriteField(hpack.HeaderField{Name: p[0], Value: p[1]}); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: body == ""}); err != nil {
			t.Fatal(err)
		}
		if body != "" {
			if err := f.WriteData(1, true, []byte(body)); err != nil {
				t.Fatal(err)
			}
		}
		for {
			frame, err := f.ReadFrame()
			if err != nil {
				return "closed"
			}
			switch frame := frame.(type) {
			case *http2.MetaHeadersFrame:
				return frame.PseudoValue("status")
			case *http2.RSTStreamFrame:
				return "reset"
			case *http2.GoAwayFrame:
				return "closed"
			}
		}
	}
	if got := ask(t, nil, ""); got != "200" {
		t.Fatalf("a plain request gets %s", got)
	}
	if got, _ := server.take(); !strings.HasPrefix(got, "GET / HTTP/1.1\r\nHost: a\r\n") {
		t.Fatalf("the server got %q", got)
	}
	for _, tt := range smuggling2 {
		t.Run(tt.name, func(t *testing.T) {
			server.take()
			switch got := ask(t, tt.fields, tt.body); got {
			case "400", "reset", "closed":
			default:
				t.Errorf("answered with %s", got)
			}
			if got, _ := server.take(); got != "" {
				t.Errorf("the server got %q", got)
			}
		})
	}
}
