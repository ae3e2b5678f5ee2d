package lb

import (
	"net/netip"
	"regexp"
	"time"
)

// HTTP is what is served on layer 7. The zero value serves nothing.
type HTTP struct {
	Upstreams []Upstream
	Servers   []HTTPServer
	// TrustedProxies are the hosts whose word counts about the client that they
	// speak for: X-Forwarded-For and its like, and the PROXY protocol.
	TrustedProxies []netip.Prefix
	AccessLog      AccessLog
	Client         ClientLimits
	// MaxConnections is how many connections clients may have at a time; 0: as many as
	// the limit of open files is good for.
	MaxConnections int
	// RequestID is the header that names a request; "": none does.
	RequestID string
}

// ClientLimits bound what a client may take its time for, and how much it may say.
type ClientLimits struct {
	HeaderTimeout    time.Duration // for the whole head of a request
	BodyTimeout      time.Duration // between two pieces of a body
	MinBodyRate      int           // bytes a second, counted from HeaderTimeout after the head; 0: any
	SendTimeout      time.Duration // for a piece of an answer
	KeepaliveTimeout time.Duration // from an answer to the next request
	MaxHeader        int           // bytes of a head
}

// An AccessLogFormat is how a line of an access log looks.
type AccessLogFormat string

// The formats.
const (
	LogCombined AccessLogFormat = "combined" // nginx's
	LogJSON     AccessLogFormat = "json"
)

// An AccessLog is a file with a line for each request. The zero value is none.
type AccessLog struct {
	Path   string
	Format AccessLogFormat
}

// A Policy says how a server of an upstream is chosen for a request.
type Policy string

// The policies.
const (
	RoundRobin Policy = "round_robin" // by weight, smoothly
	LeastConn  Policy = "least_conn"  // the fewest requests for its weight
	IPHash     Policy = "ip_hash"     // by the client's network
	Hash       Policy = "hash"        // by a key of the request, consistently
	RandomTwo  Policy = "random_two"  // the less busy one of two that are drawn
)

// A RequestKey is what of a request tells it from others.
type RequestKey struct {
	Kind RequestKeyKind
	Name string // of the header, the cookie or the query's parameter
}

// A RequestKeyKind is a kind of key.
type RequestKeyKind string

// The kinds of keys.
const (
	KeyClient RequestKeyKind = "client" // the client's address
	KeyURI    RequestKeyKind = "uri"    // path and query, as they came
	KeyPath   RequestKeyKind = "path"
	KeyHost   RequestKeyKind = "host"
	KeyHeader RequestKeyKind = "header"
	KeyCookie RequestKeyKind = "cookie"
	KeyQuery  RequestKeyKind = "query"
)

// String writes the key as the configuration has it.
func (k RequestKey) String() string {
	if k.Name == "" {
		return string(k.Kind)
	}
	return string(k.Kind) + ":" + k.Name
}

// What an upstream is told as Host, beside a name.
const (
	HostClient   = "client"   // what the client said
	HostUpstream = "upstream" // the server's address
)

// An Upstream is a pool that requests go to.
type Upstream struct {
	Name   string
	Pool   Pool // its name is "" where the upstream has servers of its own
	Port   uint16
	Policy Policy
	Key    RequestKey // of Hash
	Sticky *Sticky    // nil: a client may have another server for each request
	Host   string     // HostClient, HostUpstream or a name
	TLS    *UpstreamTLS
	// HTTP2 has servers spoken to in HTTP/2: with TLS, or by prior knowledge.
	HTTP2         bool
	ProxyProtocol int // version that is sent, 1 or 2; 0: none
	Keepalive     int // idle connections that are kept to each server

	ConnectTimeout time.Duration
	SendTimeout    time.Duration // for a piece of a request
	ReadTimeout    time.Duration // until the head of an answer, and between two pieces of it

	Next        NextUpstream
	MaxFails    int           // failures within FailTimeout that take a server out for as long; 0: none do
	FailTimeout time.Duration // see MaxFails
	MaxConns    int           // requests at a time to each server; 0: any number
	SlowStart   time.Duration // how long a server that comes back takes to its full weight
}

// Endpoint is where a server of the upstream is reached.
func (u *Upstream) Endpoint(s Server) netip.AddrPort {
	port := s.Port
	if port == 0 {
		port = u.Port
	}
	return netip.AddrPortFrom(s.Address, port)
}

// A Sticky has clients stay with a server: a cookie names it.
type Sticky struct {
	Cookie, Path, Domain string        // Domain: "" is the host that the client asked
	TTL                  time.Duration // from the last answer; 0: as long as the browser runs
	SameSite             SameSite
	// Keys are what nobody can find out a server's address from a cookie without. The
	// first is used for new ones. Empty: whoever guesses an address can see that it is
	// right.
	Keys [][]byte
}

// SameSite is which requests from other sites a browser sends a cookie with.
type SameSite string

// The words for SameSite (RFC 6265bis).
const (
	SameSiteLax    SameSite = "lax"
	SameSiteStrict SameSite = "strict"
	SameSiteNone   SameSite = "none"
)

// UpstreamTLS is how an upstream is spoken to with TLS.
type UpstreamTLS struct {
	CA         []byte // certificates in PEM that are trusted; nil: the host's
	ServerName string // what the certificate must be for, and what is sent as SNI; "": Host where it is a name, else the server's address
	Verify     bool
}

// NextUpstream says after what a request goes to another server.
type NextUpstream struct {
	Error, Timeout bool
	Status         []int
	// NonIdempotent has requests repeated, too, that may have been carried out: POST,
	// PATCH, LOCK.
	NonIdempotent bool
	Tries         int // in all; 0: as many as there are servers
}

// An HTTPServer is a virtual host.
type HTTPServer struct {
	Listen    []HTTPListen
	Names     []string // lower case; "*.example.com" is every name below it
	Default   bool     // of its listens, in place of the first one
	Locations []Location
	// Otherwise has the settings that count for requests that no location is for. They are
	// answered with 404.
	Otherwise Location
}

// Name is how a server is called: by its first name or else by where it listens.
func (s *HTTPServer) Name() string {
	if len(s.Names) > 0 {
		return s.Names[0]
	}
	return s.Listen[0].Address.String()
}

// HTTPListen is where a server listens.
type HTTPListen struct {
	Address       netip.AddrPort // an unspecified one is all of its family
	TLS           *ServerTLS     // nil: plain HTTP
	ProxyProtocol bool           // trusted proxies begin with the PROXY protocol
}

// ServerTLS is a certificate and its key, as absolute paths of PEM files.
type ServerTLS struct {
	Certificate, Key string
	HTTP2            bool
}

// A LocationKind is how a location is compared with a path.
type LocationKind string

// The kinds of locations.
const (
	LocationPrefix LocationKind = "path"
	LocationExact  LocationKind = "exact"
	LocationRegex  LocationKind = "regex"
)

// A Location is what is done with requests for some paths: one of Upstream, Return
// and Redirect.
type Location struct {
	Kind    LocationKind
	Path    string         // of the first two kinds
	Regex   *regexp.Regexp // of LocationRegex
	NoRegex bool           // of LocationPrefix: where it is the longest one, no regex is tried

	Upstream string
	Return   *Return
	Redirect *Redirect

	StripPrefix bool      // of LocationPrefix: the server gets the path without Path
	Rewrites    []Rewrite // the first that matches changes the path

	RequestHeaders, ResponseHeaders HeaderChanges
	// RequestBuffering has the beginning of a body read before a server is chosen,
	// and all of it where it fits into RequestBuffer bytes.
	RequestBuffering bool
	RequestBuffer    int
	MaxBody          int64 // bytes; 0: any
	Rules            []Rule
	AllowOnly        bool // who matches no rule may not
	RateLimit        *RateLimit
	ErrorPages       []ErrorPage
	InterceptErrors  bool // error pages take the place of what servers answer, too
	Gzip             *Gzip
	NoLog            bool // no line in the access log
}

// String is the location as the configuration has it.
func (l *Location) String() string {
	switch l.Kind {
	case LocationRegex:
		return "regex: " + l.Regex.String()
	case LocationExact:
		return "exact: " + l.Path
	}
	return "path: " + l.Path
}

// A Return is an answer of the proxy's own.
type Return struct {
	Status      int
	Body        string // may have variables
	ContentType string
}

// A Redirect sends the client elsewhere: to a text with variables, or to a server of
// an upstream, with path and query as they are.
type Redirect struct {
	Status   int
	To       string
	Upstream string
}

// A Rewrite changes a path: what Regex matches becomes To, in which $1 stands for
// what its first group has matched. What is behind a question mark in To goes into the query,
// and where To ends with one, that is all of the query.
type Rewrite struct {
	Regex *regexp.Regexp
	To    string
}

// HeaderChanges are made in this order: Remove, Set, Add. Values may have variables.
type HeaderChanges struct {
	Remove []string // canonical names, as in all of them
	Set    []Header
	Add    []Header
}

// A Header is a header's name and value.
type Header struct{ Name, Value string }

// A RateLimit bounds the requests that have a key in common.
type RateLimit struct {
	Key    RequestKey
	Rate   float64 // requests a second
	Burst  int     // at once, beyond one
	Status int     // what the others get
}

// An ErrorPage is what a client sees in place of an error without words.
type ErrorPage struct {
	Status      []StatusRange
	As          int // the status that is sent; 0: as it is
	Body        []byte
	ContentType string
}

// Gzip says which answers are compressed.
type Gzip struct {
	Level     int // 1 to 9
	MinLength int
	Types     []string // media types; "text/*" is all of text
}
