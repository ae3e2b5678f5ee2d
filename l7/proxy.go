package l7

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// An Event is a change of what is known about a server of an upstream.
type Event struct {
	Upstream, Server string
	From, To         State
	Text             string // why
}

// Options are what a Proxy works with.
type Options struct {
	Log    *slog.Logger
	Health Health      // nil: nothing is known about servers but what requests show
	Event  func(Event) // is told what Refresh has found; must not wait; nil: nobody
}

// A world is what one configuration has made of a Proxy. It is never changed.
type world struct {
	config    *lb.HTTP
	upstreams []*upstream // in the order of the configuration
	hosts     []*virtualHost
	listeners map[netip.AddrPort]*listener
	log       *accessLog // nil: none
	certs     map[lb.ServerTLS]*certificate
}

// A Proxy serves HTTP as a configuration says.
type Proxy struct {
	log     *slog.Logger
	health  Health
	event   func(Event)
	buffers buffers
	room    *room
	now     atomic.Pointer[world]

	applying  sync.Mutex // held while the configuration changes
	closed    bool
	upstreams map[string]*upstream // guarded by applying
	old       []*servers           // of listeners or limits that were; the same
	ballast   []byte               // see ballastSize
	left      []*listener          // whose connections are not all served yet; the same
	oldLogs   []*accessLog         // that requests use still; the same
	linesLost atomic.Uint64        // of access logs
	stats     statsBook
}

// New returns a proxy that serves nothing yet.
func New(o Options) *Proxy {
	p := &Proxy{log: o.Log, health: o.Health, event: o.Event, upstreams: map[string]*upstream{}}
	p.room = newRoom(p.closeIdle)
	p.now.Store(&world{config: &lb.HTTP{}})
	return p
}

// ballastSize is memory, in bytes, that nobody uses, and that is never touched: so it is
// none of the machine's. The garbage collector counts it, and so lets at least as
// much garbage come together before it collects. A request makes some kilobytes of
// it; without ballast a busy proxy would collect many times a second for a heap of a few
// megabytes. So the heap may be so much larger than it needs to be.
const ballastSize = 32 << 20

// errClosed is the error of a proxy that was closed.
var errClosed = errors.New("the proxy is closed")

// Apply has the proxy serve what a configuration says in place of what it serves. After
// an error it serves what it did. No connection and no request is lost: listeners,
// upstreams and what is known of their servers stay where they are in both; connections
// of a listener that goes end after the answer to their next request; upgraded ones stay.
func (p *Proxy) Apply(config lb.HTTP) error {
	p.applying.Lock()
	defer p.applying.Unlock()
	if p.closed {
		return errClosed
	}
	c := &change{proxy: p, before: p.now.Load(), after: &world{
		config: &config, listeners: map[netip.AddrPort]*listener{}, certs: map[lb.ServerTLS]*certificate{},
	}, generations: map[*upstream]*generation{}, upstreams: map[string]*upstream{}}
	if err := c.prepare(); err != nil {
		c.undo()
		return err
	}
	c.commit()
	if p.ballast == nil && len(config.Servers) > 0 {
		p.ballast = make([]byte, ballastSize)
	}
	p.prune(time.Now())
	return nil
}

// A change is a new world that is being made.
type change struct {
	proxy         *Proxy
	before, after *world
	routes        map[netip.AddrPort]*routes
	upstreams     map[string]*upstream
	generations   map[*upstream]*generation
	opened        []func() // what undoes what was opened
}

// prepare does all that may fail, and changes nothing that is in use.
func (c *change) prepare() error {
	for i := range c.after.config.Upstreams {
		config := &c.after.config.Upstreams[i]
		u := c.proxy.upstreams[config.Name]
		if u == nil {
			u = &upstream{name: config.Name, budget: c.proxy.room.servers, tell: c.proxy.tell}
		}
		g, err := u.prepare(config)
		if err != nil {
			return err
		}
		c.upstreams[config.Name], c.generations[u] = u, g
		c.after.upstreams = append(c.after.upstreams, u)
	}
	var err error
	if c.after.log, err = c.accessLog(c.after.config.AccessLog); err != nil {
		return err
	}
	for i := range c.after.config.Servers {
		host, err := c.host(&c.after.config.Servers[i], c.after.log)
		if err != nil {
			return err
		}
		c.after.hosts = append(c.after.hosts, host)
	}
	c.routes = routesOf(c.after.hosts)
	if err := c.certify(); err != nil {
		return err
	}
	return c.listen()
}

// host makes a virtual host.
func (c *change) host(config *lb.HTTPServer, log *accessLog) (*virtualHost, error) {
	v := &virtualHost{config: config, log: log, stats: c.proxy.stats.of(config.Name())}
	var all []*location
	for i := range config.Locations {
		l, err := c.location(config, &config.Locations[i])
		if err != nil {
			return nil, err
		}
		all = append(all, l)
	}
	v.locations = newLocations(all)
	var err error
	v.otherwise, err = c.location(config, &config.Otherwise)
	return v, err
}

// location makes a location of a virtual host.
func (c *change) location(host *lb.HTTPServer, config *lb.Location) (*location, error) {
	l := &location{config: config, access: newAccess(config.Rules, config.AllowOnly)}
	if config.RateLimit != nil {
		l.limit = c.limiter(host, config)
	}
	name := config.Upstream
	if config.Redirect != nil && config.Redirect.Upstream != "" {
		name = config.Redirect.Upstream
	}
	if name != "" {
		if l.upstream = c.upstreams[name]; l.upstream == nil {
			return nil, fmt.Errorf("server %s: there is no upstream %s", host.Name(), name)
		}
	}
	if config.Upstream != "" {
		l.proxy = newForwarder(config, l.upstream, &c.proxy.buffers, c.proxy.log)
	}
	return l, nil
}

// limiter returns the limiter of a location: the one that it had before, where the limit
// is the same.
func (c *change) limiter(host *lb.HTTPServer, l *lb.Location) *limiter {
	for _, v := range c.before.hosts {
		if v.config.Name() != host.Name() {
			continue
		}
		for _, old := range append(v.locations.all(), v.otherwise) {
			if old.limit != nil && old.config.String() == l.String() && *old.config.RateLimit == *l.RateLimit {
				return old.limit
			}
		}
	}
	return newLimiter(l.RateLimit)
}

// accessLog returns the log that is meant, the one that is open if there is one.
func (c *change) accessLog(config lb.AccessLog) (*accessLog, error) {
	if config.Path == "" {
		return nil, nil
	}
	if l := c.before.log; l != nil && l.config == config {
		return l, nil
	}
	l, err := openAccessLog(config, &c.proxy.linesLost, c.proxy.log)
	if err != nil {
		return nil, err
	}
	c.opened = append(c.opened, l.release)
	return l, nil
}

// certify loads the certificates of the listens that have TLS.
func (c *change) certify() error {
	for _, v := range c.after.hosts {
		for _, l := range v.config.Listen {
			if l.TLS == nil {
				continue
			}
			cert := c.after.certs[*l.TLS]
			if cert == nil {
				cert = c.before.certs[*l.TLS]
			}
			if cert == nil {
				var err error
				if cert, err = loadCertificate(*l.TLS, c.proxy.log); err != nil {
					return err
				}
			}
			c.after.certs[*l.TLS] = cert
			r := c.routes[l.Address]
			if r.tls == nil {
				r.tls = newCertificates(l.TLS.HTTP2)
			}
			r.tls.add(v, cert, r.byDefault == v)
		}
	}
	return nil
}

// listen opens the listeners that are new.
func (c *change) listen() error {
	for at, r := range c.routes {
		l := c.before.listeners[at]
		if l == nil {
			var err error
			l, err = listen(at, c.proxy.room, c.proxy.log)
			if missingFamily(at, err) {
				continue // this host has no IPv6
			}
			if err != nil {
				return err
			}
			l.routes.Store(r)
			c.opened = append(c.opened, func() { l.socket.Close() })
		}
		c.after.listeners[at] = l
	}
	return nil
}

// undo closes what was opened.
func (c *change) undo() {
	for _, f := range slices.Backward(c.opened) {
		f()
	}
}

// commit makes the new world the one that serves. It cannot fail.
func (c *change) commit() {
	p := c.proxy
	for u, g := range c.generations {
		p.tell(u.commit(g, p.standings(g), time.Now()))
	}
	p.now.Store(c.after)
	p.divide(c.after.config.MaxConnections)
	for at, l := range c.after.listeners {
		l.routes.Store(c.routes[at])
		if s := l.now.Load(); s == nil || !s.fits(c.after.config) {
			l.now.Store(newServers(at, c.after.config, p, p.log))
			p.retire(s)
		}
		if c.before.listeners[at] == nil {
			l.accept()
		}
	}
	for at, l := range c.before.listeners {
		if c.after.listeners[at] == nil {
			p.retire(l.now.Load()) // first: who is refused may know that the others are to go
			l.leave()
			p.left = append(p.left, l)
		}
	}
	for name, u := range p.upstreams {
		if c.upstreams[name] == nil {
			u.now.Load().transport.retire()
		}
	}
	p.upstreams = c.upstreams
	if l := c.before.log; l != nil && l != c.after.log {
		p.oldLogs = append(p.oldLogs, l)
		l.release()
	}
}

// divide gives clients and servers their parts of what connections there may be.
func (p *Proxy) divide(wanted int) {
	d := divide(openFiles(), wanted)
	if wanted > d.clients {
		p.log.Warn("there may be fewer connections of clients than configured", "max_connections", wanted, "possible", d.clients, "open_files", openFiles())
	}
	p.room.resize(d)
}

// closeIdle closes the connections to servers that nothing uses.
func (p *Proxy) closeIdle() {
	for _, u := range p.now.Load().upstreams {
		u.now.Load().transport.closeIdle()
	}
}

// retire has the connections of servers end after their next answer.
func (p *Proxy) retire(s *servers) {
	if s == nil {
		return
	}
	s.drain()
	p.old = append(p.old, s)
}

// prune lets go of listeners, servers and logs that have nothing left to do.
func (p *Proxy) prune(now time.Time) {
	p.left = slices.DeleteFunc(p.left, (*listener).idle)
	p.oldLogs = slices.DeleteFunc(p.oldLogs, func(l *accessLog) bool { return l.users.Load() == 0 })
	p.old = slices.DeleteFunc(p.old, func(s *servers) bool {
		if !s.idle(now) {
			return false
		}
		s.shutdown(context.Background())
		return true
	})
}

// Refresh asks what is known of servers, and has it count.
func (p *Proxy) Refresh() {
	p.applying.Lock()
	defer p.applying.Unlock()
	for _, u := range p.upstreams {
		p.tell(u.refresh(p.standings(u.now.Load()), time.Now()))
	}
}

// standings ask what is known of the servers of an upstream.
func (p *Proxy) standings(g *generation) map[*server]Standing {
	if p.health == nil {
		return nil
	}
	known := map[*server]Standing{}
	for _, c := range g.config.Pool.Servers {
		known[g.server(c)] = p.health(g.config, c)
	}
	return known
}

func (p *Proxy) tell(changed []Event) {
	for _, e := range changed {
		if p.event != nil {
			p.event(e)
		}
	}
}

// Close accepts nothing more, waits for the requests under way as long as ctx lasts, and
// ends.
func (p *Proxy) Close(ctx context.Context) {
	p.applying.Lock()
	defer p.applying.Unlock()
	if p.closed {
		return
	}
	p.closed = true
	w := p.now.Load()
	for _, l := range w.listeners {
		p.retire(l.now.Load())
		l.leave()
		p.left = append(p.left, l)
	}
	for _, l := range p.left {
		l.close()
	}
	var all sync.WaitGroup
	for _, s := range p.old {
		all.Go(func() { s.shutdown(ctx) })
	}
	all.Wait()
	for _, u := range p.upstreams {
		u.now.Load().transport.retire()
	}
	p.room.closeAll() // upgraded connections: their requests end, and have lines, too
	if w.log != nil {
		w.log.release()
		p.oldLogs = append(p.oldLogs, w.log)
	}
	for _, l := range p.oldLogs {
		l.wait()
	}
}
