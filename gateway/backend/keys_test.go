package backend

import (
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	"fairlead/gateway/breaker"
	"fairlead/shared/errs"
)

func TestReplacedKeyIsUsedForTheNextLogin(t *testing.T) {
	d := startSSHD(t)
	b := d.backend(t)
	s, _ := newSet(t, b, echo(t))
	pingPong(t, dial(t, s, "a"))

	next := newKey(t)
	writeKey(t, b.KeyFile, next)
	require.ErrorIs(t, errorOf(t, s, "b"), errs.BackendAuth, "the server does not know it yet")
	require.NoError(t, os.WriteFile(filepath.Join(d.dir, "authorized"), ssh.MarshalAuthorizedKey(signerOf(t, next).PublicKey()), 0o600))
	pingPong(t, dial(t, s, "b"))
	require.Contains(t, d.log.String(), ssh.FingerprintSHA256(signerOf(t, next).PublicKey()))
	pingPong(t, dial(t, s, "a"))
	d.requireLogins(t, 2, "a connection that was logged in stays")
}

func errorOf(t *testing.T, s *Set, tenant string) error {
	t.Helper()
	_, err := as(t, s, Caller{Tenant: tenant})
	require.Error(t, err)
	return err
}

func TestKeyThatCannotBeReadIsNotTheBackendsFault(t *testing.T) {
	d := startSSHD(t)
	br, err := breaker.New(breaker.Config{Failures: 1})
	require.NoError(t, err)
	b := d.backend(t)
	b.RevokedFile = filepath.Join(t.TempDir(), "revoked")
	require.NoError(t, os.WriteFile(b.RevokedFile, nil, 0o600))
	s, _ := newSet(t, b, echo(t), func(c *Config) { c.Breaker = br })
	locked, err := ssh.MarshalPrivateKeyWithPassphrase(newKey(t), "", []byte("secret"))
	require.NoError(t, err)
	good, err := os.ReadFile(b.KeyFile)
	require.NoError(t, err)
	for name, content := range map[string][]byte{"garbage": []byte("-----BEGIN NOTHING-----\n"), "passphrase": pem.EncodeToMemory(locked), "missing": nil} {
		require.NoError(t, os.Remove(b.KeyFile))
		if content != nil {
			require.NoError(t, os.WriteFile(b.KeyFile, content, 0o600))
		} else {
			require.NoError(t, os.WriteFile(b.KeyFile+".gone", nil, 0o600))
		}
		err := errorOf(t, s, "a")
		require.ErrorIs(t, err, errs.KeyUnreadable, name)
		require.Contains(t, err.Error(), b.KeyFile, name)
		require.Equal(t, name == "passphrase", strings.Contains(err.Error(), "has a passphrase"))
		require.NotContains(t, err.Error(), "NOTHING")
		if content == nil {
			require.NoError(t, os.WriteFile(b.KeyFile, nil, 0o600))
		}
	}
	require.NoError(t, os.WriteFile(b.KeyFile, good, 0o600))
	require.NoError(t, os.Remove(b.RevokedFile))
	require.ErrorIs(t, errorOf(t, s, "a"), errs.KeyUnreadable, "without the list of revoked keys nothing is trusted")
	require.NoError(t, os.WriteFile(b.RevokedFile, []byte("no key\n"), 0o600))
	require.ErrorContains(t, errorOf(t, s, "a"), b.RevokedFile+":1 is no public key")
	require.NoError(t, os.WriteFile(b.RevokedFile, []byte("SSHKRL\n\x00..."), 0o600))
	require.ErrorContains(t, errorOf(t, s, "a"), "binary revocation list")
	require.Equal(t, breaker.Closed, br.State("bastion"))
	require.NoError(t, os.WriteFile(b.RevokedFile, []byte("# nothing\n\n"), 0o600))
	pingPong(t, dial(t, s, "a"))
}

func TestOpenKeyFilesAreWarnedAboutOnce(t *testing.T) {
	d := startSSHD(t)
	b := d.backend(t)
	for mode, warned := range map[os.FileMode]bool{0o600: false, 0o440: false, 0o644: true, 0o460: true} {
		require.NoError(t, os.Chmod(b.KeyFile, mode))
		s, log := newSet(t, b, echo(t))
		pingPong(t, dial(t, s, "a"))
		pingPong(t, dial(t, s, "b"))
		require.Equal(t, map[bool]int{true: 1, false: 0}[warned], strings.Count(log.String(), "a private key is open"), mode)
	}
}

func TestFurtherKeysAreTriedInOrder(t *testing.T) {
	d := startSSHD(t)
	b := d.backend(t)
	dir := t.TempDir()
	known := b.KeyFile
	b.KeyFile, b.MoreKeyFiles = dir+"/first", []string{dir + "/second", known}
	writeKey(t, dir+"/first", newKey(t))
	writeKey(t, dir+"/second", newKey(t))
	s, _ := newSet(t, b, echo(t))
	pingPong(t, dial(t, s, "a"))
	d.requireLogins(t, 1)

	b.MoreKeyFiles = []string{known, known, known, known, known}
	_, err := New(Config{Backends: []Backend{b}, Routes: []Route{{Name: "db", Backend: b.Name, Mode: Forward, Target: "x:1"}}})
	require.ErrorIs(t, err, errs.ConfigInvalid)
	require.ErrorContains(t, err, "at most 5 are tried")
}
