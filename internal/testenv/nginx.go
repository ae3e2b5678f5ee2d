package testenv

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"text/template"
	"time"
)

// NginxConfig says what an nginx serves. It answers "/" with its host's name and
// a line feed, "/healthz" with "ok", and "/download" with the bytes of
// DownloadSize at DownloadRate.
type NginxConfig struct {
	Port         uint16 // default: 80, on all IPv4 addresses of the host
	IPv6         bool   // and on all IPv6 addresses
	DownloadSize int64  // bytes; 0: no download
	DownloadRate int    // bytes per second and connection; 0: no limit
}

// An Nginx is a real nginx on a host.
type Nginx struct{ *Process }

// sendfile_max_chunk makes nginx spread a rate over the second; by default it
// sends a second's worth at once and then sleeps.
var nginxTemplate = template.Must(template.New("nginx.conf").Parse(`
daemon off;
user root;
worker_processes 1;
pid {{.Dir}}/nginx.pid;
error_log {{.Dir}}/error.log;
events { worker_connections 4096; }
http {
	access_log off;
	server_tokens off;
	default_type application/octet-stream;
	client_body_temp_path {{.Dir}}/tmp;
	proxy_temp_path {{.Dir}}/tmp;
	fastcgi_temp_path {{.Dir}}/tmp;
	uwsgi_temp_path {{.Dir}}/tmp;
	scgi_temp_path {{.Dir}}/tmp;
	sendfile on;
	sendfile_max_chunk 32k;
	server {
		listen {{.Port}} backlog=4096;
		{{- if .IPv6}}
		listen [::]:{{.Port}} ipv6only=on;
		{{- end}}
		root {{.Dir}}/root;
		location = / { return 200 "{{.Name}}\n"; }
		location = /healthz { return 200 "ok\n"; }
		location = /download {
			add_header X-Backend {{.Name}};
			{{- if .DownloadRate}}
			limit_rate {{.DownloadRate}};
			{{- end}}
		}
	}
}
`))

// StartNginx runs nginx in the foreground with files of its own under the
// host's directory, and returns when it accepts connections. It may be started
// again after Stop.
func StartNginx(ctx context.Context, h *Host, cfg NginxConfig) (*Nginx, error) {
	path, err := FindProgram("nginx")
	if err != nil {
		return nil, fmt.Errorf("start nginx on %s: the program is not installed (scripts/setup demo installs it): %w", h.Name, err)
	}
	if cfg.Port == 0 {
		cfg.Port = 80
	}
	dir := filepath.Join(h.dir, "nginx")
	if err := writeNginxFiles(dir, h.Name, cfg); err != nil {
		return nil, fmt.Errorf("prepare nginx of %s: %w", h.Name, err)
	}
	conf := filepath.Join(dir, "nginx.conf")
	p, err := h.Start("nginx", exec.Command(path, "-p", dir, "-c", conf, "-e", filepath.Join(dir, "error.log")))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	addr := netip.AddrPortFrom(h.Address(), cfg.Port).String()
	err = WaitFor(ctx, "nginx on "+h.Name, func() (bool, error) {
		if p.ended() {
			return false, fmt.Errorf("%w: nginx has ended: %s\n%s", ErrGiveUp, p.Tail(20), tail(filepath.Join(dir, "error.log"), 20))
		}
		// Written when nginx has its sockets: another server may be answering.
		if _, err := os.Stat(pidFile(dir)); err != nil {
			return false, err
		}
		conn, err := h.Dial(ctx, "tcp", addr)
		if err != nil {
			return false, err
		}
		return true, conn.Close()
	})
	if err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	return &Nginx{Process: p}, nil
}

func pidFile(dir string) string { return filepath.Join(dir, "nginx.pid") }

func writeNginxFiles(dir, name string, cfg NginxConfig) error {
	for _, d := range []string{"tmp", "root"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return fmt.Errorf("create directory: %w", err)
		}
	}
	// A killed nginx leaves its own.
	if err := os.Remove(pidFile(dir)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove old pid file: %w", err)
	}
	var conf bytes.Buffer
	err := nginxTemplate.Execute(&conf, struct {
		NginxConfig
		Dir, Name string
	}{cfg, dir, name})
	if err != nil {
		return fmt.Errorf("fill in configuration: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "nginx.conf"), conf.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	download := filepath.Join(dir, "root", "download")
	if cfg.DownloadSize == 0 {
		return nil
	}
	f, err := os.Create(download)
	if err != nil {
		return fmt.Errorf("create download: %w", err)
	}
	_, err = io.Copy(f, DownloadBytes(cfg.DownloadSize))
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write download: %w", err)
	}
	return nil
}

// DownloadBytes returns what "/download" of that size holds: noise, the same on
// every host and in every run, so that a byte that is lost, repeated or from
// elsewhere shows.
func DownloadBytes(size int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte([]byte("sluice: the bytes of a download."))), size)
}

// DownloadSum returns the SHA-256 of DownloadBytes.
func DownloadSum(size int64) ([sha256.Size]byte, error) {
	sum := sha256.New()
	if _, err := io.Copy(sum, DownloadBytes(size)); err != nil {
		return [sha256.Size]byte{}, fmt.Errorf("sum up download: %w", err)
	}
	return [sha256.Size]byte(sum.Sum(nil)), nil
}
