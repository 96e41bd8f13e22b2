package peer

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"os"
	"sync/atomic"
	"time"

	"fairlead/shared/errs"
)

// Limits of a secret file. Whoever connects is shown a public key that was made of the secret, and can try secrets against it:
// there must be too many to try.
const (
	leastSecret = 32 // bytes in a line
	mostSecrets = 16 // lines
	mostFile    = 64 << 10
)

// keyring is what was made of the secret file: a key for each line, of which the first is shown and all are accepted. So a
// secret can be replaced one replica after the other.
type keyring struct {
	file  string
	state atomic.Pointer[keys]
}

type keys struct {
	own      tls.Certificate
	accepted []ed25519.PublicKey
}

func (r *keyring) reload() error {
	k, err := readKeys(r.file)
	if err == nil {
		r.state.Store(k)
	}
	return err
}

func readKeys(file string) (*keys, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, errs.Wrap(errs.KeyUnreadable, err, "the secret of the replicas in %s cannot be read", file)
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, mostFile+1))
	if err != nil {
		return nil, errs.Wrap(errs.KeyUnreadable, err, "the secret of the replicas in %s cannot be read", file)
	}
	k := &keys{}
	for n, line := range bytes.Split(content, []byte("\n")) {
		line = bytes.TrimSpace(line)
		switch {
		case len(content) > mostFile || len(k.accepted) == mostSecrets && len(line) > 0:
			return nil, errs.New(errs.KeyUnreadable, "%s is no file of secrets: more than %d lines or %d bytes", file, mostSecrets, mostFile)
		case len(line) == 0:
			continue
		case len(line) < leastSecret:
			return nil, errs.New(errs.KeyUnreadable, "line %d of %s has %d bytes; a secret of replicas has at least %d", n+1, file, len(line), leastSecret)
		}
		if err := k.add(line); err != nil {
			return nil, errs.Wrap(errs.KeyUnreadable, err, "line %d of %s", n+1, file)
		}
	}
	if len(k.accepted) == 0 {
		return nil, errs.New(errs.KeyUnreadable, "%s is empty; it must hold the secret of the replicas", file)
	}
	return k, nil
}

// add derives a line's key. The first one gets a certificate, of which nothing counts but the key.
func (k *keys) add(secret []byte) error {
	seed, err := hkdf.Key(sha256.New, secret, nil, "fairlead peer v1 ed25519", ed25519.SeedSize)
	if err != nil {
		return err
	}
	private := ed25519.NewKeyFromSeed(seed)
	if len(k.accepted) == 0 {
		template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "fairlead peer"}, NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<35, 0)}
		der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
		if err != nil {
			return err
		}
		k.own = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}
	}
	k.accepted = append(k.accepted, private.Public().(ed25519.PublicKey))
	return nil
}

// verify accepts who has shown to have one of the keys: TLS has checked that it has that of its certificate.
func (r *keyring) verify(state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 1 {
		if public, ok := state.PeerCertificates[0].PublicKey.(ed25519.PublicKey); ok && r.accepts(public) {
			return nil
		}
	}
	return errs.New(errs.PeerRefused, "it does not know the replicas' secret")
}

func (r *keyring) accepts(public ed25519.PublicKey) bool {
	found := 0
	for _, k := range r.state.Load().accepted {
		found |= subtle.ConstantTimeCompare(k, public)
	}
	return found == 1
}

// common is what both ends are set to.
func (r *keyring) common() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}, SessionTicketsDisabled: true, DynamicRecordSizingDisabled: true,
		VerifyConnection: r.verify,
	}
}

func (r *keyring) server() *tls.Config {
	cfg := r.common()
	cfg.ClientAuth = tls.RequireAnyClientCert
	cfg.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &r.state.Load().own, nil }
	return cfg
}

func (r *keyring) client() *tls.Config {
	cfg := r.common()
	cfg.ServerName = "fairlead-peer"
	cfg.InsecureSkipVerify = true // names and authorities say nothing here: verify has the last word
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &r.state.Load().own, nil }
	return cfg
}
