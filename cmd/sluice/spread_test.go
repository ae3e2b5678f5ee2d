package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/key"
	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
	"github.com/sluice-lb/sluice/loader"
)

var spreadVIP = netip.MustParseAddrPort("192.0.2.100:80")

// patientPair takes over after 1.8 s: no node that only stands still for a moment, on a
// machine that is busy, is to lose the VIP, and with it what peers were not told yet.
const patientPair = `{name: VI_1, interface: eth0, virtual_router_id: 51, advertisement_interval: 500ms, addresses: [192.0.2.100/24]}`

// A spreadRig is two nodes whose proxies both serve one VIP, in front of a backend that
// tells whom it has answered.
type spreadRig struct {
	*rig
	daemons map[string]*testenv.Process
}

// spreadFile is the configuration of a node: /who says which one answers, and to whom.
func (r *spreadRig) spreadFile(node string) string {
	return r.file(node+".yaml", roster, services(`{name: www, address: "192.0.2.100:80", forward: proxy, spread: true, `+probes+`}`), vrrps(patientPair),
		"sync: {key_file: sync.key}\n", fmt.Sprintf(`
http:
  upstreams: [{name: app, servers: [{address: 192.0.2.11}]}]
  servers:
    - listen: "192.0.2.100:80"
      locations:
        - {path: /, upstream: app}
        - {exact: /who, return: {status: 200, body: "%s $client_address"}}
`, node))
}

func newSpreadRig(t *testing.T) *spreadRig {
	t.Helper()
	r := &spreadRig{rig: newRig(t, testenv.Default(1)), daemons: map[string]*testenv.Process{}}
	r.serve("b1", forwardedHandler())
	if err := key.Write(filepath.Join(r.lab.Dir(), "sync.key"), key.New()); err != nil {
		t.Fatal(err)
	}
	for _, node := range []string{"lb1", "lb2"} {
		r.daemons[node] = r.start(node, r.spreadFile(node))
	}
	r.waitReady("lb1")
	r.waitBackup("lb2")
	r.waitShared("lb1")
	r.waitVIP(soon, vip, "lb1", "lb2")
	return r
}

// ticks counts what backends send without an end.
var ticks atomic.Int64

// forwardedHandler tells a client whom the proxy has named; at /ticks it sends a line
// every now and then for as long as they are read.
func forwardedHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, q *http.Request) { fmt.Fprint(w, q.Header.Get("X-Forwarded-For")) })
	mux.HandleFunc("/ticks", func(w http.ResponseWriter, q *http.Request) {
		ticker := time.NewTicker(20 * time.Millisecond)
		defer ticker.Stop()
		for {
			if _, err := fmt.Fprintln(w, ticks.Add(1)); err != nil || http.NewResponseController(w).Flush() != nil {
				return
			}
			select {
			case <-ticker.C:
			case <-q.Context().Done():
				return
			}
		}
	})
	return mux
}

// who asks count times, each time by a new connection, which node serves.
func (r *spreadRig) who(count int) map[string]int {
	r.Helper()
	got := map[string]int{}
	for range count {
		got[r.curl("client", "http://192.0.2.100/who")]++
	}
	return got
}

// client is how the nodes name the client.
func (r *spreadRig) client(node string) string {
	return fmt.Sprintf("%s %v", node, r.host("client").Address())
}

// A talk is a connection through a node, on which an answer goes on without an end.
type talk struct {
	node   string
	conn   net.Conn
	body   io.Closer
	answer *bufio.Reader
}

// talk opens a connection, finds out which node serves it, and has the backend begin.
func (r *spreadRig) talk() *talk {
	r.Helper()
	k := &talk{}
	transport := &http.Transport{MaxConnsPerHost: 1, DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := r.host("client").Dial(ctx, network, address)
		k.conn = conn
		return conn, err
	}}
	client := http.Client{Transport: transport}
	get := func(path string) *http.Response {
		resp, err := client.Get("http://192.0.2.100" + path)
		if err != nil {
			r.Fatal(err)
		}
		return resp
	}
	resp := get("/who")
	text, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		r.Fatal(err)
	}
	k.node, _, _ = strings.Cut(string(text), " ")
	first := k.conn
	resp = get("/ticks")
	if k.conn != first {
		r.Fatal("a request of the same client has a connection of its own")
	}
	k.body, k.answer = resp.Body, bufio.NewReader(resp.Body)
	r.Cleanup(k.end)
	return k
}

// end lets the client go.
func (k *talk) end() {
	k.conn.Close()
	k.body.Close()
}

// goesOn reads until something comes that was sent just now.
func (k *talk) goesOn() error {
	if err := k.conn.SetReadDeadline(time.Now().Add(soon)); err != nil {
		return err
	}
	for sent := ticks.Load(); ; {
		line, err := k.answer.ReadString('\n')
		if err != nil {
			return err
		}
		n, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
		if err != nil || n > sent {
			return err
		}
	}
}

// talks opens connections until each of both nodes has n of them at least.
func (r *spreadRig) talks(n int) map[string][]*talk {
	r.Helper()
	all := map[string][]*talk{}
	for len(all["lb1"]) < n || len(all["lb2"]) < n {
		if len(all["lb1"])+len(all["lb2"]) == 40*n {
			r.Fatalf("lb1 has %d connections, lb2 %d", len(all["lb1"]), len(all["lb2"]))
		}
		k := r.talk()
		all[k.node] = append(all[k.node], k)
	}
	return all
}

// mustGoOn fails the test for a connection that does not.
func (r *spreadRig) mustGoOn(when string, all ...*talk) {
	r.Helper()
	for _, k := range all {
		if err := k.goesOn(); err != nil {
			r.Errorf("a connection through %s, %s: %v", k.node, when, err)
		}
	}
}

// www is the service as a node sees it: what it has given to each node.
func (r *spreadRig) www(on string) map[string]control.BackendStatus {
	r.Helper()
	v, err := serviceOf(r.mustStatus(on), "www")
	if err != nil {
		r.Fatal(err)
	}
	all := map[string]control.BackendStatus{}
	for _, b := range v.Backends {
		all[map[string]string{"192.0.2.1": "lb1", "192.0.2.2": "lb2"}[b.Address.Addr().String()]] = b
	}
	return all
}

// outcome is how often a node has counted one.
func (r *spreadRig) outcome(on, name string) uint64 {
	r.Helper()
	all := r.mustStatus(on).Outcomes
	if i := slices.IndexFunc(all, func(o loader.Outcome) bool { return o.Name == name }); i >= 0 {
		return all[i].Packets
	}
	return 0
}

// One VIP, and the proxies of both nodes: the one that has it sends on what the other one
// serves, which answers by itself.
func TestSpread(t *testing.T) {
	testenv.RequireProgram(t, "curl")
	r := newSpreadRig(t)

	t.Run("both serve, and see the client", func(t *testing.T) {
		got := r.who(60)
		if got[r.client("lb1")] < 5 || got[r.client("lb2")] < 5 || got[r.client("lb1")]+got[r.client("lb2")] != 60 {
			t.Errorf("answers %v", got)
		}
		for range 8 { // whichever serves
			if got, want := r.curl("client", "http://192.0.2.100/"), r.host("client").Address().String(); got != want {
				t.Errorf("the backend was told %q, want %q", got, want)
			}
		}
	})
	t.Run("the VIP is one node's", func(t *testing.T) {
		if !r.has("lb1", vip) || r.has("lb2", vip) {
			t.Errorf("the VIP is on lb1: %v, on lb2: %v", r.has("lb1", vip), r.has("lb2", vip))
		}
		if got := r.neighbour("client", vip); got != r.host("lb1").MAC("eth0").String() {
			t.Errorf("the client has %v at %s", vip, got)
		}
		if got := r.asker("client").answers(vip); !slices.Equal(got, []string{"lb1"}) {
			t.Errorf("%v answer for the VIP", got)
		}
	})
	t.Run("nothing goes round", func(t *testing.T) {
		on1, on2 := r.www("lb1"), r.www("lb2")
		if on1["lb1"].Packets == 0 || on1["lb2"].Packets == 0 {
			t.Errorf("lb1 has given %d packets to itself and %d to lb2", on1["lb1"].Packets, on1["lb2"].Packets)
		}
		if on2["lb1"].Packets+on2["lb2"].Packets != 0 {
			t.Errorf("lb2, which has not the VIP, has sent %d packets to lb1 and %d to itself by its table", on2["lb1"].Packets, on2["lb2"].Packets)
		}
		// Probes come beside, both ways.
		if got := r.outcome("lb2", "from_node"); got < on1["lb2"].Packets {
			t.Errorf("lb2 has counted %d packets from another node, want the %d that lb1 has sent, and probes", got, on1["lb2"].Packets)
		}
	})
	t.Run("explain", func(t *testing.T) {
		want := map[string]string{"192.0.2.1:80": "here", "192.0.2.2:80": loader.OutcomeSent}
		got := map[string]string{}
		for p := 0; p < 40 && len(got) < 2; p++ {
			from := fmt.Sprintf("%v:%d", r.host("client").Address(), 40000+p)
			out := r.wantRun(0, "lb1", "explain", "--src", from, "--dst", "192.0.2.100:80", "--tcp-flags", "syn", "--json").stdout
			var x struct {
				Backend struct{ Address string }
				Outcome string
			}
			if err := json.Unmarshal([]byte(out), &x); err != nil {
				t.Fatalf("explain says %s: %v", out, err)
			}
			got[x.Backend.Address] = x.Outcome
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("outcomes by node (-want +got):\n%s", diff)
		}
	})
	t.Run("an operator drains a node", func(t *testing.T) {
		all := r.talks(3)
		r.wantRun(0, "lb1", "backend", "drain", "www", "192.0.2.2")
		r.waitServers("lb1", "www", soon, control.ServerUp, control.ServerDrained)
		if diff := cmp.Diff(map[string]int{r.client("lb1"): 20}, r.who(20)); diff != "" {
			t.Errorf("new connections (-want +got):\n%s", diff)
		}
		r.mustGoOn("while it drains", slices.Concat(all["lb1"], all["lb2"])...)
		r.wantRun(0, "lb1", "backend", "reset", "www", "192.0.2.2")
		r.waitServers("lb1", "www", soon, control.ServerUp, control.ServerUp)
		r.mustGoOn("when it is back", slices.Concat(all["lb1"], all["lb2"])...)
	})
	t.Run("the standby crashes, and comes back", func(t *testing.T) {
		all := r.talks(3)
		r.kill(r.daemons["lb2"])
		r.waitServers("lb1", "www", soon, control.ServerUp, control.ServerDown)
		if diff := cmp.Diff(map[string]int{r.client("lb1"): 20}, r.who(20)); diff != "" {
			t.Errorf("new connections (-want +got):\n%s", diff)
		}
		r.mustGoOn("after the crash", all["lb1"]...)
		for _, k := range all["lb2"] {
			if k.goesOn() == nil {
				t.Error("a connection goes on whose proxy is gone")
			}
		}
		r.daemons["lb2"] = r.start("lb2", r.spreadFile("lb2"))
		r.waitServers("lb1", "www", soon, control.ServerUp, control.ServerUp)
		r.mustGoOn("after the return", all["lb1"]...)
		if got := r.who(40); got[r.client("lb2")] == 0 || got[r.client("lb1")] == 0 {
			t.Errorf("answers after the return: %v", got)
		}
	})
	t.Run("the node with the VIP crashes", func(t *testing.T) {
		r.waitShared("lb1")
		all := r.talks(3)
		if err := r.host("lb1").LinkDown(); err != nil {
			t.Fatal(err)
		}
		r.kill(r.daemons["lb1"])
		r.waitVIP(soon, vip, "lb2")
		r.waitServers("lb2", "www", soon, control.ServerDown, control.ServerUp)
		r.mustGoOn("after the crash", all["lb2"]...)
		if diff := cmp.Diff(map[string]int{r.client("lb2"): 20}, r.who(20)); diff != "" {
			t.Errorf("new connections (-want +got):\n%s", diff)
		}
	})
}

// A planned stop of the node that has the VIP: what its proxy serves goes on by way of
// the other node until it ends, what is new goes to that one, and nothing fails, nor when
// the node comes back. So does one of the standby. One that is killed on the way is gone at
// once.
func TestSpreadStops(t *testing.T) {
	r := newSpreadRig(t)
	prober := r.prober(spreadVIP)
	r.answersMore(prober, 50)
	for _, node := range []string{"lb1", "lb2"} {
		other := map[string]string{"lb1": "lb2", "lb2": "lb1"}[node]
		all := r.talks(2)
		stopped := make(chan error, 1)
		daemon := r.daemons[node]
		go func() { stopped <- daemon.Stop() }()
		r.waitVIP(soon, vip, other, node)
		r.waitStops(other)
		r.mustGoOn("while "+node+" stops", slices.Concat(all["lb1"], all["lb2"])...)
		r.answersMore(prober, 50)
		r.mustGoOn("a while later", slices.Concat(all["lb1"], all["lb2"])...)
		select {
		case err := <-stopped:
			t.Fatalf("%s has ended before what it serves: %v", node, err)
		default:
		}
		for _, k := range all[node] {
			k.end()
		}
		if err := <-stopped; err != nil {
			t.Fatal(err)
		}
		if err := daemon.Wait(); err != nil {
			t.Fatalf("sluice on %s ended with %v, want exit code 0:\n%s", node, err, daemon.Tail(10))
		}
		r.answersMore(prober, 50)
		r.mustGoOn("without "+node, all[other]...)
		r.daemons[node] = r.start(node, r.spreadFile(node))
		r.waitServers(other, "www", 2*soon, control.ServerUp, control.ServerUp)
		r.waitVIP(2*soon, vip, "lb1", "lb2")
		r.answersMore(prober, 50)
		r.mustGoOn("when "+node+" is back", all[other]...)
	}
	r.wantNoFailure(prober)

	r.waitShared("lb1")
	all := r.talks(2)
	if err := r.daemons["lb1"].Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	r.waitVIP(soon, vip, "lb2", "lb1")
	r.waitStops("lb2")
	r.mustGoOn("while lb1 stops again", all["lb1"]...)
	r.kill(r.daemons["lb1"])
	r.waitServers("lb2", "www", 8*time.Second, control.ServerDown, control.ServerUp) // its stop could have taken a minute
	for _, k := range all["lb1"] {
		if k.goesOn() == nil {
			t.Error("a connection goes on whose proxy is gone")
		}
	}
	r.mustGoOn("without lb1", all["lb2"]...)
}

// waitStops waits until a node knows that another one is about to stop.
func (r *spreadRig) waitStops(on string) {
	r.Helper()
	r.waitStatus(on, soon, "a node that is about to stop", func(s control.Status) error {
		v, err := serviceOf(s, "www")
		for _, b := range v.Backends {
			if b.State == control.ServerDrained && b.Slots == 0 {
				return nil
			}
		}
		return fmt.Errorf("service %+v: %w", v.Backends, err)
	})
}

// The same of IPv6, also where a VIP has its virtual router's MAC address, and accepts nothing
// but services.
func TestSpread6(t *testing.T) {
	testenv.RequireProgram(t, "curl")
	r := &spreadRig{rig: viaRig(t, 1)}
	client := ""
	// By a veth pair with native XDP no node is reached at a virtual MAC address.
	generic := strings.Replace(strings.Split(pair6, "pools:")[0], "{interfaces:", "{mode: generic, interfaces:", 1)
	for _, node := range []string{"lb1", "lb2"} {
		r.start(node, r.file(node+".yaml", generic,
			services(`{name: www, address: "[2001:db8::100]:80", forward: proxy, spread: true, `+probes+`}`),
			vrrps(`{name: VI_1, interface: eth0, virtual_router_id: 51, advertisement_interval: 200ms, accept: false, virtual_mac: true,
     addresses: ["fe80::100/64", "2001:db8::100/64"]}`),
			fmt.Sprintf("http: {servers: [{listen: \"[2001:db8::100]:80\", locations: [{path: /, return: {status: 200, body: \"%s $client_address\"}}]}]}\n", node)))
	}
	r.waitReady("lb1")
	r.waitBackup("lb2")
	r.waitVIP(soon, vip6, "lb1", "lb2")
	got := map[string]int{}
	for range 40 {
		var node string
		node, client, _ = strings.Cut(r.curl("client", "http://[2001:db8::100]/"), " ")
		got[node]++
	}
	if got["lb1"] < 3 || got["lb2"] < 3 || got["lb1"]+got["lb2"] != 40 {
		t.Errorf("answers %v", got)
	}
	if on, err := r.host("client").AddrOn(netip.MustParseAddr(client)); err != nil || !on {
		t.Errorf("the nodes see %q, which is no address of the client: %v", client, err)
	}
	if r.has("lb2", vip6) {
		t.Error("lb2 has the VIP, too")
	}
}

// A node has left a table when nothing of it is its own, or nobody else could have it.
func TestOwns(t *testing.T) {
	one, two := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	both := []lb.TableBackend{{Address: netip.AddrPortFrom(one, 80)}, {Address: netip.AddrPortFrom(two, 80)}}
	failed := slices.Clone(both)
	failed[1].Failed = true
	slots := func(owners ...uint16) (all []lb.Slot) {
		for _, o := range owners {
			all = append(all, lb.Slot{Owner: o, Previous: 1})
		}
		return all
	}
	for _, tt := range []struct {
		name  string
		table lb.TableState
		node  netip.Addr
		want  bool
	}{
		{"a part", lb.TableState{Backends: both, Slots: slots(2, 1, 2)}, one, true},
		{"nothing", lb.TableState{Backends: both, Slots: slots(2, 2, 2)}, one, false},
		{"all, and the other one has failed", lb.TableState{Backends: failed, Slots: slots(1, 1)}, one, false},
		{"nobody's slots", lb.TableState{Backends: both, Slots: slots(0, 0)}, one, false},
		{"it is not in the table", lb.TableState{Backends: both[1:], Slots: slots(0, 1)}, one, false},
		{"the other one", lb.TableState{Backends: both, Slots: slots(2, 2)}, two, true},
	} {
		if got := owns(tt.table, tt.node); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}
