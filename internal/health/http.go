package health

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/sluice-lb/sluice/internal/lb"
)

// Bounds of what a probe reads of an answer, in bytes.
const (
	maxHeader = 64 << 10 // status line and header, those of 1xx answers included
	maxBody   = 64 << 10 // what Probe.Body must match in
	maxWire   = 1 << 20  // body with its chunk headers and extensions
)

// probeHTTP succeeds if the server answers a GET request for each page with a
// wanted status and, if Probe.Body is set, with a body that matches it. Redirects
// are answers like any other. Without Probe.Body the body is not read. The answer
// is the last status.
//
// It speaks HTTP over a connection of its own for each page: a probe wants one
// that ends with it and no goroutine beside it, which http.Transport does not offer.
func probeHTTP(ctx context.Context, t Target, to netip.AddrPort) (answer string, err error) {
	if len(t.Probe.Pages) == 0 {
		return "", errors.New("send request: there is no page to ask for")
	}
	for _, page := range t.Probe.Pages {
		if answer, err = get(ctx, t, page, to); err != nil && len(t.Probe.Pages) > 1 {
			return answer, fmt.Errorf("%v: %w", page, err)
		} else if err != nil {
			return answer, err
		}
	}
	return answer, nil
}

// get asks for one page.
func get(ctx context.Context, t Target, page lb.Page, to netip.AddrPort) (answer string, err error) {
	request, err := request(t, page)
	if err != nil {
		return "", err
	}
	tcp, err := dial(ctx, t, to)
	if err != nil {
		return "", err
	}
	// Closed below TLS: nothing is to be sent any more.
	defer func() { _ = tcp.Close() }()
	defer endWith(ctx, tcp)()
	conn := net.Conn(tcp)
	if t.Probe.Type == lb.ProbeHTTPS {
		if conn, err = shakeHands(tcp, t, page); err != nil {
			return "", err
		}
	}
	if _, err := io.WriteString(conn, request); err != nil {
		return "", explain("send request", err, fmt.Errorf("request not taken within %v", t.Probe.Timeout))
	}
	in := &wire{conn: conn, left: maxHeader}
	response, err := readResponse(bufio.NewReader(in))
	if err != nil {
		return "", explainResponse(cmp.Or(in.err, err), t.Probe.Timeout)
	}
	answer = fmt.Sprintf("status %d", response.StatusCode)
	// The body is never closed: that would read the rest of it. The connection
	// is closed instead.
	if !wanted(t.Probe.Status, response.StatusCode) {
		return answer, fmt.Errorf("status %d, want %s", response.StatusCode, ranges(t.Probe.Status))
	}
	if t.Probe.Body == nil {
		return answer, nil
	}
	in.left = maxWire
	body, err := io.ReadAll(io.LimitReader(response.Body, maxBody))
	if err != nil {
		return answer, explain("read body", err, fmt.Errorf("body incomplete after %v", t.Probe.Timeout))
	}
	if !t.Probe.Body.Match(body) {
		return answer, fmt.Errorf("body does not match %q", t.Probe.Body)
	}
	return answer, nil
}

// endWith has reads and writes of conn end with ctx, until the function that it
// returns is called, which waits: nothing of the probe outlives it.
func endWith(ctx context.Context, conn net.Conn) (release func()) {
	expired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(expired)
		_ = conn.SetDeadline(time.Unix(1, 0)) // long past
	})
	return func() {
		if !stop() {
			<-expired
		}
	}
}

// A wire reads from a connection up to a number of bytes. It remembers the first
// error: package http reports a line that was cut short as malformed, where the
// news is why it was cut.
type wire struct {
	conn net.Conn
	left int
	err  error
}

// errFull is the end of what a wire lets through.
var errFull = errors.New("too many bytes")

func (w *wire) Read(p []byte) (int, error) {
	if w.left == 0 {
		w.err = cmp.Or(w.err, errFull)
		return 0, errFull
	}
	n, err := w.conn.Read(p[:min(len(p), w.left)])
	w.left -= n
	w.err = cmp.Or(w.err, err)
	return n, err
}

// request returns the bytes of t's request for a page.
func request(t Target, page lb.Page) (string, error) {
	host := page.Host
	if host == "" {
		e := t.named()
		host = netip.AddrPortFrom(e.Addr().WithZone(""), e.Port()).String()
	}
	if !strings.HasPrefix(page.Path, "/") || !printable(page.Path) {
		return "", fmt.Errorf("send request: path %q does not start with / or needs percent-encoding", page.Path)
	}
	if !printable(host) {
		return "", fmt.Errorf("send request: host %q has a space or control character", host)
	}
	return "GET " + page.Path + " HTTP/1.1\r\n" +
		"Host: " + host + "\r\n" +
		"User-Agent: sluice-health\r\n" +
		"Accept: */*\r\n" +
		"Connection: close\r\n\r\n", nil
}

// printable reports whether s can stand in a request line or header field as it
// is, without ending it.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] == 0x7f {
			return false
		}
	}
	return true
}

// readResponse reads the first answer that is final. Interim ones (RFC 9110,
// section 15.2) may come unasked; they are bounded by what r lets through.
func readResponse(r *bufio.Reader) (*http.Response, error) {
	for {
		response, err := http.ReadResponse(r, nil)
		if err != nil {
			return nil, err
		}
		if response.StatusCode >= 200 || response.StatusCode == http.StatusSwitchingProtocols {
			return response, nil
		}
	}
}

// explainResponse says why readResponse failed.
func explainResponse(err error, timeout time.Duration) error {
	switch {
	case errors.Is(err, errFull):
		return fmt.Errorf("header of the answer exceeds %d bytes", maxHeader)
	case errors.Is(err, io.EOF):
		return errors.New("closed without a complete answer")
	}
	if short := shorten(err, fmt.Errorf("no answer within %v", timeout)); short != nil {
		return short
	}
	return fmt.Errorf("no valid HTTP: %s", clean(err.Error()))
}

// clean makes a text that may quote what a server sent fit for a terminal: short,
// and without control characters.
func clean(s string) string {
	const most = 100
	s = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '.'
		}
		return r
	}, s)
	if runes := []rune(s); len(runes) > most {
		s = string(runes[:most]) + "..."
	}
	return s
}

// defaultStatus is what is wanted where nothing is configured.
var defaultStatus = []lb.StatusRange{{First: 200, Last: 399}}

func wanted(want []lb.StatusRange, status int) bool {
	if len(want) == 0 {
		want = defaultStatus
	}
	for _, r := range want {
		if r.First <= status && status <= r.Last {
			return true
		}
	}
	return false
}

// ranges spells status ranges as the configuration does, "200-299, 404".
func ranges(want []lb.StatusRange) string {
	if len(want) == 0 {
		want = defaultStatus
	}
	words := make([]string, len(want))
	for i, r := range want {
		words[i] = fmt.Sprint(r.First)
		if r.Last != r.First {
			words[i] += fmt.Sprintf("-%d", r.Last)
		}
	}
	return strings.Join(words, ", ")
}
