package config

import (
	"crypto/x509"
	"encoding/pem"
	"net/netip"
	"path/filepath"
	"regexp"

	"github.com/sluice-lb/sluice/internal/lb"
)

var tlsSchema = schema{
	what: "tls",
	keys: []string{"ca", "server_name", "verify"},
	hints: map[string]string{
		"insecure": "write verify: false",
		"sni":      "the name is \"server_name\"",
		"cafile":   "the file is \"ca\"",
	},
}

// tlsSettings decodes how a server shows who it is; n is nil where nothing is said.
func (d *decoder) tlsSettings(n *node) (t lb.TLS) {
	if n == nil {
		return t
	}
	f, ok := d.fields(n, &tlsSchema)
	if !ok {
		return t
	}
	if v := f.own["verify"]; v != nil {
		verify, ok := d.boolean(v, "verify")
		t.Insecure = ok && !verify
	}
	if s := f.own["server_name"]; s != nil {
		t.ServerName = d.serverName(s)
	}
	ca := f.own["ca"]
	switch {
	case ca == nil:
	case t.Insecure:
		d.errorf(f.keys["ca"], "ca says nothing with verify: false: leave one of them out")
	default:
		t.CA = d.authorities(ca)
	}
	return t
}

var hostPattern = regexp.MustCompile(`^[0-9A-Za-z_]([0-9A-Za-z_.-]*[0-9A-Za-z_])?$`)

// serverName decodes the name, or the address, that a certificate is to be for.
func (d *decoder) serverName(n *node) string {
	s, ok := d.text(n, "server_name")
	if !ok {
		return ""
	}
	if _, err := netip.ParseAddr(s); err != nil && !hostPattern.MatchString(s) {
		d.errorf(n, "server_name must be a host name or an address, without a port, not %q", s)
	}
	return s
}

// authorities reads the certificates of whom to trust. The name is relative to the
// folder of the file that names it.
func (d *decoder) authorities(n *node) string {
	path, ok := d.text(n, "ca")
	if !ok {
		return ""
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(filepath.Dir(n.src.name), path)
	}
	content, err := d.files.ReadFile(path)
	if err != nil {
		d.errorf(n, "ca: cannot read %s: %s", path, reason(err))
		d.errs[len(d.errs)-1].cause = err
		return ""
	}
	found := 0
	for rest := content; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			d.errorf(n, "ca: certificate %d in %s cannot be read: %v", found+1, path, err)
			return ""
		}
		found++
	}
	if found == 0 {
		d.errorf(n, "ca: there is no certificate in %s: it must hold PEM, with lines -----BEGIN CERTIFICATE-----", path)
		return ""
	}
	return string(content)
}
