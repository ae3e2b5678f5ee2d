package l7

import (
	"net/url"
	"strconv"
	"strings"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A text is one with variables, taken apart.
type text []lb.TextPart

func newText(s string) text { return lb.TextParts(s) }

// expand puts the values of a request in.
func (t text) expand(x *exchange) string { return t.expandBy(x.variable) }

// expandURL puts the values of a request into what is a URL then: the path is encoded.
func (t text) expandURL(x *exchange) string {
	return t.expandBy(func(name string) string {
		v := x.variable(name)
		if name == "path" {
			return (&url.URL{Path: v}).EscapedPath()
		}
		return v
	})
}

func (t text) expandBy(value func(name string) string) string {
	if len(t) == 1 && t[0].Variable == "" {
		return t[0].Literal
	}
	var b strings.Builder
	for _, p := range t {
		if p.Variable == "" {
			b.WriteString(p.Literal)
			continue
		}
		b.WriteString(value(p.Variable))
	}
	return b.String()
}

// variable is the value of one of lb.Variables.
func (x *exchange) variable(name string) string {
	switch name {
	case "client_address":
		return x.client.Addr().String()
	case "client_port":
		return strconv.Itoa(int(x.client.Port()))
	case "host":
		return hostName(x.request.Host)
	case "method":
		return x.request.Method
	case "path":
		return x.path
	case "query":
		return x.request.URL.RawQuery
	case "request_id":
		return x.id
	case "request_uri":
		if !strings.HasPrefix(x.uri, "/") { // http://host/path
			return x.request.URL.RequestURI()
		}
		return x.uri
	case "scheme":
		return x.scheme()
	case "server_address":
		return x.local.Addr().String()
	case "server_port":
		return strconv.Itoa(int(x.local.Port()))
	case "server_name":
		return x.host.config.Name()
	}
	return ""
}

// key is what a request has of a key.
func (x *exchange) key(k lb.RequestKey) string {
	switch k.Kind {
	case lb.KeyURI:
		return x.uri
	case lb.KeyPath:
		return x.path
	case lb.KeyHost:
		return hostName(x.request.Host)
	case lb.KeyHeader:
		return x.request.Header.Get(k.Name)
	case lb.KeyQuery:
		return x.request.URL.Query().Get(k.Name)
	case lb.KeyCookie:
		if c, err := x.request.Cookie(k.Name); err == nil {
			return c.Value
		}
		return ""
	}
	return x.client.Addr().String()
}

// limitKey is the key that a limit counts by: an IPv6 client is its /64, which is what
// one subscriber has.
func (x *exchange) limitKey(k lb.RequestKey) string {
	if k.Kind == lb.KeyClient && x.client.Addr().Is6() {
		if p, err := x.client.Addr().Prefix(64); err == nil {
			return p.String()
		}
	}
	return x.key(k)
}
