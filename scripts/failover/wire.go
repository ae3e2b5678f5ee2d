package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// A wire listens to the advertisements on the segment, as any host there may.
type wire struct {
	conn *net.IPConn
	done chan struct{}

	mu      sync.Mutex
	heard   map[netip.Addr]time.Time // when each sender was heard last
	counts  map[netip.Addr]int       // how often
	changed chan struct{}            // closed at the next advertisement
}

// group is where advertisements go.
var group = netip.MustParseAddr("224.0.0.18")

func listen(h *testenv.Host) (*wire, error) {
	w := &wire{done: make(chan struct{}), heard: map[netip.Addr]time.Time{}, counts: map[netip.Addr]int{}, changed: make(chan struct{})}
	err := h.Do(func() (err error) {
		if w.conn, err = net.ListenIP("ip4:112", &net.IPAddr{IP: net.IPv4zero}); err != nil {
			return err
		}
		nic, err := net.InterfaceByName(testenv.DefaultInterface)
		if err != nil {
			return err
		}
		raw, err := w.conn.SyscallConn()
		if err != nil {
			return err
		}
		var joinErr error
		err = raw.Control(func(fd uintptr) {
			joinErr = unix.SetsockoptIPMreqn(int(fd), unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP,
				&unix.IPMreqn{Multiaddr: group.As4(), Ifindex: int32(nic.Index)})
		})
		return errors.Join(err, joinErr)
	})
	if err != nil {
		if w.conn != nil {
			err = errors.Join(err, w.conn.Close())
		}
		return nil, fmt.Errorf("listen to advertisements on %s: %w", h.Name, err)
	}
	go w.read()
	return w, nil
}

// read notes advertisements until the wire is closed. One of priority 0 says that
// its sender is going: it is not noted.
func (w *wire) read() {
	defer close(w.done)
	b := make([]byte, 512)
	for {
		n, from, err := w.conn.ReadFromIP(b)
		if err != nil {
			return
		}
		sender, ok := netip.AddrFromSlice(from.IP)
		if !ok || n <= 2 || b[2] == 0 {
			continue
		}
		w.mu.Lock()
		w.heard[sender.Unmap()] = time.Now()
		w.counts[sender.Unmap()]++
		close(w.changed)
		w.changed = make(chan struct{})
		w.mu.Unlock()
	}
}

// last is when a sender was heard last; zero: never.
func (w *wire) last(sender netip.Addr) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.heard[sender]
}

// count is how often a sender was heard.
func (w *wire) count(sender netip.Addr) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.counts[sender]
}

// next waits for the next advertisement of a sender.
func (w *wire) next(ctx context.Context, sender netip.Addr) error {
	for from := time.Now(); ; {
		w.mu.Lock()
		at, changed := w.heard[sender], w.changed
		w.mu.Unlock()
		if at.After(from) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for an advertisement of %v: %w", sender, context.Cause(ctx))
		case <-changed:
		}
	}
}

func (w *wire) close() error {
	err := w.conn.Close()
	<-w.done
	return err
}
