package main

import (
	"bufio"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// The requests of the load: who closes first.
const (
	serverCloses = "the server closes first\n"
	clientCloses = "the client closes first\n"
)

// loadSize makes an answer of many segments.
const loadSize = 20000

// loadBody is what a backend answers: noise of its own.
func loadBody(backend string) []byte {
	noise := rand.NewChaCha8(sha256.Sum256([]byte(backend)))
	body := make([]byte, loadSize)
	_, _ = noise.Read(body) // never fails
	return body
}

// answerLoad serves the load as a backend.
func answerLoad(backend string) func(net.Conn) {
	body := append([]byte(backend+"\n"), loadBody(backend)...)
	return func(c net.Conn) {
		request, err := bufio.NewReader(c).ReadString('\n')
		if err != nil {
			return // the client counts it
		}
		if _, err := c.Write(body); err != nil || request == serverCloses {
			return
		}
		_, _ = io.Copy(io.Discard, c) // until the client closes
	}
}

// ask makes one connection of the load and returns who answered.
func ask(h *testenv.Host, r *rig, to netip.AddrPort, request string, sums map[string][32]byte) (backend string, err error) {
	c, err := h.Dial(r.Context(), "tcp", to.String())
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := c.SetDeadline(time.Now().Add(soon)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c, request); err != nil {
		return "", err
	}
	answer := bufio.NewReader(c)
	name, err := answer.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("read the answer: %w", err)
	}
	backend = strings.TrimSuffix(name, "\n")
	body := make([]byte, loadSize)
	if _, err := io.ReadFull(answer, body); err != nil {
		return backend, fmt.Errorf("read the body from %s: %w", backend, err)
	}
	if sha256.Sum256(body) != sums[backend] {
		return backend, fmt.Errorf("the body from %s has other bytes than it should", backend)
	}
	if request == serverCloses {
		if _, err := answer.ReadByte(); err != io.EOF {
			return backend, fmt.Errorf("wait for the end from %s: %w", backend, err)
		}
	}
	return backend, nil
}

// load makes count connections, so many at a time, and returns how many each
// backend has answered. None may fail.
func (r *rig) load(to netip.AddrPort, backends []string, count, atATime int) map[string]int {
	r.Helper()
	sums := map[string][32]byte{}
	for _, name := range backends {
		sums[name] = sha256.Sum256(loadBody(name))
	}
	var (
		mu       sync.Mutex
		answered = map[string]int{}
		failures []error
		next     = make(chan int)
		workers  sync.WaitGroup
	)
	client := r.host("client")
	for range atATime {
		workers.Go(func() {
			for i := range next {
				request := serverCloses
				if i%2 == 0 {
					request = clientCloses
				}
				name, err := ask(client, r, to, request, sums)
				mu.Lock()
				if err != nil {
					failures = append(failures, fmt.Errorf("connection %d: %w", i, err))
				} else {
					answered[name]++
				}
				mu.Unlock()
			}
		})
	}
	for i := range count {
		next <- i
	}
	close(next)
	workers.Wait()
	if len(failures) > 0 {
		r.Errorf("%d of %d connections failed, among them: %v", len(failures), count, errors.Join(failures[:min(3, len(failures))]...))
	}
	return answered
}

// quotas shares slots by weight: all the whole ones, and the rest to those with
// the largest remainders.
func quotas(slots int, weights map[string]int) map[string]int {
	sum := 0
	for _, w := range weights {
		sum += w
	}
	shares, rest := map[string]int{}, slots
	var byRemainder []string
	for name, w := range weights {
		shares[name] = slots * w / sum
		rest -= shares[name]
		byRemainder = append(byRemainder, name)
	}
	slices.SortFunc(byRemainder, func(a, b string) int {
		return cmp.Compare(slots*weights[b]%sum, slots*weights[a]%sum)
	})
	for _, name := range byRemainder[:rest] {
		shares[name]++
	}
	return shares
}

func TestTenThousandConnectionsThroughNAT(t *testing.T) {
	const connections = 10000
	r := newRig(t, testenv.Default(3))
	weights := map[string]int{"b1": 1, "b2": 2, "b3": 4}
	var servers []string
	for _, name := range []string{"b1", "b2", "b3"} {
		h := r.host(name)
		if _, err := h.StartTCP(netip.AddrPortFrom(h.Address(), 80), answerLoad(name)); err != nil {
			t.Fatal(err)
		}
		servers = append(servers, fmt.Sprintf("{address: %v, weight: %d}", h.Address(), weights[name]))
	}
	r.start("lb1", r.file("sluice.yaml", roster,
		"pools:\n  - {name: web, "+probes+", servers: ["+strings.Join(servers, ", ")+"]}\n", services(nat), vrrps(pair)))
	r.waitReady("lb1")

	began := time.Now()
	answered := r.load(natService, []string{"b1", "b2", "b3"}, connections, 64)
	t.Logf("%d connections in %v: %v", connections, time.Since(began).Round(time.Millisecond), answered)

	s := r.mustStatus("lb1")
	v, err := serviceOf(s, "nat")
	if err != nil {
		t.Fatal(err)
	}
	slots, flows := map[string]int{}, map[string]int{}
	for i, b := range v.Backends {
		name := fmt.Sprintf("b%d", i+1)
		slots[name], flows[name] = b.Slots, int(b.Flows)
	}
	if diff := gocmp.Diff(quotas(lb.DefaultTableSize, weights), slots); diff != "" {
		t.Errorf("slots (-want +got):\n%s", diff)
	}
	if diff := gocmp.Diff(answered, flows); diff != "" {
		t.Errorf("connections by the counters of the data plane (-answered +counted):\n%s", diff)
	}
	for name, w := range weights {
		p := float64(w) / 7
		want, deviation := connections*p, math.Sqrt(connections*p*(1-p))
		if off := math.Abs(float64(answered[name]) - want); off > 4*deviation {
			t.Errorf("%s has %d connections, want %.0f within %.0f", name, answered[name], want, 4*deviation)
		}
	}
	if l := v.Losses; l.NoBackend+l.NoPort+l.FlowsFull+l.EarlyReuse > 0 {
		t.Errorf("the service has lost something: %+v", l)
	}
	if v.State != control.ServiceUp {
		t.Errorf("the service is %s", v.State)
	}
}
