package l7

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

func TestServerNames(t *testing.T) {
	at := aServer(100)
	host := func(isDefault bool, names ...string) *virtualHost {
		return &virtualHost{config: &lb.HTTPServer{Listen: []lb.HTTPListen{{Address: at}}, Names: names, Default: isDefault}}
	}
	first, exact, wild, deep, chosen := host(false), host(false, "example.com", "www.example.com"), host(false, "*.example.com"),
		host(false, "*.a.example.com"), host(true, "other.example")
	for _, tt := range []struct {
		name  string
		hosts []*virtualHost
		host  string
		want  *virtualHost
	}{
		{"exact", []*virtualHost{first, exact, wild}, "example.com", exact},
		{"upper case, port and a dot", []*virtualHost{first, exact, wild}, "WWW.Example.com.:8080", exact},
		{"exact before wildcard", []*virtualHost{wild, exact}, "www.example.com", exact},
		{"wildcard", []*virtualHost{first, exact, wild}, "x.example.com", wild},
		{"wildcard of several labels", []*virtualHost{first, wild}, "x.y.example.com", wild},
		{"a wildcard needs a label", []*virtualHost{first, wild}, "example.com", first},
		{"longest wildcard", []*virtualHost{first, wild, deep}, "x.a.example.com", deep},
		{"not by its end alone", []*virtualHost{first, wild}, "notexample.com", first},
		{"address", []*virtualHost{first, exact}, "192.0.2.100", first},
		{"IPv6 address", []*virtualHost{first, exact}, "[2001:db8::1]:80", first},
		{"nothing", []*virtualHost{first, exact}, "", first},
		{"chosen default", []*virtualHost{first, exact, chosen}, "unknown", chosen},
		{"first of two of one name", []*virtualHost{exact, host(false, "example.com")}, "example.com", exact},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := routesOf(tt.hosts)[at].find(tt.host); got != tt.want {
				t.Errorf("%q goes to %+v", tt.host, got.config)
			}
		})
	}
}

// precedence are the locations of one server, as nginx and sluice write them.
var precedence = []struct {
	nginx    string
	location lb.Location
}{
	{"/", prefix("/", "u")},
	{"/images/", prefix("/images/", "u")},
	{"^~ /static/", func() lb.Location { l := prefix("/static/", "u"); l.NoRegex = true; return l }()},
	{"= /", exact("/", "u")},
	{"= /static/exact.php", exact("/static/exact.php", "u")},
	{"/a", prefix("/a", "u")},
	{"/a/b/", prefix("/a/b/", "u")},
	{"/a/b/c/deep.jpg", prefix("/a/b/c/deep.jpg", "u")},
	{`~ \.php$`, regex(`\.php$`, "u")},
	{`~* \.(gif|jpg)$`, regex(`(?i)\.(gif|jpg)$`, "u")},
	{`~ ^/images/special`, regex(`^/images/special`, "u")},
	{"= /only/", exact("/only/", "u")},
	{"/both/", prefix("/both/", "u")},
	{"= /both", exact("/both", "u")},
}

// paths are what is asked for, and which location nginx gives it to.
var paths = []struct{ path, want string }{
	{"/", "= /"},
	{"/?q", "= /"},
	{"/index.html", "/"},
	{"/x.php", `~ \.php$`},
	{"/x.PHP", "/"},
	{"/x.JPG", `~* \.(gif|jpg)$`},
	{"/images/", "/images/"},
	{"/images", "301 /images/"},
	{"/images?a=b", "301 /images/?a=b"},
	{"/x/../images", "301 /images/"},
	{"//images%2F..%2fimages", "301 /images/"},
	{"/images/a.png", "/images/"},
	{"/images/a.gif", `~* \.(gif|jpg)$`},
	{"/images/special/a.gif", `~* \.(gif|jpg)$`},
	{"/images/special", `~ ^/images/special`},
	{"/static/a.php", "^~ /static/"},
	{"/static/exact.php", "= /static/exact.php"},
	{"/static", "301 /static/"},
	{"/a", "/a"},
	{"/abc", "/a"},
	{"/a/b", "301 /a/b/"},
	{"/a/b/", "/a/b/"},
	{"/a/b/c.php", `~ \.php$`},
	{"/a/b/c/deep.jpg", `~* \.(gif|jpg)$`},
	{"/a//b///c", "/a/b/"},
	{"/a/./b/c", "/a/b/"},
	{"/a/x/../b/c", "/a/b/"},
	{"/%61/b/c", "/a/b/"},
	{"/a%2fb%2fc", "/a/b/"},
	{"/images/../x.php", `~ \.php$`},
	{"/images/%2e%2e/static/x.php", "^~ /static/"},
	{"/.", "= /"},
	{"/images/.", "/images/"},
	{"/images/..", "= /"},
	{"/only", "301 /only/"},
	{"/only/", "= /only/"},
	{"/only/more", "/"},
	{"/both", "= /both"},
	{"/both/", "/both/"},
	{"/..", "400"},
	{"/%00", "400"},
}

// placeOf says which location a path came to: a server tells what it got in X-Location.
func placeOf(t *testing.T, at netip.AddrPort, path string) string {
	t.Helper()
	res, body := raw(t, at, "GET "+path+" HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n")
	if res.StatusCode == http.StatusOK {
		return body
	}
	text := fmt.Sprint(res.StatusCode)
	if l := res.Header.Get("Location"); l != "" {
		_, after, _ := strings.Cut(l, "//")
		_, after, _ = strings.Cut(after, "/")
		text += " /" + after
	}
	return text
}

// Locations have nginx's precedence; where nginx is installed, it is asked.
func TestLocationPrecedence(t *testing.T) {
	server := backend(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Header.Get("X-Location")) })
	at := freePort(t)
	var all []lb.Location
	for _, p := range precedence {
		l := p.location
		l.RequestHeaders.Set = []lb.Header{{Name: "X-Location", Value: strings.ReplaceAll(p.nginx, "$", "$$")}}
		all = append(all, l)
	}
	start(t, one(at, []lb.Upstream{upstreamOf("u", server)}, all...))
	var nginx netip.AddrPort
	if path, err := testenv.FindProgram("nginx"); err == nil {
		nginx = startNginx(t, path, server)
	} else {
		t.Log("nginx is not installed, and is not asked")
	}
	for _, tt := range paths {
		t.Run(tt.path, func(t *testing.T) {
			if got := placeOf(t, at, tt.path); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			if nginx.IsValid() {
				if got := placeOf(t, nginx, tt.path); got != tt.want {
					t.Errorf("nginx says %s, not %s", got, tt.want)
				}
			}
		})
	}
}

// startNginx starts an nginx with the locations of precedence.
func startNginx(t *testing.T, program string, server netip.AddrPort) netip.AddrPort {
	t.Helper()
	dir := t.TempDir()
	at := freePort(t)
	var locations strings.Builder
	for _, p := range precedence {
		// In a value, nginx would take a dollar sign for a variable.
		fmt.Fprintf(&locations, "location %s { proxy_set_header X-Location '%s'; proxy_pass http://%v; }\n",
			p.nginx, strings.ReplaceAll(strings.ReplaceAll(p.nginx, "$", "${dollar}"), `\`, `\\`), server)
	}
	conf := filepath.Join(dir, "nginx.conf")
	text := fmt.Sprintf(`daemon off; master_process off; pid %[1]s/pid; error_log %[1]s/error.log;
events {}
http {
	access_log off; client_body_temp_path %[1]s/t; proxy_temp_path %[1]s/t; fastcgi_temp_path %[1]s/t; uwsgi_temp_path %[1]s/t; scgi_temp_path %[1]s/t;
	geo $dollar { default "$"; }
	server { listen %[2]v reuseport; server_name example.com; %[3]s }
}`, dir, at, locations.String())
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c := exec.Command(program, "-p", dir, "-c", conf, "-e", filepath.Join(dir, "error.log"))
	out, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	go func() { // it says what is wrong with its configuration
		for s := bufio.NewScanner(out); s.Scan(); {
			fmt.Fprintln(os.Stderr, s.Text())
		}
	}()
	testenv.Eventually(t, 30*time.Second, "nginx answers", func() (bool, error) {
		res, err := http.Get(fmt.Sprintf("http://%v/", at))
		if err != nil {
			return false, err
		}
		return true, res.Body.Close()
	})
	return at
}

func TestNormalize(t *testing.T) {
	for in, want := range map[string]string{
		"/": "/", "/a": "/a", "//": "/", "/a//b/": "/a/b/", "/./a": "/a", "/a/.": "/a/", "/a/..": "/", "/a/../": "/", "/a/b/../c": "/a/c",
		"/..a/.b": "/..a/.b", "/a/...": "/a/...", "/..": "", "/a/../..": "", "": "", "a": "", "*": "", "/a\x00": "",
	} {
		got, ok := normalize(in)
		if got != want || ok != (want != "") {
			t.Errorf("%q becomes %q, %v, want %q", in, got, ok, want)
		}
	}
}

func TestRewrites(t *testing.T) {
	server := named(t, "s")
	at := freePort(t)
	strip, stripBare := prefix("/static/", "u"), prefix("/api", "u")
	strip.StripPrefix, stripBare.StripPrefix = true, true
	rewrite := regex("^/user/", "u")
	rewrite.Rewrites = []lb.Rewrite{
		{Regex: regex(`^/user/(\d+)/(.*)$`, "").Regex, To: "/u/$2/$1"},
		{Regex: regex(`^/user/q/(x)?(.*)$`, "").Regex, To: "/q?a=$1&b=$2"}, {Regex: regex(`^/user/alone/(.*)$`, "").Regex, To: "/q?a=$1?"},
		{Regex: regex(`^/user/none/`, "").Regex, To: "/none?"}, {Regex: regex(`^/user/in(.*)$`, "").Regex, To: "/in/$1"}, {Regex: regex(`^/user/`, "").Regex, To: "/nobody/"},
	}
	start(t, one(at, []lb.Upstream{upstreamOf("u", server)}, prefix("/", "u"), strip, stripBare, rewrite))
	const bad = "400 Bad Request\n" // it would lead out of where the location leads
	got := map[string]string{}
	want := map[string]string{
		"/x?y":                   "s /x?y",
		"/static/a/b?c=d":        "s /a/b?c=d",
		"/static/":               "s /",
		"/static//a%20b%2Fc":     "s /a%20b/c",
		"/static/%3Fx":           "s /%3Fx",
		"/static/../static//x":   "s /x",
		"/api":                   "s /",
		"/api/x":                 "s /x",
		"/user/17/home?q":        "s /u/home/17?q",
		"/user/x":                "s /nobody/x",
		"/user/q/y":              "s /q?a=&b=y",
		"/user/q/x1?c=%20&d":     "s /q?a=x&b=1&c=%20&d",
		"/user/q/%26c=1%3F+%20/": "s /q?a=&b=%26c%3D1%3F%2B%20%2F",
		"/user/alone/y?c":        "s /q?a=y",
		"/user/none/?c":          "s /none",
		"/user/in..x/y":          "s /in/..x/y",
		"/user/in../y":           bad,
		"/user/in.":              bad,
		"/api..x":                "s /..x",
		"/api../secret":          bad,
		"/api..%2fsecret":        bad,
		"/a%2fb%26/../|^c":       "s /a%2fb%26/../%7C%5Ec",
		"/a%2Fb\xc3\xa9%7e":      "s /a%2Fb%C3%A9%7e",
		"/a%2Fb#c?d#e":           "s /a%2Fb%23c?d#e",
		"/\"<>[]`{}\\%2f":        "s /%22%3C%3E[]%60%7B%7D%5C%2f",
		"//a%2Fb|":               "s //a%2Fb%7C",
		"/static/http://evil/?a": "s /http:/evil/?a",
	}
	for path := range want {
		_, got[path] = get(t, at, "a", path)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("what the server is asked for (-want +got):\n%s", diff)
	}
}
