// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// bindShared binds a socket that is willing to share its port in one way.
func bindShared(option int, at netip.Addr, port uint16) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 1), unix.Bind(fd, sockaddr(at, port)))
}

// asNobody calls f on a thread whose sockets are those of a user without privileges.
func asNobody(t *testing.T, f func() error) error {
	t.Helper()
	testenv.RequireRoot(t)
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this
		_, err := unix.SetfsuidRetUid(65534)
		if err == nil {
			err = f()
		}
		result <- err
	}()
	return <-result
}

// A program of another user of this node gets none of the heartbeats: of two sockets
// that share a port and a peer the newer one would have them all.
func TestNobodySharesThePort(t *testing.T) {
	port := freePort(t)
	for _, peer := range []netip.Addr{two, netip.MustParseAddr("127.0.0.3")} { // one port for all peers
		s, err := dial(one, peer, port)
		if err != nil {
			t.Fatal(err)
		}
		defer s.close()
	}
	t.Run("who reuses the address", func(t *testing.T) {
		if err := bindShared(unix.SO_REUSEADDR, one, port); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("binding the port gives %v, want %v", err, unix.EADDRINUSE)
		}
	})
	t.Run("who shares the port, as another user", func(t *testing.T) {
		err := asNobody(t, func() error { return bindShared(unix.SO_REUSEPORT, one, port) })
		if !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("binding the port gives %v, want %v", err, unix.EADDRINUSE)
		}
	})
}

// forbid sends the error message of a router that claims to have been kept from
// forwarding what goes from one address to another. Anybody can.
func forbid(t *testing.T, from, to netip.Addr, port uint16) {
	t.Helper()
	testenv.RequireRoot(t)
	const unreachable, prohibited = 3, 13
	header := []byte{0x45, 0, 0, 36, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	header = append(append(header, from.AsSlice()...), to.AsSlice()...)
	header = binary.BigEndian.AppendUint16(header, port)
	header = binary.BigEndian.AppendUint16(header, port)
	message := append([]byte{unreachable, prohibited, 0, 0, 0, 0, 0, 0}, append(header, 0, 16, 0, 0)...)
	sum := uint32(0)
	for b := message; len(b) > 0; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	binary.BigEndian.PutUint16(message[2:], ^uint16(sum+sum>>16))
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, message, 0, sockaddr(from, 0)); err != nil {
		t.Fatal(err)
	}
}

// Error messages of ICMP, which anybody can forge, neither close a path nor keep a
// message from being sent.
func TestForgedErrorsStopNothing(t *testing.T) {
	port := freePort(t)
	a, err := dial(one, two, port)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	b, err := dial(two, one, port)
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	if err := b.file.SetReadDeadline(time.Now().Add(soon)); err != nil {
		t.Fatal(err)
	}
	if err := a.file.SetReadDeadline(time.Now().Add(soon)); err != nil {
		t.Fatal(err)
	}
	var buf [10]byte
	forbid(t, one, two, port)
	if err := a.write([]byte("out")); err != nil {
		t.Error(err)
	} else if n, err := b.read(buf[:]); err != nil || string(buf[:n]) != "out" {
		t.Errorf("got %q, %v", buf[:max(n, 0)], err)
	}
	forbid(t, one, two, port)
	if err := b.write([]byte("back")); err != nil {
		t.Fatal(err)
	}
	if n, err := a.read(buf[:]); err != nil || string(buf[:n]) != "back" {
		t.Errorf("got %q, %v", buf[:max(n, 0)], err)
	}
}
