package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// Datagrams of 8,000 bytes, which the kernels at both ends cut into fragments and
// put together again, reach a nat backend and come back.
func TestBigDatagramsThroughNAT(t *testing.T) {
	spec := testenv.Default(1)
	spec.IPv6 = true
	for i, last := range []int{200, 1, 2, 11} {
		in := &spec.Hosts[i].Interfaces[0]
		in.Addresses = append(in.Addresses, netip.MustParsePrefix(fmt.Sprintf("2001:db8::%d/64", last)))
	}
	r := newRig(t, spec)
	vips := []netip.Prefix{prefix("192.0.2.110/24"), prefix("2001:db8::110/64")}
	servers := []netip.Addr{r.host("b1").Address(), netip.MustParseAddr("2001:db8::11")}
	var items []string
	for i, v := range vips {
		if err := r.host("lb1").AddAddress("eth0", v); err != nil {
			t.Fatal(err)
		}
		r.echoDatagrams("b1", netip.AddrPortFrom(servers[i], 7))
		items = append(items, fmt.Sprintf(`{name: echo%d, address: %q, protocol: udp, forward: nat, backends: [{address: %q}]}`,
			i, netip.AddrPortFrom(v.Addr(), 7), servers[i]))
	}
	r.start("lb1", r.file("sluice.yaml", roster, services(items...)))
	r.waitStatus("lb1", soon, "next hops", func(s control.Status) error {
		if len(s.Services) != len(items) {
			return fmt.Errorf("%d services", len(s.Services))
		}
		for _, v := range s.Services {
			if b := v.Backends[0]; !b.Serving || b.NextHop == "" {
				return fmt.Errorf("%v: %s %s", b.Address, b.State, b.Why)
			}
		}
		return nil
	})
	for i, v := range vips {
		name := fmt.Sprintf("echo%d", i)
		before := r.packets("lb1", name)
		const datagrams = 50
		r.exchange("client", netip.AddrPortFrom(v.Addr(), 7), datagrams, 8000)
		// Six fragments of no more than 1,500 bytes each.
		if got := r.packets("lb1", name) - before; got < datagrams*6*2 {
			t.Errorf("%v: %d packets went through, want at least %d", v, got, datagrams*6*2)
		}
		if b := r.backend("lb1", name); b.PortsUsed != 1 || b.Ports < 30000 {
			t.Errorf("%v: %d of %d source ports are in use, want 1 of nearly half of all that there are", v, b.PortsUsed, b.Ports)
		}
	}
}

// backend returns the only backend of a service.
func (r *rig) backend(on, service string) control.BackendStatus {
	r.Helper()
	v, err := serviceOf(r.mustStatus(on), service)
	if err != nil {
		r.Fatal(err)
	}
	return v.Backends[0]
}

// packets counts those of a service with one backend, both ways.
func (r *rig) packets(on, service string) uint64 {
	r.Helper()
	b := r.backend(on, service)
	return b.Packets + b.ReplyPackets
}

// echoDatagrams sends every datagram back to where it came from, until the test
// ends.
func (r *rig) echoDatagrams(on string, at netip.AddrPort) {
	r.Helper()
	var conn *net.UDPConn
	err := r.host(on).Do(func() error {
		var err error
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		r.Fatal(err)
	}
	var done sync.WaitGroup
	done.Go(func() {
		b := make([]byte, 65536)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return // closed
			}
			_, _ = conn.WriteToUDPAddrPort(b[:n], from) // who asked notices
		}
	})
	r.Cleanup(func() { _ = conn.Close(); done.Wait() }) // nothing is written through it any more
}

// exchange sends datagrams one by one and wants each back as it was. UDP may lose
// some on a busy machine, or be late: each is sent until it comes back.
func (r *rig) exchange(from string, to netip.AddrPort, count, size int) {
	r.Helper()
	conn, err := r.host(from).Dial(r.Context(), "udp", to.String())
	if err != nil {
		r.Fatal(err)
	}
	defer conn.Close()
	noise := rand.NewChaCha8([32]byte{byte(size)})
	sent := make([]byte, size)
	for i := range count {
		_, _ = noise.Read(sent) // never fails
		r.eventually(soon, fmt.Sprintf("datagram %d of %v", i, to), func() (bool, error) {
			if _, err := conn.Write(sent); err != nil {
				return false, err
			}
			return true, comesBack(conn, sent)
		})
	}
}

// comesBack reads datagrams until what was sent is among them, for a second.
func comesBack(conn net.Conn, sent []byte) error {
	if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	b := make([]byte, 65536)
	others := 0
	for {
		n, err := conn.Read(b)
		if err != nil {
			return fmt.Errorf("%d others came back: %w", others, err)
		}
		if bytes.Equal(b[:n], sent) {
			return nil
		}
		others++ // an earlier one that was sent more than once
	}
}
