package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// A dialect is VRRP as both programs are configured for it.
type dialect struct {
	name     string
	sluice   string // keys of the instance
	global   string // lines of keepalived's global_defs
	instance string // lines of keepalived's vrrp_instance
}

var dialects = []dialect{
	{
		name:   "v2 with a password",
		sluice: `version: 2, advertisement_interval: 1s, authentication: {type: pass, password: 1111}`,
		instance: `advert_int 1
    authentication {
        auth_type PASS
        auth_pass 1111
    }`,
	},
	{
		name:     "v3",
		sluice:   `version: 3, advertisement_interval: 200ms`,
		global:   "vrrp_version 3",
		instance: "advert_int 0.2",
	},
}

// One sluice node beside one keepalived node: exactly one holds the VIP,
// whichever starts first and whichever has the higher priority, and after that
// one is stopped it is the other.
func TestInteropKeepalivedHoldsTheVIPOrSluiceDoes(t *testing.T) {
	testenv.RequireRoot(t)
	testenv.RequireProgram(t, "keepalived")
	for _, d := range dialects {
		for _, ours := range []int{100, 99} {
			for _, sluiceFirst := range []bool{true, false} {
				first := map[bool]string{true: "sluice", false: "keepalived"}[sluiceFirst]
				t.Run(fmt.Sprintf("%s, sluice has priority %d, %s starts first", d.name, ours, first), func(t *testing.T) {
					t.Parallel() // most of it is waiting
					interop(t, d, ours, sluiceFirst)
				})
			}
		}
	}
}

func interop(t *testing.T, d dialect, ours int, sluiceFirst bool) {
	r := newRig(t, testenv.Spec{Hosts: testenv.Default(0).Hosts[1:3]})
	file := r.file("sluice.yaml", roster, fmt.Sprintf(
		"vrrp:\n  - {name: VI_1, interface: eth0, virtual_router_id: 51, priority: %d, %s, addresses: [192.0.2.100/24]}\n", ours, d.sluice))
	// lb1 is sluice, lb2 is keepalived.
	programs := map[string]*testenv.Process{}
	start := func(node string) {
		if node == "lb1" {
			programs[node] = r.start(node, file)
		} else {
			programs[node] = r.startKeepalived(node, d, 199-ours)
		}
	}
	order := []string{"lb1", "lb2"}
	if !sluiceFirst {
		order = []string{"lb2", "lb1"}
	}
	holder, other := "lb1", "lb2"
	if ours < 100 {
		holder, other = "lb2", "lb1"
	}

	start(order[0])
	r.waitVIP(soon, vip, order[0], order[1])
	start(order[1])
	// The second one has to take part before it means anything who holds the VIP.
	r.waitTakesPart(order[1], programs[order[1]])
	r.waitVIP(soon, vip, holder, other)
	r.wantOnOneNode(holder, 4*time.Second)

	if err := programs[holder].Stop(); err != nil {
		t.Fatal(err)
	}
	r.waitVIP(soon, vip, other, holder)
	r.wantOnOneNode(other, 2*time.Second)
	if other == "lb1" {
		// Nothing that keepalived sent was refused.
		i, err := instanceOf(r.mustStatus("lb1"), "VI_1")
		if err != nil {
			t.Fatal(err)
		}
		if i.Received == 0 || len(i.Dropped) > 0 {
			t.Errorf("sluice has accepted %d advertisements and dropped %v", i.Received, i.Dropped)
		}
	}
}

// waitTakesPart waits until a node that has started has heard the other one.
func (r *rig) waitTakesPart(node string, p *testenv.Process) {
	r.Helper()
	r.eventually(soon, node+" taking part", func() (bool, error) {
		if node == "lb1" {
			s, err := r.status(node)
			if err != nil {
				return false, err
			}
			i, err := instanceOf(s, "VI_1")
			return i.Received > 0 || i.Sent > 0, err
		}
		return strings.Contains(p.Tail(200), "(VI_1) Entering "), nil
	})
}

// startKeepalived starts keepalived with the settings of the classic pair.
func (r *rig) startKeepalived(node string, d dialect, priority int) *testenv.Process {
	r.Helper()
	state := "BACKUP"
	if priority == 100 {
		state = "MASTER"
	}
	h := r.host(node)
	conf := filepath.Join(h.Dir(), "keepalived.conf")
	text := fmt.Sprintf(`global_defs {
    router_id NGINX_DEVEL
    %s
}
vrrp_instance VI_1 {
    state %s
    interface eth0
    virtual_router_id 51
    priority %d
    %s
    virtual_ipaddress {
        192.0.2.100/24
    }
}
`, d.global, state, priority, d.instance)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		r.Fatal(err)
	}
	p, err := h.Start("keepalived", exec.Command(testenv.RequireProgram(r, "keepalived"), "-n", "-l", "-D", "-P", "-f", conf,
		"-p", filepath.Join(h.Dir(), "keepalived.pid"), "-r", filepath.Join(h.Dir(), "vrrp.pid")))
	if err != nil {
		r.Fatal(err)
	}
	return p
}
