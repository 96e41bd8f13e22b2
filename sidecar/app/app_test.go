package app

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fasthttp/websocket"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/valyala/fasthttp"
	"go.uber.org/goleak"

	"fairlead/shared/errs"
	"fairlead/shared/lifecycle"
	"fairlead/shared/link"
	"fairlead/shared/logging"
	"fairlead/shared/testbed"
	"fairlead/shared/ws"
	"fairlead/sidecar/config"
	"fairlead/sidecar/tunnel"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, // fasthttp keeps one for the Date header, and one for a while after the end of a server
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"))
}

// newGateway is the gateway's end of the protocol: it takes tunnels of the token "good" and returns what streams bring.
func newGateway(t *testing.T) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	up := websocket.FastHTTPUpgrader{WriteBufferPool: ws.WriteBuffers, WriteBufferSize: ws.WriteBufferSize, Subprotocols: []string{link.Subprotocol}}
	var wg sync.WaitGroup
	srv := &fasthttp.Server{KeepHijackedConns: true, CloseOnShutdown: true, Handler: func(ctx *fasthttp.RequestCtx) {
		if string(ctx.Path()) != "/v1/tunnel" {
			ctx.SetStatusCode(404)
			return
		}
		if string(ctx.Request.Header.Peek("Authorization")) != "Bearer good" {
			status, body := errs.HTTP(errs.New(errs.TokenInvalid, "not that one"))
			ctx.SetStatusCode(status)
			ctx.SetBody(body)
			return
		}
		wg.Add(1)
		_ = up.Upgrade(ctx, func(c *websocket.Conn) {
			defer wg.Done()
			defer c.Close()
			carry(c)
		})
	}}
	wg.Go(func() { _ = srv.Serve(&ws.Listener{Listener: l}) })
	t.Cleanup(func() {
		_ = l.Close() // Shutdown knows it only once Serve has begun
		_ = srv.Shutdown()
		_ = l.Close() // Serve may not have begun, and then Shutdown knows of no listener
		wg.Wait()
	})
	return "ws://" + l.Addr().String()
}

func carry(c *websocket.Conn) {
	conn, err := ws.New(c, 1<<20)
	if err != nil {
		return
	}
	hs, err := link.Greet(context.Background(), conn)
	if err != nil {
		return
	}
	t, lane, err := hs.Accept(link.Config{Accept: func(s *link.Stream) {
		if s.Request().Route == "forbidden" {
			s.Reset(errs.New(errs.RouteForbidden, "not yours"))
			return
		}
		s.Accept()
		if _, err := io.Copy(s, s); err == nil {
			_ = s.CloseWrite()
		}
	}})
	if err != nil {
		return
	}
	_ = lane.Run()
	t.Close(nil)
	t.Wait()
}

func newConfig(url string) config.Config {
	cfg := config.Default()
	cfg.Gateway.Endpoints, cfg.Gateway.AllowPlaintext, cfg.Gateway.Token = []string{url}, true, "good"
	cfg.Reconnect.Base, cfg.Reconnect.Cap = time.Millisecond, 10*time.Millisecond
	cfg.Admin.Listen, cfg.Shutdown.Drain = "127.0.0.1:0", 5*time.Second
	var l config.Listener
	l.SetDefaults()
	l.Name, l.Listen, l.Route = "git", "127.0.0.1:0", "git"
	cfg.Listeners = []config.Listener{l}
	return cfg
}

func options(t *testing.T) (Options, *testbed.LogBuffer) {
	t.Helper()
	w := &testbed.LogBuffer{}
	log, level, err := logging.New(logging.Config{Format: "json", Writer: w})
	require.NoError(t, err)
	return Options{Logger: log, SetLevel: level.Set, Instance: "sc-1", Version: "test"}, w
}

// run runs a sidecar until stop is called, or the test ends.
func run(t *testing.T, cfg config.Config) (a *App, log *testbed.LogBuffer, stop func(cause error) error) {
	t.Helper()
	opts, log := options(t)
	a, err := New(cfg, opts)
	require.NoError(t, err)
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
	t.Cleanup(func() { assert.NoError(t, stop(nil)) })
	return a, log, stop
}

func ask(t *testing.T, a *App, method, path string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+a.AdminAddr().String()+path, strings.NewReader("debug"))
	require.NoError(t, err)
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(text)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, 10*time.Second, 2*time.Millisecond, what)
}

// Verifies: R1.3, R1.4
func TestAConnectionThatCameBeforeTheTunnelIsCarried(t *testing.T) {
	url := newGateway(t)
	cfg := newConfig(url)
	cfg.Gateway.Token, cfg.Gateway.TokenFile = "", filepath.Join(t.TempDir(), "token")
	a, log, stop := run(t, cfg)
	assert.False(t, a.Ready())
	c, err := net.Dial("tcp", a.Addr("git").String())
	require.NoError(t, err)
	defer c.Close()
	_, err = c.Write([]byte("early"))
	require.NoError(t, err)
	eventually(t, "it waits", func() bool { return a.Status().Queue.Length == 1 })
	eventually(t, "the reason is told", func() bool { return errs.CodeOf(a.pool.LastError()) == errs.TokenUnreadable })
	status, body := ask(t, a, "GET", "/readyz")
	assert.Equal(t, 503, status)
	assert.Contains(t, body, "FL-N108")

	require.NoError(t, testbed.WriteToken(cfg.Gateway.TokenFile, "good"))
	got := make([]byte, 5)
	_, err = io.ReadFull(c, got)
	require.NoError(t, err)
	assert.Equal(t, "early", string(got))
	assert.True(t, a.Ready())
	assert.True(t, a.WasReady())
	c.Close()
	assert.NoError(t, stop(lifecycle.Signal{Number: syscall.SIGTERM}))
	assert.Contains(t, log.String(), `"reason":"signal_term"`)
	assert.False(t, a.Ready())
	assert.NotContains(t, log.String(), `good`)
}

func TestStatusHasTheFieldsThatAreAContract(t *testing.T) {
	a, _, _ := run(t, newConfig(newGateway(t)))
	eventually(t, "ready", a.Ready)
	status, body := ask(t, a, "GET", "/api/status")
	assert.Equal(t, 200, status)
	var st map[string]any
	require.NoError(t, json.Unmarshal([]byte(body), &st))
	for _, key := range []string{"state", "since", "tunnels", "queue", "listeners", "quality", "events"} {
		assert.Contains(t, st, key)
	}
	assert.Equal(t, "connected", st["state"])
	for _, key := range []string{"id", "endpoint", "replica", "state", "rtt_ms", "streams", "resumes"} {
		assert.Contains(t, st["tunnels"].([]any)[0], key)
	}
	for _, key := range []string{"name", "listen", "route", "priority", "active", "total"} {
		assert.Contains(t, st["listeners"].([]any)[0], key)
	}
	assert.Equal(t, 100.0, st["queue"].(map[string]any)["size"])
	_, body = ask(t, a, "GET", "/metrics")
	assert.Contains(t, body, "fairlead_sidecar_tunnels 1\n")
	status, _ = ask(t, a, "PUT", "/api/log-level")
	assert.Equal(t, 200, status)
	status, _ = ask(t, a, "POST", "/api/reconnect")
	assert.Equal(t, 202, status)
}

func TestTheAPIStopsIt(t *testing.T) {
	for path, reason := range map[string]string{"/api/drain": "api_drain", "/quitquitquit": "api_quit"} {
		opts, log := options(t)
		a, err := New(newConfig(newGateway(t)), opts)
		require.NoError(t, err)
		done := make(chan error, 1)
		go func() { done <- a.Run(context.Background()) }()
		status, _ := ask(t, a, "POST", path)
		assert.Equal(t, 202, status)
		assert.NoError(t, <-done)
		assert.Contains(t, log.String(), `"reason":"`+reason+`"`)
	}
}

func TestGivingUpEndsTheWait(t *testing.T) {
	cfg := newConfig(newGateway(t))
	cfg.Gateway.Token, cfg.Reconnect.MaxAttempts = "bad", 2
	a, log, _ := run(t, cfg)
	c, err := net.Dial("tcp", a.Addr("git").String())
	if err == nil {
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
	}
	assert.ErrorIs(t, err, syscall.ECONNRESET)
	eventually(t, "failed", func() bool { return a.Status().State == string(tunnel.Failed) })
	assert.Contains(t, log.String(), "FL-N110")
	changed := a.Changed()
	status, _ := ask(t, a, "POST", "/api/reconnect")
	assert.Equal(t, 202, status)
	<-changed
}

func TestConnect(t *testing.T) {
	cfg := newConfig(newGateway(t))
	in, stdin, err := os.Pipe()
	require.NoError(t, err)
	stdout, out, err := os.Pipe()
	require.NoError(t, err)
	defer stdout.Close()
	_, err = stdin.WriteString("a line\n")
	require.NoError(t, err)
	require.NoError(t, stdin.Close())
	opts, _ := options(t)
	require.NoError(t, Connect(t.Context(), cfg, opts, "git", in, out))
	got, err := io.ReadAll(stdout)
	require.NoError(t, err)
	assert.Equal(t, "a line\n", string(got))
	in.Close()
}

func TestConnectSaysWhyNot(t *testing.T) {
	opts, _ := options(t)
	in, stdin, err := os.Pipe()
	require.NoError(t, err)
	defer in.Close()
	stdout, out, err := os.Pipe()
	require.NoError(t, err)
	defer stdout.Close()
	defer out.Close()
	cfg := newConfig(newGateway(t))
	assert.ErrorIs(t, Connect(t.Context(), cfg, opts, "forbidden", in, out), errs.RouteForbidden)
	stdin.Close() // the pump that was left behind ends

	cfg.Gateway.Token, cfg.Queue.Wait, cfg.Reconnect.MaxAttempts = "bad", 100*time.Millisecond, 0
	err = Connect(t.Context(), cfg, opts, "git", in, out)
	assert.ErrorIs(t, err, errs.TokenInvalid, "the reason, not just that there is no tunnel")
	assert.Equal(t, errs.ExitAuthentication, errs.ExitCode(err))

	cfg.Gateway.Endpoints, cfg.Reconnect.MaxAttempts, cfg.Queue.Wait = []string{"ws://127.0.0.1:1"}, 2, time.Minute
	err = Connect(t.Context(), cfg, opts, "git", in, out)
	assert.Equal(t, errs.ExitGaveUp, errs.ExitCode(err))

	cfg.Gateway.Token = ""
	assert.ErrorIs(t, Connect(t.Context(), cfg, opts, "git", in, out), errs.TokenMissing)
}

func TestAFailedConstructionLeavesNothing(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	for what, spoil := range map[string]func(*config.Config){
		"second listener": func(c *config.Config) {
			second := c.Listeners[0]
			second.Name, second.Listen = "second", taken.Addr().String()
			c.Listeners = append(c.Listeners, second)
		},
		"admin": func(c *config.Config) { c.Admin.Listen = taken.Addr().String() },
		"token": func(c *config.Config) { c.Gateway.Token = "" },
		"CA":    func(c *config.Config) { c.Gateway.CAFile = "/nonexistent" },
	} {
		free, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		require.NoError(t, free.Close())
		cfg := newConfig("ws://127.0.0.1:1")
		cfg.Listeners[0].Listen = free.Addr().String()
		spoil(&cfg)
		opts, _ := options(t)
		_, err = New(cfg, opts)
		assert.Error(t, err, what)
		again, err := net.Listen("tcp", free.Addr().String())
		if assert.NoError(t, err, "%s: the listener is closed again", what) {
			again.Close()
		}
	}
}

func TestWithoutAdminAndUnknownListeners(t *testing.T) {
	cfg := newConfig("ws://127.0.0.1:1")
	cfg.Admin.Listen = ""
	a, _, _ := run(t, cfg)
	assert.Nil(t, a.AdminAddr())
	assert.Nil(t, a.Addr("other"))
	assert.Equal(t, "none", a.Status().Quality)
}

func TestEndpoints(t *testing.T) {
	for in, want := range map[string]string{
		"wss://gateway.example":           "wss://gateway.example/v1/tunnel",
		"wss://gateway.example/":          "wss://gateway.example/v1/tunnel",
		"wss://gateway.example:8443/edge": "wss://gateway.example:8443/edge/v1/tunnel",
		"wss://[2001:db8::1]/edge/":       "wss://[2001:db8::1]/edge/v1/tunnel",
	} {
		assert.Equal(t, []tunnel.Endpoint{{URL: want, Weight: 3}}, endpoints(config.Gateway{Endpoints: []string{in}, Weights: []string{"3"}}))
	}
}

func TestDialer(t *testing.T) {
	cfg := config.Default()
	dir := t.TempDir()
	cfg.Gateway.CAFile = filepath.Join(dir, "ca.pem")
	_, err := newDialer(cfg)
	assert.ErrorIs(t, err, errs.KeyUnreadable)
	require.NoError(t, os.WriteFile(cfg.Gateway.CAFile, []byte("no certificate"), 0o600))
	_, err = newDialer(cfg)
	assert.ErrorIs(t, err, errs.KeyUnreadable)
	assert.ErrorContains(t, err, cfg.Gateway.CAFile)
	ca, err := testbed.NewCA(dir)
	require.NoError(t, err)
	cfg.Gateway.CAFile = ca.CertFile()
	cfg.Gateway.Proxy = "http://user:hunter2@proxy.example:3128"
	d, err := newDialer(cfg)
	require.NoError(t, err)
	assert.True(t, d.TLS.RootCAs.Equal(ca.Pool()))
	u, err := d.Proxy(nil)
	require.NoError(t, err)
	assert.Equal(t, "proxy.example:3128", u.Host)
	cfg.Gateway.Proxy = "http://user:hunter2@%zz"
	_, err = newDialer(cfg)
	assert.ErrorIs(t, err, errs.ConfigInvalid)
	assert.NotContains(t, err.Error(), "hunter2")
}

func TestTokenSource(t *testing.T) {
	_, err := newTokenSource(config.Gateway{})
	assert.ErrorIs(t, err, errs.TokenMissing)
	fixed, err := newTokenSource(config.Gateway{Token: "fixed"})
	require.NoError(t, err)
	token, err := fixed.get()
	require.NoError(t, err)
	assert.Equal(t, "fixed", token)

	file := filepath.Join(t.TempDir(), "token")
	s, err := newTokenSource(config.Gateway{TokenFile: file})
	require.NoError(t, err, "a file may come later")
	_, err = s.get()
	assert.ErrorIs(t, err, errs.TokenUnreadable)
	require.NoError(t, os.WriteFile(file, []byte(" \n"), 0o600))
	_, err = s.get()
	assert.ErrorIs(t, err, errs.TokenUnreadable)
	assert.ErrorContains(t, err, "is empty")
	require.NoError(t, testbed.WriteToken(file, "one"))
	token, err = s.get()
	require.NoError(t, err)
	assert.Equal(t, "one", token, "without its line end")

	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		renewed := make(chan string, 10)
		done := make(chan error, 1)
		go func() { done <- s.watch(ctx, func(token string) { renewed <- token }) }()
		synctest.Wait()
		require.NoError(t, testbed.WriteToken(file, "two"))
		assert.Equal(t, "two", <-renewed)
		require.NoError(t, os.Remove(file))
		<-time.After(3 * tokenPoll)
		require.NoError(t, testbed.WriteToken(file, "two"))
		<-time.After(3 * tokenPoll)
		assert.Empty(t, renewed, "the same token is no change")
		require.NoError(t, testbed.WriteToken(file, "three"))
		assert.Equal(t, "three", <-renewed)
		cancel()
		assert.NoError(t, <-done)
	})
}

func TestMixed(t *testing.T) {
	assert.False(t, mixed(nil))
	assert.False(t, mixed([]config.Listener{{Priority: "low"}, {Priority: "low"}}))
	assert.True(t, mixed([]config.Listener{{Priority: "low"}, {Priority: "high"}}))
}
