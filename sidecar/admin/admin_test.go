package admin_test

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"fairlead/sidecar/admin"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestWhatAPersonMayAsk(t *testing.T) {
	var did []string
	note := func(what string) func() { return func() { did = append(did, what) } }
	s, err := admin.New(admin.Config{Listen: "127.0.0.1:0", Ready: func() error { return nil }, Status: func() any { return map[string]string{"state": "connected"} },
		Reconnect: note("reconnect"), Drain: note("drain"), Quit: note("quit"), SetLevel: func(string) error { return nil },
		Metrics: func(io.Writer) error { return nil }, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- s.Serve() }()
	ask := func(method, path string) (int, []byte) {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.Addr().String()+path, nil)
		require.NoError(t, err)
		resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp.StatusCode, body
	}
	for _, path := range []string{"/api/reconnect", "/api/drain", "/quitquitquit"} {
		status, _ := ask("POST", path)
		assert.Equal(t, 202, status, path)
		status, _ = ask("GET", path)
		assert.Equal(t, 404, status, "a link that is followed does nothing")
	}
	assert.Equal(t, []string{"reconnect", "drain", "quit"}, did)
	status, body := ask("GET", "/api/status")
	assert.Equal(t, 200, status)
	var got map[string]string
	require.NoError(t, json.Unmarshal(body, &got))
	assert.Equal(t, "connected", got["state"])
	require.NoError(t, s.Shutdown(t.Context()))
	assert.NoError(t, <-done)
}
