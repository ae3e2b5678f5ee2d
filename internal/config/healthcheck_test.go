package config

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

// The verdict on a check may be the health of several pools, from other files too,
// and be tracked besides. Defaults of health are for others.
func TestHealthByCheck(t *testing.T) {
	c, err := load(memFiles{
		"f": "include: [more.yaml]\ndefaults: {health: {type: http, path: /up, interval: 3s, via: vip}}\n" + withInterface + `pools:
- {name: a, health: {check: ok}, servers: [{address: 192.0.2.11}]}
services:
- {name: a, address: "192.0.2.100:80", pool: a}
- {name: b, address: "192.0.2.100:8000-8100", forward: dsr, backends: [{address: 192.0.2.12}], health: {check: ok}}
vrrp:
- {name: v, interface: eth0, virtual_router_id: 1, addresses: [192.0.2.100], track: [{check: ok, weight: -2}]}
`,
		"more.yaml": "checks: [{name: ok, type: tcp, port: 1}]\n",
	}, "f", Options{})
	if err != nil {
		t.Fatal(err)
	}
	checkInvariants(t, c)
	want := &lb.Probe{Type: lb.ProbeCheck, Check: "ok"}
	for _, got := range []*lb.Probe{c.Pools[0].Probe, c.Services[0].Pool.Probe, c.Services[1].Pool.Probe} {
		if diff := cmp.Diff(want, got, compare...); diff != "" {
			t.Errorf("probe (-want +got):\n%s", diff)
		}
	}
}

func TestHealthByCheckMistakes(t *testing.T) {
	const checks = "checks: [{name: web_ok, type: process}]\n"
	health := func(text string) string {
		return checks + "pools: [{name: p, servers: [{address: 192.0.2.1}], health: {" + text + "}}]\n"
	}
	for _, tt := range []mistakeCase{
		{"not there", health("check: web_k"), []string{`2:68: there is no check "web_k"; did you mean "web_ok"?`}},
		{"unlike any", health("check: x"), []string{`2:68: there is no check "x"`}},
		{"other keys", health("check: web_ok, type: tcp, rise: 1, via: direct, nonsense: 1"), []string{
			"2:76: type goes with no check, which says it itself",
			"2:87: rise goes with no check, which says it itself",
			"2:96: via goes with no check, which says it itself",
			`2:109: unknown key "nonsense" in health`,
		}},
		{"no name", health("check: []"), []string{"2:68: check must be a text, not a list"}},
		{"a process", health("type: process"), []string{
			"2:67: type: a process runs on this node: make it a check, and write health: {check: NAME}",
		}},
		{"a default", checks + "defaults: {health: {check: web_ok}}\n", []string{
			"2:21: check is no default: write health: {check: NAME} in each pool that it is for",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) { wantMistakes(t, tt.yaml, tt.want) })
	}
}
