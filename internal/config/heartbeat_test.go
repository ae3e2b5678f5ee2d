package config

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/key"
)

const (
	threeNodes = "nodes:\n- {name: lb1, address: 192.0.2.1}\n- {name: lb2, address: 192.0.2.2}\n- {name: lb3, address: \"2001:db8::3\"}\n"
	withKey    = "sync: {key_file: sync.key}\n"
)

func beating(heartbeat string) string {
	return "vrrp:\n- name: v\n  interface: e\n  virtual_router_id: 1\n  addresses: [192.0.2.100]\n  heartbeat: " + heartbeat + "\n"
}

func TestHeartbeat(t *testing.T) {
	for _, tc := range []struct {
		name, yaml string
		want       Heartbeat
	}{
		{"none", threeNodes + strings.Replace(beating(""), "  heartbeat: \n", "", 1), Heartbeat{}},
		{"to the other nodes", threeNodes + withKey + beating("{interval: 5ms}"), Heartbeat{
			5 * time.Millisecond, []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::3")},
		}},
		{"on two paths", withKey + beating("{interval: 3ms, peers: [192.0.2.2, 198.51.100.2]}"), Heartbeat{
			3 * time.Millisecond, []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("198.51.100.2")},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := mustLoad(t, tc.yaml).VRRP[0].Heartbeat
			if diff := cmp.Diff(tc.want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Errorf("heartbeat (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSync(t *testing.T) {
	first, err := key.Parse([]byte(testKey))
	if err != nil {
		t.Fatal(err)
	}
	second, err := key.Parse([]byte(otherKey))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, yaml string
		want       Sync
	}{
		{"none", "node: lb1\n", Sync{Port: 3780}},
		{"a key", withKey, Sync{3780, []key.Key{first}}},
		{"another port", "sync: {port: 99, key_file: other.key}\n", Sync{99, []key.Key{second}}},
		{"while keys change", "sync: {key_files: [other.key, sync.key]}\n", Sync{3780, []key.Key{second, first}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, mustLoad(t, tc.yaml).Sync); diff != "" {
				t.Errorf("sync (-want +got):\n%s", diff)
			}
		})
	}
}

var heartbeatMistakes = []mistakeCase{
	{"no interval", threeNodes + withKey + beating("{}"), []string{`11:14: missing key "interval": heartbeat needs it`}},
	{"too fast", threeNodes + withKey + beating("{interval: 2ms}"), []string{"11:25: interval must be from 3ms to 1s, not 2ms"}},
	{"slower than vrrp", threeNodes + withKey + strings.Replace(beating("{interval: 20ms}"), "  heartbeat", "  advertisement_interval: 10ms\n  heartbeat", 1),
		[]string{"12:25: interval must be at most the advertisement_interval, 10ms: heartbeats are to be faster than VRRP"}},
	{"no key", threeNodes + beating("{interval: 5ms}"), []string{"10:14: heartbeat needs a key that the nodes share: write sync: {key_file: FILE} at the top, and make the file with `sluice keygen FILE`"}},
	{"nobody else", withKey + beating("{interval: 5ms}"), []string{"7:14: heartbeat needs another node in nodes, or peers"}},
	{"peers", threeNodes + withKey + beating("{interval: 5ms, peers: [192.0.2.1, 192.0.2.2, 192.0.2.2, 192.0.2.100, \"fe80::1\"]}"), []string{
		`11:38: peer 192.0.2.1 is this node, "lb1": list addresses of the others`,
		"11:60: peer 192.0.2.2 is listed twice: the first one is on line 11",
		"11:71: peer 192.0.2.100 is a VIP: it moves, a peer is another node's own address",
		"11:84: address fe80::1 is a link-local address: it is known on one link only",
	}},
	{"empty peers", threeNodes + withKey + beating("{interval: 5ms, peers: []}"), []string{
		"11:37: peers is empty: name addresses of the other nodes, or leave it out to take those of nodes"}},
	{"a key in the wrong place", threeNodes + withKey + beating("{interval: 5ms, key_file: a}"), []string{
		`11:30: unknown key "key_file" in heartbeat; the nodes have one key: write sync: {key_file: FILE} at the top`}},
	{"sync without a key", "sync: {port: 3780}\n", []string{`1:7: missing key "key_file": sync needs it, or "key_files"`}},
	{"both forms", "sync: {key_file: sync.key, key_files: [other.key]}\n", []string{"1:28: key_file and key_files are both set: take one of them"}},
	{"a key that others can read", "sync: {key_file: sync.key.open}\n", []string{
		"1:18: key_file: sync.key.open: others than its owner may use it (mode 0644): chmod 600"}},
	{"no key in the file", "sync: {key_file: empty.key}\n", []string{
		"1:18: key_file: empty.key: it holds no sluice key: make one with `sluice keygen FILE`"}},
	{"no file", "sync: {key_file: none.key}\n", []string{
		"1:18: key_file: cannot read none.key: file does not exist; make a key with `sluice keygen FILE`, and give every node the same"}},
	{"too many keys", "sync: {key_files: [sync.key, other.key, copy.key]}\n", []string{
		"1:19: key_files has 3 entries: it takes one or 2, the new one and the one before"}},
	{"the same key twice", "sync: {key_files: [sync.key, copy.key]}\n", []string{"1:30: key_files: both files hold the same key"}},
}

// An instance waits for state where the nodes have any in common.
func TestSyncWait(t *testing.T) {
	instance := func(keys string) string {
		return "vrrp:\n- {name: v, interface: e, virtual_router_id: 1, addresses: [192.0.2.100]" + keys + "}\n"
	}
	for _, tc := range []struct {
		name, yaml string
		want       time.Duration
	}{
		{"no sync", instance(""), 0},
		{"the default", withKey + instance(""), 30 * time.Second},
		{"another one", withKey + instance(", sync_wait: 5s"), 5 * time.Second},
		{"none", withKey + instance(", sync_wait: 0s"), 0},
		{"an owner without sync", instance(", priority: 255"), 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := mustLoad(t, tc.yaml).VRRP[0].SyncWait; got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
	const lasting = `instance "v" has priority 255, which takes over at once, and sync is to have it wait for the other node's state: give it a lower priority, or remove sync`
	for _, tt := range []mistakeCase{
		{"no sync", instance(", sync_wait: 5s"), []string{
			"2:86: sync_wait needs state that the nodes have in common: write sync: {key_file: FILE} at the top"}},
		{"an owner", withKey + instance(", priority: 255"), []string{"3:85: " + lasting}},
		{"an owner by nodes", "nodes: [{name: lb1, address: 192.0.2.1, priority: 255}]\n" + withKey + instance(""), []string{"2:7: " + lasting}},
		{"too long", withKey + instance(", sync_wait: 25h"), []string{"3:86: sync_wait must be from 0s to 24h, not 25h"}},
	} {
		t.Run(tt.name, func(t *testing.T) { wantMistakes(t, tt.yaml, tt.want) })
	}
}

func TestHeartbeatMistakes(t *testing.T) {
	for _, tt := range heartbeatMistakes {
		t.Run(tt.name, func(t *testing.T) { wantMistakes(t, tt.yaml, tt.want) })
	}
}

// Who gets heartbeats stays as it is while the daemon runs.
func TestHeartbeatsNeedARestart(t *testing.T) {
	const refused = "vrrp.heartbeat, or an instance that has one: " + byRestart
	before := threeNodes + withKey + beating("{interval: 5ms}")
	for _, tc := range []struct {
		name, after string
		want        []string
	}{
		{"the same", before, nil},
		{"another interval", threeNodes + withKey + beating("{interval: 6ms}"), []string{refused}},
		{"other peers", threeNodes + withKey + beating("{interval: 5ms, peers: [192.0.2.2]}"), []string{refused}},
		{"another virtual router", strings.Replace(before, "virtual_router_id: 1", "virtual_router_id: 2", 1), []string{refused}},
		{"another priority", strings.Replace(before, "addresses", "priority: 7\n  addresses", 1), nil},
		{"none any more", threeNodes + withKey + strings.Replace(beating(""), "  heartbeat: \n", "", 1), []string{refused}},
		{"another key", threeNodes + "sync: {key_file: other.key}\n" + beating("{interval: 5ms}"), []string{"sync: " + byRestart}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, Compare(mustLoad(t, before), mustLoad(t, tc.after)).Refused); diff != "" {
				t.Errorf("refused (-want +got):\n%s", diff)
			}
		})
	}
}
