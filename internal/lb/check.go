package lb

import (
	"net/netip"
	"regexp"
	"time"
)

// CheckType is the kind of a check.
type CheckType string

// The kinds of check.
const (
	CheckHTTP    CheckType = "http"
	CheckHTTPS   CheckType = "https"
	CheckTCP     CheckType = "tcp"
	CheckDNS     CheckType = "dns"
	CheckUDP     CheckType = "udp"
	CheckExec    CheckType = "exec"
	CheckProcess CheckType = "process"
)

// A Check says how the health of something on this node is found out: what
// virtual routers depend on.
type Check struct {
	Name     string
	Type     CheckType
	Interval time.Duration // from the start of one run to the start of the next
	Timeout  time.Duration // of one run
	Rise     int           // passes in a row that end a failure
	Fall     int           // failures in a row that are one

	// For CheckHTTP and CheckHTTPS: all must pass.
	URLs   []URL
	Status []StatusRange
	Body   *regexp.Regexp // as in Probe
	TLS    TLS            // of those of URLs that have TLS

	// For CheckTCP, CheckDNS and CheckUDP: what must answer.
	Address netip.AddrPort
	Query   Query          // as in Probe
	Send    string         // as in Probe
	Expect  *regexp.Regexp // as in Probe

	// For CheckExec: a program and its arguments, and who runs it; "": the
	// daemon's own user.
	Command []string
	User    string

	// For CheckProcess: one of both at least. With both the file's process must
	// have the name.
	Process string
	PIDFile string

	Recover *Recover // nil: a failure is one at once
}

// A URL is what an HTTP check asks for.
type URL struct {
	TLS     bool // https
	Address netip.AddrPort
	Host    string // Host header
	Path    string // request target, starting with "/"
}

func (u URL) String() string {
	if u.TLS {
		return "https://" + u.Host + u.Path
	}
	return "http://" + u.Host + u.Path
}

// A Recover is what is tried before a failing check is one that has failed.
type Recover struct {
	Command  []string
	Wait     time.Duration // from the end of the command to the next run of the check
	Attempts int           // at least 1
}

// TrackKind is the kind of what a virtual router depends on.
type TrackKind string

// The kinds.
const (
	TrackCheck     TrackKind = "check"
	TrackInterface TrackKind = "interface"
	TrackService   TrackKind = "service"
	TrackUpstream  TrackKind = "upstream"
)

// A Tracked is something that a virtual router depends on.
type Tracked struct {
	Kind TrackKind
	Name string
	// Weight is added to the priority: a negative one while Name fails, a positive
	// one while it does not. 0: a failure is a fault of the virtual router. A
	// service or upstream has a weight.
	Weight int
}
