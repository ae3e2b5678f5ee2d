// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"errors"
	"net/netip"
	"runtime"
	"testing"

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
