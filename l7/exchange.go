package l7

import (
	"context"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// An exchange is a request and what becomes of it.
type exchange struct {
	proxy    *Proxy
	world    *world
	request  *http.Request
	writer   *response
	conn     *connection
	host     *virtualHost
	location *location  // never nil
	log      *accessLog // held; nil: none

	began   time.Time
	peer    netip.AddrPort // who is connected
	client  netip.AddrPort // whom peer speaks for
	local   netip.AddrPort // where the connection came to
	trusted bool           // peer's word about the client counts
	uri     string         // as it came
	path    string         // normalized
	target  *url.URL       // what a server is asked for
	id      string         // "": requests have none

	upgrade  bool        // it asks for another protocol
	incoming *clientBody // nil: there is no body
	trailers []string    // names of those that are sent on
	body     *requestBody
	attempts []*attempt
	gone     atomic.Bool // the client has, as its connection tells
	full     bool        // net/http's transport has had the request
	err      error       // why there is no answer of a server

	// What every exchange has, or nearly every one: it is made at once.
	answerer response
	noBody   requestBody
	out      http.Request
	first    attempt
	list     [1]*attempt
}

type exchangeKey struct{}

func withExchange(ctx context.Context, x *exchange) context.Context {
	return context.WithValue(ctx, exchangeKey{}, x)
}

// exchangeOf returns the exchange that a context is of; nil: none.
func exchangeOf(ctx context.Context) *exchange {
	x, _ := ctx.Value(exchangeKey{}).(*exchange)
	return x
}

// scheme is what the client has asked with, as far as that is known.
func (x *exchange) scheme() string {
	if x.conn.tls {
		return "https"
	}
	return "http"
}

func (x *exchange) bodyFailure() error { return x.incoming.failure() }

// giveBody makes a request that is sent have the body, from its beginning. It returns who
// reads that; nil: there is none.
func (x *exchange) giveBody(r *http.Request) *bodyReader {
	b := x.body.open()
	if b == nil {
		r.Body, r.GetBody, r.ContentLength, r.TransferEncoding = nil, nil, 0, nil
		return nil
	}
	r.Body, r.ContentLength, r.TransferEncoding, r.GetBody, r.Trailer = b, x.request.ContentLength, nil, nil, nil
	if len(x.trailers) > 0 {
		r.Trailer = http.Header{}
		for _, name := range x.trailers {
			r.Trailer[name] = nil
		}
		b.atEnd = func() {
			for _, name := range x.trailers {
				r.Trailer[name] = x.request.Trailer[name]
			}
		}
		return b
	}
	if x.body.whole() {
		r.GetBody = func() (io.ReadCloser, error) { return x.body.open(), nil }
		r.ContentLength = int64(len(x.body.start))
	}
	return b
}

// announcedTrailers are the names of the trailers that a request has said it would have,
// and that a server may take for headers without harm. Others are not sent on.
func announcedTrailers(r *http.Request) (names []string) {
	for name := range r.Trailer {
		if strings.IndexByte(name, '_') < 0 && !strings.HasPrefix(name, "X-Forwarded-") && !slices.Contains(notInTrailers, name) {
			names = append(names, name)
		}
	}
	return names
}

// notInTrailers are headers that say who the client is, what it may and what it wants.
var notInTrailers = []string{
	"Forwarded", "X-Real-Ip", "Host", "Connection", "Upgrade", "Te", "Keep-Alive", "Authorization", "Proxy-Authorization", "Cookie",
	"Expect", "Range", "Content-Encoding", "Content-Type", "Content-Range", "Cache-Control", "Max-Forwards",
}
