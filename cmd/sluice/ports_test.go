package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/testenv"
)

// A client has several connections to several ports of a service, as passive FTP does,
// or SIP with its RTP: all of them reach one backend, each at the port that it
// meant. In nat, too, which sends from an address of its own there.
func TestAllPortsOfAClientReachOneBackend(t *testing.T) {
	const clients = 12
	addresses := testenv.Addresses(prefix("192.0.2.200/24"), clients)
	r := newRig(t, withAddresses(testenv.Default(3), "client", addresses...))
	tcp, datagrams := []uint16{21, 50000, 65535}, []uint16{5060, 10004}
	for i := range 3 {
		name := fmt.Sprintf("b%d", i+1)
		if err := r.host(name).AddVIPOnLoopback(vip); err != nil {
			t.Fatal(err)
		}
		for _, port := range tcp {
			if _, err := r.host(name).StartTCP(netip.AddrPortFrom(netip.IPv4Unspecified(), port), func(c net.Conn) {
				fmt.Fprintf(c, "%s %v %v", name, c.LocalAddr().(*net.TCPAddr).Port, c.RemoteAddr().(*net.TCPAddr).IP) // the client sees what goes wrong
			}); err != nil {
				t.Fatal(err)
			}
		}
		for _, port := range datagrams {
			r.serveNames(name, port)
		}
	}
	const own = "192.0.2.102"
	r.start("lb1", r.file("sluice.yaml", roster, `
pools:
  - name: all
    health: {type: tcp, port: 21, interval: 300ms, timeout: 300ms, rise: 2, fall: 3}
    servers: [{address: 192.0.2.11}, {address: 192.0.2.12}, {address: 192.0.2.13}]
`, services(
		`{name: dsr, address: "192.0.2.100:*", forward: dsr, scheduler: source_hash, pool: all}`,
		`{name: ftp, address: "192.0.2.101:*", scheduler: source_hash, source_addresses: [`+own+`], pool: all}`,
		`{name: sip, address: ["192.0.2.101:5060", "192.0.2.101:10000-10010"], protocol: udp, scheduler: source_hash, source_addresses: [`+own+`], pool: all}`,
	), vrrps(`{name: VI_1, interface: eth0, virtual_router_id: 51, advertisement_interval: 200ms,
     addresses: [192.0.2.100/24, 192.0.2.101/24, `+own+`/24]}`)))
	r.waitReady("lb1")

	used := map[string]bool{}
	for _, a := range addresses {
		client := a.Addr()
		for _, on := range []struct {
			vip    netip.Addr
			source string // that the backend sees
		}{{vip, client.String()}, {natVIP, own}} {
			at := ""
			for _, port := range tcp {
				name := r.askPort(client, netip.AddrPortFrom(on.vip, port), on.source)
				if at != "" && name != at {
					t.Errorf("port %d of %v is %s to %v, others are %s", port, on.vip, name, client, at)
				}
				at = name
			}
			used[fmt.Sprint(on.vip, at)] = true
		}
		at := ""
		for _, port := range datagrams {
			name := r.askDatagram(client, netip.AddrPortFrom(natVIP, port), own)
			if at != "" && name != at {
				t.Errorf("port %d of UDP is %s to %v, the other one is %s", port, name, client, at)
			}
			at = name
		}
	}
	if len(used) < 4 {
		t.Errorf("%v are used by %d clients, want more backends", used, clients)
	}
	flows := r.wantRun(0, "lb1", "flows", "--service", "ftp", "--json").stdout
	all, _ := r.flowsIn(flows)
	for _, f := range all {
		if f.Backend.Port() != f.VIP.Port() {
			t.Errorf("a flow to %v is listed with %v", f.VIP, f.Backend)
		}
	}
	if len(all) == 0 {
		t.Errorf("no flow is listed: %s", flows)
	}
}

// askPort connects to a port and returns which backend has answered; it must have done
// so from this port, and have seen this address.
func (r *rig) askPort(client netip.Addr, to netip.AddrPort, seen string) (backend string) {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), soon)
	defer cancel()
	c, err := r.host("client").DialFrom(ctx, netip.AddrPortFrom(client, 0), to)
	if err != nil {
		r.Fatalf("%v to %v: %v", client, to, err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(soon)); err != nil {
		r.Fatal(err)
	}
	answer, err := io.ReadAll(c)
	if err != nil {
		r.Fatalf("%v to %v: %v", client, to, err)
	}
	var port uint16
	var source string
	if _, err := fmt.Sscan(string(answer), &backend, &port, &source); err != nil || port != to.Port() || source != seen {
		r.Fatalf("%v to %v is answered by %q (%v), want port %d, which sees %s", client, to, answer, err, to.Port(), seen)
	}
	return backend
}

// askDatagram is askPort by UDP, where what is lost is sent again.
func (r *rig) askDatagram(client netip.Addr, to netip.AddrPort, seen string) (backend string) {
	r.Helper()
	var c *net.UDPConn
	err := r.host("client").Do(func() (err error) {
		c, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(client, 0)), net.UDPAddrFromAddrPort(to))
		return err
	})
	if err != nil {
		r.Fatal(err)
	}
	defer c.Close()
	r.eventually(soon, fmt.Sprintf("an answer of %v to %v", to, client), func() (bool, error) {
		if _, err := fmt.Fprint(c, "hello"); err != nil {
			return false, err
		}
		if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return false, err
		}
		buf := make([]byte, 100)
		n, err := c.Read(buf)
		if err != nil {
			return false, err
		}
		var source, said string
		if _, err := fmt.Sscan(string(buf[:n]), &backend, &source, &said); err != nil || source != seen || said != "hello" {
			return false, fmt.Errorf("the answer is %q, want one that has seen %s (%w)", buf[:n], seen, err)
		}
		return true, nil
	})
	return backend
}
