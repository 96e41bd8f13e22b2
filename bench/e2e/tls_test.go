package e2e

import (
	"crypto/tls"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/testbed"
)

// shown is the serial number of the certificate that a gateway shows.
func (w *world) shown() string {
	w.t.Helper()
	c, err := tls.Dial("tcp", w.gateway.address, w.ca.ClientTLS())
	require.NoError(w.t, err)
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

// Verifies: R4.7
func TestCertificatesReloadWithoutARestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withWatch(), withTarget("echo", newTarget(t, echoServer)))
	c := w.dial("echo")
	echoes(t, c, "before")
	id := w.sidecar.tunnelID(t)
	first := w.shown()
	renewed, err := w.ca.Issue(testbed.CertificateConfig{})
	require.NoError(t, err)
	require.Equal(t, w.cert.CertFile, renewed.CertFile, "in place of the one before")
	await(t, "the renewed certificate is shown", func() bool { return w.shown() == renewed.Leaf.SerialNumber.String() })
	w.gateway.logs.wait(t, "configuration reloaded", "by", "file change")
	assert.NotEqual(t, first, w.shown())
	echoes(t, c, "after")
	assert.Equal(t, id, w.sidecar.tunnelID(t))
	assert.EqualValues(t, 1, w.proxy.Stats().Accepted, "the tunnel's WebSocket has stayed")

	require.NoError(t, writeAtomic(w.cert.CertFile, []byte("no certificate")))
	w.gateway.logs.wait(t, "the configuration was not reloaded; what was loaded before stays in force", "code", errs.KeyUnreadable.String())
	assert.Equal(t, renewed.Leaf.SerialNumber.String(), w.shown())
	require.Equal(t, 1, w.proxy.Cut())
	echoes(t, c, "over a WebSocket under the renewed certificate")
	assert.Equal(t, id, w.sidecar.tunnelID(t))
}

// Verifies: R4.7
func TestOnlyTLS13IsSpoken(t *testing.T) {
	w := newWorld(t, withoutSidecar())
	old := w.ca.ClientTLS()
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS12
	_, err := tls.Dial("tcp", w.gateway.address, old)
	require.ErrorContains(t, err, "remote error: tls: protocol version not supported")
	c, err := tls.Dial("tcp", w.gateway.address, w.ca.ClientTLS())
	require.NoError(t, err)
	assert.EqualValues(t, tls.VersionTLS13, c.ConnectionState().Version)
	require.NoError(t, c.Close())

	plain, err := net.Dial("tcp", w.gateway.address)
	require.NoError(t, err)
	defer plain.Close()
	require.NoError(t, plain.SetDeadline(time.Now().Add(patience)))
	_, err = plain.Write([]byte("GET /healthz HTTP/1.1\r\nHost: gateway\r\n\r\n"))
	require.NoError(t, err)
	answer := make([]byte, 1<<10)
	n, _ := plain.Read(answer) // a TLS alert, or the end
	assert.NotContains(t, string(answer[:n]), "HTTP/1.1 200")
}

// Verifies: R4.7
func TestPlainTextOnlyWhenAskedForAndSaid(t *testing.T) {
	w := newWorld(t, withPlaintext(), withTarget("echo", newTarget(t, echoServer)))
	echoes(t, w.dial("echo"), "in plain text")
	said := w.gateway.logs.wait(t, "TLS is disabled: tokens and everything else travel in plain text; for development, or behind a proxy on the same host")
	assert.Equal(t, "WARN", said.str("level"))
	said = w.sidecar.logs.wait(t, "no TLS to this endpoint: the token and everything else travel in plain text", "endpoint", w.endpoint(w.proxy.Addr()))
	assert.Equal(t, "WARN", said.str("level"))

	_, exe := binaries(t)
	unasked := w.sidecarConfig
	unasked.Gateway.AllowPlaintext = false
	_, told, code := command(t, nil, exe, "run", "--config", configFile(w, "unasked", unasked))
	assert.Equal(t, errs.ExitConfiguration, code)
	assert.Contains(t, told, "ws:// only with gateway.allow_plaintext: true")
}

// A gateway that another authority vouches for, or that is somebody else, is not told the token.
func TestTheGatewayMustProveItself(t *testing.T) {
	other, _ := testbed.NewTestCA(t)
	for name, change := range map[string]option{
		"another authority": func(w *world) { w.sidecarConfig.Gateway.CAFile = other.CertFile() },
		"another name": func(w *world) {
			cert, err := w.ca.Issue(testbed.CertificateConfig{Name: "elsewhere", Hosts: []string{"gateway.example"}})
			require.NoError(t, err)
			w.gatewayConfig.TLS.CertFile, w.gatewayConfig.TLS.KeyFile = cert.CertFile, cert.KeyFile
		},
		"an expired certificate": func(w *world) {
			cert, err := w.ca.Issue(testbed.CertificateConfig{Name: "expired", NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)})
			require.NoError(t, err)
			w.gatewayConfig.TLS.CertFile, w.gatewayConfig.TLS.KeyFile = cert.CertFile, cert.KeyFile
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, change, withoutWaiting(), withSidecar(once), withTarget("echo", newTarget(t, echoServer)))
			failed := w.sidecar.logs.wait(t, "tunnel failed")
			assert.Contains(t, failed.str("error"), errs.TLSFailed.String())
			assert.Empty(t, w.gateway.logs.find("authenticated"))
			assert.Empty(t, w.gateway.logs.find("authentication refused"), "no request came through")
		})
	}
}
