package app

import (
	"crypto/tls"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/gateway/config"
	"fairlead/shared/errs"
	"fairlead/shared/testbed"
)

func (c *certificate) now(t *testing.T) *tls.Config {
	t.Helper()
	cfg, err := c.serverConfig().GetConfigForClient(nil)
	require.NoError(t, err)
	return cfg
}

func overwrite(t *testing.T, dst, src string) {
	t.Helper()
	b, err := os.ReadFile(src)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(dst, b, 0o600))
}

// Verifies: R4.7
func TestACertificateIsReplacedWholeOrNotAtAll(t *testing.T) {
	ca, first := testbed.NewTestCA(t)
	second, err := ca.Issue(testbed.CertificateConfig{Name: "second"})
	require.NoError(t, err)
	c, files := &certificate{}, config.TLS{CertFile: first.CertFile, KeyFile: first.KeyFile}
	load := func() error {
		commit, err := c.prepare(files)
		if err == nil {
			commit()
		}
		return err
	}
	name := func() string { return c.now(t).Certificates[0].Leaf.Subject.CommonName }
	require.NoError(t, load())
	assert.Equal(t, "server", name())
	assert.EqualValues(t, tls.VersionTLS13, c.now(t).MinVersion)
	assert.EqualValues(t, tls.VersionTLS13, c.serverConfig().MinVersion)
	assert.Equal(t, []string{"http/1.1"}, c.now(t).NextProtos)
	assert.Equal(t, tls.NoClientCert, c.now(t).ClientAuth)

	overwrite(t, first.CertFile, second.CertFile)
	assert.ErrorIs(t, load(), errs.KeyUnreadable)
	assert.Equal(t, "server", name(), "half of a change is none")
	overwrite(t, first.KeyFile, second.KeyFile)
	require.NoError(t, load())
	assert.Equal(t, "second", name())

	files.ClientCAFile = ca.CertFile()
	commit, err := c.prepare(files)
	require.NoError(t, err)
	assert.Equal(t, tls.NoClientCert, c.now(t).ClientAuth, "nothing changes before the commit")
	commit()
	assert.Equal(t, tls.RequireAndVerifyClientCert, c.now(t).ClientAuth)
	files.ClientCertificates = config.ClientCertificatesOptional
	require.NoError(t, load())
	assert.Equal(t, tls.VerifyClientCertIfGiven, c.now(t).ClientAuth)
	files.ClientCAFile = first.KeyFile
	err = load()
	assert.ErrorIs(t, err, errs.KeyUnreadable)
	assert.NotContains(t, err.Error(), "PRIVATE")

	require.NoError(t, os.Remove(first.KeyFile))
	assert.ErrorIs(t, load(), errs.KeyUnreadable)
	assert.Equal(t, "second", name())
}
