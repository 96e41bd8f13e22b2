package app

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/gateway/config"
	sharedconfig "fairlead/shared/config"
	"fairlead/shared/errs"
	"fairlead/shared/ws"
)

// Verifies: R9.4
func TestReload(t *testing.T) {
	s := newSite(t)
	s.cfg.Routes["other"] = s.cfg.Routes["git"]
	s.cfg.Policy[0].Routes = []string{"git", "other"}
	a, _ := s.run()
	kept, err := s.dialRoute(a, "other")
	require.NoError(t, err)
	far, err := s.back.Accept()
	require.NoError(t, err)
	taken, err := s.dial(a)
	require.NoError(t, err)
	gone, err := s.back.Accept()
	require.NoError(t, err)

	next := s.cfg
	next.Policy = []config.Rule{{Tenants: []string{"dev"}, Routes: []string{"other"}}}
	next.Listen = "127.0.0.1:1"
	next.Log.Level = "debug"
	r, err := a.Reload(next, "test")
	require.NoError(t, err)
	assert.Equal(t, Reloaded{Applied: []string{"log.level", "policy[0].routes"}, Restart: []string{"listen"}, Ended: 1}, r)
	assert.Contains(t, s.log.String(), `"needs_restart":"listen"`)
	_, err = ws.NewBytes(taken).Read(make([]byte, 1))
	assert.ErrorIs(t, err, errs.RouteForbidden, "what is not allowed any more ends")
	_, err = gone.Read(make([]byte, 1))
	assert.ErrorIs(t, err, io.EOF)
	_, err = s.dial(a)
	assert.ErrorIs(t, err, errs.RouteForbidden)
	_, err = far.Write([]byte("x"))
	require.NoError(t, err)
	_, err = io.ReadFull(ws.NewBytes(kept), make([]byte, 1))
	assert.NoError(t, err, "nothing else is dropped for it")
	kept.Abort()
	far.Close()
	gone.Close()
}

// Verifies: R9.3
func TestAReloadIsWholeOrNotAtAll(t *testing.T) {
	s := newSite(t)
	a, _ := s.run()
	for what, spoil := range map[string]func(*config.Config){
		"policy":      func(c *config.Config) { c.Policy = []config.Rule{{Tenants: []string{"["}, Routes: []string{"git"}}} },
		"tiers":       func(c *config.Config) { c.Tiers = map[string]config.Tier{} },
		"certificate": func(c *config.Config) { c.TLS.KeyFile += "-missing" },
		"issuer": func(c *config.Config) {
			c.Auth.Issuers = []config.Issuer{{Issuer: "x", Audience: "y", HMACSecretFile: "/missing"}}
		},
		"backend": func(c *config.Config) {
			c.Routes = map[string]config.Route{"git": {Backend: "none", Mode: "passthrough"}}
		},
	} {
		next := s.cfg
		next.Policy, next.Log.Level = nil, "error"
		spoil(&next)
		_, err := a.Reload(next, "test")
		require.Error(t, err, what)
		c, err := s.dial(a)
		require.NoError(t, err, "%s: what is not valid changes nothing", what)
		c.Abort()
		assert.Equal(t, "info", a.config().Log.Level, what)
	}
}

func TestChangedFilesAreTaken(t *testing.T) {
	s := newSite(t)
	s.cfg.Reload.Watch = 20 * time.Millisecond
	file := filepath.Join(t.TempDir(), "gateway.yaml")
	write := func(c config.Config) {
		var text strings.Builder
		require.NoError(t, sharedconfig.WriteDefaults(&text, c))
		require.NoError(t, os.WriteFile(file+".next", []byte(text.String()), 0o600))
		require.NoError(t, os.Rename(file+".next", file))
	}
	write(s.cfg)
	s.opts.Load = func() (*sharedconfig.Loaded[config.Config], error) {
		return sharedconfig.Load(config.Default(), sharedconfig.Input{Flags: sharedconfig.Flags{File: file}, Environ: []string{}})
	}
	loaded, err := s.opts.Load()
	require.NoError(t, err)
	s.opts.Loaded = loaded
	a, _ := s.run()
	_, body := s.ask(a, "GET", "/api/tunnel/config", "")
	assert.Contains(t, body, file+":", "where each value came from")

	require.NoError(t, os.WriteFile(file, []byte("listen: ["), 0o600))
	require.Eventually(t, func() bool { return strings.Contains(s.log.String(), "not reloaded") }, 20*time.Second, time.Millisecond)
	next := s.cfg
	next.Policy = []config.Rule{{Tenants: []string{"dev"}, Routes: []string{"*"}}}
	write(next)
	require.Eventually(t, func() bool {
		return strings.Contains(s.log.String(), `"by":"file change"`) && a.config().Policy[0].Routes[0] == "*"
	}, 20*time.Second, time.Millisecond)
	assert.Equal(t, 1, strings.Count(s.log.String(), "not reloaded"), "a fault is said once")

	old := a.certs.current.Load()
	require.NoError(t, os.WriteFile(s.cfg.TLS.CertFile, append(mustRead(t, s.cfg.TLS.CertFile), '\n'), 0o600))
	require.Eventually(t, func() bool { return a.certs.current.Load() != old }, 20*time.Second, time.Millisecond)
	require.Eventually(t, func() bool { return strings.Contains(s.log.String(), `"files":"tls.cert_file"`) }, 20*time.Second, time.Millisecond)
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return b
}
