package admin_test

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"fairlead/shared/config"
	"fairlead/shared/errs"
	"fairlead/sidecar/admin"
	"fairlead/sidecar/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs a server and returns how to ask it.
func serve(t *testing.T, cfg admin.Config) (ask func(method, path string) (int, string)) {
	t.Helper()
	nothing := func() {}
	for _, f := range []*func(){&cfg.Reconnect, &cfg.Drain, &cfg.Quit} {
		if *f == nil {
			*f = nothing
		}
	}
	cfg.Listen, cfg.Logger, cfg.Metrics = "127.0.0.1:0", slog.New(slog.DiscardHandler), func(io.Writer) error { return nil }
	if cfg.Ready == nil {
		cfg.Ready = func() error { return nil }
	}
	if cfg.Status == nil {
		cfg.Status = func() status.Status { return status.Status{} }
	}
	s, err := admin.New(cfg)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- s.Serve() }()
	t.Cleanup(func() {
		assert.NoError(t, s.Shutdown(context.Background()))
		assert.NoError(t, <-done)
	})
	return func(method, path string) (int, string) {
		req, err := http.NewRequest(method, "http://"+s.Addr().String()+path, nil)
		require.NoError(t, err)
		resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp.StatusCode, string(body)
	}
}

func TestWhatAPersonMayAsk(t *testing.T) {
	var did []string
	note := func(what string) func() { return func() { did = append(did, what) } }
	ask := serve(t, admin.Config{Reconnect: note("reconnect"), Drain: note("drain"), Quit: note("quit"),
		Status: func() status.Status { return status.Status{State: "connected"} }})
	for _, path := range []string{"/api/reconnect", "/api/drain", "/quitquitquit"} {
		code, _ := ask("POST", path)
		assert.Equal(t, 202, code, path)
		code, _ = ask("GET", path)
		assert.Equal(t, 404, code, "a link that is followed does nothing")
	}
	assert.Equal(t, []string{"reconnect", "drain", "quit"}, did)
	code, body := ask("GET", "/api/status")
	assert.Equal(t, 200, code)
	var got status.Status
	require.NoError(t, json.Unmarshal([]byte(body), &got))
	assert.Equal(t, "connected", got.State)
	for _, path := range []string{"/api/config", "/api/reload", "/api/spool"} {
		code, _ = ask("GET", path)
		assert.Equal(t, 404, code, "%s is not offered", path)
	}
}

func TestConfigurationReloadAndFeatures(t *testing.T) {
	var failure error
	ask := serve(t, admin.Config{Configuration: func() []config.Entry { return []config.Entry{{Key: "queue.size", Value: 100, Source: "default"}} },
		Reload: func() (status.Reloaded, error) { return status.Reloaded{Applied: []string{"log.level"}}, failure },
		Routes: func(mux *http.ServeMux) {
			mux.HandleFunc("GET /api/spool", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(299) })
		}})
	code, body := ask("GET", "/api/config")
	assert.Equal(t, 200, code)
	assert.JSONEq(t, `[{"key":"queue.size","value":100,"source":"default"}]`, body)
	code, body = ask("POST", "/api/reload")
	assert.Equal(t, 200, code)
	assert.JSONEq(t, `{"applied":["log.level"],"needs_restart":[]}`, body)
	failure = errs.New(errs.ConfigInvalid, "queue.size: 0: allowed: 1 to 100000")
	code, body = ask("POST", "/api/reload")
	assert.Equal(t, errs.ConfigInvalid.Info().HTTP, code)
	assert.Contains(t, body, "queue.size: 0")
	code, _ = ask("GET", "/api/spool")
	assert.Equal(t, 299, code)
}

func TestEventsAfterAMoment(t *testing.T) {
	at := time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC)
	ask := serve(t, admin.Config{Status: func() status.Status {
		return status.Status{Events: []status.Event{{Time: at, Reason: "one"}, {Time: at.Add(time.Second), Reason: "two"}}}
	}})
	reasons := func(query string) (all []string) {
		code, body := ask("GET", "/api/events"+query)
		require.Equal(t, 200, code)
		var events []status.Event
		require.NoError(t, json.Unmarshal([]byte(body), &events))
		for _, e := range events {
			all = append(all, e.Reason)
		}
		return all
	}
	assert.Equal(t, []string{"one", "two"}, reasons(""))
	assert.Equal(t, []string{"two"}, reasons("?after=2026-11-24T09:00:00Z"))
	assert.Empty(t, reasons("?after=2026-11-24T10:00:00Z"))
	code, body := ask("GET", "/api/events?after=yesterday")
	assert.Equal(t, 400, code)
	assert.Contains(t, body, `\"after\" takes a time such as 2026-11-24T06:00:00Z`)
}

// An outage of the gateway makes the sidecar not ready, and nothing else.
//
// Verifies: R11.2
func TestAnOutageMakesItNotReadyAndNothingElse(t *testing.T) {
	ask := serve(t, admin.Config{Ready: func() error { return errs.New(errs.NoTunnel, "there is no tunnel to a gateway") }})
	for path, want := range map[string]int{"/healthz": 200, "/startupz": 200, "/readyz": 503, "/metrics": 200} {
		code, body := ask("GET", path)
		assert.Equal(t, want, code, path)
		if want == 503 {
			assert.Contains(t, body, "there is no tunnel to a gateway")
		}
	}
}
