package main

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// reloadDNSUnderLoad changes records while clients ask, of whose queries none may be
// lost. A file that is wrong changes nothing.
func (r *rig) reloadDNSUnderLoad(file string) {
	stop := make(chan struct{})
	var asking sync.WaitGroup
	var mu sync.Mutex
	var failed error
	asked := 0
	for _, network := range []string{"udp", "udp", "tcp"} {
		asking.Go(func() {
			c, err := r.host("client").Dial(r.Context(), network, net.JoinHostPort(vip.String(), "53"))
			if err == nil {
				defer c.Close()
			}
			for n := 0; err == nil; n++ {
				select {
				case <-stop:
					mu.Lock()
					asked += n
					mu.Unlock()
					return
				default:
					var reply *dns.Msg
					if reply, err = exchange(c, "www.lb.example.com."); err == nil && len(reply.Answer) != 3 {
						err = fmt.Errorf("answer %v", reply)
					}
				}
			}
			mu.Lock()
			failed = errors.Join(failed, fmt.Errorf("%s: %w", network, err))
			mu.Unlock()
		})
	}
	for i := range 3 {
		changed := slices.Clone(usualNames)
		changed[0] = fmt.Sprintf("{name: www.lb.example.com, ttl: %ds, policy: all, pool: web}", i+2)
		r.dnsFile(webPool, dnsNames(changed...))
		if got := r.wantRun(0, "lb1", "reload", "-c", file, "--node", "lb1").stdout; !strings.Contains(got, "dns record www.lb.example.com.: ttl") {
			r.Errorf("reload says %q", got)
		}
		if got := r.dig("+noall", "+answer", "www.lb.example.com"); !strings.Contains(got, fmt.Sprintf("\t%d\tIN\tA\t192.0.2.11", i+2)) {
			r.Errorf("after reload %d: %s", i, got)
		}
	}
	for _, bad := range []struct{ from, to, want string }{
		{"pool: web}", "pool: wbe}", `there is no pool "wbe"`},
		{`["192.0.2.100:53"]`, `["192.0.2.100:53", "192.0.2.1:80"]`, "another program listens there"},
	} {
		taken, err := r.host("lb1").Listen("tcp", "192.0.2.1:80")
		if err != nil {
			r.Fatal(err)
		}
		r.dnsFile(webPool, strings.Replace(dnsNames(usualNames...), bad.from, bad.to, 1))
		if got := r.wantRun(exitFailed, "lb1", "reload", "-c", file, "--node", "lb1"); !strings.Contains(got.stderr, bad.want) {
			r.Errorf("a bad reload says %q, want %q", got.stderr, bad.want)
		}
		taken.Close()
		if got := r.dig("+noall", "+answer", "www.lb.example.com"); !strings.Contains(got, "\t4\tIN\tA\t192.0.2.11") {
			r.Errorf("after a bad reload: %s", got)
		}
	}
	r.dnsFile(webPool, dnsNames(usualNames...))
	r.wantRun(0, "lb1", "reload", "-c", file, "--node", "lb1")
	close(stop)
	asking.Wait()
	if failed != nil || asked == 0 {
		r.Errorf("%d queries, %v", asked, failed)
	}
}

// reloadDNSWithNewServers adds a pool of which one server is not there, which is given to
// nobody, not even before the first verdicts.
func (r *rig) reloadDNSWithNewServers(file string) {
	c, err := r.host("client").Dial(r.Context(), "udp", net.JoinHostPort(vip.String(), "53"))
	if err != nil {
		r.Fatal(err)
	}
	defer c.Close()
	stop := make(chan struct{})
	seen := map[string]int{}
	var asking sync.WaitGroup
	asking.Go(func() {
		for {
			reply, err := exchange(c, "fresh.lb.example.com.")
			if err != nil {
				r.Error(err)
				return
			}
			var got []string
			for _, rr := range reply.Answer {
				got = append(got, rr.(*dns.A).A.String())
			}
			seen[fmt.Sprint(got)]++
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	fresh := "  - {name: fresh, health: {type: tcp, port: 80, interval: 400ms}, servers: [{address: 192.0.2.99}, {address: 192.0.2.13}]}\n"
	r.dnsFile(webPool+fresh, dnsNames(append(usualNames, "{name: fresh.lb.example.com, pool: fresh}")...))
	r.wantRun(0, "lb1", "reload", "-c", file, "--node", "lb1")
	r.waitGiven("fresh.lb.example.com", "192.0.2.13")
	close(stop)
	asking.Wait()
	// Before the reload the name is not there.
	if seen["[]"] == 0 || seen["[192.0.2.13]"] == 0 || len(seen) != 2 {
		r.Errorf("answers %v", seen)
	}
	r.dnsFile(webPool, dnsNames(usualNames...))
	r.wantRun(0, "lb1", "reload", "-c", file, "--node", "lb1")
}

// exchange asks for the IPv4 addresses of a name over a connection.
func exchange(c net.Conn, name string) (*dns.Msg, error) {
	if err := c.SetDeadline(time.Now().Add(soon)); err != nil {
		return nil, err
	}
	m := &dns.Msg{}
	m.SetQuestion(name, dns.TypeA)
	conn := &dns.Conn{Conn: c}
	if err := conn.WriteMsg(m); err != nil {
		return nil, err
	}
	reply, err := conn.ReadMsg()
	if err == nil && reply.Id != m.Id {
		err = fmt.Errorf("answer %d to %d", reply.Id, m.Id)
	}
	return reply, err
}
