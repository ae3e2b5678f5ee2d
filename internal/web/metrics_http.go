package web

import (
	"strconv"

	"github.com/sluice-lb/sluice/l7"
)

var (
	httpAccepted = counter("http_connections_total", "Connections that a listener of the HTTP proxy has accepted.", "listen")
	httpRefused  = counter("http_connections_refused_total", "Those that have failed in TLS or in the PROXY protocol.", "listen")
	httpBad      = counter("http_requests_malformed_total", "Requests that were no HTTP/1, or could be read in two ways.", "listen")
	httpListener = gauge("http_listener_info", "A listener of the HTTP proxy; always 1.", "listen", "tls")
	httpOpen     = gauge("http_connections", "Connections of clients (clients) and to servers (servers) that are open.", "with")
	httpMax      = gauge("http_connections_max", "How many there may be.", "with")
	httpWaiting  = gauge("http_listeners_waiting", "Listeners that accept nothing, since there are as many connections as there may be.")
	httpWaited   = counter("http_connections_waited_total", "Connections of clients that had to wait for that reason.")
	httpMadeRoom = counter("http_connections_made_room_total", "Connections of clients that were idle and were closed for that reason.")
	httpServer   = gauge("http_server_info", "A virtual host and where it listens; always 1.", "server", "listen")
	httpRequests = counter("http_requests_total", "Requests to a virtual host.", "server")
	httpAnswers  = counter("http_answers_total", "Answers of a virtual host, by class.", "server", "class")
	httpInFlight = gauge("http_requests_in_flight", "Requests to a virtual host that are under way.", "server")
	httpBytes    = counter("http_bytes_total", "Bytes of bodies from clients of a virtual host (received), and to them (sent).", "server", "direction")
	httpLogLost  = counter("http_log_lines_lost_total", "Lines of access logs that the disk has not taken in time.")

	upstreamInfo     = gauge("upstream_info", "An upstream; always 1.", "upstream", "pool", "policy")
	upstreamRequests = counter("upstream_requests_total", "Requests to an upstream.", "upstream")
	upstreamFailures = counter("upstream_failures_total", "Those of them that no server has answered.", "upstream")

	upstreamSticky = gauge("upstream_sticky_info", "An upstream whose clients stay with their servers, and the cookie that says so; always 1.", "upstream", "cookie")
	upstreamMoved  = counter("upstream_sticky_moved_total", "Requests that another server has answered than the one that the client's cookie names.", "upstream")

	upstreamServerInfo     = gauge("upstream_server_info", "A server of an upstream; always 1.", "upstream", "server", "backup")
	upstreamServerSince    = gauge("upstream_server_since_timestamp_seconds", "Since when health says what it does of a server, since the epoch.", "upstream", "server")
	upstreamServerState    = gauge("upstream_server_state", "The state of a server of an upstream: 1 for the one it is in.", "upstream", "server", "state")
	upstreamServerWeight   = gauge("upstream_server_weight", "The weight of a server of an upstream.", "upstream", "server")
	upstreamServerSlow     = gauge("upstream_server_slow_start_ratio", "The part of its weight that a server of an upstream has: less than 1 while it starts slowly.", "upstream", "server")
	upstreamServerInFlight = gauge("upstream_server_requests_in_flight", "Requests that a server of an upstream has at the moment.", "upstream", "server")
	upstreamServerRequests = counter("upstream_server_requests_total", "Requests that a server of an upstream was given.", "upstream", "server")
	upstreamServerFailures = counter("upstream_server_failures_total", "Those of them that have failed.", "upstream", "server")
	upstreamServerBytes    = counter("upstream_server_bytes_total", "Bytes of the bodies of answers of a server.", "upstream", "server")
)

// upstreamStates are all states that a server of an upstream may be in.
var upstreamStates = []string{
	string(l7.StateUnknown), string(l7.StateUp), string(l7.StateDown), string(l7.StateDrained), string(l7.StateFailing),
}

func (s sink) http(h *l7.Status) {
	if h == nil {
		return
	}
	for _, l := range h.Listeners {
		s.put(httpListener, 1, l.Address.String(), strconv.FormatBool(l.TLS))
		s.count(httpAccepted, l.Accepted, l.Address.String())
		s.count(httpRefused, l.Refused, l.Address.String())
		s.count(httpBad, l.Malformed, l.Address.String())
	}
	c := h.Connections
	s.put(httpOpen, float64(c.Open), "clients")
	s.put(httpOpen, float64(c.Servers), "servers")
	s.put(httpMax, float64(c.Max), "clients")
	s.put(httpMax, float64(c.MaxServers), "servers")
	s.put(httpWaiting, float64(c.Waiting))
	s.count(httpWaited, c.Waited)
	s.count(httpMadeRoom, c.Closed)
	for _, v := range h.Servers {
		s.put(httpServer, 1, v.Name, join(v.Listen))
		s.count(httpRequests, v.Requests, v.Name)
		for class, n := range v.Answers {
			s.count(httpAnswers, n, v.Name, class)
		}
		s.put(httpInFlight, float64(v.InFlight), v.Name)
		s.count(httpBytes, v.Received, v.Name, "received")
		s.count(httpBytes, v.Sent, v.Name, "sent")
	}
	s.count(httpLogLost, h.LogDropped)
	for _, u := range h.Upstreams {
		s.put(upstreamInfo, 1, u.Name, u.Pool, u.Policy)
		s.count(upstreamRequests, u.Requests, u.Name)
		s.count(upstreamFailures, u.Failures, u.Name)
		if u.Sticky != nil {
			s.put(upstreamSticky, 1, u.Name, u.Sticky.Cookie)
			s.count(upstreamMoved, u.Sticky.Moved, u.Name)
		}
		for _, b := range u.Servers {
			at := b.Address.String()
			s.put(upstreamServerInfo, 1, u.Name, at, strconv.FormatBool(b.Backup))
			s.put(upstreamServerSince, seconds(b.Since), u.Name, at)
			s.state(upstreamServerState, string(b.State), upstreamStates, u.Name, at)
			s.put(upstreamServerWeight, float64(b.Weight), u.Name, at)
			part := 1.0
			if b.SlowStart != nil {
				part = float64(b.SlowStart.Percent) / 100
			}
			s.put(upstreamServerSlow, part, u.Name, at)
			s.put(upstreamServerInFlight, float64(b.InFlight), u.Name, at)
			s.count(upstreamServerRequests, b.Requests, u.Name, at)
			s.count(upstreamServerFailures, b.Failures, u.Name, at)
			s.count(upstreamServerBytes, b.Bytes, u.Name, at)
		}
	}
}
