package l7

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

const (
	// idleFor is how long a connection to a server is kept without a request.
	idleFor = 60 * time.Second
	// maxAnswerHead bounds the head of a server's answer, in bytes.
	maxAnswerHead = 256 << 10
	// copyBuffer is what is read of an answer at once, in bytes.
	copyBuffer = 64 << 10
)

// A transport is the connections to the servers of an upstream.
type transport struct {
	plain *plainTransport // nil: servers are spoken to in HTTP/2, or with TLS
	full  *http.Transport // what plain is not for
	made  lb.Upstream     // what of a configuration it was made of
}

// essence is what of a configuration makes a transport: another one needs another.
func essence(u *lb.Upstream) lb.Upstream {
	e := lb.Upstream{
		TLS: u.TLS, HTTP2: u.HTTP2, ProxyProtocol: u.ProxyProtocol, Keepalive: u.Keepalive,
		ConnectTimeout: u.ConnectTimeout, SendTimeout: u.SendTimeout, ReadTimeout: u.ReadTimeout,
	}
	if u.TLS != nil {
		e.Host = u.Host
	}
	return e
}

// serves tells whether t is what a configuration needs.
func (t *transport) serves(u *lb.Upstream) bool { return reflect.DeepEqual(t.made, essence(u)) }

func newTransport(u *lb.Upstream, b *budget) (*transport, error) {
	d := dialer{u.ConnectTimeout, u.SendTimeout, u.ProxyProtocol, b}
	keepalive := u.Keepalive
	if u.ProxyProtocol != 0 { // it is about one client
		keepalive = 0
	}
	var plain *plainTransport
	if !u.HTTP2 && u.TLS == nil {
		plain = &plainTransport{dialer: d, keepalive: keepalive, readTimeout: u.ReadTimeout}
	}
	protocols := &http.Protocols{}
	switch {
	case !u.HTTP2:
		protocols.SetHTTP1(true)
	case u.TLS != nil:
		protocols.SetHTTP2(true)
	default:
		protocols.SetUnencryptedHTTP2(true)
	}
	t := &http.Transport{
		DialContext:            d.dial,
		DisableCompression:     true,
		DisableKeepAlives:      keepalive == 0 || plain != nil, // then it is for upgrades alone
		MaxIdleConnsPerHost:    u.Keepalive,
		IdleConnTimeout:        idleFor,
		ResponseHeaderTimeout:  u.ReadTimeout,
		TLSHandshakeTimeout:    u.ConnectTimeout,
		MaxResponseHeaderBytes: maxAnswerHead,
		Protocols:              protocols,
	}
	if u.TLS != nil {
		config, err := clientTLS(u)
		if err != nil {
			return nil, fmt.Errorf("upstream %s: %w", u.Name, err)
		}
		t.TLSClientConfig = config
	}
	return &transport{plain, t, essence(u)}, nil
}

func clientTLS(u *lb.Upstream) (*tls.Config, error) {
	config := &tls.Config{ServerName: u.TLS.ServerName, InsecureSkipVerify: !u.TLS.Verify, MinVersion: tls.VersionTLS12}
	if config.ServerName == "" && u.Host != lb.HostClient && u.Host != lb.HostUpstream {
		config.ServerName = strings.Trim(hostName(u.Host), "[]")
	}
	if u.TLS.CA != nil {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(u.TLS.CA) {
			return nil, errors.New("tls.ca holds no certificate")
		}
	}
	return config, nil
}

// scheme is how servers are spoken to.
func scheme(u *lb.Upstream) string {
	if u.TLS != nil {
		return "https"
	}
	return "http"
}

// retire ends the connections that nothing uses; the others end when they have been idle.
func (t *transport) retire() {
	t.full.CloseIdleConnections()
	if t.plain != nil {
		t.plain.retire()
	}
}

// closeIdle closes the connections that nothing uses.
func (t *transport) closeIdle() {
	t.full.CloseIdleConnections()
	if t.plain != nil {
		t.plain.closeIdle()
	}
}

// A dialer connects to servers.
type dialer struct {
	connectTimeout, sendTimeout time.Duration
	proxyProtocol               int
	budget                      *budget
}

func (d dialer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, d.connectTimeout)
	defer cancel()
	if err := d.budget.take(ctx); err != nil {
		return nil, err
	}
	var nd net.Dialer
	c, err := nd.DialContext(ctx, network, address)
	if err != nil {
		d.budget.giveBack()
		return nil, err
	}
	u := &upstreamConn{c, deadline{set: c.SetWriteDeadline, timeout: d.sendTimeout}, sync.OnceFunc(d.budget.giveBack)}
	if x := exchangeOf(ctx); x != nil && d.proxyProtocol != 0 {
		if _, err := u.Write(proxyHeader(d.proxyProtocol, x.client, x.local)); err != nil {
			u.Close()
			return nil, fmt.Errorf("send the PROXY protocol: %w", err)
		}
	}
	return u, nil
}

// An upstreamConn gives a server that does not read no more than sendTimeout for each
// piece.
type upstreamConn struct {
	net.Conn
	sending deadline
	close   func() // gives the connection's place away
}

// Close closes the connection.
func (c *upstreamConn) Close() error {
	defer c.close()
	return c.Conn.Close()
}

func (c *upstreamConn) Write(p []byte) (int, error) {
	if err := c.sending.extend(); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// SyscallConn is for a look at what has come.
func (c *upstreamConn) SyscallConn() (syscall.RawConn, error) {
	if s, ok := c.Conn.(syscall.Conn); ok {
		return s.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

// CloseWrite is for upgraded connections, of which one direction may end first.
func (c *upstreamConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}
