package app

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"fairlead/gateway/admin"
	"fairlead/gateway/config"
	"fairlead/shared/errs"
	"fairlead/shared/lifecycle"
	"fairlead/shared/logging"
	"fairlead/shared/testbed"
	"fairlead/shared/ws"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, // fasthttp keeps one for the Date header, and one for a while after the end of a server
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"))
}

// site is what a gateway needs around it.
type site struct {
	t      *testing.T
	cfg    config.Config
	ca     *testbed.CA
	issuer *testbed.Issuer
	back   net.Listener
	log    *testbed.LogBuffer
	opts   Options
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, log: &testbed.LogBuffer{}, issuer: testbed.NewTestIssuer(t, "HS256")}
	var cert *testbed.Certificate
	s.ca, cert = testbed.NewTestCA(t)
	var err error
	s.back, err = net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { s.back.Close() })
	var issuer config.Issuer
	issuer.SetDefaults()
	issuer.Issuer, issuer.Audience, issuer.HMACSecretFile = s.issuer.Issuer(), s.issuer.Audience(), s.issuer.SecretFile()
	var b config.Backend
	b.SetDefaults()
	b.Address = s.back.Addr().String()
	var r config.Route
	r.SetDefaults()
	r.Backend = "git"
	s.cfg = config.Default()
	s.cfg.Listen, s.cfg.Admin.Listen, s.cfg.Shutdown.Drain = "127.0.0.1:0", "127.0.0.1:0", 5*time.Second
	s.cfg.TLS.CertFile, s.cfg.TLS.KeyFile = cert.CertFile, cert.KeyFile
	s.cfg.Auth.Issuers = []config.Issuer{issuer}
	s.cfg.Backends = map[string]config.Backend{"git": b}
	s.cfg.Routes = map[string]config.Route{"git": r}
	s.cfg.Policy = []config.Rule{{Tenants: []string{"dev"}, Routes: []string{"git"}}}
	s.cfg.TrustedProxies = []string{"10.0.0.0/8"}
	s.cfg.Limits.Shedding.Enabled = false // machines that run tests are short of CPU
	log, level, err := logging.New(logging.Config{Format: "json", Writer: s.log})
	require.NoError(t, err)
	s.opts = Options{Logger: log, SetLevel: level.Set, Instance: "gw-1", Version: "test"}
	return s
}

// run runs a gateway until stop is called, or the test ends.
func (s *site) run() (a *App, stop func(cause error) error) {
	s.t.Helper()
	a, err := New(s.cfg, s.opts)
	require.NoError(s.t, err)
	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	var once sync.Once
	stop = func(cause error) (err error) {
		once.Do(func() {
			cancel(cause)
			err = <-done
		})
		return err
	}
	s.t.Cleanup(func() { assert.NoError(s.t, stop(nil)) })
	return a, stop
}

func (s *site) dial(a *App) (*ws.Conn, error) {
	s.t.Helper()
	return s.dialRoute(a, "git")
}

func (s *site) dialRoute(a *App, route string) (*ws.Conn, error) {
	s.t.Helper()
	token, err := s.issuer.Valid("dev", time.Hour)
	require.NoError(s.t, err)
	return (&ws.Dialer{TLS: s.ca.ClientTLS(), MaxMessage: 1 << 20}).Dial(s.t.Context(), "wss://"+a.Addr().String()+"/v1/stream/"+route, http.Header{"Authorization": {"Bearer " + token}}, "")
}

func (s *site) ask(a *App, method, path, body string) (int, string) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, "http://"+a.AdminAddr().String()+path, strings.NewReader(body))
	require.NoError(s.t, err)
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	require.NoError(s.t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(s.t, err)
	return resp.StatusCode, string(text)
}

// Verifies: R2.7, R9.6
func TestAGateway(t *testing.T) {
	s := newSite(t)
	a, stop := s.run()
	c, err := s.dial(a)
	require.NoError(t, err)
	defer c.Abort() // what nobody holds is closed by the garbage collector
	far, err := s.back.Accept()
	require.NoError(t, err)
	_, err = far.Write([]byte("SSH-2.0-test\r\n"))
	require.NoError(t, err)
	_, err = io.ReadFull(ws.NewBytes(c), make([]byte, 14))
	require.NoError(t, err)

	status, body := s.ask(a, "GET", "/api/tunnel/diagnostics", "")
	assert.Equal(t, 200, status)
	var d admin.Diagnostics
	require.NoError(t, json.Unmarshal([]byte(body), &d))
	assert.Equal(t, "gw-1", d.Instance)
	assert.Equal(t, "serving", d.State)
	assert.Equal(t, "memory", d.Store)
	_, body = s.ask(a, "GET", "/api/backends", "")
	assert.JSONEq(t, `[{"name":"git","address":"`+s.back.Addr().String()+`","breaker":"closed","mode":"auto","failures":0,"streams":1,"waiting":0,"dialing":0,"pools":[]}]`, body)
	_, body = s.ask(a, "GET", "/api/tunnel/config", "")
	assert.Contains(t, body, `"key": "auth.issuers[0].audience"`)
	_, body = s.ask(a, "GET", "/api/tunnels", "")
	assert.JSONEq(t, `[]`, body)
	_, body = s.ask(a, "GET", "/metrics", "")
	assert.Contains(t, body, "fairlead_gateway_streams_opened_total 1")
	assert.Contains(t, body, `instance="gw-1"`)
	status, _ = s.ask(a, "GET", "/readyz", "")
	assert.Equal(t, 200, status)
	status, _ = s.ask(a, "DELETE", "/api/tunnels/none", "")
	assert.Equal(t, 404, status)
	status, _ = s.ask(a, "PUT", "/api/log-level", "debug")
	assert.Equal(t, 200, status)

	require.NoError(t, far.Close())
	assert.NoError(t, stop(lifecycle.Signal{Number: syscall.SIGTERM}))
	assert.Contains(t, s.log.String(), `"reason":"signal_term"`)
	_, err = net.Dial("tcp", a.Addr().String())
	assert.Error(t, err)
	assert.Error(t, a.ready())
	assert.Equal(t, "draining", a.diagnostics().State)
}

func TestAnOperatorOverrulesABreaker(t *testing.T) {
	s := newSite(t)
	a, _ := s.run()
	status, _ := s.ask(a, "PUT", "/api/backends/git/breaker", "open")
	assert.Equal(t, 200, status)
	_, err := s.dial(a)
	assert.ErrorIs(t, err, errs.CircuitOpen)
	_, body := s.ask(a, "GET", "/api/backends", "")
	assert.Contains(t, body, `"mode": "open"`)
	status, _ = s.ask(a, "PUT", "/api/backends/git/breaker", "sideways")
	assert.Equal(t, 400, status)
	status, _ = s.ask(a, "PUT", "/api/backends/other/breaker", "open")
	assert.Equal(t, 404, status)
	status, _ = s.ask(a, "PUT", "/api/backends/git/breaker", "auto")
	assert.Equal(t, 200, status)
	c, err := s.dial(a)
	require.NoError(t, err)
	c.Abort()
}

// Verifies: R8.4
func TestTheAPIDrainsAndStreamsMayFinish(t *testing.T) {
	s := newSite(t)
	a, err := New(s.cfg, s.opts)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- a.Run(context.Background()) }()
	c, err := s.dial(a)
	require.NoError(t, err)
	far, err := s.back.Accept()
	require.NoError(t, err)
	status, _ := s.ask(a, "POST", "/api/drain", "")
	assert.Equal(t, 202, status)
	require.Eventually(t, func() bool { status, _ := s.ask(a, "GET", "/readyz", ""); return status == 503 }, 5*time.Second, time.Millisecond)
	require.Eventually(t, func() bool { _, err := s.dial(a); return errs.CodeOf(err) == errs.Draining }, 5*time.Second, time.Millisecond)
	_, err = far.Write([]byte("finished"))
	require.NoError(t, err)
	_, err = io.ReadFull(ws.NewBytes(c), make([]byte, 8))
	require.NoError(t, err, "what is open goes on")
	require.NoError(t, far.Close())
	assert.NoError(t, <-done)
	assert.Contains(t, s.log.String(), `"reason":"api"`)
}

func TestAFailedConstructionLeavesNothing(t *testing.T) {
	for what, spoil := range map[string]func(*site){
		"issuer":      func(s *site) { s.cfg.Auth.Issuers[0].HMACSecretFile += "-missing" },
		"policy":      func(s *site) { s.cfg.Policy[0].Tenants[0] = "[" },
		"tiers":       func(s *site) { s.cfg.Tiers = nil },
		"breaker":     func(s *site) { s.cfg.Breaker.Failures = -1 },
		"backend":     func(s *site) { s.cfg.Routes["git"] = config.Route{Backend: "none", Mode: "passthrough"} },
		"proxies":     func(s *site) { s.cfg.TrustedProxies[0] = "nonsense" },
		"certificate": func(s *site) { s.cfg.TLS.KeyFile += "-missing" },
		"listen":      func(s *site) { s.cfg.Listen = s.back.Addr().String() },
		"admin":       func(s *site) { s.cfg.Admin.Listen = s.back.Addr().String() },
	} {
		s := newSite(t)
		l, err := net.Listen("tcp", "127.0.0.1:0") // an address that the gateway can have
		require.NoError(t, err)
		require.NoError(t, l.Close())
		s.cfg.Listen = l.Addr().String()
		spoil(s)
		_, err = New(s.cfg, s.opts)
		assert.Error(t, err, what)
		l, err = net.Listen("tcp", l.Addr().String())
		if assert.NoError(t, err, "%s: the listener is closed again", what) {
			l.Close()
		}
	}
	_, err := New(config.Default(), Options{})
	assert.Error(t, err)
}

func TestWithoutTLSAndAdmin(t *testing.T) {
	s := newSite(t)
	s.cfg.TLS = config.TLS{Disabled: true}
	s.cfg.Admin.Listen = ""
	a, _ := s.run()
	assert.Nil(t, a.AdminAddr())
	assert.Contains(t, s.log.String(), "TLS is disabled")
	s = newSite(t)
	s.opts.SetLevel = nil
	a, _ = s.run()
	status, _ := s.ask(a, "PUT", "/api/log-level", "debug")
	assert.Equal(t, 400, status)
	_, err := a.Reload(s.cfg, "test")
	require.NoError(t, err)
}
