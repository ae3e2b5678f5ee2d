package config

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

func TestExecProbes(t *testing.T) {
	type settings struct {
		Type    lb.ProbeType
		Command []string
		User    string
		ViaVIP  bool
	}
	for _, tt := range []struct {
		name, defaults, health string
		want                   settings
	}{
		{"a command", "", `type: exec, command: [/bin/db-ok, "{address}", 0123]`,
			settings{Type: lb.ProbeExec, Command: []string{"/bin/db-ok", "{address}", "0123"}}},
		{"a user", "", "type: exec, command: [db-ok], user: nobody", settings{Type: lb.ProbeExec, Command: []string{"db-ok"}, User: "nobody"}},
		{"by default", "type: exec, command: [db-ok], user: nobody", "", settings{Type: lb.ProbeExec, Command: []string{"db-ok"}, User: "nobody"}},
		{"half by default", "user: nobody", "type: exec, command: [db-ok]", settings{Type: lb.ProbeExec, Command: []string{"db-ok"}, User: "nobody"}},
		{"for others by default", "command: [db-ok], user: nobody", "type: tcp", settings{Type: lb.ProbeTCP, ViaVIP: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			health := ""
			if tt.health != "" {
				health = ", health: {" + tt.health + "}"
			}
			c := mustLoad(t, "defaults: {health: {"+tt.defaults+"}}\n"+withInterface+
				"services: [{name: s, forward: dsr, address: 192.0.2.100:80, backends: [{address: 192.0.2.1}]"+health+"}]\n")
			checkInvariants(t, c)
			p := c.Services[0].Pool.Probe
			if diff := cmp.Diff(tt.want, settings{p.Type, p.Command, p.User, p.ViaVIP}); diff != "" {
				t.Errorf("settings (-want +got):\n%s", diff)
			}
		})
	}
}

func TestExecProbeMistakes(t *testing.T) {
	health := func(text string) string {
		return "pools:\n- name: p\n  servers: [{address: 192.0.2.1}]\n  health: {" + text + "}\n"
	}
	for _, tt := range []mistakeCase{
		{"no command", health("type: exec"), []string{`4:11: missing key "command": a probe of type exec needs it`}},
		{"no list", health("type: exec, command: /bin/true"), []string{"4:33: command must be a list: write [/bin/true]"}},
		{"a shell's line", health("type: exec, command: ['/bin/true -x']"), []string{
			`4:34: command: there is no program "/bin/true -x": each argument is an item of its own, and there is no shell`,
		}},
		{"other types", health("type: tcp, command: [x], user: nobody"), []string{
			"4:23: command is for probes of type exec, this one's type is tcp",
			"4:37: user is for probes of type exec, this one's type is tcp",
		}},
		{"through the VIP", health("type: exec, command: [x], via: vip"), []string{
			"4:43: via: vip is for probes over TCP (tcp, http, https): one of type exec does not go there",
		}},
		{"keepalived's", health("type: exec, misc_path: x, command: [x]"), []string{
			`4:24: unknown key "misc_path" in health; keepalived's misc_path is "command", a list, of type exec`,
		}},
		{"mistakes in defaults", "defaults: {health: {command: x, user: []}}\n", []string{
			"1:30: command must be a list: write [x]",
			"1:39: user must be a text, not a list",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) { wantMistakes(t, tt.yaml, tt.want) })
	}
}
