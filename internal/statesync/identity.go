// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"math/big"
	"time"

	"github.com/sluice-lb/sluice/internal/key"
)

// derivation is what the nodes' key is turned into a signing key for, so that it is
// of no use where the key is used otherwise.
const derivation = "sluice state synchronisation, TLS 1.3, ed25519"

// An identity is what one key is in TLS: all nodes that have the key have the same
// certificate, and whoever can sign for it has the key. Nothing of the certificate
// but its public key counts.
type identity struct {
	key    key.Key
	name   string // of the public key, to ask a listener for: it tells nobody the key
	public ed25519.PublicKey
	client *tls.Config
	server *tls.Config
}

func newIdentity(k key.Key) (*identity, error) {
	seed, err := hkdf.Key(sha256.New, k[:], nil, derivation, ed25519.SeedSize)
	if err != nil {
		return nil, fmt.Errorf("derive the signing key: %w", err)
	}
	private := ed25519.NewKeyFromSeed(seed)
	public := private.Public().(ed25519.PublicKey)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "sluice"},
		NotBefore:    time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0), // nobody looks
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		return nil, fmt.Errorf("make the certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make the certificate: %w", err)
	}
	digest := sha256.Sum256(public)
	i := &identity{key: k, name: hex.EncodeToString(digest[:16]), public: public}
	base := tls.Config{
		MinVersion:                  tls.VersionTLS13,
		MaxVersion:                  tls.VersionTLS13,
		Certificates:                []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: private, Leaf: leaf}},
		SessionTicketsDisabled:      true, // each connection shows that it has the key
		DynamicRecordSizingDisabled: true, // no page is waiting to be drawn
		VerifyConnection:            i.verify,
	}
	i.server, i.client = base.Clone(), base.Clone()
	i.server.ClientAuth = tls.RequireAnyClientCert // verify says which
	i.client.InsecureSkipVerify = true             // likewise: no authority, no name, no time counts
	i.client.ServerName = i.name
	return i, nil
}

// verify demands that the other side has shown this very key. TLS has checked that it
// can sign for it.
func (i *identity) verify(s tls.ConnectionState) error {
	if len(s.PeerCertificates) == 0 {
		return errWrongKey
	}
	if theirs, ok := s.PeerCertificates[0].PublicKey.(ed25519.PublicKey); !ok || !i.public.Equal(theirs) {
		return errWrongKey
	}
	return nil
}

// newIdentities makes those of all keys, in their order.
func newIdentities(keys []key.Key) (all []*identity, err error) {
	for _, k := range keys {
		i, err := newIdentity(k)
		if err != nil {
			return nil, err
		}
		all = append(all, i)
	}
	return all, nil
}

// serverConfig is what a listener with these identities has for a connection: the key
// that the dialler names. Which it was goes into chosen.
func serverConfig(all []*identity, chosen **identity) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			for _, i := range all {
				if h.ServerName == i.name {
					*chosen = i
					return i.server, nil
				}
			}
			if looksLikeName(h.ServerName) {
				return nil, errWrongKey
			}
			return nil, errForeign
		},
	}
}

// looksLikeName reports whether a name may be an identity's.
func looksLikeName(name string) bool {
	b, err := hex.DecodeString(name)
	return err == nil && len(b) == 16
}
