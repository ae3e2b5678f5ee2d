// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"io"
	"net"
	"sync/atomic"
	"time"
)

// goodbyeTime is for the last message of a connection that ends.
const goodbyeTime = 100 * time.Millisecond

// traffic counts what has gone over all connections of one direction to or from a
// peer.
type traffic struct {
	bytesIn, bytesOut atomic.Uint64 // of TCP's payload, all of TLS included
	messages          atomic.Uint64 // but for those that only keep the connection alive
	records           atomic.Uint64 // flows
	refused           atomic.Uint64 // flows that the other end has no use for
	unknown           atomic.Uint64 // messages of a later version, skipped
	ended             atomic.Uint64 // connections that have ended
}

// A watchedConn is a TCP connection that is cut when nothing comes by it, and counted.
type watchedConn struct {
	net.Conn
	count   *traffic
	silence atomic.Int64 // ns; 0: none is too long
	ending  atomic.Bool
}

func (w *watchedConn) Read(b []byte) (int, error) {
	if d := time.Duration(w.silence.Load()); d > 0 {
		if err := w.SetReadDeadline(time.Now().Add(d)); err != nil {
			return 0, err
		}
		if w.ending.Load() {
			w.leave()
		}
	}
	n, err := w.Conn.Read(b)
	w.count.bytesIn.Add(uint64(n))
	return n, err
}

func (w *watchedConn) Write(b []byte) (int, error) {
	n, err := w.Conn.Write(b)
	w.count.bytesOut.Add(uint64(n))
	return n, err
}

// watch begins to cut the connection when it is silent.
func (w *watchedConn) watch(silence time.Duration) { w.silence.Store(int64(silence)) }

// leave ends all that waits for the connection, after a moment for a last message.
func (w *watchedConn) leave() {
	w.ending.Store(true)
	_ = w.SetDeadline(time.Now().Add(goodbyeTime))
}

// finish closes the connection after a last message. What comes still is read: a kernel
// that has to throw away something cuts a connection off, and the other end would not
// get that message.
func (w *watchedConn) finish() {
	if half, ok := w.Conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
	_ = w.SetDeadline(time.Now().Add(goodbyeTime))
	_, _ = io.Copy(io.Discard, io.LimitReader(w.Conn, maxMessage))
	w.Close()
}
