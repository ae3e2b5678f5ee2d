package l7

import (
	"crypto/rand"
	"encoding/hex"
	"net/http"
	"net/netip"
	"strings"
)

// findClient finds out whom the peer speaks for: of the addresses in X-Forwarded-For
// the last one that is no trusted proxy's. Only a trusted proxy's word counts.
func (x *exchange) findClient(trusted []netip.Prefix) {
	x.client = x.peer
	if x.trusted = contains(trusted, x.peer.Addr()); !x.trusted {
		return
	}
	all := x.request.Header["X-Forwarded-For"]
	for i := len(all) - 1; i >= 0; i-- {
		for rest := all[i]; rest != ""; {
			item := rest
			if k := strings.LastIndexByte(rest, ','); k >= 0 {
				rest, item = rest[:k], rest[k+1:]
			} else {
				rest = ""
			}
			a, ok := parseHop(strings.TrimSpace(item))
			if !ok {
				return
			}
			x.client = a
			if !contains(trusted, a.Addr()) {
				return
			}
		}
	}
}

// parseHop reads an address as proxies write it: with a port, in brackets, or bare.
func parseHop(s string) (netip.AddrPort, bool) {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), true
	}
	a, err := netip.ParseAddr(strings.Trim(s, "[]"))
	return netip.AddrPortFrom(a.Unmap(), 0), err == nil && a.Zone() == ""
}

// tellForwarded tells a server about the client: what the peer says of it counts if
// the peer is trusted, and is overwritten otherwise.
func (x *exchange) tellForwarded(out http.Header) {
	in := x.request.Header
	peer := x.conn.peerText
	proto, host := x.scheme(), x.request.Host
	chain, forwarded, client := peer, forwardedElement(x.peer.Addr(), peer, host, proto), peer
	if x.trusted {
		client = x.client.Addr().String()
		if before := strings.Join(in["X-Forwarded-For"], ", "); before != "" {
			chain = before + ", " + peer
		}
		if before := strings.Join(in["Forwarded"], ", "); before != "" {
			forwarded = before + ", " + forwarded
		}
		if p := in.Get("X-Forwarded-Proto"); p != "" {
			proto = p
		}
		if h := in.Get("X-Forwarded-Host"); h != "" {
			host = h
		}
	}
	values := [...]string{chain, proto, host, forwarded, client} // at once
	out["X-Forwarded-For"] = values[0:1:1]
	out["X-Forwarded-Proto"] = values[1:2:2]
	out["X-Forwarded-Host"] = values[2:3:3]
	out["Forwarded"] = values[3:4:4]
	out["X-Real-Ip"] = values[4:5:5]
	delete(out, "X-Forwarded-Port") // nobody has checked it
	if x.trusted {
		if p := in["X-Forwarded-Port"]; p != nil {
			out["X-Forwarded-Port"] = p
		}
	}
}

// forwardedElement is one hop in the words of RFC 7239.
func forwardedElement(peer netip.Addr, node, host, proto string) string {
	if peer.Is6() {
		node = `"[` + node + `]"`
	}
	if host == "" || strings.ContainsAny(host, `"\`) {
		return "for=" + node + ";proto=" + proto
	}
	return "for=" + node + `;host="` + host + `";proto=` + proto
}

// nameRequest gives a request its id: a trusted proxy's, or one of our own.
func (x *exchange) nameRequest(header string) {
	if header == "" {
		return
	}
	if id := x.request.Header.Get(header); x.trusted && id != "" && len(id) <= 128 {
		x.id = id
		return
	}
	var b [16]byte
	_, _ = rand.Read(b[:]) // it never fails
	x.id = hex.EncodeToString(b[:])
}
