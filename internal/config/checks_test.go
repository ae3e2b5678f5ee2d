package config

import (
	"net/netip"
	"regexp"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

func TestChecks(t *testing.T) {
	const second = time.Second
	ok := []lb.StatusRange{{First: 200, Last: 399}}
	for _, tt := range []struct {
		name string
		yaml string
		want lb.Check
	}{
		{"the least", "{name: c, type: http, urls: [http://127.0.0.1]}", lb.Check{
			Type: lb.CheckHTTP, Interval: second, Timeout: second, Rise: 2, Fall: 3, Status: ok,
			URLs: []lb.URL{{Address: addrPort("127.0.0.1:80"), Host: "127.0.0.1", Path: "/"}},
		}},
		{"everything of http", `{name: c, type: http, interval: 2s, timeout: 300ms, rise: 4, fall: 5, status: 204, body: "^ok",
    urls: ["http://localhost:8080/a?b=c", "http://[2001:db8::1]/%20"],
    recover: {command: [systemctl, restart, nginx], wait: 0s, attempts: 2}}`, lb.Check{
			Type: lb.CheckHTTP, Interval: 2 * second, Timeout: 300 * time.Millisecond, Rise: 4, Fall: 5,
			Status: []lb.StatusRange{{First: 204, Last: 204}}, Body: regexp.MustCompile("^ok"),
			URLs: []lb.URL{
				{Address: addrPort("127.0.0.1:8080"), Host: "localhost:8080", Path: "/a?b=c"},
				{Address: addrPort("[2001:db8::1]:80"), Host: "[2001:db8::1]", Path: "/%20"},
			},
			Recover: &lb.Recover{Command: []string{"systemctl", "restart", "nginx"}, Attempts: 2},
		}},
		{"a path of this node", "{name: c, type: http, path: /up, port: 8080, host: www.example.com}", lb.Check{
			Type: lb.CheckHTTP, Interval: second, Timeout: second, Rise: 2, Fall: 3, Status: ok,
			URLs: []lb.URL{{Address: addrPort("127.0.0.1:8080"), Host: "www.example.com", Path: "/up"}},
		}},
		{"a path of this node, with TLS", "{name: c, type: https, path: /up, tls: {server_name: www.example.com}}", lb.Check{
			Type: lb.CheckHTTPS, Interval: second, Timeout: second, Rise: 2, Fall: 3, Status: ok, TLS: lb.TLS{ServerName: "www.example.com"},
			URLs: []lb.URL{{TLS: true, Address: addrPort("127.0.0.1:443"), Host: "127.0.0.1", Path: "/up"}},
		}},
		{"URLs of both kinds", `{name: c, type: http, urls: ["https://localhost/a", "http://127.0.0.1:8080/b", "https://[2001:db8::1]:8443"], tls: {verify: false}}`, lb.Check{
			Type: lb.CheckHTTP, Interval: second, Timeout: second, Rise: 2, Fall: 3, Status: ok, TLS: lb.TLS{Insecure: true},
			URLs: []lb.URL{
				{TLS: true, Address: addrPort("127.0.0.1:443"), Host: "localhost", Path: "/a"},
				{Address: addrPort("127.0.0.1:8080"), Host: "127.0.0.1:8080", Path: "/b"},
				{TLS: true, Address: addrPort("[2001:db8::1]:8443"), Host: "[2001:db8::1]:8443", Path: "/"},
			},
		}},
		{"a port of this node", "{name: c, type: tcp, port: 22}", lb.Check{
			Type: lb.CheckTCP, Interval: second, Timeout: second, Rise: 2, Fall: 3, Address: addrPort("127.0.0.1:22"),
		}},
		{"a port of another host", `{name: c, type: tcp, address: "[2001:db8::1]:179", recover: {command: [x]}}`, lb.Check{
			Type: lb.CheckTCP, Interval: second, Timeout: second, Rise: 2, Fall: 3, Address: addrPort("[2001:db8::1]:179"),
			Recover: &lb.Recover{Command: []string{"x"}, Wait: 3 * second, Attempts: 1},
		}},
		{"a name server of this node", "{name: c, type: dns, query: www.example.com}", lb.Check{
			Type: lb.CheckDNS, Interval: second, Timeout: second, Rise: 2, Fall: 3, Address: addrPort("127.0.0.1:53"),
			Query: lb.Query{Name: "www.example.com.", Type: lb.QueryA},
		}},
		{"one at another port", "{name: c, type: dns, port: 5353, query: {name: example.com, type: MX}}", lb.Check{
			Type: lb.CheckDNS, Interval: second, Timeout: second, Rise: 2, Fall: 3, Address: addrPort("127.0.0.1:5353"),
			Query: lb.Query{Name: "example.com.", Type: lb.QueryMX},
		}},
		{"one of another host", "{name: c, type: dns, address: 192.0.2.53, query: .}", lb.Check{
			Type: lb.CheckDNS, Interval: second, Timeout: second, Rise: 2, Fall: 3, Address: addrPort("192.0.2.53:53"),
			Query: lb.Query{Name: ".", Type: lb.QueryA},
		}},
		{"datagrams", `{name: c, type: udp, address: "192.0.2.1:5060", send: "ping\n", expect: ^pong}`, lb.Check{
			Type: lb.CheckUDP, Interval: second, Timeout: second, Rise: 2, Fall: 3, Address: addrPort("192.0.2.1:5060"),
			Send: "ping\n", Expect: regexp.MustCompile("^pong"),
		}},
		{"a program", "{name: c, type: exec, command: [/bin/test, 0123, a b], user: nobody}", lb.Check{
			Type: lb.CheckExec, Interval: second, Timeout: second, Rise: 2, Fall: 3,
			Command: []string{"/bin/test", "0123", "a b"}, User: "nobody",
		}},
		{"a process of the check's name", "{name: c, type: process}", lb.Check{
			Type: lb.CheckProcess, Interval: second, Timeout: second, Rise: 2, Fall: 3, Process: "c",
		}},
		{"the process of a file", "{name: c, type: process, pidfile: /run/c.pid}", lb.Check{
			Type: lb.CheckProcess, Interval: second, Timeout: second, Rise: 2, Fall: 3, PIDFile: "/run/c.pid",
		}},
		{"both", "{name: c, type: process, process: nginx, pidfile: /run/c.pid}", lb.Check{
			Type: lb.CheckProcess, Interval: second, Timeout: second, Rise: 2, Fall: 3, Process: "nginx", PIDFile: "/run/c.pid",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.want.Name = "c"
			got := mustLoad(t, "checks:\n- "+tt.yaml+"\n")
			checkInvariants(t, got)
			if diff := cmp.Diff([]lb.Check{tt.want}, got.Checks, compare...); diff != "" {
				t.Errorf("checks (-want +got):\n%s", diff)
			}
		})
	}
}

// TestTrack checks what an instance tracks, from two files, and its hooks.
func TestTrack(t *testing.T) {
	c, err := load(memFiles{
		"f": "include: [more.yaml]\n" + withInterface + `services:
- {name: web, address: "192.0.2.100:80", backends: [{address: 192.0.2.11}]}
checks:
- {name: web_ok, type: process}
vrrp:
- name: v
  interface: eth0
  virtual_router_id: 1
  addresses: [192.0.2.100]
  track:
  - {check: web_ok, weight: -2}
  - {check: more}
  - {interface: web, weight: 253}
  - {service: web, weight: -253}
  - {upstream: app, weight: -20}
  notify: {active: [/n, active, VI 1], fault: [n], any: [/any]}
`,
		"more.yaml": "checks: [{name: more, type: tcp, port: 1}]\n" +
			"http: {upstreams: [{name: app, servers: [{address: 192.0.2.12}]}], servers: [{listen: \":81\", locations: [{path: /, upstream: app}]}]}\n",
	}, "f", Options{})
	if err != nil {
		t.Fatal(err)
	}
	wantTrack := []lb.Tracked{
		{Kind: lb.TrackCheck, Name: "web_ok", Weight: -2}, {Kind: lb.TrackCheck, Name: "more"},
		{Kind: lb.TrackInterface, Name: "web", Weight: 253}, {Kind: lb.TrackService, Name: "web", Weight: -253},
		{Kind: lb.TrackUpstream, Name: "app", Weight: -20},
	}
	if diff := cmp.Diff(wantTrack, c.VRRP[0].Track); diff != "" {
		t.Errorf("tracked (-want +got):\n%s", diff)
	}
	wantNotify := Notify{Active: []string{"/n", "active", "VI 1"}, Fault: []string{"n"}, Any: []string{"/any"}}
	if diff := cmp.Diff(wantNotify, c.VRRP[0].Notify); diff != "" {
		t.Errorf("hooks (-want +got):\n%s", diff)
	}
}

const trackFrame = "vrrp:\n- {name: v, interface: e, virtual_router_id: 1, addresses: [192.0.2.1],\n"

var checkMistakes = []mistakeCase{
	{"missing keys of checks", "checks:\n- {}\n- {name: a, type: http}\n- {name: b, type: tcp}\n- {name: c, type: exec}\n- {name: d}\n", []string{
		`2:3: missing key "type": a check needs it`,
		`2:3: missing key "name": a check needs it`,
		`3:3: missing key "urls": a check of type http needs it, or "path" for one of this node`,
		`4:3: missing key "port": a check of type tcp needs it, or "address" for one of another host`,
		`5:3: missing key "command": a check needs it`,
		`6:3: missing key "type": a check needs it`,
	}},
	{"duplicate check", "checks:\n- {name: a, type: process}\n- {name: a, type: process}\n", []string{
		`3:10: duplicate check "a": the first one is on line 2`,
	}},
	{"types of checks", "checks:\n- {name: a, type: https}\n- {name: b, type: htpp, urls: [x]}\n", []string{
		`2:3: missing key "urls": a check of type https needs it, or "path" for one of this node`,
		`3:19: type must be one of http, https, tcp, dns, udp, exec, process, not "htpp"; did you mean "http"?`,
	}},
	{"keys of other types", "checks:\n- {name: a, type: tcp, port: 1, path: /, command: [x], pidfile: /p}\n- {name: b, type: process, port: 1}\n", []string{
		`2:33: path is for checks of type http or https, this one's type is tcp`,
		`2:42: command is for checks of type exec, this one's type is tcp`,
		`2:56: pidfile is for checks of type process, this one's type is tcp`,
		`3:28: port is for checks of type http, https, tcp, dns or udp, this one's type is process`,
	}},
	{"URLs", "checks:\n- name: a\n  type: http\n  urls:\n  - 127.0.0.1:80\n  - /x\n  - https://127.0.0.1/\n  - ftp://127.0.0.1/\n" +
		"  - http://www.example.com/\n  - http://127.0.0.1:0/\n  - http://a@127.0.0.1/\n  - http://127.0.0.1/#b\n  - \"http://127.0.0.1/%zz\"\n", []string{
		`5:5: url must be like http://127.0.0.1:8080/path, not "127.0.0.1:80"`,
		`6:5: url must be like http://127.0.0.1:8080/path, not "/x"`,
		`8:5: url must start with http:// or https://, not "ftp://"`,
		`9:5: url: www.example.com must be an address or localhost (write host: www.example.com beside urls for the Host header)`,
		`10:5: url "http://127.0.0.1:0/": the port must be a number from 1 to 65535`,
		`11:5: url must have no user and no fragment`,
		`12:5: url must have no user and no fragment`,
		`13:5: url must be like http://127.0.0.1:8080/path, not "http://127.0.0.1/%zz"`,
	}},
	{"URLs with and without TLS", "checks:\n- {name: a, type: https, urls: [https://127.0.0.1, http://127.0.0.1]}\n- {name: b, type: http, urls: [http://127.0.0.1], tls: {verify: false}}\n" +
		"- {name: c, type: tcp, port: 1, tls: {verify: false}}\n", []string{
		`2:52: url must start with https://, as the type of the check is https (type http takes both)`,
		`3:51: tls is for https, and this check asks for nothing of that`,
		`4:33: tls is for checks of type http or https, this one's type is tcp`,
	}},
	{"URLs and a path", "checks:\n- {name: a, type: http, urls: [http://127.0.0.1], path: /}\n- {name: b, type: http, urls: [], port: 1}\n- {name: c, type: http, urls: []}\n", []string{
		`2:51: path goes with no urls, which say it themselves`,
		`3:35: port goes with no urls, which say it themselves`,
		`4:31: urls is empty: name at least one`,
	}},
	{"addresses of checks", "checks:\n- {name: a, type: tcp, address: 192.0.2.1}\n- {name: b, type: tcp, address: 192.0.2.1:1, port: 2}\n- {name: c, type: tcp, port: 0}\n", []string{
		`2:33: address 192.0.2.1 has no port: write "192.0.2.1:80" (with the port that is meant)`,
		`3:46: address and port are both set: write the port with the address, or leave the address out for this node`,
		`4:30: port must be a whole number from 1 to 65535, not 0`,
	}},
	{"checks over UDP", "checks:\n- {name: a, type: udp, expect: (}\n- {name: b, type: dns, port: 53}\n- {name: c, type: udp, address: 192.0.2.1, query: x}\n", []string{
		`2:3: missing key "port": a check of type udp needs it, or "address" for one of another host`,
		"2:32: expect is not a regular expression: missing closing ): `(`",
		`3:3: missing key "query": a check needs it`,
		`4:33: address 192.0.2.1 has no port: write "192.0.2.1:80" (with the port that is meant)`,
		`4:44: query is for checks of type dns, this one's type is udp`,
	}},
	{"commands", "checks:\n- {name: a, type: exec, command: /bin/true}\n- {name: b, type: exec, command: []}\n- {name: c, type: exec, command: [bin/true]}\n" +
		"- {name: d, type: exec, command: [\"/bin/true -x\"]}\n- {name: e, type: process, pidfile: x.pid}\n", []string{
		`2:34: command must be a list: write [/bin/true]`,
		`3:34: command is empty: name a program`,
		`4:35: command: "bin/true" must be an absolute path, or a name to look for in PATH`,
		`5:35: command: there is no program "/bin/true -x": each argument is an item of its own, and there is no shell`,
		`6:37: pidfile must be an absolute path, not "x.pid"`,
	}},
	{"timing of checks", "checks:\n- {name: a, type: process, interval: 1s, timeout: 2s, rise: 0, fall: 256}\n", []string{
		`2:51: timeout 2s is longer than the interval 1s`,
		`2:61: rise must be a whole number from 1 to 255, not 0`,
		`2:70: fall must be a whole number from 1 to 255, not 256`,
	}},
	{"recoveries", "checks:\n- {name: a, type: process, recover: [x]}\n- {name: b, type: process, recover: {wait: -1s, attempts: 0}}\n", []string{
		`2:37: recover must be a mapping ("key: value"), not a list`,
		`3:37: missing key "command": recover needs it`,
		`3:44: wait must be from 0s to 1h, not -1s`,
		`3:59: attempts must be a whole number from 1 to 100, not 0`,
	}},
	{"tracked items", trackFrame + `  track: [{}, {check: a, interface: b}, {service: s}, {service: s, weight: 0}, {interface: i, weight: 0},
    {interface: i, weight: 254}, {interface: a/b}, {interface: j}, {interface: j, weight: 1}, {script: x}]}
`, []string{
		`3:11: missing key "check": a tracked item needs it, or "interface", "service" or "upstream"`,
		`3:26: a tracked item is one thing: interface is another`,
		`3:41: missing key "weight": a tracked service needs it (a fault that all nodes share must not take the VIP from the last one)`,
		`3:76: weight 0 changes nothing`,
		`3:103: weight 0 changes nothing: leave it out, and a failure is a fault of the instance`,
		`4:28: weight must be a whole number from -253 to 253, not 254`,
		`4:46: interface "a/b" is no name of an interface`,
		`4:80: interface "j" is tracked twice: the first one is on line 4`,
		`4:95: missing key "check": a tracked item needs it, or "interface", "service" or "upstream"`,
		`4:96: unknown key "script" in a tracked item; it is a check`,
	}},
	{"dangling references of instances", withInterface + "checks: [{name: web_ok, type: process}]\nservices: [{name: web, address: 192.0.2.9:80, backends: [{address: 192.0.2.8}]}]\n" +
		trackFrame + "  track: [{check: web_k}, {service: wep, weight: 1}, {check: frobnicate}]}\n", []string{
		`6:19: there is no check "web_k"; did you mean "web_ok"?`,
		`6:37: there is no service "wep"; did you mean "web"?`,
		`6:62: there is no check "frobnicate"`,
	}},
	{"upstreams that are tracked", inUpstream("servers: [{address: 192.0.2.1}]") + trackFrame + "  track: [{upstream: u}, {upstream: v, weight: 1}, {upstream: u, weight: 0}]}\n", []string{
		`9:11: missing key "weight": a tracked upstream needs it (a fault that all nodes share must not take the VIP from the last one)`,
		`9:37: there is no upstream "v"; did you mean "u"?`,
		`9:74: weight 0 changes nothing`,
	}},
	{"weights of an owner", "checks: [{name: c, type: process}]\n" + trackFrame + "  priority: 255, track: [{check: c, weight: -1}]}\n", []string{
		`4:45: weight: priority 255 belongs to the owner of the addresses and never changes`,
	}},
	{"hooks", trackFrame + "  notify: {active: /x, master: [/x], any: [x/y]}}\n", []string{
		`3:20: active must be a list: write [/x]`,
		`3:24: unknown key "master" in notify; the state is called "active"`,
		`3:44: any: "x/y" must be an absolute path, or a name to look for in PATH`,
	}},
	{"keepalived's tracking", "vrrp_script: 1\n" + trackFrame + "  track_script: [x]}\n", []string{
		`1:1: unknown key "vrrp_script" in a configuration; scripts are checks of type exec, a list under "checks"`,
		`4:3: unknown key "track_script" in a VRRP instance; write track: [{check: NAME, weight: -2}]`,
	}},
}

func TestCheckMistakes(t *testing.T) {
	for _, tt := range checkMistakes {
		t.Run(tt.name, func(t *testing.T) { wantMistakes(t, tt.yaml, tt.want) })
	}
}

// checkTracking checks what checks and what is tracked promise.
func checkTracking(t *testing.T, c *Config) {
	t.Helper()
	known := map[string]bool{}
	for _, k := range c.Checks {
		known["check "+k.Name] = true
		complete := k.Name != "" && k.Interval > 0 && k.Timeout > 0 && k.Timeout <= k.Interval && k.Rise > 0 && k.Fall > 0
		switch k.Type {
		case lb.CheckHTTP, lb.CheckHTTPS:
			complete = complete && len(k.URLs) > 0 && len(k.Status) > 0
			for _, u := range k.URLs {
				complete = complete && u.Address.Port() != 0 && u.Host != "" && u.Path[0] == '/'
			}
		case lb.CheckTCP, lb.CheckUDP, lb.CheckDNS:
			complete = complete && (k.Type != lb.CheckDNS || k.Query.Name != "") && k.Address != netip.AddrPort{} && k.Address.Port() != 0
		case lb.CheckExec:
			complete = complete && len(k.Command) > 0
		case lb.CheckProcess:
			complete = complete && k.Process+k.PIDFile != ""
		default:
			complete = false
		}
		if r := k.Recover; r != nil {
			complete = complete && len(r.Command) > 0 && r.Attempts > 0 && r.Wait >= 0
		}
		if !complete {
			t.Errorf("check %+v is not complete", k)
		}
	}
	for _, s := range c.Services {
		known["service "+s.Name] = true
	}
	for _, u := range c.HTTP.Upstreams {
		known["upstream "+u.Name] = true
	}
	for _, i := range c.VRRP {
		for _, k := range i.Track {
			if k.Kind != lb.TrackInterface && !known[string(k.Kind)+" "+k.Name] || (k.Kind == lb.TrackService || k.Kind == lb.TrackUpstream) && k.Weight == 0 || k.Weight < -253 || k.Weight > 253 {
				t.Errorf("instance %s tracks %+v", i.Name, k)
			}
		}
	}
}
