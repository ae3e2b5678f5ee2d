package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// What one node hears of another one, and how a figure is called.
const (
	advertisements = "advertisement"
	heartbeats     = "heartbeat"
)

var kinds = []string{advertisements, heartbeats}

// gaps are the times between two packets of one kind.
type gaps struct {
	count   int // of the gaps
	longest time.Duration
	last    time.Time
}

// note notes a packet that came at a moment.
func (g *gaps) note(at time.Time) {
	if !g.last.IsZero() {
		g.count++
		g.longest = max(g.longest, at.Sub(g.last))
	}
	g.last = at
}

// An ear notes when packets of another node come to a node's interface, by the time
// at which the kernel got them: when the daemon there reads them is another matter.
type ear struct {
	file *os.File
	from netip.Addr
	done chan struct{}

	mu  sync.Mutex
	all map[string]gaps
}

// listenForHeartbeats notes what one node hears of another one.
func listenForHeartbeats(h *testenv.Host, from netip.Addr) (*ear, error) {
	e := &ear{from: from, done: make(chan struct{}), all: map[string]gaps{}}
	err := h.Do(func() error {
		nic, err := net.InterfaceByName(testenv.DefaultInterface)
		if err != nil {
			return err
		}
		protocol := int(binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_IP)))
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
		if err != nil {
			return err
		}
		e.file = os.NewFile(uintptr(fd), "packets of "+h.Name)
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20), // its reader may be late
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: uint16(protocol), Ifindex: nic.Index}))
	})
	if err == nil {
		err = e.start()
	}
	if err != nil {
		if e.file != nil {
			err = errors.Join(err, e.file.Close())
		}
		return nil, fmt.Errorf("listen to what comes to %s: %w", h.Name, err)
	}
	return e, nil
}

func (e *ear) start() error {
	raw, err := e.file.SyscallConn()
	if err != nil {
		return err
	}
	go func() {
		defer close(e.done)
		packet, control := make([]byte, 256), make([]byte, 128)
		for {
			var n, oobn int
			var readErr error
			err := raw.Read(func(fd uintptr) bool {
				n, oobn, _, _, readErr = unix.Recvmsg(int(fd), packet, control, 0)
				return readErr != unix.EAGAIN
			})
			if err != nil || readErr != nil && readErr != unix.EINTR {
				return // it is closed
			}
			if at, err := testenv.Arrival(control[:oobn]); err == nil && readErr == nil {
				e.hear(packet[:n], at)
			}
		}
	}()
	return nil
}

// hear notes a packet, header of IPv4 first.
func (e *ear) hear(b []byte, at time.Time) {
	kind := kindOf(b, e.from)
	if kind == "" {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	g := e.all[kind]
	g.note(at)
	e.all[kind] = g
}

// kindOf tells what a packet is, if it comes from an address; "": neither.
func kindOf(b []byte, from netip.Addr) string {
	const ports, udp, vrrp = 3780, 17, 112
	if len(b) < 20 || netip.AddrFrom4([4]byte(b[12:16])) != from {
		return ""
	}
	payload := b[min(len(b), int(b[0]&15)*4):]
	switch {
	case b[9] == vrrp:
		return advertisements
	case b[9] == udp && len(payload) > 8+6 && binary.BigEndian.Uint16(payload[2:]) == ports && string(payload[8:12]) == "slhb" && payload[13] == 3:
		return heartbeats
	}
	return ""
}

// gaps are those so far; one that lasts still counts.
func (e *ear) gaps() map[string]gaps {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := map[string]gaps{}
	for kind, g := range e.all {
		g.note(time.Now())
		all[kind] = g
	}
	return all
}

func (e *ear) close() {
	e.file.Close() // nothing was written
	<-e.done
}
