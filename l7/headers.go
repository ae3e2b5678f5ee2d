package l7

import (
	"net/http"
	"net/textproto"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/sluice-lb/sluice/internal/lb"
)

// endToEnd adds what of a request's header goes on to a server: not what is about the
// connection, nor what a server may take for something else. The values are shared.
func endToEnd(out, in http.Header) {
	for name, values := range in {
		if !ofConnection(name) && name != "Expect" && strings.IndexByte(name, '_') < 0 { // the body is asked for when it is read
			out[name] = values
		}
	}
	removeNamed(out, in["Connection"])
	for _, v := range in["Te"] {
		if httpguts.HeaderValuesContainsToken([]string{v}, "trailers") {
			out["Te"] = []string{"trailers"}
		}
	}
}

// ofConnection tells whether a header is about the connection that it comes by (RFC 9110,
// section 7.6.1).
func ofConnection(name string) bool {
	switch name {
	case "Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade":
		return true
	}
	return false
}

// removeHopByHop removes what is about the connection that a message has come by.
func removeHopByHop(h http.Header) {
	removeNamed(h, h["Connection"])
	for name := range h {
		if ofConnection(name) {
			delete(h, name)
		}
	}
}

// removeNamed removes the headers that "Connection" names.
func removeNamed(h http.Header, connection []string) {
	for _, line := range connection {
		for name := range strings.SplitSeq(line, ",") {
			if name = textproto.TrimString(name); name != "" {
				h.Del(name)
			}
		}
	}
}

// dropUnderscores takes headers away whose names a server may take for others: CGI
// makes X_Forwarded_For and X-Forwarded-For the same.
func dropUnderscores(h http.Header) {
	for name := range h {
		if strings.IndexByte(name, '_') >= 0 {
			delete(h, name)
		}
	}
}

// changes are those of headers, ready to be made.
type changes struct {
	remove   []string
	set, add []headerText
}

type headerText struct {
	name string
	text text
}

func newChanges(c lb.HeaderChanges) *changes {
	texts := func(hs []lb.Header) (all []headerText) {
		for _, h := range hs {
			all = append(all, headerText{h.Name, newText(h.Value)})
		}
		return all
	}
	return &changes{c.Remove, texts(c.Set), texts(c.Add)}
}

// apply makes the changes. A value that came out empty is not sent, as in nginx.
func (c *changes) apply(h http.Header, x *exchange) {
	for _, name := range c.remove {
		delete(h, name)
	}
	for _, t := range c.set {
		if v := t.text.expand(x); v != "" {
			h[t.name] = []string{v}
		} else {
			delete(h, t.name)
		}
	}
	for _, t := range c.add {
		if v := t.text.expand(x); v != "" {
			h[t.name] = append(h[t.name], v)
		}
	}
}
