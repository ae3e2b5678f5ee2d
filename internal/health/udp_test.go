package health

import (
	"context"
	"net"
	"net/netip"
	"regexp"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/lb"
)

// serveUDP answers each datagram with those that answer returns.
func serveUDP(t *testing.T, address string, answer func(packet []byte) [][]byte) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenPacket("udp", address)
	if err != nil {
		t.Skipf("no IPv6 here: %v", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 65536)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			for _, packet := range answer(append([]byte(nil), buf[:n]...)) {
				_, _ = conn.WriteTo(packet, from) // a probe that has its answer is gone
			}
		}
	}()
	t.Cleanup(func() {
		_ = conn.Close()
		<-done
	})
	return addrPort(t, conn.LocalAddr())
}

// closedUDP returns an address where nobody takes datagrams, nor can while the test
// runs: its socket takes those of another one only.
func closedUDP(t *testing.T, loopback string) netip.AddrPort {
	t.Helper()
	conn, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(loopback)}, &net.UDPAddr{IP: net.ParseIP(loopback), Port: 1})
	if err != nil {
		t.Skipf("no IPv6 here: %v", err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return addrPort(t, conn.LocalAddr())
}

func silent([]byte) [][]byte { return nil }

func TestRunUDP(t *testing.T) {
	says := func(texts ...string) func([]byte) [][]byte {
		return func([]byte) (all [][]byte) {
			for _, s := range texts {
				all = append(all, []byte(s))
			}
			return all
		}
	}
	pong := regexp.MustCompile("^pong")
	for _, tt := range []struct {
		name    string
		address func(*testing.T) netip.AddrPort
		probe   lb.Probe
		answer  string
		want    string
	}{
		{"silence is no refusal", func(t *testing.T) netip.AddrPort { return serveUDP(t, "127.0.0.1:0", silent) },
			lb.Probe{Timeout: short}, "no refusal", ""},
		{"any answer", func(t *testing.T) netip.AddrPort { return serveUDP(t, "127.0.0.1:0", says("what?")) },
			lb.Probe{Timeout: long}, "answer of 5 bytes", ""},
		{"an empty answer", func(t *testing.T) netip.AddrPort { return serveUDP(t, "127.0.0.1:0", says("")) },
			lb.Probe{Timeout: long}, "answer of 0 bytes", ""},
		{"nobody is there", func(t *testing.T) netip.AddrPort { return closedUDP(t, "127.0.0.1") },
			lb.Probe{Timeout: long}, "", "read: connection refused"},
		{"nobody is there, IPv6", func(t *testing.T) netip.AddrPort { return closedUDP(t, "::1") },
			lb.Probe{Timeout: long}, "", "read: connection refused"},
		{"nobody is there who could match", func(t *testing.T) netip.AddrPort { return closedUDP(t, "127.0.0.1") },
			lb.Probe{Timeout: long, Expect: pong}, "", "read: connection refused"},
		{"it matches", func(t *testing.T) netip.AddrPort { return serveUDP(t, "127.0.0.1:0", says("pong 1")) },
			lb.Probe{Timeout: long, Expect: pong}, "answer of 6 bytes", ""},
		{"the second matches", func(t *testing.T) netip.AddrPort { return serveUDP(t, "127.0.0.1:0", says("busy", "pong")) },
			lb.Probe{Timeout: long, Expect: pong}, "answer of 4 bytes", ""},
		{"none matches", func(t *testing.T) netip.AddrPort { return serveUDP(t, "127.0.0.1:0", says("busy", "ping pong")) },
			lb.Probe{Timeout: short, Expect: pong}, "answer of 9 bytes", `answer does not match "^pong"`},
		{"no answer to match", func(t *testing.T) netip.AddrPort { return serveUDP(t, "127.0.0.1:0", silent) },
			lb.Probe{Timeout: short, Expect: pong}, "", "no answer within 500ms"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			target := Target{Address: tt.address(t), Probe: tt.probe}
			target.Probe.Type = lb.ProbeUDP
			ctx, cancel := context.WithTimeout(t.Context(), tt.probe.Timeout)
			defer cancel()
			answer, err := prober{}.ask(ctx, target)
			if diff := cmp.Diff([]string{tt.answer, tt.want}, []string{answer, text(err)}); diff != "" {
				t.Errorf("answer and result (-want +got):\n%s", diff)
			}
		})
	}
}

// What is sent is what is configured, also if that is nothing.
func TestRunUDPSends(t *testing.T) {
	for _, tt := range []struct{ name, send string }{{"nothing", ""}, {"text", "ping\r\n\x00ü"}} {
		t.Run(tt.name, func(t *testing.T) {
			got := make(chan string, 1)
			address := serveUDP(t, "127.0.0.1:0", func(packet []byte) [][]byte {
				got <- string(packet)
				return [][]byte{packet}
			})
			if err := Run(t.Context(), Target{Address: address, Probe: lb.Probe{Type: lb.ProbeUDP, Timeout: long, Send: tt.send}}); err != nil {
				t.Fatal(err)
			}
			if sent := <-got; sent != tt.send {
				t.Errorf("sent %q, want %q", sent, tt.send)
			}
		})
	}
}

// A run that is broken off is no silence that passes.
func TestRunUDPCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	address := serveUDP(t, "127.0.0.1:0", func([]byte) [][]byte {
		cancel()
		return nil
	})
	if err := Run(ctx, Target{Address: address, Probe: lb.Probe{Type: lb.ProbeUDP, Timeout: time.Hour}}); err == nil {
		t.Error("got success after the context was cancelled")
	}
}
