package web

import (
	"strconv"

	"github.com/sluice-lb/sluice/internal/dns"
)

var (
	dnsQueries     = counter("dns_queries_total", "Messages that came to a listener of dns.", "listen", "transport")
	dnsAccepted    = counter("dns_connections_total", "Connections that a listener of dns has accepted.", "listen")
	dnsOpen        = gauge("dns_connections_open", "Connections of dns that are open.")
	dnsEvicted     = counter("dns_connections_evicted_total", "Connections that were idle and made room for newer ones.")
	dnsAnswers     = counter("dns_answers_total", "Answers that were sent, by response code.", "rcode")
	dnsDropped     = counter("dns_dropped_total", "Messages that got no answer, by reason.", "reason")
	dnsTruncated   = counter("dns_truncated_total", "Answers that were too long for a datagram.")
	dnsSlipped     = counter("dns_slipped_total", "Answers beyond the rate limit that have asked the client to come over TCP.")
	dnsZoneSerial  = gauge("dns_zone_serial", "The serial number of a zone.", "zone")
	dnsRecord      = gauge("dns_record_info", "A record of dns; always 1.", "record", "policy", "pool")
	dnsRecordTTL   = gauge("dns_record_ttl_seconds", "How long the addresses of a record may be kept.", "record")
	dnsRecordAsked = counter("dns_record_queries_total", "Queries for a name with a pool behind it.", "record")
	dnsPoolHealthy = gauge("dns_pool_healthy", "Whether a pool of dns has a healthy server. If not, all are given.", "pool")

	dnsServerState   = gauge("dns_server_state", "The state of a server of a pool of dns: 1 for the one it is in.", "pool", "server", "state")
	dnsServerInfo    = gauge("dns_server_info", "A server of a pool of dns; always 1.", "pool", "server", "backup")
	dnsServerSince   = gauge("dns_server_since_timestamp_seconds", "Since when health says what it does of a server, since the epoch.", "pool", "server")
	dnsServerWeight  = gauge("dns_server_weight", "The weight of a server of a pool of dns.", "pool", "server")
	dnsServerGiven   = gauge("dns_server_given", "Whether the address of a server is among those that are answered.", "pool", "server")
	dnsServerAnswers = counter("dns_server_answers_total", "Answers that a server was chosen for.", "pool", "server")
)

// dnsStates are all states that a server of a pool may be in.
var dnsStates = []string{
	string(dns.StateUnknown), string(dns.StateUp), string(dns.StateDown), string(dns.StateDrained), string(dns.StateDisabled),
}

func (s sink) dns(d *dns.Status) {
	if d == nil {
		return
	}
	for _, l := range d.Listeners {
		at := l.Address.String()
		s.count(dnsQueries, l.UDP, at, "udp")
		s.count(dnsQueries, l.TCP, at, "tcp")
		s.count(dnsAccepted, l.Accepted, at)
	}
	s.put(dnsOpen, float64(d.Connections))
	s.count(dnsEvicted, d.Evicted)
	for rcode, n := range d.Answers {
		s.count(dnsAnswers, n, rcode)
	}
	for reason, n := range d.Dropped {
		s.count(dnsDropped, n, reason)
	}
	s.count(dnsTruncated, d.Truncated)
	s.count(dnsSlipped, d.Slipped)
	for _, z := range d.Zones {
		s.put(dnsZoneSerial, float64(z.Serial), z.Name)
	}
	for _, r := range d.Records {
		s.put(dnsRecord, 1, r.Name, r.Policy, r.Pool)
		s.put(dnsRecordTTL, float64(r.TTL), r.Name)
		s.count(dnsRecordAsked, r.Queries, r.Name)
	}
	for _, p := range d.Pools {
		s.put(dnsPoolHealthy, truth(p.Healthy), p.Name)
		for _, k := range p.Servers {
			at := k.Address
			s.put(dnsServerInfo, 1, p.Name, at, strconv.FormatBool(k.Backup))
			s.put(dnsServerSince, seconds(k.Since), p.Name, at)
			s.state(dnsServerState, string(k.State), dnsStates, p.Name, at)
			s.put(dnsServerWeight, float64(k.Weight), p.Name, at)
			s.put(dnsServerGiven, truth(k.Given), p.Name, at)
			s.count(dnsServerAnswers, k.Answers, p.Name, at)
		}
	}
}
