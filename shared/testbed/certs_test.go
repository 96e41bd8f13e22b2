package testbed_test

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/testbed"
)

// shake connects a TLS client with a server that shows cert, by host, and returns the client's error.
func shake(t *testing.T, ca *testbed.CA, cert *testbed.Certificate, client *tls.Config, host string) error {
	t.Helper()
	config, err := ca.ServerTLS(cert)
	require.NoError(t, err)
	near, far := net.Pipe()
	var tasks sync.WaitGroup
	tasks.Go(func() {
		defer far.Close()
		server := tls.Server(far, config)
		_, _ = io.Copy(server, server) // a client that refuses the certificate ends it
	})
	defer tasks.Wait()
	defer near.Close()
	client.ServerName = host
	conn := tls.Client(near, client)
	return conn.Handshake()
}

func TestCertificates(t *testing.T) {
	ca, cert := testbed.NewTestCA(t)
	for _, host := range []string{"localhost", "127.0.0.1", "::1"} {
		require.NoError(t, shake(t, ca, cert, ca.ClientTLS(), host), host)
	}
	var name x509.HostnameError
	require.ErrorAs(t, shake(t, ca, cert, ca.ClientTLS(), "elsewhere.example"), &name)

	other, _ := testbed.NewTestCA(t)
	var unknown x509.UnknownAuthorityError
	require.ErrorAs(t, shake(t, ca, cert, other.ClientTLS(), "localhost"), &unknown)

	expired, err := ca.Issue(testbed.CertificateConfig{Name: "old", NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)})
	require.NoError(t, err)
	var invalid x509.CertificateInvalidError
	require.ErrorAs(t, shake(t, ca, expired, ca.ClientTLS(), "localhost"), &invalid)
	assert.Equal(t, x509.Expired, invalid.Reason)
}

func TestCertificateIssuedAgainReplacesItsFiles(t *testing.T) {
	ca, first := testbed.NewTestCA(t)
	second, err := ca.Issue(testbed.CertificateConfig{})
	require.NoError(t, err)
	assert.Equal(t, first.CertFile, second.CertFile)
	assert.NotEqual(t, first.Leaf.SerialNumber, second.Leaf.SerialNumber)
	require.NoError(t, shake(t, ca, second, ca.ClientTLS(), "localhost"))
}
