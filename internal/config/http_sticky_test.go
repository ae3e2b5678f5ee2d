package config

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/key"
	"github.com/sluice-lb/sluice/internal/lb"
)

func TestLoadSticky(t *testing.T) {
	first, err1 := key.Parse([]byte(testKey))
	second, err2 := key.Parse([]byte(otherKey))
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	for _, tt := range []struct {
		name, sticky, more string
		want               *lb.Sticky
	}{
		{"defaults, and no key", "{cookie: srv}", "", &lb.Sticky{Cookie: "srv", Path: "/", SameSite: lb.SameSiteLax}},
		{"all", "{cookie: srv, ttl: 1h, path: /app, domain: .Example.com, same_site: none, key_file: other.key}", "sync: {key_file: sync.key}\n",
			&lb.Sticky{Cookie: "srv", TTL: time.Hour, Path: "/app", Domain: "example.com", SameSite: lb.SameSiteNone, Keys: [][]byte{second[:]}}},
		{"the nodes' keys", "{cookie: srv}", "sync: {key_files: [sync.key, other.key]}\n",
			&lb.Sticky{Cookie: "srv", Path: "/", SameSite: lb.SameSiteLax, Keys: [][]byte{first[:], second[:]}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := mustLoad(t, tt.more+inUpstream("sticky: "+tt.sticky+"\nservers: [{address: 192.0.2.1}]")).HTTP.Upstreams[0].Sticky
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

var stickyMistakes = []mistakeCase{
	{"nothing said", inUpstream("sticky: {}\nservers: [{address: 192.0.2.1}]"), []string{`6:13: missing key "cookie": sticky needs it`}},
	{"nginx's words", inUpstream("sticky: {cookie: a, expires: 1h}\nservers: [{address: 192.0.2.1}]"), []string{
		`6:25: unknown key "expires" in sticky; nginx's expires is "ttl"`}},
	{"what is no cookie", inUpstream("sticky: {cookie: \"a=b\", ttl: 1500ms, path: a, domain: \"a;b\", same_site: any, key_file: none.key}\nservers: [{address: 192.0.2.1}]"), []string{
		`6:22: cookie: "a=b" is no name of a cookie`, `6:34: ttl must be whole seconds, which browsers count by, not 1500ms`,
		`6:48: path of a cookie must start with / and have neither ; nor spaces, not "a"`, `6:59: domain must be the name of a host, or the end of one, not "a;b"`,
		`6:77: same_site must be one of lax, strict, none, not "any"`,
		"6:92: key_file: cannot read none.key: file does not exist; make a key with `sluice keygen FILE`, and give every node the same",
	}},
	{"a name with rules", inUpstream("sticky: {cookie: __Host-a, path: /app}\nservers: [{address: 192.0.2.1}]"), []string{
		`6:22: cookie "__Host-a": browsers take such a name only with path / and without domain`}},
	{"slow starts", inUpstream("slow_start: 2d\nservers: [{address: 192.0.2.1}]"), []string{
		`6:17: slow_start must be a duration such as 1s, 500ms or 1h30m (units: ms s m h), not "2d"`}},
}

func TestStickyMistakes(t *testing.T) {
	for _, tt := range stickyMistakes {
		t.Run(tt.name, func(t *testing.T) { wantMistakes(t, tt.yaml, tt.want) })
	}
}

// A reload says that cookies change, and nothing of their keys.
func TestCompareSticky(t *testing.T) {
	const sticky = "sticky: {cookie: srv, key_file: sync.key}"
	base := inUpstream(sticky + "\nservers: [{address: 192.0.2.1}]")
	for _, tt := range []struct{ name, to, want string }{
		{"the cookie", "sticky: {cookie: other, key_file: sync.key}", "upstream u: sticky"},
		{"the key", "sticky: {cookie: srv, key_file: other.key}", "upstream u: sticky"},
		{"slow start instead", "slow_start: 30s", "upstream u: sticky, slow_start"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := Compare(mustLoad(t, base), mustLoad(t, strings.Replace(base, sticky, tt.to, 1)))
			if diff := cmp.Diff(Difference{Changes: []string{tt.want}}, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
