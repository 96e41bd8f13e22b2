package e2e

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"testing"
	"time"

	"github.com/fasthttp/websocket"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	gatewayconfig "fairlead/gateway/config"
	"fairlead/shared/errs"
	"fairlead/shared/testbed"
	sidecarconfig "fairlead/sidecar/config"
)

// clientOf makes a client certificate of an authority, and the claim that binds a token to it.
func clientOf(t *testing.T, ca *testbed.CA, name string) (*tls.Certificate, testbed.Claims) {
	t.Helper()
	c, err := ca.Issue(testbed.CertificateConfig{Name: name, Hosts: []string{name}})
	require.NoError(t, err)
	pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
	require.NoError(t, err)
	sum := sha256.Sum256(c.Leaf.Raw)
	return &pair, testbed.Claims{"cnf": map[string]any{"x5t#S256": base64.RawURLEncoding.EncodeToString(sum[:])}}
}

// withClientCA asks clients for certificates of an authority, whose file the gateway watches.
func withClientCA(file, whose string) option {
	return withGateway(func(c *gatewayconfig.Config) { c.TLS.ClientCAFile, c.TLS.ClientCertificates = file, whose })
}

// Without a certificate of the right authority no request comes through; which authority that is can change at run time.
//
// Verifies: R4.7
func TestGuardClientCertificatesAreRequired(t *testing.T) {
	t.Parallel()
	clients, _ := testbed.NewTestCA(t)
	others, _ := testbed.NewTestCA(t)
	w := newWorld(t, withoutSidecar(), withWatch(), withTarget("echo", newTarget(t, echoServer)))
	require.NoError(t, w.gateway.stop())
	authorities := w.writeFile("clients.pem", readFile(t, clients.CertFile()))
	withClientCA(authorities, gatewayconfig.ClientCertificatesRequired)(w)
	w.startGateway()
	token := w.token(ownTenant, time.Hour)
	good, _ := clientOf(t, clients, "good")
	bad, _ := clientOf(t, others, "bad")

	// With TLS 1.3 a client learns of the refusal when it reads.
	refused := func(c *tls.Certificate) {
		w.shows = c
		_, answer, err := w.stream("echo", token)
		require.Error(t, err)
		require.NotErrorIs(t, err, websocket.ErrBadHandshake)
		require.Nil(t, answer)
	}
	refused(nil)
	refused(bad)
	w.shows = good
	g := w.guest(token)
	assert.Len(t, w.gateway.logs.find("authenticated"), 2, "nobody else was asked for a token")

	require.NoError(t, writeAtomic(authorities, []byte(readFile(t, others.CertFile()))))
	w.gateway.logs.wait(t, "configuration reloaded", "by", "file change", "files", "tls.client_ca_file")
	refused(good)
	w.shows = bad
	w.guest(token)
	g.works(t)
}

// A token that is bound to a certificate is worth nothing without its key.
//
// Verifies: R4.7, R4.2
func TestGuardBoundTokensNeedTheirCertificate(t *testing.T) {
	t.Parallel()
	clients, _ := testbed.NewTestCA(t)
	w := newWorld(t, withoutSidecar(), withClaims(), withTarget("echo", newTarget(t, echoServer)), withClientCA(clients.CertFile(), gatewayconfig.ClientCertificatesOptional))
	mine, bound := clientOf(t, clients, "mine")
	other, elsewhere := clientOf(t, clients, "other")
	token := w.signed("home", bound)
	for name, c := range map[string]*tls.Certificate{"none": nil, "another": other} {
		t.Run(name, func(t *testing.T) {
			w.shows = c
			w.isRefused(t, token, errs.ClientCertRefused)
		})
	}
	w.shows = nil
	w.guest(w.signed("home", nil)).tunnel.Close(nil) // one that is bound to nothing needs none

	w.shows = mine
	g := w.guest(token)
	before := w.expiryOf(t, g)
	require.NoError(t, g.tunnel.Renew(w.signed("home", testbed.Claims{"cnf": bound["cnf"], "exp": time.Now().Add(2 * time.Hour).Unix()})))
	await(t, "the renewed token is in force", func() bool { return w.expiryOf(t, g).After(before) })
	renewed := w.expiryOf(t, g)
	require.NoError(t, g.tunnel.Renew(w.signed("home", testbed.Claims{"cnf": elsewhere["cnf"], "exp": time.Now().Add(3 * time.Hour).Unix()})))
	w.gateway.logs.wait(t, "token renewal refused", "code", errs.ClientCertRefused.String())
	assert.Equal(t, renewed, w.expiryOf(t, g))
	g.works(t)
}

// expiryOf is when the token of a tunnel ends, as the gateway says.
func (w *world) expiryOf(t *testing.T, g *guest) time.Time {
	t.Helper()
	for _, tunnel := range w.gateway.tunnels(t) {
		if tunnel.ID == g.tunnel.Name() {
			return tunnel.Expires
		}
	}
	require.Fail(t, "the tunnel is gone")
	return time.Time{}
}

// A sidecar shows the certificate that its token is bound to, also one that has been replaced since.
//
// Verifies: R4.7
func TestGuardASidecarShowsItsCertificate(t *testing.T) {
	t.Parallel()
	clients, _ := testbed.NewTestCA(t)
	first, err := clients.Issue(testbed.CertificateConfig{Name: "first", Hosts: []string{"first"}})
	require.NoError(t, err)
	w := newWorld(t, withClientCA(clients.CertFile(), gatewayconfig.ClientCertificatesRequired), withTarget("echo", newTarget(t, echoServer)),
		withSidecar(func(c *sidecarconfig.Config) {
			c.Gateway.ClientCertFile, c.Gateway.ClientKeyFile = first.CertFile, first.KeyFile
		}))
	echoes(t, w.dial("echo"), "with a certificate")

	second, err := clients.Issue(testbed.CertificateConfig{Name: "second", Hosts: []string{"second"}})
	require.NoError(t, err)
	sum := sha256.Sum256(second.Leaf.Raw)
	bound, err := w.issuer.Sign(testbed.Claims{"sub": ownTenant, "cnf": map[string]any{"x5t#S256": base64.RawURLEncoding.EncodeToString(sum[:])}})
	require.NoError(t, err)
	w.writeToken(bound)
	w.gateway.logs.wait(t, "token renewal refused", "code", errs.ClientCertRefused.String())
	require.NoError(t, writeAtomic(first.KeyFile, []byte(readFile(t, second.KeyFile))))
	require.NoError(t, writeAtomic(first.CertFile, []byte(readFile(t, second.CertFile))))
	w.proxy.Cut()
	await(t, "the tunnel is resumed with the new certificate", func() bool {
		tunnels := w.gateway.tunnels(t)
		return len(tunnels) == 1 && tunnels[0].Resumes == 1 && tunnels[0].State == "connected"
	})
	echoes(t, w.dial("echo"), "with another one")
}
