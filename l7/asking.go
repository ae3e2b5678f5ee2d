package l7

import (
	"errors"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// errStale is the error of a connection on which the server has said something, or which it
// has closed, before it was asked: it was not.
var errStale = errors.New("the server has closed the connection, or has said something unasked")

// An asking sends a request and waits for the beginning of its answer. One after the other
// they would be a write, a read that finds nothing, and a read of the answer; here nobody
// reads before there is something.
//
// All of it is one wait of Go's for a connection that can be read. That does not miss what
// comes after its beginning, and only then is looked whether something has come before. So
// it never waits for what is there.
type asking struct {
	request []byte                // what is to be sent; nil: nothing
	reused  bool                  // the connection was another exchange's before
	next    func(fd uintptr) bool // is step

	sent bool // it was tried
	into []byte
	n    int
	err  error
}

// run reads into p, and returns what of the request the socket has had no room for: then
// nothing was read.
func (a *asking) run(c syscall.RawConn, p []byte) (n int, rest []byte, err error) {
	a.sent, a.into, a.n, a.err = false, p, 0, nil
	err = c.Read(a.next)
	a.into = nil
	if err != nil {
		return 0, nil, err
	}
	return a.n, a.request, a.err
}

// step does what can be done without waiting; false: it is to be called again when there
// is something to be read.
func (a *asking) step(fd uintptr) bool {
	if !a.sent {
		silent := silentAt(fd)
		if !silent && a.reused {
			a.err = errStale
			return true
		}
		a.sent = true
		if a.send(fd); a.request != nil {
			return true
		}
		if silent { // and no answer can be there yet
			return false
		}
	}
	n, err := again(unix.Read, fd, a.into)
	switch {
	case err == unix.EAGAIN:
		return false
	case err != nil:
		a.err = os.NewSyscallError("read", err)
	case n == 0:
		a.err = io.EOF
	}
	a.n = max(n, 0)
	return true
}

// send sends what there is room for.
func (a *asking) send(fd uintptr) {
	n, err := again(unix.Write, fd, a.request)
	switch {
	case err != nil && err != unix.EAGAIN:
		a.err = os.NewSyscallError("write", err)
	case n == len(a.request):
		a.request = nil
	case n > 0:
		a.request = a.request[n:]
	}
}

// again makes a system call that signals do not interrupt.
func again(call func(int, []byte) (int, error), fd uintptr, p []byte) (int, error) {
	for {
		n, err := call(int(fd), p)
		if err != unix.EINTR {
			return n, err
		}
	}
}

// silentAt tells whether a connection has nothing to be read, nor an end. It takes nothing,
// and has no memory for it: MSG_TRUNC has TCP copy nothing. It never waits.
func silentAt(fd uintptr) bool {
	_, _, err := unix.RawSyscall6(unix.SYS_RECVFROM, fd, 0, 1, unix.MSG_PEEK|unix.MSG_TRUNC|unix.MSG_DONTWAIT, 0, 0)
	return err == unix.EAGAIN
}
