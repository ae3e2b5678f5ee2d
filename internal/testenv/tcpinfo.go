package testenv

import (
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// SegmentSize returns how many bytes the segments that this end sends now hold at
// most: it follows the path's MTU.
func SegmentSize(conn net.Conn) (int, error) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return 0, fmt.Errorf("ask for the segment size: %T is no TCP connection", conn)
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("ask for the segment size: %w", err)
	}
	var info *unix.TCPInfo
	var infoErr error
	err = raw.Control(func(fd uintptr) {
		info, infoErr = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	})
	if err := errors.Join(err, infoErr); err != nil {
		return 0, fmt.Errorf("ask for the segment size: %w", err)
	}
	return int(info.Snd_mss), nil
}
