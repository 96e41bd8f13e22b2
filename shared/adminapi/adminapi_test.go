package adminapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"fairlead/shared/adminapi"
	"fairlead/shared/errs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type api struct {
	*adminapi.Server
	t     *testing.T
	log   bytes.Buffer
	ready error
	level string
	did   int
}

func serve(t *testing.T, change func(*adminapi.Config)) *api {
	a := &api{t: t}
	cfg := adminapi.Config{Listen: "127.0.0.1:0", Ready: func() error { return a.ready },
		Metrics: func(w io.Writer) error { _, err := io.WriteString(w, "up 1\n"); return err },
		SetLevel: func(level string) error {
			if level != "debug" {
				return errs.New(errs.ConfigInvalid, "log level %q", level)
			}
			a.level = level
			return nil
		},
		Routes: func(mux *http.ServeMux) {
			mux.HandleFunc("GET /api/it", adminapi.Show(func() any { return map[string]int{"n": 1} }))
			mux.HandleFunc("POST /api/it", adminapi.Do(func() { a.did++ }))
		},
		Logger: slog.New(slog.NewTextHandler(&a.log, nil))}
	if change != nil {
		change(&cfg)
	}
	var err error
	a.Server, err = adminapi.New(cfg)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- a.Serve() }()
	t.Cleanup(func() {
		assert.NoError(t, a.Shutdown(context.Background()))
		assert.NoError(t, <-done)
	})
	return a
}

func (a *api) ask(method, path, body string, header ...string) (*http.Response, string) {
	a.t.Helper()
	req, err := http.NewRequestWithContext(a.t.Context(), method, "http://"+a.Addr().String()+path, strings.NewReader(body))
	require.NoError(a.t, err)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
		if header[i] == "Host" {
			req.Host = header[i+1]
		}
	}
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	require.NoError(a.t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(a.t, err)
	return resp, string(text)
}

// Verifies: R11.2
func TestHealth(t *testing.T) {
	a := serve(t, nil)
	for _, path := range []string{"/healthz", "/startupz", "/readyz"} {
		resp, _ := a.ask("GET", path, "")
		assert.Equal(t, 200, resp.StatusCode, path)
	}
	a.ready = errs.New(errs.NoTunnel, "there is no tunnel")
	resp, body := a.ask("GET", "/readyz", "")
	assert.Equal(t, 503, resp.StatusCode)
	assert.Equal(t, "application/json", resp.Header.Get("Content-Type"))
	var answer errs.Answer
	require.NoError(t, json.Unmarshal([]byte(body), &answer))
	assert.Equal(t, "FL-N108", answer.Code)
	assert.Equal(t, "there is no tunnel", answer.Message)
	resp, _ = a.ask("GET", "/healthz", "")
	assert.Equal(t, 200, resp.StatusCode, "not ready is not ill")
}

// Verifies: R3.4
func TestMetrics(t *testing.T) {
	resp, body := serve(t, nil).ask("GET", "/metrics", "")
	assert.Equal(t, "text/plain; version=0.0.4; charset=utf-8", resp.Header.Get("Content-Type"))
	assert.Equal(t, "up 1\n", body)
}

// Verifies: R11.7
func TestLogLevel(t *testing.T) {
	a := serve(t, nil)
	for _, body := range []string{"debug", "debug\n", `{"level": "debug"}`} {
		a.level = ""
		resp, answer := a.ask("PUT", "/api/log-level", body)
		assert.Equal(t, 200, resp.StatusCode)
		assert.Equal(t, "{}\n", answer)
		assert.Equal(t, "debug", a.level, body)
	}
	for _, body := range []string{"", "loud", `{"level": "loud"}`, `{"other": "debug"}`, strings.Repeat("x", 1<<20)} {
		resp, answer := a.ask("PUT", "/api/log-level", body)
		assert.Equal(t, 400, resp.StatusCode)
		assert.Contains(t, answer, "FL-S422")
	}
}

func TestTheProgramsOwnAddresses(t *testing.T) {
	a := serve(t, nil)
	resp, body := a.ask("GET", "/api/it", "")
	assert.Equal(t, "application/json", resp.Header.Get("Content-Type"))
	assert.JSONEq(t, `{"n": 1}`, body)
	resp, body = a.ask("POST", "/api/it", "")
	assert.Equal(t, 202, resp.StatusCode)
	assert.Equal(t, "{}\n", body)
	assert.Equal(t, 1, a.did)
	assert.Contains(t, a.log.String(), "admin request", "what changes something is logged")
	for _, ask := range [][2]string{{"GET", "/nowhere"}, {"DELETE", "/api/it"}, {"POST", "/healthz"}} {
		resp, body = a.ask(ask[0], ask[1], "")
		assert.Equal(t, 404, resp.StatusCode)
		assert.Contains(t, body, "FL-S419")
	}
}

func TestWebPagesAreRefused(t *testing.T) {
	a := serve(t, nil)
	for _, header := range [][]string{{"Origin", "https://evil.example"}, {"Origin", "null"}, {"Host", "evil.example"}, {"Host", "evil.example:80"},
		{"Host", "localhost.evil.example"}, {"Host", "[::1].evil.example"}, {"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", "no-cors"},
		{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "iframe"}, {"Sec-Fetch-Site", "new-words"}} {
		for _, method := range []string{"GET", "POST"} {
			resp, body := a.ask(method, "/api/it", "", header...)
			assert.Equal(t, 401, resp.StatusCode, "%v", header)
			assert.Contains(t, body, "FL-A208")
			assert.NotEmpty(t, resp.Header.Get("WWW-Authenticate"))
		}
	}
	assert.Zero(t, a.did)
	for _, header := range [][]string{{"Origin", "http://" + a.Addr().String()}, {"Host", "localhost"}, {"Host", "[::1]:99"}, {"Host", "[::1]"},
		{"Sec-Fetch-Site", "same-origin"}, {"Sec-Fetch-Site", "none"}} {
		resp, _ := a.ask("POST", "/api/it", "", header...)
		assert.Equal(t, 202, resp.StatusCode, "%v", header)
	}
	followed := []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"}
	resp, _ := a.ask("GET", "/api/it", "", followed...)
	assert.Equal(t, 200, resp.StatusCode, "a link that a person follows")
	did := a.did
	resp, _ = a.ask("POST", "/api/it", "", followed...)
	assert.Equal(t, 401, resp.StatusCode, "a form that another page sends")
	assert.Equal(t, did, a.did)
	resp, _ = a.ask("GET", "/healthz", "", "Host", "pod.example")
	assert.Equal(t, 200, resp.StatusCode, "probes come by any name")
}

func TestOtherMachinesAreRefused(t *testing.T) {
	for from, ok := range map[string]bool{"127.0.0.1:1": true, "[::1]:1": true, "127.9.9.9:1": true, "10.0.0.1:1": false, "[fe80::1]:1": false, "": false} {
		r := httptest.NewRequest("GET", "http://127.0.0.1/api/it", nil)
		r.RemoteAddr = from
		err := adminapi.OnThisMachine(r)
		if ok {
			assert.NoError(t, err, from)
		} else {
			assert.ErrorIs(t, err, errs.AdminDenied, from)
		}
	}
}

func TestARuleOfTheProgramsOwn(t *testing.T) {
	a := serve(t, func(c *adminapi.Config) {
		c.Allow = func(*http.Request) error { return errors.New("the vault is at /secret/path") }
	})
	resp, body := a.ask("GET", "/api/"+strings.Repeat("x", 4000), "")
	assert.Equal(t, 500, resp.StatusCode)
	assert.NotContains(t, body, "/secret/path")
	assert.Less(t, a.log.Len(), 1000, "strangers do not fill the log")
}

func TestListenAndClose(t *testing.T) {
	a := serve(t, nil)
	_, err := adminapi.New(adminapi.Config{Listen: a.Addr().String(), Logger: slog.New(slog.DiscardHandler)})
	assert.ErrorIs(t, err, errs.ListenFailed)

	unserved, err := adminapi.New(adminapi.Config{Listen: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	require.NoError(t, unserved.Shutdown(t.Context()))
	_, err = net.Dial("tcp", unserved.Addr().String())
	assert.Error(t, err, "what was never served is closed too")
	assert.NoError(t, unserved.Serve(), "a stop that came before is no failure")
}
