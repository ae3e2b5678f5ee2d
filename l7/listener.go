package l7

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	stdlog "log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// maxStreams is how many requests an HTTP/2 connection may have at a time.
const maxStreams = 128

// A connection is what a request's connection is to it.
type connection struct {
	listener    *listener
	servers     *servers
	socket      *socket
	framed      *framedConn // nil: HTTP/2
	tls         bool
	peer, local netip.AddrPort
	peerText    string // peer's address
}

type connectionKey struct{}

func connectionOf(ctx context.Context) *connection {
	c, _ := ctx.Value(connectionKey{}).(*connection)
	return c
}

// A listener accepts the connections of one address. It outlives reloads: routes and
// certificates change under it.
type listener struct {
	at     netip.AddrPort
	socket net.Listener
	log    *slog.Logger
	room   *room
	routes atomic.Pointer[routes]
	now    atomic.Pointer[servers] // who serves what is accepted

	accepted, refused, malformed atomic.Uint64

	goroutines sync.WaitGroup // of connections that are not served yet
	accepting  chan struct{}  // closed when no more are accepted
	leaving    atomic.Bool

	mu        sync.Mutex
	beginning map[*socket]bool // connections that are not served yet
	closed    bool
}

// Servers are net/http's for connections of one listener that were accepted under one
// set of limits. HTTP/1 and HTTP/2 have one each: what HTTP/1 reads is looked at before.
type servers struct {
	limits       lb.ClientLimits
	trusted      []netip.Prefix
	http1, http2 *http.Server
	feed1, feed2 *feed
	draining     atomic.Bool // connections end after their next answer
	drained      time.Time   // since when
	conns        atomic.Int64
	done         sync.WaitGroup
}

func newServers(at netip.AddrPort, config *lb.HTTP, handler http.Handler, log *slog.Logger) *servers {
	limits := config.Client
	s := &servers{limits: limits, trusted: config.TrustedProxies, feed1: newFeed(at), feed2: newFeed(at)}
	server := func() *http.Server {
		return &http.Server{
			Handler:                      handler,
			DisableGeneralOptionsHandler: true, // "OPTIONS *" is a request like any other
			ReadHeaderTimeout:            limits.HeaderTimeout,
			IdleTimeout:                  limits.KeepaliveTimeout,
			MaxHeaderBytes:               limits.MaxHeader,
			ErrorLog:                     stdlog.New(serverLog{log}, "", 0),
			Protocols:                    &http.Protocols{},
			ConnContext: func(ctx context.Context, c net.Conn) context.Context {
				return context.WithValue(ctx, connectionKey{}, connectionFor(c))
			},
			ConnState: func(c net.Conn, state http.ConnState) {
				switch state {
				case http.StateNew:
					s.conns.Add(1)
				case http.StateActive:
					connectionFor(c).socket.quietSince.Store(0)
				case http.StateIdle:
					connectionFor(c).socket.rest()
				case http.StateClosed, http.StateHijacked:
					s.conns.Add(-1)
				}
			},
		}
	}
	s.http1, s.http2 = server(), server()
	s.http1.Protocols.SetHTTP1(true)
	s.http2.Protocols.SetHTTP2(true)
	s.http2.TLSConfig = &tls.Config{NextProtos: []string{"h2"}}
	s.http2.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: maxStreams, WriteByteTimeout: limits.SendTimeout}
	for _, each := range []struct {
		server *http.Server
		feed   *feed
	}{{s.http1, s.feed1}, {s.http2, s.feed2}} {
		s.done.Go(func() { _ = each.server.Serve(each.feed) }) // it ends with the feed
	}
	return s
}

// A serverLog takes what net/http has to say: of a mistake of ours, which is an error,
// and of what clients do, which is for whoever looks closely.
type serverLog struct{ log *slog.Logger }

func (l serverLog) Write(p []byte) (int, error) {
	level := slog.LevelDebug
	if bytes.Contains(p, []byte("panic")) {
		level = slog.LevelError
	}
	l.log.Log(context.Background(), level, "http: "+strings.TrimSpace(string(p)))
	return len(p), nil
}

// fits tells whether the servers are what a configuration needs.
func (s *servers) fits(config *lb.HTTP) bool {
	return s.limits == config.Client && samePrefixes(s.trusted, config.TrustedProxies)
}

func samePrefixes(a, b []netip.Prefix) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// drain has connections end after their next answer.
func (s *servers) drain() {
	s.drained = time.Now()
	s.draining.Store(true)
}

// idle tells whether servers that drain have no connection, and get none that was
// accepted before.
func (s *servers) idle(now time.Time) bool {
	return s.conns.Load() == 0 && now.Sub(s.drained) > 2*s.limits.HeaderTimeout
}

// shutdown waits for the requests under way as long as ctx lasts, and breaks off the
// others.
func (s *servers) shutdown(ctx context.Context) {
	s.drain()
	var all sync.WaitGroup
	for _, h := range []*http.Server{s.http1, s.http2} {
		all.Go(func() {
			if h.Shutdown(ctx) != nil {
				_ = h.Close() // their time is over
			}
		})
	}
	all.Wait()
	s.feed1.Close()
	s.feed2.Close()
	s.done.Wait()
}

// A carried is a connection that knows what it is to its requests.
type carried struct {
	*socket
	connection *connection
}

// connectionFor finds what a connection is to its requests.
func connectionFor(c net.Conn) *connection {
	for {
		switch t := c.(type) {
		case *framedConn:
			c = t.Conn
		case *lazyConn:
			c = t.Conn
		case *tls.Conn:
			c = t.NetConn()
		case *carried:
			return t.connection
		default:
			return nil
		}
	}
}

func listen(at netip.AddrPort, room *room, log *slog.Logger) (*listener, error) {
	bound, err := bind(at)
	if err != nil {
		return nil, err
	}
	return &listener{at: at, socket: bound, log: log, room: room, accepting: make(chan struct{}), beginning: map[*socket]bool{}}, nil
}

// accept serves connections until the listener leaves.
func (l *listener) accept() {
	go func() {
		defer close(l.accepting)
		wait := time.Millisecond
		for {
			c, err := l.socket.Accept()
			if err != nil && l.leaving.Load() {
				return
			}
			if err != nil { // there are too many open files, most likely
				l.log.Error("cannot accept connections", "listen", l.at, "error", err, "retry", wait)
				time.Sleep(wait)
				wait = min(2*wait, time.Second)
				continue
			}
			wait = time.Millisecond
			s := newSocket(c)
			s.room = l.room
			if !l.room.enter(s, l.leaving.Load) {
				s.Close()
				return
			}
			l.accepted.Add(1)
			if routes := l.routes.Load(); routes.tls == nil && !routes.proxied { // nothing is to be read first
				l.serveHTTP1(&carried{s, l.connection(s, routes, l.now.Load())})
				continue
			}
			l.goroutines.Go(func() { l.begin(s) })
		}
	}()
}

// begin has a connection served: after the PROXY protocol and TLS, where they are due.
func (l *listener) begin(s *socket) {
	if !l.track(s) {
		s.Close()
		return
	}
	defer l.untrack(s)
	routes, servers := l.routes.Load(), l.now.Load()
	if routes.proxied && contains(servers.trusted, s.peer.Addr()) {
		if err := s.readProxyHeader(servers.limits.HeaderTimeout); err != nil {
			l.refuse(s, err)
			return
		}
	}
	carrier := &carried{s, l.connection(s, routes, servers)}
	if routes.tls == nil {
		l.serveHTTP1(carrier)
		return
	}
	l.beginTLS(carrier, routes)
}

// connection is what a client's connection is to its requests.
func (l *listener) connection(s *socket, routes *routes, servers *servers) *connection {
	return &connection{listener: l, servers: servers, socket: s, tls: routes.tls != nil, peer: s.peer, local: s.local, peerText: s.peer.Addr().String()}
}

// serveHTTP1 has a connection served that speaks HTTP/1.
func (l *listener) serveHTTP1(nc net.Conn) {
	conn := connectionFor(nc)
	limits := &conn.servers.limits
	// Beyond what net/http reads of a head it answers with 431 by itself.
	conn.framed = newFramedConn(nc, limits.MaxHeader+8<<10, limits.SendTimeout)
	conn.framed.malformed = &l.malformed
	conn.servers.feed1.put(conn.framed)
}

// beginTLS has a connection with TLS served, of whichever version of HTTP.
func (l *listener) beginTLS(carrier *carried, routes *routes) {
	servers := carrier.connection.servers
	t := tls.Server(carrier, routes.tls.config)
	ctx, cancel := context.WithTimeout(context.Background(), servers.limits.HeaderTimeout)
	err := t.HandshakeContext(ctx)
	cancel()
	if err != nil {
		sayNoTLS(err)
		l.refuse(carrier.socket, err)
		return
	}
	if t.ConnectionState().NegotiatedProtocol == "h2" {
		servers.feed2.put(t)
		return
	}
	l.serveHTTP1(t)
}

// sayNoTLS tells a client that speaks plain HTTP where TLS is spoken.
func sayNoTLS(err error) {
	var re tls.RecordHeaderError
	if !errors.As(err, &re) || re.Conn == nil {
		return
	}
	switch string(re.RecordHeader[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO", "DELET", "PATCH":
		_ = re.Conn.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = io.WriteString(re.Conn, "HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nThis port speaks HTTPS.\n")
	}
}

func (l *listener) refuse(s *socket, err error) {
	l.refused.Add(1)
	l.log.Debug("connection refused", "listen", l.at, "peer", s.peer, "error", err)
	s.Close()
}

// track remembers a connection that is not served yet; false: the listener is closed.
func (l *listener) track(s *socket) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.beginning[s] = true
	return true
}

func (l *listener) untrack(s *socket) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.beginning, s)
}

// leave accepts nothing more but what has come already: that and what is served goes on.
func (l *listener) leave() {
	l.leaving.Store(true)
	l.room.wake()
	if d, ok := l.socket.(interface{ SetDeadline(time.Time) error }); ok && d.SetDeadline(time.Now().Add(lastAccepts)) == nil {
		<-l.accepting
	}
	l.socket.Close()
	<-l.accepting
}

// lastAccepts is how long connections are accepted that have come already.
const lastAccepts = 10 * time.Millisecond

// idle tells whether all that was accepted is served by now, or gone.
func (l *listener) idle() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.beginning) == 0
}

// close ends what is not served yet of a listener that has left.
func (l *listener) close() {
	l.mu.Lock()
	l.closed = true
	for s := range l.beginning {
		s.Close()
	}
	l.mu.Unlock()
	l.goroutines.Wait()
}

// A feed is a net.Listener that is given its connections.
type feed struct {
	at    netip.AddrPort
	conns chan net.Conn
	quit  chan struct{}
	once  sync.Once
}

func newFeed(at netip.AddrPort) *feed {
	return &feed{at: at, conns: make(chan net.Conn), quit: make(chan struct{})}
}

func (f *feed) put(c net.Conn) {
	select {
	case f.conns <- c:
	case <-f.quit:
		c.Close()
	}
}

// Accept returns the next connection.
func (f *feed) Accept() (net.Conn, error) {
	select {
	case c := <-f.conns:
		return c, nil
	case <-f.quit:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (f *feed) Close() error {
	f.once.Do(func() { close(f.quit) })
	return nil
}

// Addr is where the connections come in.
func (f *feed) Addr() net.Addr { return net.TCPAddrFromAddrPort(f.at) }
