package health

import (
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/sluice-lb/sluice/internal/lb"
)

// wantCheck runs a check and compares its error; "" is a pass.
func wantCheck(t *testing.T, c lb.Check, want string) {
	t.Helper()
	if c.Timeout == 0 {
		c.Timeout = 30 * time.Second
	}
	got := ""
	if err := RunCheck(t.Context(), c); err != nil {
		got = err.Error()
	}
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestCheckURLs(t *testing.T) {
	asked := make(chan string, 10)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Host + r.URL.Path
		if r.URL.Path == "/broken" {
			w.WriteHeader(http.StatusBadGateway)
		}
		fmt.Fprint(w, "page of ", r.URL.Path)
	}))
	defer s.Close()
	at := netip.MustParseAddrPort(s.Listener.Addr().String())
	url := func(path string) lb.URL { return lb.URL{Address: at, Host: "www.example.com", Path: path} }
	for _, tt := range []struct {
		name string
		c    lb.Check
		want string
		asks string
	}{
		{"all good", lb.Check{URLs: []lb.URL{url("/"), url("/app/")}}, "", "www.example.com/ www.example.com/app/"},
		{"one is not", lb.Check{URLs: []lb.URL{url("/"), url("/broken"), url("/never")}},
			"http://www.example.com/broken: status 502, want 200-399", "www.example.com/ www.example.com/broken"},
		{"statuses", lb.Check{URLs: []lb.URL{url("/broken")}, Status: []lb.StatusRange{{First: 502, Last: 502}}}, "", "www.example.com/broken"},
		{"bodies", lb.Check{URLs: []lb.URL{url("/a"), url("/b")}, Body: regexp.MustCompile("/a$")},
			`http://www.example.com/b: body does not match "/a$"`, "www.example.com/a www.example.com/b"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.c.Type = lb.CheckHTTP
			wantCheck(t, tt.c, tt.want)
			var all []string
			for len(asked) > 0 {
				all = append(all, <-asked)
			}
			if got := strings.Join(all, " "); got != tt.asks {
				t.Errorf("asked for %q, want %q", got, tt.asks)
			}
		})
	}
}

// URLs with and without TLS go together in one check.
func TestCheckHTTPS(t *testing.T) {
	known := newAuthority(t, "known authority")
	plain := serve(t, "127.0.0.1:0", raw("HTTP/1.1 204 No Content\r\n\r\n"))
	secure := serveTLS(t, certificate(t, &x509.Certificate{DNSNames: []string{"www.example.com"}}, known), nil, raw("HTTP/1.1 204 No Content\r\n\r\n"))
	urls := func(host string) []lb.URL {
		return []lb.URL{{Address: plain, Host: host, Path: "/"}, {TLS: true, Address: secure, Host: host, Path: "/"}}
	}
	trust := lb.TLS{CA: known.pem}
	for _, tt := range []struct {
		name string
		c    lb.Check
		want string
	}{
		{"good", lb.Check{Type: lb.CheckHTTP, URLs: urls("www.example.com"), TLS: trust}, ""},
		{"https alone", lb.Check{Type: lb.CheckHTTPS, URLs: urls("www.example.com")[1:], TLS: trust}, ""},
		{"a bad certificate", lb.Check{Type: lb.CheckHTTP, URLs: urls("a.example.com"), TLS: trust},
			"https://a.example.com/: certificate is for www.example.com, not for a.example.com"},
		{"any certificate", lb.Check{Type: lb.CheckHTTP, URLs: urls("a.example.com"), TLS: lb.TLS{Insecure: true}}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) { wantCheck(t, tt.c, tt.want) })
	}
}

func TestCheckTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := lb.Check{Type: lb.CheckTCP, Address: netip.MustParseAddrPort(l.Addr().String())}
	wantCheck(t, c, "")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	wantCheck(t, c, "connect: connection refused")
}

func TestCheckDatagrams(t *testing.T) {
	pong := regexp.MustCompile("^pong")
	udp := serveUDP(t, "127.0.0.1:0", func(packet []byte) [][]byte { return [][]byte{append([]byte("pong "), packet...)} })
	dns := serveUDP(t, "127.0.0.1:0", answerer(t, func(*dnsmessage.Message) {}))
	www := lb.Query{Name: "www.example.com.", Type: lb.QueryA}
	for _, tt := range []struct {
		name string
		c    lb.Check
		want string
	}{
		{"udp", lb.Check{Type: lb.CheckUDP, Address: udp, Send: "1", Expect: regexp.MustCompile("^pong 1$")}, ""},
		{"udp, another answer", lb.Check{Type: lb.CheckUDP, Address: udp, Send: "1", Expect: regexp.MustCompile("^ping"), Timeout: short}, `answer does not match "^ping"`},
		{"udp, nobody", lb.Check{Type: lb.CheckUDP, Address: closedUDP(t, "127.0.0.1"), Expect: pong}, "read: connection refused"},
		{"dns", lb.Check{Type: lb.CheckDNS, Address: dns, Query: www}, ""},
		{"dns, nobody", lb.Check{Type: lb.CheckDNS, Address: closedUDP(t, "127.0.0.1"), Query: www}, "read: connection refused"},
	} {
		t.Run(tt.name, func(t *testing.T) { wantCheck(t, tt.c, tt.want) })
	}
}

func TestCheckExec(t *testing.T) {
	for _, tt := range []struct {
		name    string
		command []string
		timeout time.Duration
		want    string
	}{
		{"passes", []string{"/bin/true"}, 0, ""},
		{"passes and talks", []string{"/bin/echo", "all is well"}, 0, ""},
		{"fails", []string{"/bin/false"}, 0, "exit status 1"},
		{"says why", []string{"/bin/sh", "-c", "echo 'no \033[31mspace' >&2; echo more; exit 2"}, 0, "no .[31mspace (exit status 2)"},
		{"hangs", []string{"/bin/sleep", "600"}, 50 * time.Millisecond, "no end within 50ms: killed"},
		{"is not there", []string{"/nonexistent"}, 0, "start: fork/exec /nonexistent: no such file or directory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			wantCheck(t, lb.Check{Type: lb.CheckExec, Command: tt.command, Timeout: tt.timeout}, tt.want)
		})
	}
}

func TestCheckProcess(t *testing.T) {
	dir := t.TempDir()
	name := fmt.Sprintf("proc-%d", os.Getpid())
	long := fmt.Sprintf("process-of-a-long-name-%d", os.Getpid())
	start := func(name string) *exec.Cmd {
		file := filepath.Join(dir, name)
		if err := os.Symlink("/bin/sleep", file); err != nil { // a process is named after the link
			t.Fatal(err)
		}
		cmd := exec.Command(file, "600")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill() // it may have been killed
			_ = cmd.Wait()
		})
		return cmd
	}
	pidFile := func(content string) string {
		file := filepath.Join(dir, "pid")
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return file
	}
	c := func(name, file string) lb.Check { return lb.Check{Type: lb.CheckProcess, Process: name, PIDFile: file} }

	wantCheck(t, c(name, ""), "no process "+name+" runs")
	wantCheck(t, c("", filepath.Join(dir, "none")), "there is no file "+dir+"/none")
	for _, content := range []string{"", "nginx\n", "-1\n", "0"} {
		wantCheck(t, c("", pidFile(content)), dir+"/pid does not hold the number of a process")
	}
	short, other := start(name), start(long)
	wantCheck(t, c(name, ""), "")
	wantCheck(t, c(long, ""), "")
	wantCheck(t, c(long+"-not", ""), "no process "+long+"-not runs")
	wantCheck(t, c(name[:len(name)-1], ""), "no process "+name[:len(name)-1]+" runs")
	file := pidFile(fmt.Sprintf(" %d\nsecond line\n", short.Process.Pid))
	wantCheck(t, c("", file), "")
	wantCheck(t, c(name, file), "")
	wantCheck(t, c("nginx", file), fmt.Sprintf("process %d of %s is %s, not nginx", short.Process.Pid, file, name))

	// Killed, and not waited for: a zombie.
	if err := short.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, running := processName(short.Process.Pid); !running {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the process does not end")
		}
	}
	wantCheck(t, c("", file), fmt.Sprintf("process %d of %s does not run", short.Process.Pid, file))
	wantCheck(t, c(name, ""), "no process "+name+" runs")
	wantCheck(t, c(long, pidFile(fmt.Sprint(other.Process.Pid))), "")
}
