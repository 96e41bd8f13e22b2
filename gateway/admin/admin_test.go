package admin_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"fairlead/gateway/admin"
	"fairlead/shared/adminapi"
	"fairlead/shared/errs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type api struct {
	*adminapi.Server
	t       *testing.T
	log     bytes.Buffer
	drained int
}

func config(a *api, tokenFile string) admin.Config {
	show := func(what string) func() any { return func() any { return map[string]string{"this": what} } }
	return admin.Config{Listen: "127.0.0.1:0", TokenFile: tokenFile, Ready: func() error { return nil }, Diagnostics: show("diagnostics"), Tunnels: show("tunnels"),
		EndTunnel: func(id string) bool { return id == "t1" }, Backends: show("backends"), Effective: show("config"),
		SetBreaker: func(name, mode string) error {
			if name != "git" {
				return errs.New(errs.NotFound, "no backend %q", name)
			}
			if mode != "open" {
				return errs.New(errs.BadRequest, "mode %q", mode)
			}
			return nil
		},
		Drain: func() { a.drained++ }, SetLevel: func(string) error { return nil },
		Metrics: func(w io.Writer) error { _, err := io.WriteString(w, "up 1\n"); return err },
		Logger:  slog.New(slog.NewTextHandler(&a.log, nil))}
}

func serve(t *testing.T, tokenFile string) *api {
	t.Helper()
	a := &api{t: t}
	var err error
	a.Server, err = admin.New(config(a, tokenFile))
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- a.Serve() }()
	t.Cleanup(func() {
		assert.NoError(t, a.Shutdown(context.Background()))
		assert.NoError(t, <-done)
	})
	return a
}

func (a *api) ask(method, path, body string, header ...string) (int, string) {
	a.t.Helper()
	req, err := http.NewRequestWithContext(a.t.Context(), method, "http://"+a.Addr().String()+path, strings.NewReader(body))
	require.NoError(a.t, err)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	require.NoError(a.t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(a.t, err)
	return resp.StatusCode, string(text)
}

// Verifies: R2.7, R3.4
func TestAddresses(t *testing.T) {
	a := serve(t, "")
	for path, want := range map[string]string{"/api/tunnel/diagnostics": "diagnostics", "/api/tunnel/config": "config", "/api/tunnels": "tunnels", "/api/backends": "backends",
		"/api/tunnel/metrics": "up 1", "/metrics": "up 1", "/debug/pprof/": "goroutine", "/debug/pprof/cmdline": "admin.test"} {
		status, body := a.ask("GET", path, "")
		assert.Equal(t, 200, status, path)
		assert.Contains(t, body, want, path)
	}
	status, _ := a.ask("DELETE", "/api/tunnels/t1", "")
	assert.Equal(t, 204, status)
	status, body := a.ask("DELETE", "/api/tunnels/t2", "")
	assert.Equal(t, 404, status)
	assert.Contains(t, body, "FL-S419")
	status, _ = a.ask("POST", "/api/drain", "")
	assert.Equal(t, 202, status)
	assert.Equal(t, 1, a.drained)
	assert.Contains(t, a.log.String(), "path=/api/drain")
}

func TestBreaker(t *testing.T) {
	a := serve(t, "")
	for body, want := range map[string]int{"open": 200, `{"mode":"open"}`: 200, "ajar": 400, "": 400, strings.Repeat("x", 1<<20): 400} {
		status, _ := a.ask("PUT", "/api/backends/git/breaker", body)
		assert.Equal(t, want, status, "%.20s", body)
	}
	status, _ := a.ask("PUT", "/api/backends/nope/breaker", "open")
	assert.Equal(t, 404, status)
}

func TestOnlyOperatorsHaveTheToken(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	const token = "0123456789abcdef-token"
	require.NoError(t, os.WriteFile(file, []byte(token+"\n"), 0o600))
	a := serve(t, file)
	for _, header := range [][]string{nil, {"Authorization", ""}, {"Authorization", "Bearer "}, {"Authorization", "Bearer wrong-wrong-wrong"}, {"Authorization", token},
		{"Authorization", "Bearer " + token + "x"}, {"Authorization", "Bearer " + token[:10]}} {
		for _, path := range []string{"/api/tunnels", "/debug/pprof/", "/api/log-level", "/nowhere"} {
			status, body := a.ask("GET", path, "", header...)
			assert.Equal(t, 401, status, "%v %s", header, path)
			assert.Contains(t, body, "FL-A208")
		}
	}
	assert.NotContains(t, a.log.String(), token)
	for _, path := range []string{"/healthz", "/readyz", "/startupz", "/metrics"} {
		status, _ := a.ask("GET", path, "")
		assert.Equal(t, 200, status, "%s asks for no token", path)
	}
	status, _ := a.ask("GET", "/api/tunnels", "", "Authorization", "Bearer "+token)
	assert.Equal(t, 200, status)
	assert.Zero(t, a.drained)

	const next = "another-token-of-some-length"
	require.NoError(t, os.WriteFile(file, []byte(next), 0o600))
	status, _ = a.ask("GET", "/api/tunnels", "", "Authorization", "Bearer "+next)
	assert.Equal(t, 200, status, "a changed file counts at once")
	status, _ = a.ask("GET", "/api/tunnels", "", "Authorization", "Bearer "+token)
	assert.Equal(t, 401, status)

	require.NoError(t, os.Remove(file))
	status, body := a.ask("GET", "/api/tunnels", "", "Authorization", "Bearer "+next)
	assert.Equal(t, 500, status)
	assert.NotContains(t, body, file, "strangers are not told of files")
	assert.Contains(t, a.log.String(), file)
}

func TestATokenFileThatCannotBeUsed(t *testing.T) {
	short := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(short, []byte("short"), 0o600))
	for _, file := range []string{short, short + "-missing"} {
		_, err := admin.New(config(&api{}, file))
		assert.ErrorIs(t, err, errs.KeyUnreadable)
		assert.ErrorContains(t, err, file)
	}
}
