package config

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/sluice-lb/sluice/internal/lb"
)

// FuzzLoad feeds any text as the main file, with a second file that it may
// include. Nothing may panic, a Config comes exactly without an error, and
// every mistake says where it is.
func FuzzLoad(f *testing.F) {
	f.Add(Reference, "pools: [{name: more, servers: [{address: 192.0.2.31}]}]\n")
	f.Add(pair, "")
	f.Add(design, "x-a: 1\n")
	f.Add("include: [b.yaml]\n", "include: [a.yaml]\n")
	for _, c := range mistakes {
		f.Add(c.yaml, "")
	}
	for _, c := range syntaxMistakes {
		f.Add(c.yaml, "")
	}
	for _, c := range slices.Concat(frontendMistakes, forwardingMistakes, accessMistakes, checkMistakes, heartbeatMistakes, httpMistakes, proxiedMistakes) {
		f.Add(c.yaml, "")
	}
	f.Fuzz(func(t *testing.T, main, other string) {
		files := memFiles{"a.yaml": main, "b.yaml": other, "conf.d/c.yaml": other}
		start := time.Now()
		cfg, err := load(files, "a.yaml", Options{Hostname: "lb1"})
		if took := time.Since(start); took > 20*time.Second {
			t.Errorf("took %v for %d bytes", took, len(main)+len(other))
		}
		if (cfg == nil) == (err == nil) {
			t.Fatalf("configuration %v with error %v", cfg, err)
		}
		if err == nil {
			checkInvariants(t, cfg)
			return
		}
		var all Errors
		if !errors.As(err, &all) || len(all) == 0 {
			t.Fatalf("error %T holds no mistakes", err)
		}
		for _, e := range all {
			checkPlace(t, files, e)
		}
	})
}

// checkPlace checks that a mistake points into its file, and how it is printed.
func checkPlace(t *testing.T, files memFiles, e *Error) {
	t.Helper()
	content, ok := files[e.File]
	if !ok {
		t.Fatalf("mistake in unknown file: %v", e)
	}
	src := newSource(e.File, []byte(content))
	switch {
	case e.Line < 1 || e.Line > len(src.lines):
		t.Errorf("line %d of %d: %v", e.Line, len(src.lines), e)
	case e.Text != src.lines[e.Line-1]:
		t.Errorf("text %q of line %d is not %q", e.Text, e.Line, src.lines[e.Line-1])
	case e.Column < 1 || e.Column > utf8.RuneCountInString(e.Text)+1:
		t.Errorf("column %d of %d: %v", e.Column, utf8.RuneCountInString(e.Text), e)
	}
	if e.Message == "" || strings.ContainsAny(e.Message, "\r\n") {
		t.Errorf("message %q is not one line", e.Message)
	}
	if got := strings.Count(e.Error(), "\n"); got != 2 {
		t.Errorf("printed with %d line breaks: %q", got, e.Error())
	}
}

// checkInvariants checks what a Config promises.
func checkInvariants(t *testing.T, c *Config) {
	t.Helper()
	if c.PortShare.First > c.PortShare.Last || c.PortShare.First < c.Datapath.Ports.First || c.PortShare.Last > c.Datapath.Ports.Last {
		t.Errorf("share %v of %v", c.PortShare, c.Datapath.Ports)
	}
	if len(c.Services) > 0 && len(c.Datapath.Interfaces) == 0 {
		t.Error("services without interfaces")
	}
	if p := c.Datapath.TunnelSource4; !p.Addr().Is4() || p != p.Masked() || p.Bits() < 8 {
		t.Errorf("outer IPv4 sources %v", p)
	}
	if p := c.Datapath.TunnelSource6; !p.Addr().Is6() || p.Addr().Is4In6() || p != p.Masked() || p.Bits() < 32 {
		t.Errorf("outer IPv6 sources %v", p)
	}
	held := map[listening][]lb.PortRange{}
	for _, s := range c.Services {
		if s.Name == "" || len(s.Addresses) == 0 || len(s.Pool.Servers) == 0 || s.Pool.Name == "" || !isPrime(s.TableSize) {
			t.Errorf("service %+v is not complete", s)
		}
		checkFrontend(t, s, held)
		checkForwarding(t, s)
		checkAccess(t, s)
		if p := s.Pool.Probe; p != nil && p.Type != lb.ProbeCheck && (p.Type == "" || p.Timeout <= 0 || p.Timeout > p.Interval || p.Rise < 1 || p.Fall < 1) {
			t.Errorf("service %s: probe %+v", s.Name, p)
		}
		checkProbe(t, s, c.Checks)
	}
	checkTracking(t, c)
	for _, i := range c.VRRP {
		if i.Name == "" || i.Interface == "" || i.VRID == 0 || i.Priority == 0 || i.Version < 2 || i.Version > 3 ||
			i.Interval <= 0 || len(i.Password) > 8 || len(i.Addresses) == 0 {
			t.Errorf("instance %+v is not complete", i)
		}
		for k, p := range i.Addresses {
			if a := p.Addr(); a.Is4() != i.Addresses[0].Addr().Is4() || a.Is6() && (i.Version == 2 || a.IsLinkLocalUnicast() && k > 0) {
				t.Errorf("instance %s: version %d with addresses %v", i.Name, i.Version, i.Addresses)
			}
		}
		for _, p := range i.Peers {
			if p.Is4() != i.Addresses[0].Addr().Is4() || p == i.Source {
				t.Errorf("instance %s: addresses %v with peers %v, source %v", i.Name, i.Addresses, i.Peers, i.Source)
			}
		}
	}
}

// checkFrontend checks where a service listens. held is what the services
// before it have.
func checkFrontend(t *testing.T, s lb.Service, held map[listening][]lb.PortRange) {
	t.Helper()
	if s.Protocol != lb.TCP && s.Protocol != lb.UDP {
		t.Errorf("service %s: %v", s.Name, s.Protocol)
	}
	for _, f := range s.Addresses {
		if !f.VIP.IsValid() || f.VIP.Is4In6() || f.VIP.Zone() != "" || f.Ports.First == 0 || f.Ports.Last < f.Ports.First {
			t.Errorf("service %s: address %v", s.Name, f)
		}
		l := listening{f.VIP, s.Protocol}
		for _, r := range held[l] {
			if r.First <= f.Ports.Last && f.Ports.First <= r.Last {
				t.Errorf("service %s: address %v overlaps ports %v", s.Name, f, r)
			}
		}
		held[l] = append(held[l], f.Ports)
		if p := s.Pool.Probe; p != nil && p.Port == 0 && p.Type != lb.ProbeCheck && f.Ports.Count() > 1 {
			for _, server := range s.Pool.Servers {
				if server.Port == 0 {
					t.Errorf("service %s: no port to probe %v", s.Name, server.Address)
				}
			}
		}
	}
}

// checkProbe checks that a probe has what its type needs.
func checkProbe(t *testing.T, s lb.Service, checks []lb.Check) {
	t.Helper()
	p := s.Pool.Probe
	if p == nil {
		return
	}
	complete := !p.ViaVIP || p.Type.OverTCP()
	switch p.Type {
	case lb.ProbeHTTP, lb.ProbeHTTPS:
		complete = complete && len(p.Pages) > 0 && len(p.Status) > 0
		for _, page := range p.Pages {
			complete = complete && page.Path[0] == '/'
		}
	case lb.ProbeCheck:
		complete = slices.ContainsFunc(checks, func(c lb.Check) bool { return c.Name == p.Check })
	case lb.ProbeExec:
		complete = complete && len(p.Command) > 0
	case lb.ProbeDNS:
		complete = complete && strings.HasSuffix(p.Query.Name, ".") && p.Query.Type != 0
	}
	if !complete {
		t.Errorf("service %s: probe %+v is not complete", s.Name, p)
	}
}

// checkForwarding checks that the addresses of a service suit its forwarding
// mode.
func checkForwarding(t *testing.T, s lb.Service) {
	t.Helper()
	if s.Forward < lb.NAT || s.Forward > lb.Proxy {
		t.Errorf("service %s: %v", s.Name, s.Forward)
	}
	if (len(s.SourceAddresses) > 0) != (s.Forward == lb.NAT) {
		t.Errorf("service %s: %v with source addresses %v", s.Name, s.Forward, s.SourceAddresses)
	}
	if s.Affinity == lb.AffinityFlow && (s.Protocol != lb.UDP || s.Forward == lb.NAT) {
		t.Errorf("service %s: affinity of %v, %v", s.Name, s.Protocol, s.Forward)
	}
	first := s.Addresses[0]
	several := false
	for _, f := range s.Addresses {
		several = several || f.Ports.Count() > 1 || f.Ports != first.Ports
		if s.Forward == lb.DNAT && f.VIP != first.VIP {
			t.Errorf("service %s: VIPs %v and %v without source NAT", s.Name, first.VIP, f.VIP)
		}
		if s.Forward.Rewrites() && f.VIP.Is4() != first.VIP.Is4() {
			t.Errorf("service %s: %v with %v", s.Name, first, f)
		}
	}
	for _, server := range s.Pool.Servers {
		if s.Forward.Rewrites() && server.Address.Is4() != first.VIP.Is4() {
			t.Errorf("service %s: %v to %v", s.Name, first, server.Address)
		}
		wrong := false
		switch s.Forward {
		case lb.NAT:
			wrong = several && !s.KeepsPorts && server.Port == 0 || s.KeepsPorts && (!several || server.Port != 0)
		case lb.DNAT:
			wrong = several && server.Port != 0
		default:
			wrong = server.Port != 0 && (several || server.Port != first.Port())
		}
		if wrong {
			t.Errorf("service %s: %v, addresses %v, server port %d", s.Name, s.Forward, s.Addresses, server.Port)
		}
	}
	for _, a := range s.SourceAddresses {
		if a.Is4() != first.VIP.Is4() {
			t.Errorf("service %s: source %v for %v", s.Name, a, first)
		}
	}
}

// checkAccess checks rules, limits and times of a service.
func checkAccess(t *testing.T, s lb.Service) {
	t.Helper()
	seen := map[netip.Prefix]bool{}
	allow := false
	for _, r := range s.Rules {
		if !r.Prefix.IsValid() || r.Prefix != r.Prefix.Masked() || r.Prefix.Addr().Is4In6() || seen[r.Prefix] {
			t.Errorf("service %s: rule %v", s.Name, r)
		}
		seen[r.Prefix] = true
		allow = allow || r.Allow
	}
	if s.AllowOnly != allow {
		t.Errorf("service %s: allow only %v with rules %v", s.Name, s.AllowOnly, s.Rules)
	}
	if l := s.SourceLimit; l != (lb.SourceLimit{}) && (l.Rate < 1 || l.Rate > maxRate || l.Burst < 1 || l.Burst > maxRate) {
		t.Errorf("service %s: limit %+v", s.Name, l)
	}
	if s.SlowStart < 0 || s.TrackWindow < 0 || s.TrackWindow > maxTrackWindow || s.TrackWindow > 0 && s.TrackWindow < time.Second || s.DrainTimeout < 0 {
		t.Errorf("service %s: slow start %v, window %v, drain timeout %v", s.Name, s.SlowStart, s.TrackWindow, s.DrainTimeout)
	}
}
