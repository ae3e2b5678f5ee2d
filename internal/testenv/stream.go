package testenv

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// A Stream sends small messages over one long connection to an Echo server and
// records when they come back.
type Stream struct {
	conn net.Conn
	quit chan struct{}
	wg   sync.WaitGroup

	stopOnce sync.Once
	mu       sync.Mutex
	result   StreamResult
}

// A StreamResult is what a Stream has found.
type StreamResult struct {
	Timeline
	Sent, Answered int
	Err            error // what broke the connection, or came back wrong; nil if nothing
}

// StartStream connects from the host and sends a message at each interval. The
// lab stops it at Close.
func (h *Host) StartStream(ctx context.Context, target netip.AddrPort, interval time.Duration) (*Stream, error) {
	conn, err := h.Dial(ctx, "tcp", target.String())
	if err != nil {
		return nil, fmt.Errorf("start stream: %w", err)
	}
	s := &Stream{conn: conn, quit: make(chan struct{}), result: StreamResult{Timeline: Timeline{Start: time.Now()}}}
	s.wg.Go(func() { s.write(interval) })
	s.wg.Go(s.read)
	h.lab.adopt(s)
	return s, nil
}

func (s *Stream) write(interval time.Duration) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	var msg [8]byte
	for n := uint64(0); ; n++ {
		binary.BigEndian.PutUint64(msg[:], n)
		if _, err := s.conn.Write(msg[:]); err != nil {
			s.fail(fmt.Errorf("write message %d: %w", n, err))
			return
		}
		s.mu.Lock()
		s.result.Sent++
		s.mu.Unlock()
		select {
		case <-s.quit:
			return
		case <-ticker.C:
		}
	}
}

func (s *Stream) read() {
	var msg [8]byte
	for n := uint64(0); ; n++ {
		if _, err := io.ReadFull(s.conn, msg[:]); err != nil {
			s.fail(fmt.Errorf("read answer %d: %w", n, err))
			return
		}
		if got := binary.BigEndian.Uint64(msg[:]); got != n {
			s.fail(fmt.Errorf("read answer %d: got %d", n, got))
			return
		}
		s.mu.Lock()
		s.result.Answered++
		s.result.Answers = append(s.result.Answers, time.Since(s.result.Start))
		s.mu.Unlock()
	}
}

// fail records the first error, unless it is Stop's doing.
func (s *Stream) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.result.Err == nil && !errors.Is(err, net.ErrClosed) {
		s.result.Err = err
	}
}

// Result returns what has been found up to now.
func (s *Stream) Result() StreamResult {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.result
	if r.Length == 0 {
		r.Length = time.Since(r.Start)
	}
	return r
}

// Stop closes the connection and returns the result.
func (s *Stream) Stop() StreamResult {
	s.stopOnce.Do(func() {
		s.mu.Lock()
		s.result.Length = time.Since(s.result.Start)
		s.mu.Unlock()
		close(s.quit)
		_ = s.conn.Close() // what was sent and not answered is counted
		s.wg.Wait()
	})
	return s.Result()
}

func (s *Stream) stop() error {
	s.Stop()
	return nil
}
