package testenv

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// A Server is a TCP server inside this process that listens on a host.
type Server struct {
	listener net.Listener
	handle   func(net.Conn)

	mu     sync.Mutex
	conns  map[net.Conn]bool
	closed bool
	wg     sync.WaitGroup
}

// StartTCP serves each connection to addr with handle on a goroutine of its
// own. The connection is closed when handle returns. The lab closes the server.
func (h *Host) StartTCP(addr netip.AddrPort, handle func(net.Conn)) (*Server, error) {
	l, err := h.Listen("tcp", addr.String())
	if err != nil {
		return nil, err
	}
	s := &Server{listener: l, handle: handle, conns: make(map[net.Conn]bool)}
	s.wg.Go(s.accept)
	h.lab.adopt(s)
	return s, nil
}

// Addr returns the address that the server listens on.
func (s *Server) Addr() netip.AddrPort {
	return s.listener.Addr().(*net.TCPAddr).AddrPort()
}

func (s *Server) accept() {
	for {
		conn, err := s.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // the client was gone before it was accepted
		}
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			_ = conn.Close()
			return
		}
		s.conns[conn] = true
		s.wg.Go(func() {
			s.handle(conn)
			s.mu.Lock()
			delete(s.conns, conn)
			s.mu.Unlock()
			_ = conn.Close()
		})
		s.mu.Unlock()
	}
}

// Close ends the server and its connections, and waits for the handlers.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	err := s.listener.Close()
	for conn := range s.conns {
		_ = conn.Close() // its handler notices
	}
	s.mu.Unlock()
	s.wg.Wait()
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close server: %w", err)
	}
	return nil
}

func (s *Server) stop() error { return s.Close() }

// Echo is a handler that sends back what it gets, until the client closes.
func Echo(conn net.Conn) {
	_, _ = io.Copy(conn, conn) // the client sees what goes wrong
}

// AnswerLine returns a handler that reads one line and answers with text. The
// server then closes first, or waits for the client to do it.
func AnswerLine(text string, serverCloses bool) func(net.Conn) {
	return func(conn net.Conn) {
		r := bufio.NewReader(conn)
		if _, err := r.ReadString('\n'); err != nil {
			return
		}
		if _, err := io.WriteString(conn, text); err != nil || serverCloses {
			return
		}
		_, _ = io.Copy(io.Discard, r)
	}
}

// An HTTPServer is an HTTP server inside this process that listens on a host.
type HTTPServer struct {
	server *http.Server
	addr   netip.AddrPort
	wg     sync.WaitGroup // Serve, and each connection
}

// StartHTTP serves HTTP on a host. The lab closes the server.
func (h *Host) StartHTTP(addr netip.AddrPort, handler http.Handler) (*HTTPServer, error) {
	l, err := h.Listen("tcp", addr.String())
	if err != nil {
		return nil, err
	}
	s := &HTTPServer{addr: l.Addr().(*net.TCPAddr).AddrPort()}
	s.server = &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 10 * time.Second,
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				s.wg.Add(1) // by Serve, which is counted itself
			case http.StateClosed, http.StateHijacked:
				s.wg.Done()
			}
		},
	}
	s.wg.Go(func() {
		_ = s.server.Serve(l) // ErrServerClosed
	})
	h.lab.adopt(s)
	return s, nil
}

// Addr returns the address that the server listens on.
func (s *HTTPServer) Addr() netip.AddrPort { return s.addr }

// Close ends the server, cuts its connections and waits for its handlers.
func (s *HTTPServer) Close() error {
	err := s.server.Close()
	s.wg.Wait()
	if err != nil {
		return fmt.Errorf("close http server: %w", err)
	}
	return nil
}

func (s *HTTPServer) stop() error { return s.Close() }

// NameHandler answers every request with the host's name and a line feed, like
// the nginx of StartNginx at "/".
func (h *Host) NameHandler() http.Handler {
	body := h.Name + "\n"
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, body) // the client sees what goes wrong
	})
}
