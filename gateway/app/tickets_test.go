package app

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/gateway/config"
	"fairlead/shared/testbed"
)

// A session that was made when an authority counted is no way around its removal.
func TestASessionOfARemovedAuthorityIsNotResumed(t *testing.T) {
	ca, server := testbed.NewTestCA(t)
	other, _ := testbed.NewTestCA(t)
	mine, err := ca.Issue(testbed.CertificateConfig{Name: "client"})
	require.NoError(t, err)
	pair, err := tls.LoadX509KeyPair(mine.CertFile, mine.KeyFile)
	require.NoError(t, err)
	c := &certificate{}
	files := config.TLS{CertFile: server.CertFile, KeyFile: server.KeyFile, ClientCAFile: ca.CertFile()}
	take := func() {
		commit, err := c.prepare(files)
		require.NoError(t, err)
		commit()
	}
	take()
	l, err := tls.Listen("tcp", "127.0.0.1:0", c.serverConfig())
	require.NoError(t, err)
	defer l.Close()
	type end struct {
		resumed bool
		err     error
	}
	ends := make(chan end)
	serve := func() {
		conn, err := l.Accept()
		if err != nil {
			ends <- end{err: err}
			return
		}
		defer conn.Close()
		err = conn.(*tls.Conn).Handshake()
		resumed := conn.(*tls.Conn).ConnectionState().DidResume
		_, _ = conn.Write([]byte("x"))
		ends <- end{resumed, err}
	}
	roots := x509.NewCertPool()
	pem, err := os.ReadFile(ca.CertFile())
	require.NoError(t, err)
	roots.AppendCertsFromPEM(pem)
	client := &tls.Config{RootCAs: roots, ServerName: "127.0.0.1", Certificates: []tls.Certificate{pair}, ClientSessionCache: tls.NewLRUClientSessionCache(4)}
	dial := func() end {
		go serve()
		conn, err := tls.Dial("tcp", l.Addr().String(), client)
		if err == nil {
			_, _ = conn.Read(make([]byte, 1)) // and the ticket
			defer conn.Close()
		}
		return <-ends
	}
	require.NoError(t, dial().err)
	second := dial()
	require.NoError(t, second.err)
	require.True(t, second.resumed)
	files.ClientCAFile = other.CertFile()
	take()
	third := dial()
	assert.Error(t, third.err)
	assert.False(t, third.resumed)
}
