package testenv

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
)

func TestNginx(t *testing.T) {
	RequireProgram(t, "nginx")
	lab := New(t, Default(2))
	cfg := NginxConfig{DownloadSize: 3<<20 + 1}
	var servers []*Nginx
	for _, name := range []string{"b1", "b2"} {
		n, err := StartNginx(t.Context(), lab.Host(name), cfg)
		if err != nil {
			t.Fatal(err)
		}
		servers = append(servers, n)
	}
	client := lab.Host("client").HTTPClient()
	get := func(url string) (string, error) {
		resp, err := client.Get(url)
		if err != nil {
			return "", err
		}
		body, err := io.ReadAll(resp.Body)
		return string(body), errors.Join(err, resp.Body.Close())
	}
	for url, want := range map[string]string{
		"http://192.0.2.11/": "b1\n", "http://192.0.2.12/": "b2\n", "http://192.0.2.11/healthz": "ok\n",
	} {
		if got, err := get(url); got != want || err != nil {
			t.Errorf("%s: %q, %v; want %q", url, got, err, want)
		}
	}
	want, err := DownloadSum(cfg.DownloadSize)
	if err != nil {
		t.Fatal(err)
	}
	body, err := get("http://192.0.2.12/download")
	if err != nil || int64(len(body)) != cfg.DownloadSize || sha256.Sum256([]byte(body)) != want {
		t.Errorf("download of %d bytes differs from the %d that were written (%v)", len(body), cfg.DownloadSize, err)
	}

	if err := servers[0].Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := get("http://192.0.2.11/"); err == nil {
		t.Error("a stopped nginx answers")
	}
	if _, err := StartNginx(t.Context(), lab.Host("b1"), cfg); err != nil {
		t.Fatalf("start it again: %v", err)
	}
	if got, err := get("http://192.0.2.11/"); got != "b1\n" || err != nil {
		t.Errorf("after the restart: %q, %v", got, err)
	}
}

func TestNginxThatCannotStart(t *testing.T) {
	RequireProgram(t, "nginx")
	lab := New(t, Default(1))
	b1 := lab.Host("b1")
	if _, err := b1.StartTCP(netip.MustParseAddrPort("0.0.0.0:80"), Echo); err != nil {
		t.Fatal(err)
	}
	if _, err := StartNginx(t.Context(), b1, NginxConfig{}); err == nil {
		t.Error("nginx starts on a port that is in use")
	}
}

func TestProberMeasuresACut(t *testing.T) {
	lab := New(t, Default(1))
	client, b1 := lab.Host("client"), lab.Host("b1")
	server, err := b1.StartHTTP(netip.MustParseAddrPort("192.0.2.11:80"), b1.NameHandler())
	if err != nil {
		t.Fatal(err)
	}
	prober, err := client.StartProber(ProbeConfig{Target: server.Addr(), Interval: 5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	answersBeyond := func(n int) func() (bool, error) {
		return func() (bool, error) { return prober.Result().Answered > n, nil }
	}
	Eventually(t, 10*time.Second, "twenty answers", answersBeyond(20))
	cut := time.Now()
	if err := b1.LinkDown(); err != nil {
		t.Fatal(err)
	}
	// The length of the cut is what is measured: it lasts until 40 requests
	// more have been sent.
	sent := prober.Result().Sent
	Eventually(t, 10*time.Second, "requests during the cut", func() (bool, error) { return prober.Result().Sent > sent+40, nil })
	restored := time.Now()
	if err := b1.LinkUp(); err != nil {
		t.Fatal(err)
	}
	Eventually(t, 10*time.Second, "answers after the cut", answersBeyond(prober.Result().Answered+20))
	result, err := prober.Stop()
	if err != nil {
		t.Fatal(err)
	}
	silence, began := result.LongestSilence()
	length := restored.Sub(cut)
	// An answer may be on its way while the link is cut, and the network may
	// take a while to come back.
	if silence < length-20*time.Millisecond || silence > length+2*time.Second {
		t.Errorf("silence of %v in a cut of %v", silence, length)
	}
	if at := result.Start.Add(began); at.Before(cut.Add(-500*time.Millisecond)) || at.After(restored) {
		t.Errorf("silence began %v after the cut", at.Sub(cut))
	}
	if got := result.LongestSilenceBeforeAndAfter(t, cut, restored.Add(2*time.Second)); got > length+500*time.Millisecond {
		t.Errorf("silence of %v outside of the cut", got)
	}
	if diff := cmp.Diff(map[string]int{"b1": result.Answered}, result.Bodies); diff != "" {
		t.Errorf("answers by body differ (-want +got):\n%s", diff)
	}
	if result.Failed != 0 {
		t.Errorf("%d requests failed within the timeout of 3 s: %v", result.Failed, result.Errors)
	}
}

// LongestSilenceBeforeAndAfter returns the longest silence that is not between
// the two times.
func (r ProbeResult) LongestSilenceBeforeAndAfter(t *testing.T, from, to time.Time) time.Duration {
	t.Helper()
	before, _ := r.LongestSilenceBetween(r.Start, from)
	after, _ := r.LongestSilenceBetween(to, r.Start.Add(r.Length))
	return max(before, after)
}

func TestProberCounts(t *testing.T) {
	lab := New(t, Default(2))
	client, b1, b2 := lab.Host("client"), lab.Host("b1"), lab.Host("b2")
	server, err := b1.StartHTTP(netip.MustParseAddrPort("192.0.2.11:80"), b1.NameHandler())
	if err != nil {
		t.Fatal(err)
	}
	silent, err := b2.StartTCP(netip.MustParseAddrPort("192.0.2.12:80"), func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	if err != nil {
		t.Fatal(err)
	}
	type counts struct {
		Sent, Answered, Failed int
		Bodies, Errors         map[string]int
	}
	none := map[string]int{}
	for _, tc := range []struct {
		name string
		cfg  ProbeConfig
		want counts
	}{
		{"client closes", ProbeConfig{Target: server.Addr(), Count: 500}, counts{500, 500, 0, map[string]int{"b1": 500}, none}},
		{"server closes", ProbeConfig{Target: server.Addr(), Count: 500, ServerCloses: true}, counts{500, 500, 0, map[string]int{"b1": 500}, none}},
		{"nobody listens", ProbeConfig{Target: netip.MustParseAddrPort("192.0.2.11:81"), Count: 50}, counts{50, 0, 50, none, map[string]int{"connect: connection refused": 50}}},
		{
			"no answer", ProbeConfig{Target: silent.Addr(), Count: 5, Timeout: 50 * time.Millisecond},
			counts{5, 0, 5, none, map[string]int{"answer: timeout": 5}},
		},
		{
			"nobody is there", ProbeConfig{Target: netip.MustParseAddrPort("192.0.2.99:80"), Count: 5, Timeout: 50 * time.Millisecond},
			counts{5, 0, 5, none, map[string]int{"connect: timeout": 5}},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := client.StartProber(tc.cfg)
			if err != nil {
				t.Fatal(err)
			}
			r, err := p.Wait()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, counts{r.Sent, r.Answered, r.Failed, r.Bodies, r.Errors}); diff != "" {
				t.Errorf("counts differ (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("skips what would exceed the bound", func(t *testing.T) {
		p, err := client.StartProber(ProbeConfig{Target: silent.Addr(), Interval: time.Millisecond, Outstanding: 3, Timeout: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		Eventually(t, 10*time.Second, "skipped requests", func() (bool, error) { return p.Result().Skipped > 10, nil })
		if r, err := p.Stop(); err != nil || r.Sent != 3 || r.Answered+r.Failed != 0 {
			t.Errorf("sent %d, answered %d, failed %d (%v); want 3 sent", r.Sent, r.Answered, r.Failed, err)
		}
	})
}

func TestStreamSurvivesACut(t *testing.T) {
	lab := New(t, Default(1))
	client, b1 := lab.Host("client"), lab.Host("b1")
	server, err := b1.StartTCP(netip.MustParseAddrPort("192.0.2.11:7"), Echo)
	if err != nil {
		t.Fatal(err)
	}
	s, err := client.StartStream(within(t, 5*time.Second), server.Addr(), 2*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	beyond := func(n int) func() (bool, error) {
		return func() (bool, error) { r := s.Result(); return r.Answered > n, r.Err }
	}
	Eventually(t, 10*time.Second, "twenty answers", beyond(20))
	if err := b1.LinkDown(); err != nil {
		t.Fatal(err)
	}
	cut, sent := time.Now(), s.Result().Sent
	Eventually(t, 10*time.Second, "messages during the cut", func() (bool, error) { return s.Result().Sent > sent+50, nil })
	length := time.Since(cut)
	if err := b1.LinkUp(); err != nil {
		t.Fatal(err)
	}
	Eventually(t, 20*time.Second, "answers after the cut", beyond(s.Result().Answered+60))
	r := s.Stop()
	if silence, _ := r.LongestSilence(); silence < length || r.Err != nil {
		t.Errorf("silence of %v in a cut of %v, error %v", silence, length, r.Err)
	}

	broken, err := client.StartStream(within(t, 5*time.Second), server.Addr(), 2*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	Eventually(t, 10*time.Second, "the stream's error", func() (bool, error) { return broken.Result().Err != nil, nil })
}

func TestAnswerLine(t *testing.T) {
	lab := New(t, Default(1))
	b1 := lab.Host("b1")
	for name, serverCloses := range map[string]bool{"server closes first": true, "client closes first": false} {
		t.Run(name, func(t *testing.T) {
			server, err := b1.StartTCP(netip.MustParseAddrPort("192.0.2.11:0"), AnswerLine("hello\n", serverCloses))
			if err != nil {
				t.Fatal(err)
			}
			conn, err := lab.Host("client").Dial(within(t, 5*time.Second), "tcp", server.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			if _, err := io.WriteString(conn, "who?\n"); err != nil {
				t.Fatal(err)
			}
			r := bufio.NewReader(conn)
			if line, err := r.ReadString('\n'); line != "hello\n" || err != nil {
				t.Fatalf("answer %q, %v", line, err)
			}
			if err := conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			want := os.ErrDeadlineExceeded
			if serverCloses {
				want = io.EOF
			}
			if _, err := r.ReadByte(); !errors.Is(err, want) {
				t.Errorf("after the answer: %v, want %v", err, want)
			}
		})
	}
}

// listenFrames opens a packet socket on a host's interface.
func listenFrames(t *testing.T, h *Host, etherType int) *packet.Conn {
	t.Helper()
	var conn *packet.Conn
	err := h.Do(func() error {
		nic, err := net.InterfaceByName(DefaultInterface)
		if err != nil {
			return err
		}
		conn, err = packet.Listen(nic, packet.Raw, etherType, nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// What a local TCP stack sends has whole checksums and no more than a packet
// per frame.
func TestFramesOnTheWireAreWhole(t *testing.T) {
	lab := New(t, Default(1))
	client, b1 := lab.Host("client"), lab.Host("b1")
	server, err := b1.StartTCP(netip.MustParseAddrPort("192.0.2.11:7"), Echo)
	if err != nil {
		t.Fatal(err)
	}
	wire := listenFrames(t, b1, EtherTypeIPv4)
	conn, err := client.Dial(within(t, 5*time.Second), "tcp", server.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write(make([]byte, 20_000)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 20_000)); err != nil {
		t.Fatal(err)
	}
	buf, payload := make([]byte, 1<<16), 0
	for payload < 20_000 {
		n, _, err := wire.ReadFrom(buf)
		if err != nil {
			t.Fatalf("after %d bytes: %v", payload, err)
		}
		f, err := ParseFrame(buf[:n])
		if err != nil {
			t.Fatal(err)
		}
		if f.Dst != server.Addr() {
			continue
		}
		payload += len(f.Payload)
		if f.TotalLength > 1500 {
			t.Errorf("a frame holds a packet of %d bytes", f.TotalLength)
		}
		if err := VerifyChecksums(buf[:n]); err != nil {
			t.Error(err)
		}
	}
}

// XDP_TX is delivered, because the switch's end of the veth has a program.
func TestXDPTransmitIsDelivered(t *testing.T) {
	lab := New(t, Default(1))
	client, b1 := lab.Host("client"), lab.Host("b1")
	const experimental = 0x88b5 // IEEE 802 local experimental EtherType
	reflector, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "reflect", Type: ebpf.XDP, License: "Dual BSD/GPL", Instructions: asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, 0, asm.Word), // data
		asm.LoadMem(asm.R3, asm.R1, 4, asm.Word), // data_end
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.Add.Imm(asm.R4, etherHeaderLen),
		asm.Mov.Imm(asm.R0, 2), // XDP_PASS
		asm.JGT.Reg(asm.R4, asm.R3, "exit"),
		asm.LoadMem(asm.R4, asm.R2, 0, asm.Word), // destination MAC
		asm.LoadMem(asm.R5, asm.R2, 4, asm.Half),
		asm.LoadMem(asm.R6, asm.R2, 6, asm.Word), // source MAC
		asm.LoadMem(asm.R7, asm.R2, 10, asm.Half),
		asm.StoreMem(asm.R2, 0, asm.R6, asm.Word),
		asm.StoreMem(asm.R2, 4, asm.R7, asm.Half),
		asm.StoreMem(asm.R2, 6, asm.R4, asm.Word),
		asm.StoreMem(asm.R2, 10, asm.R5, asm.Half),
		asm.Mov.Imm(asm.R0, 3), // XDP_TX
		asm.Return().WithSymbol("exit"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reflector.Close() }()
	err = b1.Do(func() error {
		nic, err := netlink.LinkByName(DefaultInterface)
		if err != nil {
			return err
		}
		return netlink.LinkSetXdpFdWithFlags(nic, reflector.FD(), 1<<2) // XDP_FLAGS_DRV_MODE
	})
	if err != nil {
		t.Fatal(err)
	}
	wire := listenFrames(t, client, experimental)
	sent := Frame{
		SrcMAC: client.MAC(DefaultInterface), DstMAC: b1.MAC(DefaultInterface),
		EtherType: experimental, Payload: []byte("mirror, mirror on the wall"), PadTo: 60,
	}
	// On a busy machine the NIC may lose a frame just after it got its program.
	buf := make([]byte, 2000)
	n := 0
	Eventually(t, 10*time.Second, "a frame to come back", func() (bool, error) {
		if _, err := wire.WriteTo(sent.Bytes(), &packet.Addr{HardwareAddr: sent.DstMAC}); err != nil {
			return false, err
		}
		if err := wire.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return false, err
		}
		var err error
		n, _, err = wire.ReadFrom(buf)
		return err == nil, err
	})
	want := sent
	want.SrcMAC, want.DstMAC = sent.DstMAC, sent.SrcMAC
	if diff := cmp.Diff(want.Bytes(), buf[:n]); diff != "" {
		t.Errorf("frame differs (-want +got):\n%s", diff)
	}
}
