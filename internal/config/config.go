// Package config reads sluice's YAML configuration, strictly, into typed
// values: an unknown key, a wrong type, a bad address, a duplicate or a dangling
// reference is an error with its file, line and column, and all of them are
// found in one run. What sluice knows but does not do yet is refused, never
// ignored.
//
// A field that takes a text gets the source text of the scalar, without its
// quotes, whatever YAML would make of it: a password 0123 is "0123", a pool may
// be called 1e3, true or null. Only a key without any value is an error.
//
// [Reference] is an annotated configuration with every key.
package config

import (
	_ "embed"
	"net/netip"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// Reference is a configuration with every supported key, and a comment for
// each. It loads without an error.
//
//go:embed reference.yaml
var Reference string

// DefaultSocket is the admin socket where the configuration names none.
const DefaultSocket = "/run/sluice/sluice.sock"

// DefaultListen is where metrics are where the configuration does not say.
var DefaultListen = netip.MustParseAddrPort("127.0.0.1:9780")

// DefaultPriority is the VRRP priority where neither the instance nor the node
// has one.
const DefaultPriority = 100

// Options is what the caller knows and the file may not.
type Options struct {
	Node     string // --node; "": not given
	Hostname string // used where neither the caller nor the file names the node
	// Fits tells which services the data plane has no room for; nil: it has room for
	// all. It is asked where nothing else is wrong.
	Fits func([]lb.Service) []lb.Misfit
}

// A Config is a configuration, valid and complete: defaults are filled in,
// references are resolved.
type Config struct {
	File  string   // as given to Load
	Files []string // every file read: File and what it includes, in order

	Node  string // this node's name
	Nodes []Node // the roster, in the order of the file; empty where there is none

	Datapath Datapath

	// This node's share of Datapath.Ports. Two nodes of one roster never hold
	// the same port: the range is split evenly in the order of the nodes'
	// names, the share of index 0 first. Without a roster this node has the
	// first half.
	ShareIndex int
	ShareCount int
	PortShare  lb.PortRange

	Services []lb.Service // in the order of the files
	Pools    []lb.Pool    // those of pools:, not the services' own; in the order of the files
	Checks   []lb.Check   // in the order of the files
	VRRP     []Instance   // in the order of the files

	Sync Sync

	HTTP lb.HTTP // no servers: nothing is served
	DNS  lb.DNS  // no listen: nothing is answered

	Admin Admin
}

// A Node is one who takes part.
type Node struct {
	Name       string
	Address    netip.Addr
	Priority   int      // 1 to 255; DefaultPriority where the file has none
	Interfaces []string // nil: those of the datapath
}

// A Mode is how the XDP program is attached.
type Mode string

// The modes.
const (
	ModeAuto    Mode = "auto"    // native, or generic where the driver cannot
	ModeNative  Mode = "native"  // in the driver; an error where it cannot
	ModeGeneric Mode = "generic" // in the stack
)

// Datapath is the set-up of the fast path on this node.
type Datapath struct {
	Interfaces []string // never empty where there is a service
	Mode       Mode
	MaxFlows   int
	Ports      lb.PortRange // source ports of nat, of all nodes together
	NATLog     string       // absolute path of nat's translation log; "": none
	// The prefixes, masked, that the outer source addresses of tunnels are taken
	// from: 8 to 32 bits of IPv4, 32 to 128 bits of IPv6.
	TunnelSource4, TunnelSource6 netip.Prefix
	// The prefixes, masked, of the addresses that probes through VIPs dial.
	ProbeAddresses4, ProbeAddresses6 netip.Prefix
}

// An Instance is a VRRP instance of this node.
type Instance struct {
	Name      string
	Interface string
	VRID      uint8 // 1 to 255
	Priority  uint8 // 1 to 255
	Version   uint8 // 2 or 3
	// Checksum is the form that is sent in version 3 of IPv4: auto, plain, pseudo_header.
	Checksum     string
	Interval     time.Duration
	Password     string // simple password of VRRPv2, up to 8 bytes; "": none
	Preempt      bool
	PreemptDelay time.Duration
	SyncWait     time.Duration // 0: the other nodes' state is not waited for
	StartTimeout time.Duration
	// Addresses is never empty and of one family: each the host's address with the
	// prefix of its network. A link-local one is the first.
	Addresses []netip.Prefix
	// Peers are the other nodes where advertisements are unicast, else empty.
	Peers []netip.Addr
	// Source is this node's address in the roster, if advertisements are unicast
	// and it is of the family of Addresses; else invalid.
	Source    netip.Addr
	Heartbeat Heartbeat
	// VirtualMAC has the VIPs at the virtual router's MAC address.
	VirtualMAC bool
	// Accept says that the Active node takes for the VIPs what no service does, too.
	Accept bool
	Track  []lb.Tracked // what it depends on; each names a check or service that is there
	// Group is the name that it has in common with those it moves together with; "":
	// it moves by itself.
	Group  string
	Notify Notify
	// Routes and Rules are there while the instance is Active.
	Routes []Route
	Rules  []Rule
}

// VIPs are the addresses of the instance.
func (i *Instance) VIPs() []netip.Addr {
	var vips []netip.Addr
	for _, p := range i.Addresses {
		vips = append(vips, p.Addr())
	}
	return vips
}

// V6 tells the family of the addresses.
func (i *Instance) V6() bool { return i.Addresses[0].Addr().Is6() }

// Admin is how commands and monitoring reach the daemon.
type Admin struct {
	Socket string // absolute path of the Unix socket
	// Listen is where metrics and the status page are; invalid: nowhere.
	Listen netip.AddrPort
}

// Load reads a configuration and all that it includes. The error, if any, is of
// type [Errors] and holds every mistake that was found.
func Load(path string, opts Options) (*Config, error) {
	return load(osFiles{}, path, opts)
}

func load(files fileSystem, path string, opts Options) (*Config, error) {
	l := &loader{files: files, ids: map[string]string{}}
	doc := l.load(path)
	if doc == nil {
		return nil, l.d.errs.sorted(l.order)
	}
	cfg := doc.decode(&l.d, files, opts)
	if len(l.d.errs) > 0 {
		return nil, l.d.errs.sorted(l.order)
	}
	cfg.File, cfg.Files = path, l.order
	return cfg, nil
}
