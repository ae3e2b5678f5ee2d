package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// ping sends an echo request from a host until it is answered (RFC 792, RFC 4443).
func (r *rig) ping(from string, to netip.Addr) error {
	r.Helper()
	network, request, reply := "ip4:icmp", byte(8), byte(0)
	if to.Is6() {
		network, request, reply = "ip6:ipv6-icmp", 128, 129
	}
	var c *net.IPConn
	err := r.host(from).Do(func() (err error) {
		c, err = net.DialIP(network, nil, &net.IPAddr{IP: to.AsSlice()})
		return err
	})
	if err != nil {
		return err
	}
	defer c.Close()
	// Identification and number: whoever else pings from here has others.
	message := []byte{request, 0, 0, 0, 0x53, 0x4c, 0, 1}
	if to.Is4() { // of IPv6 the kernel adds it up
		sum := uint32(0)
		for i := 0; i < len(message); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(message[i:]))
		}
		binary.BigEndian.PutUint16(message[2:], ^uint16(sum+sum>>16))
	}
	var last error
	for end := time.Now().Add(soon); time.Now().Before(end); {
		if _, err := c.Write(message); err != nil {
			return err
		}
		if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		for {
			got := make([]byte, 1500)
			var n int
			if n, _, last = c.ReadFromIP(got); last != nil {
				break // too late: it is sent again
			}
			if n == len(message) && got[0] == reply && string(got[4:n]) == string(message[4:]) {
				return nil
			}
		}
	}
	return fmt.Errorf("%v does not answer %s: %w", to, from, last)
}
