package backend

import (
	"cmp"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"fairlead/shared/errs"
)

// CertificateEvent is a user certificate that was signed and is about to be used.
type CertificateEvent struct {
	Backend     string
	Address     string
	Caller      Caller // for whose stream the connection is made; others for whom the same names come out use it later
	Serial      uint64 // random
	KeyID       string
	Principals  []string
	ValidAfter  time.Time
	ValidBefore time.Time
	Key         string // fingerprint of the certified key, SHA256:…
	Authority   string // fingerprint of the authority's key, SHA256:…
}

// skew is how far the backend's clock may be behind.
const skew = time.Minute

// errand is what a login is made for.
type errand struct {
	who   Caller
	names names
}

// issue signs a certificate for a key of its own. The key is in memory only and used for one login.
func (id *Identity) issue(authority ssh.Signer, n names, now time.Time) (ssh.Signer, *ssh.Certificate, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, errs.Wrap(errs.Internal, err, "making a key")
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		return nil, nil, errs.Wrap(errs.Internal, err, "making a key")
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return nil, nil, errs.Wrap(errs.Internal, err, "making a key")
	}
	cert := &ssh.Certificate{
		Key:             key,
		Serial:          randomSerial(),
		CertType:        ssh.UserCert,
		KeyId:           n.keyID,
		ValidPrincipals: n.principals,
		ValidAfter:      uint64(now.Add(-skew).Unix()),
		ValidBefore:     uint64(now.Add(cmp.Or(id.TTL, defaultCertificateTTL)).Unix()),
		Permissions:     id.permissions(),
	}
	if err := cert.SignCert(rand.Reader, authority); err != nil {
		return nil, nil, errs.Wrap(errs.KeyUnreadable, err, "the ca_key_file cannot sign")
	}
	certified, err := ssh.NewCertSigner(cert, signer)
	if err != nil {
		return nil, nil, errs.Wrap(errs.Internal, err, "using a certificate")
	}
	return certified, cert, nil
}

// permissions allow forwarding and nothing else. Leaving extensions out takes away terminal, agent, X11 and rc file; only a
// forced command takes away commands.
func (id *Identity) permissions() ssh.Permissions {
	p := ssh.Permissions{CriticalOptions: map[string]string{}, Extensions: map[string]string{"permit-port-forwarding": ""}}
	if command := cmp.Or(id.ForceCommand, defaultForceCommand); command != noForceCommand {
		p.CriticalOptions["force-command"] = command
	}
	if len(id.SourceAddresses) > 0 {
		p.CriticalOptions["source-address"] = strings.Join(id.SourceAddresses, ",")
	}
	for _, e := range id.Extensions {
		p.Extensions[e] = ""
	}
	return p
}

// randomSerial is never 0, which OpenSSH takes for none.
func randomSerial() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return max(binary.BigEndian.Uint64(b[:]), 1)
}

// certified makes the certificate for a login and has it recorded before it is used.
func (s *Set) certified(b *remote, e errand, authority ssh.Signer) (ssh.Signer, error) {
	signer, cert, err := b.Identity.issue(authority, e.names, s.now())
	if err != nil {
		return nil, err
	}
	if s.onCertificate != nil {
		err := s.onCertificate(CertificateEvent{
			Backend: b.Name, Address: b.Address, Caller: e.who, Serial: cert.Serial, KeyID: cert.KeyId, Principals: cert.ValidPrincipals,
			ValidAfter: time.Unix(int64(cert.ValidAfter), 0), ValidBefore: time.Unix(int64(cert.ValidBefore), 0),
			Key: ssh.FingerprintSHA256(cert.Key), Authority: ssh.FingerprintSHA256(authority.PublicKey()),
		})
		if err != nil {
			return nil, err
		}
	}
	b.counts.certificates.Inc()
	return signer, nil
}
