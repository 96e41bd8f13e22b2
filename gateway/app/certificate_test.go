package app

import (
	"crypto/tls"
	"log/slog"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/testbed"
)

func (c *certificate) name(t *testing.T) string {
	t.Helper()
	cert, err := c.serverConfig().GetCertificate(nil)
	require.NoError(t, err)
	return cert.Leaf.Subject.CommonName
}

// Verifies: R4.7
func TestACertificateIsReplacedWholeOrNotAtAll(t *testing.T) {
	ca, first := testbed.NewTestCA(t)
	second, err := ca.Issue(testbed.CertificateConfig{Name: "second"})
	require.NoError(t, err)
	replace := func(dst, src string) {
		b, err := os.ReadFile(src)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(dst, b, 0o600))
	}
	log := &testbed.LogBuffer{}
	synctest.Test(t, func(t *testing.T) {
		c, err := newCertificate(first.CertFile, first.KeyFile)
		require.NoError(t, err)
		assert.Equal(t, "server", c.name(t))
		assert.EqualValues(t, tls.VersionTLS13, c.serverConfig().MinVersion)
		assert.Equal(t, []string{"http/1.1"}, c.serverConfig().NextProtos)
		done := make(chan error, 1)
		go func() { done <- c.watch(t.Context(), slog.New(slog.NewTextHandler(log, nil))) }()
		next := func() {
			<-time.After(certPoll)
			synctest.Wait()
		}
		replace(first.CertFile, second.CertFile)
		next()
		next()
		assert.Equal(t, "server", c.name(t), "half of a change is none")
		replace(first.KeyFile, second.KeyFile)
		next()
		assert.Equal(t, "second", c.name(t))
		require.NoError(t, os.Remove(first.KeyFile))
		next()
		assert.Equal(t, "second", c.name(t))
		c.close()
		assert.NoError(t, <-done)
	})
	text := log.String()
	assert.Equal(t, 2, strings.Count(text, "cannot be used"), "each fault is said once")
	assert.Equal(t, 1, strings.Count(text, "certificate reloaded"))
	assert.NotContains(t, text, "PRIVATE")

	_, err = newCertificate(first.CertFile, first.KeyFile)
	assert.ErrorIs(t, err, errs.KeyUnreadable)
	_, err = newCertificate(first.CertFile+"-missing", first.KeyFile)
	assert.ErrorIs(t, err, errs.KeyUnreadable)
}
