package health

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// fakePaths leads every path to one address, or says why it does not.
type fakePaths struct {
	address netip.Addr
	err     error
	asked   []lb.ProbePath
}

func (p *fakePaths) Find(_ context.Context, path lb.ProbePath) (netip.Addr, error) {
	p.asked = append(p.asked, path)
	return p.address, p.err
}

var (
	loopback = netip.MustParseAddr("127.0.0.1")
	dsrPath  = lb.ProbePath{VIP: netip.MustParseAddr("192.0.2.100"), Server: netip.MustParseAddr("192.0.2.11"), Forward: lb.DSR}
)

// through is a target on a port of a path.
func through(path lb.ProbePath, port uint16, probe lb.Probe) Target {
	return Target{Address: netip.AddrPortFrom(path.Server, port), Probe: probe, Path: path}
}

func TestProbeThroughAVIP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	open := netip.MustParseAddrPort(l.Addr().String()).Port()
	tunnelPath := dsrPath
	tunnelPath.Forward = lb.Tunnel
	probe := lb.Probe{Type: lb.ProbeTCP, Timeout: time.Minute}
	late := probe
	late.Timeout = time.Nanosecond
	tests := []struct {
		name   string
		target Target
		paths  *fakePaths
		want   string // with PORT for the open one
	}{
		{"it answers", through(dsrPath, open, probe), &fakePaths{address: loopback}, ""},
		{"no way", through(dsrPath, 80, probe), &fakePaths{err: errors.New("192.0.2.11 does not answer ARP on eth0")},
			"tcp 192.0.2.100:80 at 192.0.2.11: 192.0.2.11 does not answer ARP on eth0"},
		{"refused", through(dsrPath, closedPort(t).Port(), probe), &fakePaths{address: loopback}, "connect: connection refused"},
		{"silent, dsr", through(dsrPath, open, late), &fakePaths{address: loopback},
			"tcp 192.0.2.100:PORT at 192.0.2.11: connect: no answer within 1ns: is the VIP on its lo?"},
		{"silent, tunnel", through(tunnelPath, open, late), &fakePaths{address: loopback},
			"tcp 192.0.2.100:PORT at 192.0.2.11: connect: no answer within 1ns: is the VIP on its lo, and does it decapsulate?"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := text(bounded(t.Context(), tt.target, prober{tt.paths}.probe))
			want := strings.ReplaceAll(tt.want, "PORT", netip.AddrPortFrom(loopback, open).String()[len("127.0.0.1:"):])
			if tt.name == "refused" {
				if !strings.HasSuffix(got, want) || !strings.HasPrefix(got, "tcp 192.0.2.100:") {
					t.Errorf("got %q", got)
				}
			} else if got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			if diff := cmp.Diff([]lb.ProbePath{tt.target.Path}, tt.paths.asked, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Errorf("paths that were asked for (-want +got):\n%s", diff)
			}
		})
	}
	if got := text(Run(t.Context(), through(dsrPath, 80, probe))); !strings.Contains(got, "nobody knows the way") {
		t.Errorf("without paths: %q", got)
	}
}

// An HTTP server sees the VIP as clients do.
func TestHostOfAProbeThroughAVIP(t *testing.T) {
	for _, tt := range []struct{ name, vip, host, want string }{
		{"IPv4", "192.0.2.100", "", "Host: 192.0.2.100:80\r\n"},
		{"IPv6", "2001:db8::100", "", "Host: [2001:db8::100]:80\r\n"},
		{"one of its own", "192.0.2.100", "www.example.com", "Host: www.example.com\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := dsrPath
			path.VIP = netip.MustParseAddr(tt.vip)
			got, err := request(through(path, 80, lb.Probe{Type: lb.ProbeHTTP}), lb.Page{Host: tt.host, Path: "/"})
			if err != nil || !strings.Contains(got, tt.want) {
				t.Errorf("request %q, %v, want %q in it", got, err, tt.want)
			}
		})
	}
}

// Two VIPs at a server are probed apart, and so is the server itself; what is the
// same runs once.
func TestIdentityOfProbesThroughVIPs(t *testing.T) {
	probe := lb.Probe{Type: lb.ProbeTCP, Interval: time.Second, Timeout: time.Second, Rise: 1, Fall: 1, ViaVIP: true}
	other, tunnel := dsrPath, dsrPath
	other.VIP = other.VIP.Next()
	tunnel.Forward = lb.Tunnel
	direct := Target{Address: netip.AddrPortFrom(dsrPath.Server, 80), Probe: probe}
	notVIP := direct
	notVIP.Probe.ViaVIP = false
	all := []Target{direct, through(dsrPath, 80, probe), through(other, 80, probe), through(tunnel, 80, probe), through(dsrPath, 81, probe)}
	seen := map[string]Target{}
	for _, target := range all {
		if first, ok := seen[target.Identity()]; ok {
			t.Errorf("%v is the same as %v", target, first)
		}
		seen[target.Identity()] = target
	}
	if direct.Identity() != notVIP.Identity() {
		t.Error("probes of a server itself differ")
	}
}

// The port of a probe is its own, whatever it is connected to, so that two probes
// of one VIP are told apart. Where connect chooses, two that go to different
// addresses may share one.
func TestProbesThroughAVIPBindTheirPorts(t *testing.T) {
	h := testenv.New(t, testenv.Spec{Hosts: []testenv.HostSpec{{Name: "h"}}}).Host("h")
	if err := h.Sysctl("net/ipv4/ip_local_port_range", "40000 40003"); err != nil {
		t.Fatal(err)
	}
	var to []netip.AddrPort
	for _, address := range []string{"127.0.0.1:80", "127.0.0.1:81"} {
		l, err := h.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() }) // it has accepted nothing
		to = append(to, netip.MustParseAddrPort(address))
	}
	probe := lb.Probe{Timeout: time.Minute}
	for _, tt := range []struct {
		name   string
		target func(netip.AddrPort) Target
		most   int
	}{
		{"directly", func(at netip.AddrPort) Target { return Target{Address: at, Probe: probe} }, 8},
		{"through a VIP", func(at netip.AddrPort) Target { return through(dsrPath, at.Port(), probe) }, 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			made := 0
			for i := range 8 {
				err := h.Do(func() error {
					conn, err := dial(t.Context(), tt.target(to[i/4]), to[i/4])
					if err == nil {
						t.Cleanup(func() { _ = conn.Close() }) // it is reset
					}
					return err
				})
				if err == nil {
					made++
				} else if !errors.Is(err, syscall.EADDRINUSE) {
					t.Fatal(err)
				}
			}
			if made != tt.most {
				t.Errorf("%d connections at once by four ports to two addresses, want %d", made, tt.most)
			}
		})
	}
}
