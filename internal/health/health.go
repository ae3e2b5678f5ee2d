// Package health finds out which servers can serve.
//
// A Checker probes its targets again and again and keeps a verdict on each. The
// first result decides at once, unless nothing has come back: just after its start a node
// may not reach what is well, since a neighbour is not resolved yet, or a switch does not
// forward, so it takes Fall of these in a row. After that it takes Rise successes or Fall
// failures in a row to change the verdict. Run runs one probe once.
package health

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A Target is a server and how it is probed. Targets whose probes would do the
// same to the same endpoint, in the same rhythm, are one and the same.
type Target struct {
	Address netip.AddrPort // of the server
	Probe   lb.Probe
	// Path is the way to the VIP at the server that is probed; zero: the server's
	// own address is.
	Path lb.ProbePath
}

// Endpoint is the address and port that is probed: Probe.Port, where it is set,
// takes the place of the server's port.
func (t Target) Endpoint() netip.AddrPort {
	port := t.Address.Port()
	if t.Probe.Port != 0 {
		port = t.Probe.Port
	}
	return netip.AddrPortFrom(t.Address.Addr().Unmap(), port)
}

// viaVIP tells whether a VIP is probed.
func (t Target) viaVIP() bool { return t.Path != lb.ProbePath{} }

// named is the address and port that the server is probed by, as it sees it.
func (t Target) named() netip.AddrPort {
	e := t.Endpoint()
	if t.viaVIP() {
		return netip.AddrPortFrom(t.Path.VIP, e.Port())
	}
	return e
}

func (t Target) String() string {
	if t.viaVIP() {
		return fmt.Sprintf("%s %v at %v", t.Probe.Type, t.named(), t.Path.Server)
	}
	return fmt.Sprintf("%s %v", t.Probe.Type, t.Endpoint())
}

// A Verdict is what is known about a target.
type Verdict uint8

// The verdicts.
const (
	Unknown Verdict = iota // no result yet, or nothing has come back, too few times to decide
	Up
	Down
)

func (v Verdict) String() string {
	switch v {
	case Unknown:
		return "unknown"
	case Up:
		return "up"
	case Down:
		return "down"
	}
	return fmt.Sprintf("verdict %d", uint8(v))
}

// A Status is what a Checker knows about a target.
type Status struct {
	Target    Target // as it was first given to Set
	Verdict   Verdict
	Since     time.Time // when the verdict was reached; zero while Unknown
	Successes int       // in a row, up to now; 0 after a failure
	Failures  int       // in a row, up to now; 0 after a success
	Checks    uint64    // results so far

	// The last finished run; zero before the first.
	LastRun      time.Time // its start
	LastDuration time.Duration
	LastError    string // why it failed; "" if it succeeded
}

// action says what the probe of t does: all of its identity but the rhythm.
func (t Target) action() string {
	p := &t.Probe
	s := fmt.Sprintf("%s %v", p.Type, t.Endpoint())
	if t.viaVIP() {
		s += fmt.Sprintf(" through %v", t.Path)
	}
	switch p.Type {
	case lb.ProbeHTTP, lb.ProbeHTTPS:
		s += fmt.Sprintf(" %q %v", p.Pages, p.Status)
		if p.Body != nil {
			s += fmt.Sprintf(" %q", p.Body)
		}
		if p.Type == lb.ProbeHTTPS {
			s += fmt.Sprintf(" %x %q %v", trusted(p.TLS.CA).digest, p.TLS.ServerName, p.TLS.Insecure)
		}
	case lb.ProbeDNS:
		s += fmt.Sprintf(" %q", p.Query)
	case lb.ProbeUDP:
		s += fmt.Sprintf(" %q", p.Send)
		if p.Expect != nil {
			s += fmt.Sprintf(" %q", p.Expect)
		}
	case lb.ProbeExec:
		s += fmt.Sprintf(" %q %q", p.Command, p.User)
	}
	return s
}

// Identity is equal for targets that are the same.
func (t Target) Identity() string {
	p := &t.Probe
	return fmt.Sprintf("%s every %v within %v rise %d fall %d", t.action(), p.Interval, p.Timeout, p.Rise, p.Fall)
}

// A rhythm says when the runs of a target start: a spread start, and from then
// on once per interval at a phase that depends on the action alone. So a thousand
// targets with one interval do not run at once, and a target keeps its place
// when others come and go.
type rhythm struct {
	interval time.Duration
	hash     uint64
}

// undecidedEvery is the longest interval while a target has failed and there is no verdict
// yet, which somebody may wait for.
const undecidedEvery = time.Second

// startSpread is the time over which the first runs of targets are spread.
const startSpread = 100 * time.Millisecond

func newRhythm(action string, interval time.Duration) rhythm {
	sum := sha256.Sum256([]byte(action))
	return rhythm{interval, binary.BigEndian.Uint64(sum[:])}
}

// fraction returns the part of d that the hash stands for, 0 to below d.
func (r rhythm) fraction(d time.Duration) time.Duration {
	hi, _ := bits.Mul64(r.hash, uint64(d))
	return time.Duration(hi)
}

// start returns how long to wait for the first run.
func (r rhythm) start() time.Duration { return r.fraction(min(startSpread, r.interval)) }

// next returns when the run after one that began at began starts, if it is now
// the time now: at the next moment of the rhythm. One that has passed because the
// run took long is left out, and so is one less than half an interval after
// began, which matters after a first run only. All three are durations since one
// fixed moment.
func (r rhythm) next(began, now time.Duration) time.Duration {
	after := max(began+r.interval/2, now)
	phase := r.fraction(r.interval)
	return after - (after-phase+r.interval)%r.interval + r.interval
}
