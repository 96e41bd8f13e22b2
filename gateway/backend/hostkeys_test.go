package backend

import (
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skeema/knownhosts"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	"fairlead/shared/errs"
)

// hostEvents collects events.
type hostEvents struct {
	mu  sync.Mutex
	all []HostKeyEvent
}

func (h *hostEvents) record(e HostKeyEvent) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = append(h.all, e)
}

// only returns the one event there must be.
func (h *hostEvents) only(t *testing.T) HostKeyEvent {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	require.Len(t, h.all, 1)
	return h.all[0]
}

// authorized is a public key as a line.
func authorized(key ssh.PublicKey) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

// certifiedDaemon is a sshd with a host certificate, which change may alter before it is signed.
func certifiedDaemon(t *testing.T, ca ssh.Signer, change func(*ssh.Certificate)) (*daemon, ssh.PublicKey) {
	t.Helper()
	dir := t.TempDir()
	host := newKey(t)
	writeKey(t, dir+"/certified", host)
	now := time.Now()
	cert := &ssh.Certificate{Key: signerOf(t, host).PublicKey(), CertType: ssh.HostCert, KeyId: "bastion", Serial: 7, ValidPrincipals: []string{"127.0.0.1"},
		ValidAfter: uint64(now.Add(-time.Hour).Unix()), ValidBefore: uint64(now.Add(time.Hour).Unix())}
	if change != nil {
		change(cert)
	}
	require.NoError(t, cert.SignCert(rand.Reader, ca))
	require.NoError(t, os.WriteFile(dir+"/certified-cert.pub", ssh.MarshalAuthorizedKey(cert), 0o600))
	return startSSHD(t, "HostKey "+dir+"/certified", "HostCertificate "+dir+"/certified-cert.pub"), cert.Key
}

// Verifies: R7.5
func TestHostCertificatesAreJudged(t *testing.T) {
	ca, imposter := signerOf(t, newKey(t)), signerOf(t, newKey(t))
	trusting := "@cert-authority 127.0.0.* " + authorized(ca.PublicKey()) + "\n"
	past := uint64(time.Now().Add(-time.Minute).Unix())
	future := uint64(time.Now().Add(30 * time.Minute).Unix())
	for name, c := range map[string]struct {
		change  func(*ssh.Certificate)
		known   func(host ssh.PublicKey) string
		revoked func(host ssh.PublicKey) string
		want    HostKeyKind
	}{
		"good":              {want: hostKeyKnown},
		"expired":           {change: func(c *ssh.Certificate) { c.ValidBefore = past }, want: HostKeyExpired},
		"not yet valid":     {change: func(c *ssh.Certificate) { c.ValidAfter = future }, want: HostKeyExpired},
		"another principal": {change: func(c *ssh.Certificate) { c.ValidPrincipals = []string{"elsewhere", "127.0.0.2"} }, want: HostKeyRefused},
		"another authority": {known: func(ssh.PublicKey) string {
			return strings.ReplaceAll(trusting, authorized(ca.PublicKey()), authorized(imposter.PublicKey()))
		}, want: HostKeyRefused},
		"authority revoked": {known: func(ssh.PublicKey) string { return trusting + "@revoked * " + authorized(ca.PublicKey()) }, want: HostKeyRevoked},
		"key revoked":       {known: func(host ssh.PublicKey) string { return trusting + "@revoked * " + authorized(host) }, want: HostKeyRevoked},
		"authority in file": {revoked: func(ssh.PublicKey) string { return authorized(ca.PublicKey()) }, want: HostKeyRevoked},
		"key in file":       {revoked: func(host ssh.PublicKey) string { return "# stolen\n" + authorized(host) + " comment" }, want: HostKeyRevoked},
		"other in file":     {revoked: func(ssh.PublicKey) string { return authorized(imposter.PublicKey()) }, want: hostKeyKnown},
	} {
		t.Run(name, func(t *testing.T) {
			d, host := certifiedDaemon(t, ca, c.change)
			b := d.backend(t)
			b.KnownHostsFile = filepath.Join(t.TempDir(), "known")
			known := trusting
			if c.known != nil {
				known = c.known(host)
			}
			require.NoError(t, os.WriteFile(b.KnownHostsFile, []byte(known), 0o600))
			if c.revoked != nil {
				b.RevokedFile = filepath.Join(t.TempDir(), "revoked")
				require.NoError(t, os.WriteFile(b.RevokedFile, []byte(c.revoked(host)+"\n"), 0o600))
			}
			events := new(hostEvents)
			s, _ := newSet(t, b, echo(t), func(c *Config) { c.OnHostKey = events.record })
			if c.want == hostKeyKnown {
				pingPong(t, dial(t, s, "a"))
				require.Equal(t, ssh.CertAlgoED25519v01, pool1(s).Connections[0].Peer.HostKey)
				require.Empty(t, events.all, "nothing is told about a known key")
				return
			}
			err := dialError(t, s, "db")
			require.ErrorIs(t, err, errs.HostKeyRefused)
			require.Empty(t, d.logins())
			e := events.only(t)
			assert.Equal(t, c.want, e.Kind, "%v", e.Err)
			assert.Equal(t, "a", e.Tenant)
			assert.Equal(t, "bastion", e.Backend)
			assert.Equal(t, d.addr, e.Address)
			assert.Equal(t, ssh.CertAlgoED25519v01+" "+ssh.FingerprintSHA256(host)+" (certificate with serial 7 by "+ssh.FingerprintSHA256(ca.PublicKey())+")", e.Presented)
			assert.ErrorIs(t, e.Err, errs.HostKeyRefused)
			assert.NotEmpty(t, errors.Unwrap(e.Err), "it says why")
		})
	}
}

// Verifies: R7.5
func TestDecisionsAboutPlainKeysAreEvents(t *testing.T) {
	d := startSSHD(t)
	other := signerOf(t, newKey(t)).PublicKey()
	for name, c := range map[string]struct {
		known, revoked string
		mode           HostKeyMode
		want           HostKeyKind
		expected       []string
	}{
		"known":             {known: knownhosts.Line([]string{d.addr}, d.hostKey), want: hostKeyKnown},
		"unknown":           {known: knownhosts.Line([]string{"elsewhere:22"}, other), want: HostKeyRefused},
		"first use":         {mode: FirstUse, want: HostKeyFirstUse},
		"changed":           {known: knownhosts.Line([]string{d.addr}, other), want: HostKeyChanged, expected: []string{"ssh-ed25519 " + ssh.FingerprintSHA256(other)}},
		"changed first use": {known: knownhosts.Line([]string{d.addr}, other), mode: FirstUse, want: HostKeyChanged, expected: []string{"ssh-ed25519 " + ssh.FingerprintSHA256(other)}},
		"revoked":           {known: knownhosts.Line([]string{d.addr}, d.hostKey) + "\n@revoked * " + authorized(d.hostKey), want: HostKeyRevoked, expected: []string{"ssh-ed25519 " + ssh.FingerprintSHA256(d.hostKey)}},
		"revoked in file":   {known: knownhosts.Line([]string{d.addr}, d.hostKey), revoked: authorized(d.hostKey), want: HostKeyRevoked},
		"revoked first use": {revoked: authorized(d.hostKey), mode: FirstUse, want: HostKeyRevoked},
		"authority only":    {known: "@cert-authority * " + authorized(d.hostKey), want: HostKeyRefused, expected: []string{"ssh-ed25519 " + ssh.FingerprintSHA256(d.hostKey) + " (authority)"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := d.backend(t)
			b.KnownHostsFile, b.HostKeyMode = filepath.Join(t.TempDir(), "known"), c.mode
			require.NoError(t, os.WriteFile(b.KnownHostsFile, []byte(c.known+"\n"), 0o600))
			if c.revoked != "" {
				b.RevokedFile = filepath.Join(t.TempDir(), "revoked")
				require.NoError(t, os.WriteFile(b.RevokedFile, []byte(c.revoked+"\n"), 0o600))
			}
			events := new(hostEvents)
			s, log := newSet(t, b, echo(t), func(c *Config) { c.OnHostKey = events.record })
			_, err := as(t, s, Caller{Tenant: "a"})
			if c.want == hostKeyKnown {
				require.NoError(t, err)
				require.Empty(t, events.all)
				return
			}
			e := events.only(t)
			assert.Equal(t, c.want, e.Kind)
			assert.Equal(t, "ssh-ed25519 "+ssh.FingerprintSHA256(d.hostKey), e.Presented)
			assert.Equal(t, c.expected, e.Expected)
			assert.Contains(t, log.String(), "reason=host_key_"+string(c.want))
			if c.want != HostKeyFirstUse {
				require.ErrorIs(t, err, errs.HostKeyRefused)
				require.ErrorIs(t, e.Err, errs.HostKeyRefused)
				return
			}
			require.NoError(t, err)
			require.NoError(t, e.Err)
			_, err = as(t, s, Caller{Tenant: "b"})
			require.NoError(t, err)
			events.only(t) // known from now on
		})
	}
}
