package config

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

func TestDefaultsOfServices(t *testing.T) {
	c := mustLoad(t, `
defaults: {service: {forward: dsr, quorum: 0, table_size: 251, pool: web}}
datapath: {interfaces: [eth0]}
pools: [{name: web, servers: [{address: 192.0.2.11}]}]
services:
  - {name: plain, address: "192.0.2.100:80"}
  - {name: own, address: "192.0.2.100:81", forward: nat, quorum: 1, table_size: 13, backends: [{address: 192.0.2.12}]}
`)
	type settings struct {
		Forward           lb.Forward
		Quorum, TableSize int
		Pool              string
	}
	got := map[string]settings{}
	for _, s := range c.Services {
		got[s.Name] = settings{s.Forward, s.Quorum, s.TableSize, s.Pool.Name}
	}
	want := map[string]settings{
		"plain": {lb.DSR, 0, 251, "web"},
		"own":   {lb.NAT, 1, 13, "own"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("services (-want +got):\n%s", diff)
	}
}

func TestDefaultsOfHealth(t *testing.T) {
	pools := `
pools:
  - {name: without, servers: [{address: 192.0.2.11}]}
  - {name: some, health: {type: http, interval: 3s}, servers: [{address: 192.0.2.11}]}
  - {name: tcp, health: {type: tcp, fall: 9}, servers: [{address: 192.0.2.11}]}
`
	ok := []lb.StatusRange{{First: 200, Last: 399}}
	tests := []struct {
		name, defaults string
		want           map[string]*lb.Probe
	}{
		{
			name:     "a type makes it the probe of all",
			defaults: "defaults: {health: {type: http, path: /up, timeout: 2s, interval: 2s}}",
			want: map[string]*lb.Probe{
				"without": {Type: lb.ProbeHTTP, ViaVIP: true, Pages: []lb.Page{{Path: "/up"}}, Interval: 2 * time.Second, Timeout: 2 * time.Second, Rise: 2, Fall: 3, Status: ok},
				"some":    {Type: lb.ProbeHTTP, ViaVIP: true, Pages: []lb.Page{{Path: "/up"}}, Interval: 3 * time.Second, Timeout: 2 * time.Second, Rise: 2, Fall: 3, Status: ok},
				"tcp":     {Type: lb.ProbeTCP, ViaVIP: true, Interval: 2 * time.Second, Timeout: 2 * time.Second, Rise: 2, Fall: 9},
			},
		},
		{
			name:     "without a type it fills in only",
			defaults: "defaults: {health: {rise: 7}}",
			want: map[string]*lb.Probe{
				"without": nil,
				"some":    {Type: lb.ProbeHTTP, ViaVIP: true, Pages: []lb.Page{{Path: "/"}}, Interval: 3 * time.Second, Timeout: 1500 * time.Millisecond, Rise: 7, Fall: 3, Status: ok},
				"tcp":     {Type: lb.ProbeTCP, ViaVIP: true, Interval: time.Second, Timeout: 500 * time.Millisecond, Rise: 7, Fall: 9},
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := map[string]*lb.Probe{}
			for _, p := range mustLoad(t, tt.defaults+pools).Pools {
				got[p.Name] = p.Probe
			}
			if diff := cmp.Diff(tt.want, got, compare...); diff != "" {
				t.Errorf("probes (-want +got):\n%s", diff)
			}
		})
	}
}

// TestDefaultsSetElsewhere checks that a timeout alone is not held against the
// built-in interval: the pools set theirs.
func TestDefaultsSetElsewhere(t *testing.T) {
	c := mustLoad(t, `
defaults: {health: {timeout: 5s}}
pools: [{name: web, health: {type: tcp, interval: 10s}, servers: [{address: 192.0.2.11}]}]
`)
	if got := c.Pools[0].Probe.Timeout; got != 5*time.Second {
		t.Errorf("timeout %v, want 5s", got)
	}
}

// TestPoolsAreShared checks that services with one pool get the same servers.
func TestPoolsAreShared(t *testing.T) {
	c := mustLoad(t, `
datapath: {interfaces: [eth0]}
pools: [{name: web, health: {type: tcp}, servers: [{address: 192.0.2.11}]}]
services:
  - {name: a, address: "192.0.2.100:80", pool: web}
  - {name: b, address: "192.0.2.100:81", pool: web}
`)
	if diff := cmp.Diff(c.Services[0].Pool, c.Services[1].Pool, compare...); diff != "" {
		t.Errorf("pools differ:\n%s", diff)
	}
	if c.Services[0].Pool.Probe == nil {
		t.Error("the pool has no probe")
	}
}
