// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
)

// A Reason is why a connection was refused or ended.
type Reason string

// The reasons. From ReasonItself on they are of who has the key.
const (
	ReasonNoTLS      Reason = "no TLS"
	ReasonForeign    Reason = "no sluice node" // it asks for something else, by TLS
	ReasonWrongKey   Reason = "another key"
	ReasonUnfinished Reason = "handshake not finished" // cut short, or too slow
	ReasonHandshake  Reason = "handshake failed"       // replayed, changed on the way, no TLS 1.3
	ReasonTooMany    Reason = "too many at a time"
	ReasonItself     Reason = "this node itself"
	ReasonUnknown    Reason = "no peer of this node" // its name is not in the configuration
	ReasonVersions   Reason = "no common version"
	ReasonMalformed  Reason = "malformed message"
	ReasonOversized  Reason = "oversized message"
	ReasonSilent     Reason = "silent"
	ReasonReplaced   Reason = "replaced" // by a newer connection of the same peer
	ReasonSink       Reason = "cannot be applied"
	ReasonStopped    Reason = "stopped" // as planned
	ReasonCut        Reason = "cut"     // by the other end, or on the way
)

// Errors of the beginning of a connection.
var (
	errWrongKey = errors.New("it has another key")
	errForeign  = errors.New("it asks for no sluice node")
	errVersions = errors.New("no common version")
	errItself   = errors.New("it is this node itself")
	errUnknown  = errors.New("no peer of this name is configured")
	errTooMany  = errors.New("too many connections at a time")
	errReplaced = errors.New("a newer connection has replaced it")
	errBefore   = errors.New("the connection before it has not ended yet: something hangs")
	errSink     = errors.New("cannot apply what comes")
	errSilent   = errors.New("nothing was heard")
	errStopped  = errors.New("this node stops")
	errKeysGone = errors.New("its key is not in force any more")
)

// reasons are the errors that have one, in the order in which they are looked for.
var reasons = []struct {
	err    error
	reason Reason
}{
	{errWrongKey, ReasonWrongKey}, {errForeign, ReasonForeign}, {errVersions, ReasonVersions}, {errItself, ReasonItself},
	{errUnknown, ReasonUnknown}, {errTooMany, ReasonTooMany}, {errReplaced, ReasonReplaced}, {errSink, ReasonSink},
	{errMalformed, ReasonMalformed}, {errOversized, ReasonOversized}, {errSilent, ReasonSilent}, {errStopped, ReasonStopped},
}

// reasonOf sorts an error by what it says of the other end, or by what that says.
func reasonOf(err error) Reason {
	var ended *endedError
	said := errors.As(err, &ended)
	for _, k := range reasons {
		if errors.Is(err, k.err) || said && ended.reason == k.reason {
			return k.reason
		}
	}
	return ReasonCut
}

// handshakeReason sorts an error of a handshake.
func handshakeReason(err error) Reason {
	if r := reasonOf(err); r != ReasonCut {
		return r
	}
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &record) && strings.Contains(record.Msg, "oversized"):
		return ReasonOversized
	case errors.As(err, &record):
		return ReasonNoTLS
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, os.ErrDeadlineExceeded),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.ErrClosedPipe), errors.Is(err, net.ErrClosed), isTimeout(err):
		return ReasonUnfinished
	}
	return ReasonHandshake
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}
