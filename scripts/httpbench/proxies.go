package main

import (
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// A proxy is a program that is measured, or the backend behind it.
type proxy struct {
	name    string
	at      netip.AddrPort
	log     bool // what it writes to its standard output is its access log
	command func(h *testenv.Host, dir string) (*exec.Cmd, error)
	process *testenv.Process
}

// Where they listen: an address of the host itself, so that everything goes by loopback.
// One of 127.0.0.0/8 sluice takes for no server's.
var (
	address   = netip.MustParsePrefix("192.0.2.1/24")
	backendAt = netip.AddrPortFrom(address.Addr(), 8080)
	sluiceAt  = netip.AddrPortFrom(address.Addr(), 8001)
	nginxAt   = netip.AddrPortFrom(address.Addr(), 8002)
	haproxyAt = netip.AddrPortFrom(address.Addr(), 8003)
)

// Each has what a user switches on: an access log in nginx's format "combined",
// X-Forwarded-For and its like, connections to the backend that are kept, and a health
// check where there is one. Slow clients may take their time in sluice: they are to stay.
const (
	sluiceText = `
pools:
  - name: web
    health: {type: http, path: /1k, interval: 1s}
    servers: [{address: "BACKEND"}]
http:
  upstreams: [{name: web, pool: web, keepalive: 64}]
  servers: [{listen: "AT", locations: [{path: /, upstream: web}]}]
  access_log: {path: DIR/access.log, format: combined}
  client_header_timeout: 1h
  client_body_timeout: 1h
  client_min_body_rate: 0
  keepalive_timeout: 1h
`
	nginxText = `
daemon off;
user root;
worker_processes 1;
pid DIR/nginx.pid;
error_log DIR/error.log;
events { worker_connections 4096; }
http {
	access_log DIR/access.log combined buffer=64k flush=1s;
	client_body_temp_path DIR/tmp; proxy_temp_path DIR/tmp; fastcgi_temp_path DIR/tmp; uwsgi_temp_path DIR/tmp; scgi_temp_path DIR/tmp;
	keepalive_requests 100000000;
	proxy_buffers 8 16k;
	upstream web { server BACKEND; keepalive 64; keepalive_requests 100000000; }
	server {
		listen AT backlog=4096;
		location / {
			proxy_pass http://web;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_set_header Host $host;
			proxy_set_header X-Real-IP $remote_addr;
			proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
			proxy_set_header X-Forwarded-Proto $scheme;
			proxy_set_header X-Forwarded-Host $host;
		}
	}
}
`
	haproxyText = `
global
	nbthread 1
	maxconn 2000
	log stdout format raw daemon
defaults
	mode http
	log global
	option dontlognull
	timeout connect 5s
	timeout client 60s
	timeout server 60s
frontend in
	bind AT backlog 4096
	capture request header Referer len 256
	capture request header User-Agent len 256
	log-format '%ci - - [%tr] "%HM %HU %HV" %ST %B "%[capture.req.hdr(0)]" "%[capture.req.hdr(1)]"'
	default_backend web
backend web
	http-reuse always
	option forwardfor
	http-request set-header X-Real-IP %[src]
	http-request set-header X-Forwarded-Proto http
	http-request set-header X-Forwarded-Host %[req.hdr(Host)]
	option httpchk GET /1k
	server b1 BACKEND check inter 1s pool-max-conn 64
`
	backendText = `
daemon off;
user root;
worker_processes 1;
pid DIR/nginx.pid;
error_log DIR/error.log;
events { worker_connections 4096; }
http {
	access_log off;
	client_body_temp_path DIR/tmp; proxy_temp_path DIR/tmp; fastcgi_temp_path DIR/tmp; uwsgi_temp_path DIR/tmp; scgi_temp_path DIR/tmp;
	keepalive_requests 100000000;
	sendfile on;
	tcp_nopush on;
	open_file_cache max=10;
	server { listen AT backlog=4096; root DIR/root; }
}
`
)

// fill puts places and addresses into a configuration.
func fill(text, dir string, at netip.AddrPort) string {
	return strings.NewReplacer("DIR", dir, "AT", at.String(), "BACKEND", backendAt.String()).Replace(text)
}

func newSluice(program string) *proxy {
	return &proxy{name: "sluice", at: sluiceAt, command: func(h *testenv.Host, dir string) (*exec.Cmd, error) {
		file := filepath.Join(dir, "sluice.yaml")
		return write(file, fill(sluiceText, dir, sluiceAt), program,
			"--run-dir", h.RunDir, "--pin-dir", h.PinDir, "--state-dir", filepath.Join(dir, "state"), "run", "-c", file)
	}}
}

func newNginx() *proxy   { return nginx("nginx", nginxText, nginxAt) }
func newBackend() *proxy { return nginx("backend", backendText, backendAt) }

func nginx(name, text string, at netip.AddrPort) *proxy {
	return &proxy{name: name, at: at, command: func(_ *testenv.Host, dir string) (*exec.Cmd, error) {
		file := filepath.Join(dir, "nginx.conf")
		return write(file, fill(text, dir, at), "nginx", "-p", dir, "-c", file, "-e", filepath.Join(dir, "error.log"))
	}}
}

func newHaproxy() *proxy {
	return &proxy{name: "haproxy", at: haproxyAt, log: true, command: func(_ *testenv.Host, dir string) (*exec.Cmd, error) {
		file := filepath.Join(dir, "haproxy.cfg")
		return write(file, fill(haproxyText, dir, haproxyAt), "haproxy", "-db", "-f", file)
	}}
}
