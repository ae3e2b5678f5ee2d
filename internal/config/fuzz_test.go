package config

import (
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// FuzzLoad feeds any text as the main file, with a second file that it may
// include. Nothing may panic, a Config comes exactly without an error, and
// every mistake says where it is.
func FuzzLoad(f *testing.F) {
	f.Add(Reference, "pools: [{name: more, servers: [{address: 192.0.2.31}]}]\n")
	f.Add(pair, "")
	f.Add(design, "x-a: 1\n")
	f.Add("include: [b.yaml]\n", "include: [a.yaml]\n")
	for _, c := range mistakes {
		f.Add(c.yaml, "")
	}
	for _, c := range syntaxMistakes {
		f.Add(c.yaml, "")
	}
	f.Fuzz(func(t *testing.T, main, other string) {
		files := memFiles{"a.yaml": main, "b.yaml": other, "conf.d/c.yaml": other}
		start := time.Now()
		cfg, err := load(files, "a.yaml", Options{Hostname: "lb1"})
		if took := time.Since(start); took > 20*time.Second {
			t.Errorf("took %v for %d bytes", took, len(main)+len(other))
		}
		if (cfg == nil) == (err == nil) {
			t.Fatalf("configuration %v with error %v", cfg, err)
		}
		if err == nil {
			checkInvariants(t, cfg)
			return
		}
		var all Errors
		if !errors.As(err, &all) || len(all) == 0 {
			t.Fatalf("error %T holds no mistakes", err)
		}
		for _, e := range all {
			checkPlace(t, files, e)
		}
	})
}

// checkPlace checks that a mistake points into its file, and how it is printed.
func checkPlace(t *testing.T, files memFiles, e *Error) {
	t.Helper()
	content, ok := files[e.File]
	if !ok {
		t.Fatalf("mistake in unknown file: %v", e)
	}
	src := newSource(e.File, []byte(content))
	switch {
	case e.Line < 1 || e.Line > len(src.lines):
		t.Errorf("line %d of %d: %v", e.Line, len(src.lines), e)
	case e.Text != src.lines[e.Line-1]:
		t.Errorf("text %q of line %d is not %q", e.Text, e.Line, src.lines[e.Line-1])
	case e.Column < 1 || e.Column > utf8.RuneCountInString(e.Text)+1:
		t.Errorf("column %d of %d: %v", e.Column, utf8.RuneCountInString(e.Text), e)
	}
	if e.Message == "" || strings.ContainsAny(e.Message, "\r\n") {
		t.Errorf("message %q is not one line", e.Message)
	}
	if got := strings.Count(e.Error(), "\n"); got != 2 {
		t.Errorf("printed with %d line breaks: %q", got, e.Error())
	}
}

// checkInvariants checks what a Config promises.
func checkInvariants(t *testing.T, c *Config) {
	t.Helper()
	if c.PortShare.First > c.PortShare.Last || c.PortShare.First < c.Datapath.Ports.First || c.PortShare.Last > c.Datapath.Ports.Last {
		t.Errorf("share %v of %v", c.PortShare, c.Datapath.Ports)
	}
	if len(c.Services) > 0 && len(c.Datapath.Interfaces) == 0 {
		t.Error("services without interfaces")
	}
	for _, s := range c.Services {
		if s.Name == "" || len(s.Addresses) == 0 || len(s.Pool.Servers) == 0 || s.Pool.Name == "" || !isPrime(s.TableSize) {
			t.Errorf("service %+v is not complete", s)
		}
		for _, a := range s.Addresses {
			if !a.Addr().Is4() || a.Port() == 0 {
				t.Errorf("service %s: address %v", s.Name, a)
			}
		}
		if p := s.Pool.Probe; p != nil && (p.Type == "" || p.Timeout <= 0 || p.Timeout > p.Interval || p.Rise < 1 || p.Fall < 1) {
			t.Errorf("service %s: probe %+v", s.Name, p)
		}
	}
	for _, i := range c.VRRP {
		if i.Name == "" || i.Interface == "" || i.VRID == 0 || i.Priority == 0 || i.Version < 2 || i.Version > 3 ||
			i.Interval <= 0 || len(i.Password) > 8 || len(i.Addresses) == 0 {
			t.Errorf("instance %+v is not complete", i)
		}
	}
}
