package lb

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"time"
)

// ProbeType is the kind of a health probe.
type ProbeType string

// The kinds of probe.
const (
	ProbeTCP   ProbeType = "tcp"
	ProbeHTTP  ProbeType = "http"
	ProbeHTTPS ProbeType = "https"
	ProbeDNS   ProbeType = "dns"
	ProbeUDP   ProbeType = "udp"
	ProbeExec  ProbeType = "exec"
	// ProbeCheck is none of its own: the verdict on a check of this node is that on
	// every server.
	ProbeCheck ProbeType = "check"
)

// OverTCP tells whether probes of the type are TCP connections, which alone can go
// to a VIP at a server.
func (t ProbeType) OverTCP() bool { return t == ProbeTCP || t == ProbeHTTP || t == ProbeHTTPS }

// A Probe says how the health of a server is found out.
type Probe struct {
	Type     ProbeType
	Interval time.Duration // from the start of one run to the start of the next
	Timeout  time.Duration // of one run
	Rise     int           // successes in a row that make a failed server healthy
	Fall     int           // failures in a row that make a healthy server failed
	Port     uint16        // 0: the port of the server
	// ViaVIP sends the probe to the VIP at the server, by the path that packets of
	// clients take, where the service's mode is DSR or Tunnel; elsewhere it says nothing.
	// It is false where Type is not over TCP.
	ViaVIP bool

	// For ProbeHTTP and ProbeHTTPS.
	Pages  []Page // never empty; all must be good within one timeout
	Status []StatusRange
	Body   *regexp.Regexp // must match each within the first 64 KiB; nil: any body

	// For ProbeHTTPS.
	TLS TLS

	// For ProbeDNS: the server must answer it without an error, with a record at least.
	Query Query

	// For ProbeUDP: what one datagram holds, and what an answer must match within its
	// first 4 KiB; nil: no answer is needed, as long as no ICMP error comes.
	Send   string
	Expect *regexp.Regexp

	// For ProbeExec: a program and its arguments, where {address} and {port} stand for
	// the server's, and who runs it; "": the daemon's own user.
	Command []string
	User    string

	// For ProbeCheck: the name of the check. Its rhythm is its own; all else here is
	// zero.
	Check string
}

// A Page is what an HTTP probe asks a server for.
type Page struct {
	Host string // Host header; "": the address and port
	Path string // request target, starting with "/"
}

func (p Page) String() string { return p.Host + p.Path }

// A StatusRange is an inclusive range of HTTP status codes.
type StatusRange struct{ First, Last int }

// A TLS says how a server that is probed with TLS shows who it is.
type TLS struct {
	CA string // certificates in PEM of whom to trust; "": whom the system trusts
	// ServerName is what the certificate must be for, and what the server is told that
	// is wanted; "": the host that is asked for, or else the address.
	ServerName string
	Insecure   bool // any certificate will do
}

// A Query is a question to a name server.
type Query struct {
	Name string // with its final dot
	Type QueryType
}

func (q Query) String() string { return fmt.Sprintf("%s %v", q.Name, q.Type) }

// A QueryType is a type of resource records, by its IANA number.
type QueryType uint16

// The types that a probe may ask for.
const (
	QueryA     QueryType = 1
	QueryNS    QueryType = 2
	QueryCNAME QueryType = 5
	QuerySOA   QueryType = 6
	QueryPTR   QueryType = 12
	QueryMX    QueryType = 15
	QueryTXT   QueryType = 16
	QueryAAAA  QueryType = 28
	QuerySRV   QueryType = 33
	QueryHTTPS QueryType = 65
	QueryCAA   QueryType = 257
)

var queryTypes = map[QueryType]string{
	QueryA: "A", QueryNS: "NS", QueryCNAME: "CNAME", QuerySOA: "SOA", QueryPTR: "PTR", QueryMX: "MX", QueryTXT: "TXT",
	QueryAAAA: "AAAA", QuerySRV: "SRV", QueryHTTPS: "HTTPS", QueryCAA: "CAA",
}

func (t QueryType) String() string {
	if s, ok := queryTypes[t]; ok {
		return s
	}
	return fmt.Sprintf("TYPE%d", uint16(t))
}

// QueryTypes returns the types that a probe may ask for, by their numbers.
func QueryTypes() []QueryType { return slices.Sorted(maps.Keys(queryTypes)) }

// A ProbePath is the way of a probe to a VIP at a server, as packets of clients
// go. The zero value is none: such a probe goes to the server's own address.
type ProbePath struct {
	VIP     netip.Addr
	Server  netip.Addr
	Forward Forward // DSR or Tunnel; to the proxy of another node as to a server of DSR
}

func (p ProbePath) String() string { return fmt.Sprintf("%v at %v by %v", p.VIP, p.Server, p.Forward) }

// Compare orders by VIP, server and forwarding mode.
func (p ProbePath) Compare(o ProbePath) int {
	return cmp.Or(p.VIP.Compare(o.VIP), p.Server.Compare(o.Server), cmp.Compare(p.Forward, o.Forward))
}
