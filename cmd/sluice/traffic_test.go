package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// A download is a GET of nginx's big file that goes on in the background.
type download struct {
	size    int64
	got     atomic.Int64
	enough  atomic.Bool // it is to end, wherever it is
	backend string
	cancel  context.CancelFunc
	done    chan struct{}
	err     error // read after done
}

// download starts to download from the client and returns when the answer has
// begun.
func (r *rig) download(service netip.AddrPort, size int64) *download {
	r.Helper()
	ctx, cancel := context.WithCancel(r.Context())
	d := &download{size: size, cancel: cancel, done: make(chan struct{})}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%v/download", service), nil)
	if err != nil {
		r.Fatal(err)
	}
	resp, err := r.host("client").HTTPClient().Do(req)
	if err != nil {
		r.Fatal(err)
	}
	d.backend = resp.Header.Get("X-Backend")
	go func() {
		defer close(d.done)
		d.err = errors.Join(d.read(resp.Body), resp.Body.Close())
	}()
	r.Cleanup(func() {
		cancel()
		<-d.done
	})
	if resp.StatusCode != http.StatusOK || d.backend == "" {
		r.Fatalf("download answers %s by %q", resp.Status, d.backend)
	}
	return d
}

// read reads the file to its end and compares it with what nginx was given.
func (d *download) read(body io.Reader) error {
	sum := sha256.New()
	buf := make([]byte, 32<<10)
	size := d.size
	for {
		n, err := body.Read(buf)
		sum.Write(buf[:n])
		got := d.got.Add(int64(n))
		if err == io.EOF {
			break
		}
		if d.enough.Load() {
			size = got // the bytes so far are the file's first ones
			break
		}
		if err != nil {
			return fmt.Errorf("download broke after %d of %d bytes: %w", got, d.size, err)
		}
	}
	want, err := testenv.DownloadSum(size)
	if err != nil {
		return err
	}
	if [sha256.Size]byte(sum.Sum(nil)) != want {
		return fmt.Errorf("download of %d bytes has other bytes than it should", d.got.Load())
	}
	return nil
}

// mustGoOn fails the test when the download has ended, which proves nothing.
func (d *download) mustGoOn(r *rig, when string) {
	r.Helper()
	select {
	case <-d.done:
		r.Fatalf("the download has ended %s, at %d of %d bytes: %v", when, d.got.Load(), d.size, d.err)
	default:
	}
}

// suffice waits until the download has got a while further, and ends it: all bytes so
// far must be right. So a test that is slow itself is not outrun by a download.
func (d *download) suffice(r *rig) {
	r.Helper()
	before := d.got.Load()
	r.eventually(soon, "more of the download", func() (bool, error) {
		select {
		case <-d.done:
			return false, fmt.Errorf("%w: it has ended at %d of %d bytes: %w", testenv.ErrGiveUp, d.got.Load(), d.size, d.err)
		default:
			return d.got.Load() > before+1<<20, nil
		}
	})
	d.enough.Store(true)
	d.finish(r)
}

// finish waits for the end of the download, with all its bytes.
func (d *download) finish(r *rig) {
	r.Helper()
	select {
	case <-d.done:
		if d.err != nil {
			r.Error(d.err)
		}
	case <-time.After(30 * time.Second):
		r.Errorf("the download hangs at %d of %d bytes", d.got.Load(), d.size)
	}
}

// prober opens a connection from the client every few milliseconds until stop.
func (r *rig) prober(service netip.AddrPort) *testenv.Prober {
	r.Helper()
	p, err := r.host("client").StartProber(testenv.ProbeConfig{Target: service, Interval: 4 * time.Millisecond})
	if err != nil {
		r.Fatal(err)
	}
	return p
}

// answersMore waits until a prober has so many more answers.
func (r *rig) answersMore(p *testenv.Prober, n int) {
	r.Helper()
	from := p.Result().Answered
	r.eventually(soon, fmt.Sprintf("%d more answers", n), func() (bool, error) {
		now := p.Result()
		if now.Answered < from+n {
			return false, fmt.Errorf("%d of %d answered: %v", now.Answered, now.Sent, now.Errors)
		}
		return true, nil
	})
}

// wantNoFailure ends a prober; no request may have failed.
func (r *rig) wantNoFailure(p *testenv.Prober) testenv.ProbeResult {
	r.Helper()
	got, err := p.Stop()
	if err != nil {
		r.Fatal(err)
	}
	if got.Failed > 0 {
		r.Errorf("%d of %d requests failed: %v", got.Failed, got.Sent, got.Errors)
	}
	if got.Answered == 0 {
		r.Error("no request was answered")
	}
	return got
}

// tcpLosses counts segments that a host has sent again and whose first copy did
// not arrive. A host that is slow to read sends again what has arrived; the
// other side reports that (RFC 2883), and it is no loss.
func (r *rig) tcpLosses(on string) int {
	r.Helper()
	var lost int
	err := r.host(on).Do(func() error {
		again, err := tcpCounter("/proc/thread-self/net/snmp", "Tcp:", "RetransSegs")
		if err != nil {
			return err
		}
		twice, err := tcpCounter("/proc/thread-self/net/netstat", "TcpExt:", "TCPDSACKRecv")
		lost = again - twice
		return err
	})
	if err != nil {
		r.Fatal(err)
	}
	return lost
}

// tcpCounter reads a counter of a file in which each group has a line of names
// and a line of values.
func tcpCounter(file, group, name string) (int, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	var heading []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != group {
			continue
		}
		if heading == nil {
			heading = fields
			continue
		}
		for i, h := range heading {
			if h == name && i < len(fields) {
				return strconv.Atoi(fields[i])
			}
		}
	}
	return 0, fmt.Errorf("%s has no %s %s", file, group, name)
}

// An addressWatch notes addresses that are removed from a host.
type addressWatch struct {
	quit    chan struct{}
	done    chan struct{}
	removed []netip.Addr // read after done
}

// watchRemovals begins to note removals on a node.
func (r *rig) watchRemovals(on string) *addressWatch {
	r.Helper()
	w := &addressWatch{quit: make(chan struct{}), done: make(chan struct{})}
	events := make(chan netlink.AddrUpdate, 64)
	// The socket stays in the namespace where it is made.
	if err := r.host(on).Do(func() error { return netlink.AddrSubscribe(events, w.quit) }); err != nil {
		r.Fatal(err)
	}
	go func() {
		defer close(w.done)
		for e := range events {
			if a, ok := netip.AddrFromSlice(e.LinkAddress.IP); ok && !e.NewAddr {
				w.removed = append(w.removed, a.Unmap())
			}
		}
	}()
	r.Cleanup(func() { w.stop() })
	return w
}

// stop ends the watch and returns what was removed.
func (w *addressWatch) stop() []netip.Addr {
	select {
	case <-w.quit:
	default:
		close(w.quit)
	}
	<-w.done
	return w.removed
}
