package l7

import (
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// ServeHTTP serves a request of one of the listeners.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	conn := connectionOf(r.Context())
	x := &exchange{
		proxy: p, world: p.now.Load(), request: r, conn: conn, answerer: response{ResponseWriter: w, conn: conn},
		began: time.Now(), peer: conn.peer, local: conn.local, uri: r.RequestURI,
	}
	x.writer = &x.answerer
	if r.ProtoMajor == 2 {
		x.writer.send = x.world.config.Client.SendTimeout
	} else if r.ContentLength != 0 {
		// What the handler does not read of the body net/http does, and as long as it
		// comes: so there is an end to it, unless who reads the body says otherwise.
		_ = http.NewResponseController(w).SetReadDeadline(x.began.Add(x.world.config.Client.BodyTimeout)) // it is closed: a read says so
	}
	x.host = conn.listener.routes.Load().find(r.Host)
	x.location = x.host.otherwise
	x.host.stats.begin()
	x.log = x.holdLog()
	defer x.finish()
	x.findClient(x.world.config.TrustedProxies)
	x.nameRequest(x.world.config.RequestID)
	slash, status := x.locate()
	switch {
	case status != 0:
		x.fail(status)
	case slash:
		x.redirect(http.StatusMovedPermanently, x.absolute((&url.URL{Path: x.path + "/"}).EscapedPath()))
	default:
		x.serve()
	}
}

// locate finds the location; what is wrong is a status. Slash tells that none is to be found
// because a slash is missing.
func (x *exchange) locate() (slash bool, status int) {
	r := x.request
	if !wellNamed(r) {
		return false, http.StatusBadRequest
	}
	if r.Host == "" {
		r.Host = x.ownName()
	}
	if r.Method == http.MethodConnect || r.Method == http.MethodTrace { // as in nginx: TRACE would show what the proxy adds
		return false, http.StatusMethodNotAllowed
	}
	asked := r.URL.Path
	if asked == "" && r.URL.Host != "" {
		asked = "/" // http://host is http://host/
	}
	path, ok := normalize(asked)
	if !ok {
		return false, http.StatusBadRequest
	}
	x.path = path
	found, slash := x.host.locations.find(path)
	if found != nil {
		x.location = found
	}
	return slash, 0
}

// ownName is how the virtual host is called where the client says nothing, as HTTP/1.0
// may: by its first name, as in nginx, or by the address that the client has connected to.
func (x *exchange) ownName() string {
	for _, name := range x.host.config.Names {
		if name[0] != '*' {
			return name
		}
	}
	return authority(x.local, x.scheme())
}

// wellNamed tells whether method, host and length are words that mean the same to
// everybody. Of HTTP/1 that is known already; in HTTP/2 a method may have spaces.
func wellNamed(r *http.Request) bool {
	for i := range len(r.Method) {
		if !isToken(r.Method[i]) {
			return false
		}
	}
	if !isHost(r.Host) || !isHostText(r.Host) { // of HTTP/1 it may be that of the target
		return false
	}
	if r.ProtoMajor == 1 {
		// A URL for a target has a host, and nobody's name and password (RFC 9110, section 4.2).
		return r.URL.Scheme == "" || r.URL.Host != "" && r.URL.User == nil
	}
	// A length that is no number is 0 for net/http, until the body comes.
	if l := r.Header["Content-Length"]; l != nil && (len(l) != 1 || strings.Trim(l[0], "0123456789") != "" || l[0] == "") {
		return false
	}
	if r.Method != http.MethodConnect && r.URL.Host != "" { // the path is a URL
		return false
	}
	if h := r.Header["Host"]; h != nil { // beside :authority
		if len(h) != 1 || !strings.EqualFold(h[0], r.Host) {
			return false
		}
		delete(r.Header, "Host")
	}
	return r.Host != ""
}

// absolute is where the client finds a path of this server.
func (x *exchange) absolute(path string) string {
	to := x.scheme() + "://" + x.request.Host + path
	if q := x.request.URL.RawQuery; q != "" {
		to += "?" + q
	}
	return to
}

// serve does what the location says.
func (x *exchange) serve() {
	l := x.location
	if !l.access.allows(x.client.Addr()) {
		x.fail(http.StatusForbidden)
		return
	}
	if l.limit != nil { // who has no key is not counted, as in nginx
		if key := x.limitKey(l.config.RateLimit.Key); key != "" && !l.limit.allows(key, x.began) {
			x.fail(l.config.RateLimit.Status)
			return
		}
	}
	if z := newGzip(l.config.Gzip, x.request, x.writer); z != nil {
		x.writer.ResponseWriter = z
		x.answer()
		x.writer.patience(x.writer.send)
		z.close() // not after a panic: what was cut off must not end as a whole answer
		return
	}
	x.answer()
}

// answer answers, or has a server answer.
func (x *exchange) answer() {
	l := x.location
	switch c := l.config; {
	case c.Return != nil:
		x.giveBack(c.Return)
	case c.Redirect != nil && c.Redirect.Upstream == "":
		x.redirect(c.Redirect.Status, newText(c.Redirect.To).expandURL(x))
	case c.Redirect == nil && c.Upstream == "":
		x.fail(http.StatusNotFound)
	default:
		x.askServer(c)
	}
}

// askServer has a server answer, or sends the client to one.
func (x *exchange) askServer(c *lb.Location) {
	var inside bool
	switch x.target, inside = target(c, x.request.URL, x.path); {
	case !inside:
		x.fail(http.StatusBadRequest)
	case c.Redirect != nil:
		x.redirectToServer(c.Redirect)
	default:
		x.forward()
	}
}

// redirectToServer sends the client to a server of the upstream itself.
func (x *exchange) redirectToServer(r *lb.Redirect) {
	u := x.location.upstream
	g := u.now.Load()
	c := x.choice(g)
	u.requests.Add(1)
	s := u.pick(g, c, time.Now())
	if s == nil {
		u.failures.Add(1)
		x.err = errNoServer
		x.fail(http.StatusBadGateway)
		return
	}
	u.release(s) // what the client does there is not known here
	u.bind(g, x, c.bound, s, x.writer.Header())
	x.redirect(r.Status, scheme(g.config)+"://"+authority(s.address, scheme(g.config))+x.target.RequestURI())
}

// authority is an address as it stands in a URL: without the port that goes without
// saying.
func authority(a netip.AddrPort, scheme string) string {
	if scheme == "http" && a.Port() == 80 || scheme == "https" && a.Port() == 443 {
		if a.Addr().Is6() {
			return "[" + a.Addr().String() + "]"
		}
		return a.Addr().String()
	}
	return a.String()
}

// forward sends the request to the upstream.
func (x *exchange) forward() {
	c, r := x.location.config, x.request
	if c.MaxBody > 0 && r.ContentLength > c.MaxBody {
		x.err = errTooLarge
		x.fail(http.StatusRequestEntityTooLarge)
		return
	}
	limit := 0
	if c.RequestBuffering && !x.isGRPC() {
		limit = c.RequestBuffer
	}
	if r.ContentLength != 0 {
		x.incoming = newClientBody(r.Body, &x.world.config.Client, c.MaxBody, x.began)
		if !x.isGRPC() {
			x.incoming.deadline = http.NewResponseController(x.writer.ResponseWriter).SetReadDeadline
		}
		if r.ProtoMajor == 1 {
			x.incoming.breaks, x.writer.incoming = true, x.incoming
		}
	}
	x.trailers = announcedTrailers(r)
	x.body = &x.noBody
	if x.incoming != nil {
		var err error
		if x.body, err = readAhead(x.incoming, r.ContentLength, limit); err != nil {
			x.err = err
			x.fail(statusOf(err))
			return
		}
	}
	answered := false // not after a panic
	defer func() { x.endBody(answered) }()
	if r.ProtoMajor == 1 && !x.body.whole() {
		// An answer may begin while the body comes: net/http must not read that beside
		// the upload, nor have the answer wait.
		_ = http.NewResponseController(x.writer.ResponseWriter).EnableFullDuplex() // HTTP/1 always can
	}
	defer func() { // also of answers that nobody has closed
		for _, a := range x.attempts {
			a.end()
		}
	}()
	x.location.proxy.serve(x)
	answered = true
}

// endBody has nobody read the request's body any more. Behind an answer net/http reads
// what may be left of it, so that the client, which may still send, reads the answer; for
// as long, at most, as a piece of the body may take. What was broken off ends at once.
func (x *exchange) endBody(answered bool) {
	x.body.close()
	if x.request.ProtoMajor != 1 || !x.incoming.remains() {
		return
	}
	until := time.Unix(1, 0)
	if answered {
		x.writer.closeBehind()
		until = time.Now().Add(x.world.config.Client.BodyTimeout)
	}
	_ = http.NewResponseController(x.writer.ResponseWriter).SetReadDeadline(until) // it is closed: a read says so
}

// isGRPC tells whether a request is a stream of messages in both directions, perhaps
// with hours between them. Only servers that speak HTTP/2 know that: towards others it is a
// body like any other, whatever the client calls it.
func (x *exchange) isGRPC() bool {
	if x.request.ProtoMajor != 2 || !x.location.upstream.now.Load().config.HTTP2 {
		return false
	}
	rest, ok := strings.CutPrefix(x.request.Header.Get("Content-Type"), "application/grpc")
	return ok && (rest == "" || rest[0] == '+' || rest[0] == ';')
}

// finish counts the request and has it logged. It goes on with a panic.
func (x *exchange) finish() {
	x.writer.patience(x.writer.send) // what is left of the answer is sent when the handler has returned
	took := time.Since(x.began)
	status := x.writer.status
	if status == 0 {
		status = http.StatusOK // net/http writes it
	}
	x.host.stats.end(status, x.incoming.received(), x.writer.bytes)
	if x.log == nil {
		return
	}
	if !x.location.config.NoLog {
		x.log.put(x, status, took)
	}
	x.log.release()
}
