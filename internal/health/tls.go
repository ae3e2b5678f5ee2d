package health

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/sluice-lb/sluice/internal/lb"
)

// shakeHands makes a TLS connection of a TCP one, for a page. It ends when that one
// does: its deadline bounds it.
func shakeHands(tcp net.Conn, t Target, page lb.Page) (net.Conn, error) {
	name := serverName(t, page)
	config := &tls.Config{ServerName: name, InsecureSkipVerify: t.Probe.TLS.Insecure, NextProtos: []string{"http/1.1"}}
	if pem := t.Probe.TLS.CA; pem != "" {
		config.RootCAs = trusted(pem).pool
	}
	conn := tls.Client(tcp, config)
	if err := conn.Handshake(); err != nil {
		return nil, explainTLS(err, name, t.Probe.Timeout)
	}
	return conn, nil
}

// serverName is what the server's certificate is to be for. A name is also sent to
// the server (RFC 6066, section 3), an address is not.
func serverName(t Target, page lb.Page) string {
	if t.Probe.TLS.ServerName != "" {
		return t.Probe.TLS.ServerName
	}
	host := page.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if host = strings.Trim(host, "[]"); host != "" {
		return host
	}
	return t.named().Addr().WithZone("").String()
}

// authorities are whom a file of certificates makes trusted.
type authorities struct {
	digest [sha256.Size]byte // of the file
	pool   *x509.CertPool
}

// read are authorities by their PEM: one for each content that such a file has had
// since the start. To parse it for each run would cost more than the run.
var read sync.Map

func trusted(pem string) *authorities {
	if a, ok := read.Load(pem); ok {
		return a.(*authorities)
	}
	a := &authorities{sha256.Sum256([]byte(pem)), x509.NewCertPool()}
	a.pool.AppendCertsFromPEM([]byte(pem)) // with none nobody is trusted, and the probe says so
	first, _ := read.LoadOrStore(pem, a)
	return first.(*authorities)
}

// explainTLS says why a handshake failed in which the certificate was to be for
// name.
func explainTLS(err error, name string, timeout time.Duration) error {
	if short := shorten(err, fmt.Errorf("no end of the TLS handshake within %v", timeout)); short != nil {
		return short
	}
	if e, ok := errors.AsType[x509.HostnameError](err); ok {
		return fmt.Errorf("certificate is for %s, not for %s", subjects(e.Certificate), name)
	}
	if e, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return untrusted(e.Cert)
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok && e.Reason == x509.Expired {
		if time.Now().Before(e.Cert.NotBefore) {
			return fmt.Errorf("certificate is not valid before %s", e.Cert.NotBefore.UTC().Format(time.RFC3339))
		}
		return fmt.Errorf("certificate has expired at %s", e.Cert.NotAfter.UTC().Format(time.RFC3339))
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return errors.New("the server does not speak TLS on this port")
	}
	if e, ok := errors.AsType[*net.OpError](err); ok && e.Op == "remote error" {
		return fmt.Errorf("the server refuses the TLS handshake: %s", strings.TrimPrefix(e.Err.Error(), "tls: "))
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("closed during the TLS handshake")
	}
	return fmt.Errorf("TLS handshake: %s", clean(err.Error()))
}

// untrusted says whose signature is not trusted; c is the first certificate whose
// issuer is nobody's that is.
func untrusted(c *x509.Certificate) error {
	switch {
	case c == nil:
		return errors.New("certificate is signed by nobody whom this node trusts")
	case bytes.Equal(c.RawIssuer, c.RawSubject):
		return fmt.Errorf("certificate is signed by itself (%s), whom this node does not trust", clean(c.Subject.String()))
	}
	return fmt.Errorf("certificate is signed by %s, whom this node does not trust", clean(c.Issuer.String()))
}

// maxSubjects is how many names of a certificate are shown.
const maxSubjects = 3

// subjects are the names and addresses that a certificate is for.
func subjects(c *x509.Certificate) string {
	all := append([]string(nil), c.DNSNames...)
	for _, ip := range c.IPAddresses {
		all = append(all, ip.String())
	}
	more := len(all) - maxSubjects
	switch {
	case len(all) == 0:
		return "no name or address"
	case more > 0:
		return clean(strings.Join(all[:maxSubjects], ", ")) + fmt.Sprintf(" and %d more", more)
	}
	return clean(strings.Join(all, ", "))
}
