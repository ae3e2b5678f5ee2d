package l7

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

// aServer is 192.0.2.N.
func aServer(n byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, n}), 80)
}

// weighted makes an upstream whose servers have these weights; a negative one is a
// backup's.
func weighted(t *testing.T, change func(*lb.Upstream), weights ...int) (*upstream, *generation) {
	t.Helper()
	c := upstreamOf("u")
	for i, w := range weights {
		c.Pool.Servers = append(c.Pool.Servers, lb.Server{Address: aServer(byte(i + 1)).Addr(), Port: 80, Weight: max(w, -w), Backup: w < 0})
	}
	if change != nil {
		change(&c)
	}
	u := &upstream{name: "u"}
	g, err := u.prepare(&c)
	if err != nil {
		t.Fatal(err)
	}
	u.commit(g, nil, time.Now())
	return u, g
}

// letter is the server's place: a, b, c.
func letter(s *server) string {
	if s == nil {
		return "-"
	}
	return string(rune('a' + s.address.Addr().As4()[3] - 1))
}

// sequence picks n times, with requests that end at once or stay.
func sequence(u *upstream, g *generation, n int, stay bool) string {
	var b strings.Builder
	for range n {
		s := u.pick(g, choice{}, time.Now())
		b.WriteString(letter(s))
		if s != nil && !stay {
			u.release(s)
		}
	}
	return b.String()
}

// The sequences are those of nginx.
func TestRoundRobin(t *testing.T) {
	for _, tt := range []struct {
		name    string
		weights []int
		n       int
		want    string
	}{
		{"equal", []int{1, 1, 1}, 6, "abcabc"},
		{"5, 1, 1", []int{5, 1, 1}, 14, "aabacaaaabacaa"},
		{"1, 2, 3", []int{1, 2, 3}, 6, "cbacbc"},
		{"weight 0 gets nothing", []int{1, 0}, 3, "aaa"},
		{"backups wait", []int{1, -1}, 3, "aaa"},
		{"only backups", []int{-1, -1}, 4, "abab"},
		{"nobody", []int{0}, 1, "-"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u, g := weighted(t, nil, tt.weights...)
			if got := sequence(u, g, tt.n, false); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestLeastConn(t *testing.T) {
	u, g := weighted(t, func(c *lb.Upstream) { c.Policy = lb.LeastConn }, 1, 2, 1)
	if got, want := sequence(u, g, 8, true), "bacbcabb"; got != want {
		t.Errorf("with requests that stay: %s, want %s", got, want)
	}
	counts := map[string]int{}
	for _, s := range g.primaries {
		counts[letter(s)] = s.active
	}
	if diff := cmp.Diff(map[string]int{"a": 2, "b": 4, "c": 2}, counts); diff != "" {
		t.Errorf("requests by server (-want +got):\n%s", diff)
	}
}

// The first three octets of an IPv4 address count, and all sixteen of an IPv6 address.
func TestIPHash(t *testing.T) {
	u, g := weighted(t, func(c *lb.Upstream) { c.Policy = lb.IPHash }, 1, 1, 1)
	pick := func(client string, tried ...*server) *server {
		s := u.pick(g, choice{client: netip.MustParseAddr(client), tried: tried}, time.Now())
		u.release(s)
		return s
	}
	// (((89*113+198)%6271*113+51)%6271*113+100)%6271 is 936, and 936%3 is 0.
	if got := letter(pick("198.51.100.1")); got != "a" {
		t.Errorf("198.51.100.1 goes to %s, want a", got)
	}
	first := pick("198.51.100.1")
	for i := range 255 {
		if s := pick(fmt.Sprintf("198.51.100.%d", i)); s != first {
			t.Fatalf("198.51.100.%d goes to %s, its network to %s", i, letter(s), letter(first))
		}
	}
	if again := pick("198.51.100.1", first); again == first || again == nil || again != pick("198.51.100.77", first) {
		t.Errorf("while %s is not there: %s", letter(first), letter(again))
	}
	seen := map[string]bool{}
	for i := range 64 {
		seen[letter(pick(fmt.Sprintf("2001:db8::%x", i)))] = true
	}
	if len(seen) != 3 {
		t.Errorf("clients of one IPv6 network go to %d servers", len(seen))
	}
}

// A server that goes takes along the keys that were its own, and no others.
func TestConsistentHash(t *testing.T) {
	u, g := weighted(t, func(c *lb.Upstream) { c.Policy = lb.Hash }, 1, 1, 2)
	without := &generation{config: g.config, primaries: g.primaries[:2], circle: newCircle(g.primaries[:2])}
	const keys = 4000
	counts := map[string]int{}
	for i := range keys {
		key := fmt.Sprintf("/file-%d", i)
		a := u.pick(g, choice{key: key}, time.Now())
		b := u.pick(without, choice{key: key}, time.Now())
		u.release(a)
		u.release(b)
		counts[letter(a)]++
		if letter(a) != "c" && a != b {
			t.Fatalf("%s moves from %s to %s when c goes", key, letter(a), letter(b))
		}
		if next := u.pick(g, choice{key: key, tried: []*server{a}}, time.Now()); letter(a) == "c" && next != b {
			t.Fatalf("%s: with c failing %s, without c %s", key, letter(next), letter(b))
		}
	}
	for name, want := range map[string]int{"a": keys / 4, "b": keys / 4, "c": keys / 2} {
		if got := counts[name]; got < want*7/10 || got > want*13/10 {
			t.Errorf("%s has %d keys, its weight is good for %d", name, got, want)
		}
	}
}

func TestCircleIsBounded(t *testing.T) {
	_, g := weighted(t, func(c *lb.Upstream) { c.Policy = lb.Hash }, 65535, 1, 65535)
	if n := len(g.circle); n > mostPoints+3 {
		t.Errorf("%d points", n)
	}
}

func TestRandomTwo(t *testing.T) {
	u, g := weighted(t, func(c *lb.Upstream) { c.Policy = lb.RandomTwo }, 1, 1, 1, 1)
	all := func(*server) bool { return true }
	g.primaries[0].active = 5
	draws := []int{0, 1} // a, then the second of the others
	s := randomTwo(g.primaries, all, func(int) int { d := draws[0]; draws = draws[1:]; return d })
	if got := letter(s); got != "c" {
		t.Errorf("of a, which is busy, and c: %s", got)
	}
	g.primaries[0].active = 0
	for range 4000 {
		u.pick(g, choice{}, time.Now())
	}
	for _, s := range g.primaries {
		if s.active < 950 || s.active > 1050 {
			t.Errorf("%s has %d of 4000 requests", letter(s), s.active)
		}
	}
}

func TestMaxConns(t *testing.T) {
	u, g := weighted(t, func(c *lb.Upstream) { c.MaxConns = 2 }, 1, 1, -1)
	if got, want := sequence(u, g, 7, true), "ababcc-"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// Failures take a server out for a while; then one request finds out.
func TestFailuresTakeAServerOut(t *testing.T) {
	u, g := weighted(t, func(c *lb.Upstream) { c.MaxFails, c.FailTimeout = 2, 10*time.Second }, 1, 1, -1)
	now := time.Now()
	pick := func() *server {
		s := u.pick(g, choice{}, now)
		u.release(s)
		return s
	}
	a, b := pick(), pick()
	u.judge(g, a, true, now)
	if got := letter(pick()) + letter(pick()); got != "ab" && got != "ba" {
		t.Errorf("after one failure: %s", got)
	}
	u.judge(g, a, true, now)
	for range 4 {
		if s := pick(); s != b {
			t.Fatalf("after two failures: %s", letter(s))
		}
	}
	u.judge(g, b, true, now)
	u.judge(g, b, true, now)
	if got := letter(pick()); got != "c" {
		t.Errorf("with no primary: %s", got)
	}
	now = now.Add(11 * time.Second)
	s := pick()
	if s != a && s != b {
		t.Fatalf("after fail_timeout: %s", letter(s))
	}
	now = now.Add(time.Second) // who has been tried rests on until the answer
	u.judge(g, s, false, now)
	if s.resting(g.config, now) || s.fails != 0 {
		t.Errorf("after a good answer: %d failures", s.fails)
	}
}

// Where requests alone have shown failures, somebody is better than nobody.
func TestAllHaveFailed(t *testing.T) {
	u, g := weighted(t, nil, 1, 1)
	for _, s := range g.primaries {
		u.judge(g, s, true, time.Now())
	}
	if s := u.pick(g, choice{}, time.Now()); s == nil {
		t.Error("nobody is asked")
	}
	down := map[*server]Standing{}
	for _, s := range g.primaries {
		down[s] = Standing{State: StateDown, Weight: s.weight}
	}
	u.refresh(down, time.Now())
	if s := u.pick(g, choice{}, time.Now()); s != nil {
		t.Errorf("%s is asked, which health says is down", letter(s))
	}
}

// An operator's weight counts, over reloads of the same configuration too, and a server
// that is drained gets nothing new.
func TestOperatorsWeights(t *testing.T) {
	u, g := weighted(t, func(c *lb.Upstream) { c.Policy = lb.Hash }, 1, 1, 1)
	stands := map[*server]Standing{
		g.primaries[0]: {State: StateUp, Weight: 1}, g.primaries[1]: {State: StateUp, Weight: 5},
		g.primaries[2]: {State: StateDrained, Why: "by an operator", Weight: 1},
	}
	want := []Event{{"u", "192.0.2.3:80", StateUnknown, StateDrained, "by an operator"}}
	if diff := cmp.Diff(want, u.refresh(stands, time.Now())); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	again, err := u.prepare(g.config)
	if err != nil {
		t.Fatal(err)
	}
	u.commit(again, stands, time.Now())
	counts := map[string]int{}
	for i := range 3000 {
		s := u.pick(u.now.Load(), choice{key: fmt.Sprint(i)}, time.Now())
		counts[letter(s)]++
		u.release(s)
	}
	if counts["c"] > 0 || counts["b"] < 3*counts["a"] {
		t.Errorf("requests by server: %v", counts)
	}
}

// A server that is new beside others, and is to be probed, has to wait for its first
// verdict; where nobody else serves it need not, and it goes before the backups.
func TestNewServerWaitsForItsVerdict(t *testing.T) {
	for _, tt := range []struct {
		name         string
		probed       bool
		known, other Standing // of the new server, and of the one that was there
		want         string   // four times, round robin
	}{
		{"not probed yet", true, Standing{State: StateUnknown, Weight: 1, Pending: true}, Standing{State: StateUp, Weight: 1}, "aaaa"},
		{"up", true, Standing{State: StateUp, Weight: 1}, Standing{State: StateUp, Weight: 1}, "abab"},
		{"never probed", false, Standing{State: StateUnknown, Weight: 1}, Standing{State: StateUnknown, Weight: 1}, "abab"},
		{"nobody else", true, Standing{State: StateUnknown, Weight: 1, Pending: true}, Standing{State: StateDown, Weight: 1}, "bbbb"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u, g := weighted(t, func(c *lb.Upstream) {
				if tt.probed {
					c.Pool.Probe = &lb.Probe{}
				}
				c.Pool.Servers = append(c.Pool.Servers, lb.Server{Address: aServer(9).Addr(), Port: 80, Weight: 1, Backup: true})
			}, 1)
			next := *g.config
			next.Pool.Servers = append(next.Pool.Servers[:2:2], lb.Server{Address: aServer(2).Addr(), Port: 80, Weight: 1})
			grown, err := u.prepare(&next)
			if err != nil {
				t.Fatal(err)
			}
			u.commit(grown, map[*server]Standing{
				grown.primaries[0]: tt.other, grown.primaries[1]: tt.known, grown.backups[0]: {State: StateUp, Weight: 1},
			}, time.Now())
			if got := sequence(u, grown, 4, false); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// What requests show of a server is told once: when it begins to rest, and when it is good
// again.
func TestFailingIsTold(t *testing.T) {
	u, g := weighted(t, func(c *lb.Upstream) { c.MaxFails, c.FailTimeout = 2, time.Second }, 1)
	var got []Event
	u.tell = func(all []Event) { got = append(got, all...) }
	now, s := time.Now(), g.primaries[0]
	for _, failed := range []bool{true, true, true, false, false} {
		u.judge(g, s, failed, now)
		now = now.Add(2 * time.Second)
		u.pick(g, choice{}, now)
		now = now.Add(time.Millisecond)
	}
	want := []Event{
		{"u", "192.0.2.1:80", StateUnknown, StateFailing, "requests have failed"}, {"u", "192.0.2.1:80", StateFailing, StateUnknown, "a request has not failed"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}
