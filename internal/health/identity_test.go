package health

import (
	"regexp"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// Whatever makes a probe another one makes its target another one, too: else a
// reload would go on with the probe of before.
func TestIdentity(t *testing.T) {
	web := func() lb.Probe {
		return lb.Probe{
			Type: lb.ProbeHTTPS, Interval: time.Second, Timeout: time.Second, Rise: 2, Fall: 3,
			Pages: []lb.Page{{Host: "www.example.com", Path: "/a"}}, Status: []lb.StatusRange{{First: 200, Last: 299}},
			Body: regexp.MustCompile("ok"), TLS: lb.TLS{CA: "x", ServerName: "www.example.com"},
		}
	}
	dns := func() lb.Probe {
		return lb.Probe{Type: lb.ProbeDNS, Query: lb.Query{Name: "www.example.com.", Type: lb.QueryA}}
	}
	udp := func() lb.Probe { return lb.Probe{Type: lb.ProbeUDP, Send: "x", Expect: regexp.MustCompile("ok")} }
	exec := func() lb.Probe { return lb.Probe{Type: lb.ProbeExec, Command: []string{"a", "b"}, User: "nobody"} }
	for _, tt := range []struct {
		name  string
		probe func() lb.Probe
		other func(*lb.Probe)
	}{
		{"interval", web, func(p *lb.Probe) { p.Interval = time.Minute }},
		{"timeout", web, func(p *lb.Probe) { p.Timeout = time.Millisecond }},
		{"rise", web, func(p *lb.Probe) { p.Rise = 1 }},
		{"fall", web, func(p *lb.Probe) { p.Fall = 1 }},
		{"port", web, func(p *lb.Probe) { p.Port = 1 }},
		{"type", web, func(p *lb.Probe) { p.Type = lb.ProbeTCP }},
		{"host", web, func(p *lb.Probe) { p.Pages[0].Host = "" }},
		{"path", web, func(p *lb.Probe) { p.Pages[0].Path = "/b" }},
		{"another page", web, func(p *lb.Probe) { p.Pages = append(p.Pages, lb.Page{Path: "/b"}) }},
		{"status", web, func(p *lb.Probe) { p.Status[0].Last = 300 }},
		{"body", web, func(p *lb.Probe) { p.Body = regexp.MustCompile("fine") }},
		{"any body", web, func(p *lb.Probe) { p.Body = nil }},
		{"authorities", web, func(p *lb.Probe) { p.TLS.CA = "y" }},
		{"name of the server", web, func(p *lb.Probe) { p.TLS.ServerName = "" }},
		{"any certificate", web, func(p *lb.Probe) { p.TLS.Insecure = true }},
		{"name of a query", dns, func(p *lb.Probe) { p.Query.Name = "mail.example.com." }},
		{"type of a query", dns, func(p *lb.Probe) { p.Query.Type = lb.QueryAAAA }},
		{"arguments", exec, func(p *lb.Probe) { p.Command = []string{"a b"} }},
		{"user", exec, func(p *lb.Probe) { p.User = "" }},
		{"what is sent", udp, func(p *lb.Probe) { p.Send = "" }},
		{"what is expected", udp, func(p *lb.Probe) { p.Expect = regexp.MustCompile("fine") }},
		{"nothing expected", udp, func(p *lb.Probe) { p.Expect = nil }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			one := target(1)
			one.Probe = tt.probe()
			other := one
			other.Probe = tt.probe()
			if one.Identity() != other.Identity() {
				t.Fatalf("%s and %s are the same", one.Identity(), other.Identity())
			}
			tt.other(&other.Probe)
			if one.Identity() == other.Identity() {
				t.Errorf("both are %s", one.Identity())
			}
		})
	}
}
