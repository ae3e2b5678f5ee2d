// Package web is what monitoring sees of a daemon: metrics for Prometheus, whether
// it is well, and a status page. It only reads, and whoever reads slowly holds up
// nobody but himself.
package web

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	// listenAgain is a Server's again.
	listenAgain = 10 * time.Second
	// fresh is for how long a report does: however many ask, the data plane is read
	// no more often.
	fresh = time.Second
	// readerPatience bounds how long one answer may take.
	readerPatience = 30 * time.Second
	// mostReaders is how many are served at a time.
	mostReaders = 64
	// mostConnections is how many may be open, whatever becomes of them.
	mostConnections = 4 * mostReaders
	// headersPatience bounds how long who has connected may take to ask.
	headersPatience = 5 * time.Second
)

// A Server serves one address.
type Server struct {
	address netip.AddrPort
	log     *slog.Logger
	again   time.Duration // the wait after the address could not be had

	mu       sync.Mutex
	listener net.Listener // nil: it could not be had
	problem  string
}

// Listen opens the address. Where it cannot be had, that is a Problem, and Serve
// tries again: metrics are not worth a data plane that is not there.
func Listen(address netip.AddrPort, log *slog.Logger) *Server {
	s := &Server{address: address, log: log, again: listenAgain}
	s.listen()
	return s
}

func (s *Server) listen() net.Listener {
	l, err := net.Listen("tcp", s.address.String())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listener = l
	before := s.problem
	s.problem = ""
	switch {
	case err != nil:
		s.listener, s.problem = nil, fmt.Sprintf("no metrics and no status page: %v: %s", err, s.advice(err))
		if s.problem != before {
			s.log.Error("no metrics and no status page, the rest goes on", "listen", s.address, "error", err, "do", s.advice(err))
		}
	case before != "":
		s.log.Info("metrics and status page are there", "listen", s.address)
	}
	return s.listener
}

// advice says what to do where the address cannot be had.
func (s *Server) advice(err error) string {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Sprintf("`ss -ltnp sport = :%d` says who has it; end that, or set another admin.listen, or none", s.address.Port())
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return "it is no address of this node: set another admin.listen, or none"
	}
	return "set another admin.listen, or none"
}

// Problem tells why nothing is served; "": it is.
func (s *Server) Problem() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.problem
}

// Address is where it is served.
func (s *Server) Address() netip.AddrPort { return s.address }

// Serve answers until ctx ends. Report is called by one goroutine at a time.
func (s *Server) Serve(ctx context.Context, report func() Report) {
	server := &http.Server{
		Handler: Handler(report, s.log), ReadHeaderTimeout: headersPatience, ReadTimeout: 10 * time.Second,
		WriteTimeout: readerPatience, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 1 << 16,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug), ConnState: limited(mostConnections),
	}
	defer context.AfterFunc(ctx, func() { server.Close() })()
	s.mu.Lock()
	l := s.listener
	s.mu.Unlock()
	for {
		if l != nil {
			// It has a listener of its own, which it closes.
			if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				s.log.Error("metrics and status page have failed", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(s.again):
		}
		l = s.listen()
	}
}

// Close lets go of an address that is not served.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listener == nil {
		return nil
	}
	if err := s.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// Handler answers /metrics, /healthz and /.
func Handler(report func() Report, log *slog.Logger) http.Handler {
	c := &cache{report: report}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector{c.get}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelError), EnableOpenMetrics: true,
		// What cannot be told is in the log; monitoring needs the rest.
		ErrorHandling: promhttp.ContinueOnError,
	}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { healthz(w, c.get()) })
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { page(w, c.get()) })
	return bounded(mux)
}

// bounded turns away who comes when there are too many already.
func bounded(next http.Handler) http.Handler {
	room := make(chan struct{}, mostReaders)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case room <- struct{}{}:
			defer func() { <-room }()
			next.ServeHTTP(w, r)
		default:
			http.Error(w, "too many ask at a time", http.StatusServiceUnavailable)
		}
	})
}

// limited closes connections that are more than most.
func limited(most int64) func(net.Conn, http.ConnState) {
	var open atomic.Int64
	return func(c net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			if open.Add(1) > most {
				c.Close() // and it is told so once more
			}
		case http.StateClosed:
			open.Add(-1)
		}
	}
}

// A cache keeps a report for a moment.
type cache struct {
	report func() Report

	mu   sync.Mutex
	last Report
	at   time.Time
}

func (c *cache) get() Report {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.at.IsZero() || time.Since(c.at) >= fresh {
		c.last = c.report()
		c.at = time.Now()
	}
	return c.last
}

// healthz answers 200 where the node does what it should, as far as that depends on
// it, and else 503 with the reasons. A service whose servers are down is not the
// node's fault.
func healthz(w http.ResponseWriter, r Report) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if r.Ready {
		_, _ = io.WriteString(w, "ok\n") // who has gone needs no answer
		return
	}
	w.WriteHeader(http.StatusServiceUnavailable)
	_, _ = io.WriteString(w, "not ready\n"+strings.Join(r.Status.Problems, "\n")+"\n")
}

// page answers with the status page.
func page(w http.ResponseWriter, r Report) {
	var b bytes.Buffer
	if err := pageTemplate.Execute(&b, r.Status); err != nil {
		http.Error(w, "the status cannot be shown: "+err.Error(), http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	h.Set("Cache-Control", "no-store")
	_, _ = b.WriteTo(w)
}
