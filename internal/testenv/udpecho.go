package testenv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// A UDPEcho sends back each datagram that it gets, from the address that it was
// sent to: a VIP that comes and goes is answered as long as the host has it. It
// runs on a thread of its own, [undisturbed].
type UDPEcho struct {
	socket int
	wake   wakeup
	done   chan struct{}
	err    error // of the loop; read after done
}

// StartUDPEcho echoes on a port of all of the host's IPv4 addresses. The lab stops
// it at Close.
func (h *Host) StartUDPEcho(port uint16) (*UDPEcho, error) {
	e := &UDPEcho{done: make(chan struct{})}
	err := h.Do(func() (err error) {
		e.socket, err = openEcho(port)
		return err
	})
	if err == nil {
		if e.wake, err = newWakeup(); err != nil {
			err = errors.Join(err, unix.Close(e.socket))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("start udp echo on %s: %w", h.Name, err)
	}
	go func() {
		defer close(e.done)
		var realtime bool
		// Its socket is in the host's namespace; this only gives it a thread.
		err := onOwnThread(func() error { return undisturbed(&realtime, e.run) })
		e.err = errors.Join(err, unix.Close(e.socket))
	}()
	h.lab.adopt(e)
	return e, nil
}

func openEcho(port uint16) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open socket: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1); err != nil {
		return -1, errors.Join(fmt.Errorf("ask for destinations: %w", err), unix.Close(fd))
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(port)}); err != nil {
		return -1, errors.Join(fmt.Errorf("bind to port %d: %w", port, err), unix.Close(fd))
	}
	return fd, nil
}

// run echoes until it is woken.
func (e *UDPEcho) run() error {
	fds := []unix.PollFd{{Fd: int32(e.wake.fd), Events: unix.POLLIN}, {Fd: int32(e.socket), Events: unix.POLLIN}}
	data, control := make([]byte, 2048), make([]byte, 128)
	for {
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return fmt.Errorf("wait for a datagram: %w", err)
		}
		if fds[0].Revents != 0 {
			return nil
		}
		n, controlLength, _, from, err := unix.Recvmsg(e.socket, data, control, 0)
		if err == unix.EAGAIN || err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("receive datagram: %w", err)
		}
		answer, err := fromDestination(control[:controlLength])
		if err != nil {
			return err
		}
		// The address may have gone meanwhile: then there is no answer.
		_, _ = unix.SendmsgN(e.socket, data[:n], answer, from, 0)
	}
}

// fromDestination makes the control message that has an answer come from where
// the datagram with this one went to.
func fromDestination(control []byte) ([]byte, error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil, fmt.Errorf("read control message: %w", err)
	}
	for _, m := range messages {
		// struct in_pktinfo: interface, local address, destination.
		if m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= 12 {
			return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: [4]byte(m.Data[8:12])}), nil
		}
	}
	return nil, errors.New("a datagram says not where it went to")
}

// Close ends the echo.
func (e *UDPEcho) Close() error {
	e.wake.end(e.done)
	return e.err
}

func (e *UDPEcho) stop() error { return e.Close() }

// A wakeup is an eventfd that ends a loop.
type wakeup struct {
	fd   int
	once *sync.Once
}

func newWakeup() (wakeup, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return wakeup{}, fmt.Errorf("make eventfd: %w", err)
	}
	return wakeup{fd, new(sync.Once)}, nil
}

// end wakes the loop, waits until it is done, and closes the eventfd. Later calls
// do nothing.
func (w wakeup) end(done <-chan struct{}) {
	w.once.Do(func() {
		var one [8]byte
		binary.NativeEndian.PutUint64(one[:], 1)
		_, _ = unix.Write(w.fd, one[:]) // to a fresh eventfd: cannot block or fail
		<-done
		_ = w.close() // nothing is left in it
	})
	<-done
}

// close is for a loop that has never begun.
func (w wakeup) close() error { return unix.Close(w.fd) }
