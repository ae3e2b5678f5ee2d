package l7

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A server that comes back gets 5 % of what it is good for at first, and all of it in the
// end, whatever the policy.
func TestSlowStart(t *testing.T) {
	for _, policy := range []lb.Policy{lb.RoundRobin, lb.LeastConn, lb.RandomTwo, lb.Hash, lb.IPHash} {
		t.Run(string(policy), func(t *testing.T) {
			u, g := weighted(t, func(c *lb.Upstream) { c.Policy, c.SlowStart = policy, 19*time.Second }, 1, 1, 1, 1)
			now := time.Now()
			a := g.primaries[0]
			stands := func(s State) map[*server]Standing {
				known := map[*server]Standing{}
				for _, s := range g.primaries {
					known[s] = Standing{State: StateUp, Weight: 1}
				}
				known[a] = Standing{State: s, Weight: 1}
				return known
			}
			const n = 2000
			keys := map[int]bool{} // those that were a's
			share := func(remember bool) (of float64) {
				t.Helper()
				others := map[int]*server{}
				for i := range n {
					c := choice{key: fmt.Sprint("key", i), client: netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)})}
					if policy == lb.IPHash {
						c.client = netip.AddrFrom4([4]byte{198, byte(i >> 8), byte(i), 1})
					}
					s := u.pick(u.now.Load(), c, now)
					if s == a {
						of++
						keys[i] = keys[i] || remember
					} else {
						others[i] = s
					}
					if policy != lb.RandomTwo || i%2 == 0 {
						u.release(s)
					} else {
						defer u.release(s)
					}
				}
				return of / n
			}
			u.refresh(stands(StateUp), now)
			if got := share(true); got < 0.2 || got > 0.3 {
				t.Fatalf("of four: %.3f", got)
			}
			u.refresh(stands(StateDown), now)
			if got := share(false); got != 0 {
				t.Fatalf("down: %.3f", got)
			}
			u.refresh(stands(StateUp), now)
			before := -1.0
			for _, tt := range []struct {
				after  time.Duration
				lo, hi float64
			}{{0, 0.005, 0.05}, {9 * time.Second, 0.09, 0.19}, {19 * time.Second, 0.2, 0.3}} {
				moment := now
				now = now.Add(tt.after)
				got := share(false)
				now = moment
				if got < tt.lo || got > tt.hi || got <= before {
					t.Errorf("%v after its return: %.3f, want %.2f to %.2f", tt.after, got, tt.lo, tt.hi)
				}
				before = got
			}
		})
	}
}

// What has a key that is no slow server's stays where it is.
func TestSlowStartMovesNoOthersKeys(t *testing.T) {
	for _, policy := range []lb.Policy{lb.Hash, lb.IPHash} {
		t.Run(string(policy), func(t *testing.T) {
			u, g := weighted(t, func(c *lb.Upstream) { c.Policy, c.SlowStart = policy, 19*time.Second }, 1, 2, 1)
			now := time.Now()
			a := g.primaries[0]
			where := func() (all []*server) {
				for i := range 1000 {
					s := u.pick(u.now.Load(), choice{key: fmt.Sprint("key", i), client: netip.AddrFrom4([4]byte{198, byte(i >> 8), byte(i), 1})}, now)
					u.release(s)
					all = append(all, s)
				}
				return all
			}
			full := where()
			u.refresh(map[*server]Standing{a: {State: StateDown, Weight: 1}}, now)
			u.refresh(map[*server]Standing{a: {State: StateUp, Weight: 1}}, now)
			slow := where()
			now = now.Add(10 * time.Second)
			later := where()
			now = now.Add(10 * time.Second)
			end := where()
			for i := range full {
				if full[i] != a && slow[i] != full[i] {
					t.Fatalf("key %d was %s's and goes to %s", i, letter(full[i]), letter(slow[i]))
				}
				if slow[i] == a && later[i] != a || later[i] == a && end[i] != a || end[i] != full[i] {
					t.Fatalf("key %d: %s, slow %s, later %s, in the end %s", i, letter(full[i]), letter(slow[i]), letter(later[i]), letter(end[i]))
				}
			}
		})
	}
}

// Who comes back, and who does not.
func TestWhoStartsSlowly(t *testing.T) {
	const total = 20 * time.Second
	now := time.Now()
	up, down := Standing{State: StateUp, Weight: 1}, Standing{State: StateDown, Weight: 1}
	drained := Standing{State: StateDrained, Weight: 1}
	none := Standing{State: StateUp, Weight: 0}
	unknown := Standing{State: StateUnknown, Weight: 1, Pending: true}
	for _, tt := range []struct {
		name   string
		weight int // of the second of two servers; below 0: a backup's
		stands []Standing
		want   bool
	}{
		{"at the start", 1, []Standing{unknown, up}, false},
		{"down at the start", 1, []Standing{unknown, down, up}, true},
		{"down", 1, []Standing{up, down, up}, true},
		{"drained", 1, []Standing{up, drained, up}, true},
		{"weight 0", 1, []Standing{up, none, up}, true},
		{"another probe", 1, []Standing{up, unknown, up}, false},
		{"another probe while it is down", 1, []Standing{down, unknown}, false},
		{"a backup", -1, []Standing{up, down, up}, false},
		{"down again", 1, []Standing{up, down, up, down}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u, g := weighted(t, func(c *lb.Upstream) { c.SlowStart = total }, 1, tt.weight)
			s := append(g.primaries, g.backups...)[1]
			for _, k := range tt.stands {
				u.refresh(map[*server]Standing{s: k}, now)
			}
			var want *SlowStart
			if tt.want {
				want = &SlowStart{5, now.Add(total)}
			}
			if diff := cmp.Diff(want, u.status(now).Servers[1].SlowStart); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if got := u.status(now.Add(total)).Servers[1]; got.SlowStart != nil || got.Weight != 1 {
				t.Errorf("in the end: %+v", got)
			}
		})
	}
}

// A server that is new beside others starts slowly, and one that was out since requests
// had failed; where all are back together each has all of its weight.
func TestSlowStartOfOthers(t *testing.T) {
	const total = 20 * time.Second
	now := time.Now()
	u, g := weighted(t, func(c *lb.Upstream) { c.SlowStart, c.MaxFails, c.FailTimeout = total, 1, time.Second }, 1, 1)
	next := *g.config
	next.Pool.Servers = append(next.Pool.Servers[:2:2], lb.Server{Address: aServer(3).Addr(), Port: 80, Weight: 1})
	grown, err := u.prepare(&next)
	if err != nil {
		t.Fatal(err)
	}
	u.commit(grown, nil, now)
	slow := func() (all string) {
		for i, s := range u.status(now).Servers {
			if s.SlowStart != nil {
				all += string(rune('a' + i))
			}
		}
		return all
	}
	if got := slow(); got != "c" {
		t.Errorf("%q start slowly, want the new one", got)
	}
	now = now.Add(total)
	a := grown.primaries[0]
	u.judge(grown, a, true, now)
	now = now.Add(2 * time.Second)
	for a.active == 0 {
		u.pick(grown, choice{}, now)
	}
	now = now.Add(time.Millisecond)
	u.judge(grown, a, false, now)
	if got := slow(); got != "a" {
		t.Errorf("%q start slowly, want the one that has failed", got)
	}
	known := map[*server]Standing{}
	for _, s := range []State{StateDown, StateUp} {
		for _, b := range grown.primaries {
			known[b] = Standing{State: s, Weight: 1}
		}
		u.refresh(known, now)
	}
	if got := sequence(u, grown, 3, false); got != "abc" && got != "bca" && got != "cab" {
		t.Errorf("all together: %s", got)
	}
}

func TestReason(t *testing.T) {
	now := time.Now()
	slow := &SlowStart{30, now.Add(21 * time.Second)}
	for _, tt := range []struct {
		server UpstreamServer
		want   string
	}{
		{UpstreamServer{}, ""}, {UpstreamServer{Why: "refused"}, "refused"}, {UpstreamServer{SlowStart: slow}, "slow start, 30 %, 21s left"},
		{UpstreamServer{Why: "requests have failed", SlowStart: slow}, "requests have failed; slow start, 30 %, 21s left"},
	} {
		if got := tt.server.Reason(now); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}
