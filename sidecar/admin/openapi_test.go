package admin_test

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/config"
	"fairlead/shared/errs"
	"fairlead/shared/testbed/openapi"
	"fairlead/sidecar/admin"
	"fairlead/sidecar/status"
)

var update = flag.Bool("update", false, "write docs/sidecar-openapi.json, and the table in docs/api.md")

// compare writes a file of the documentation, or says that it is not what the table of routes says.
func compare(t *testing.T, file string, want []byte) {
	t.Helper()
	if *update {
		require.NoError(t, os.WriteFile(file, want, 0o644))
	}
	got, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(want, got), "%s is out of date: go test ./sidecar/admin -run Documentation -update", file)
}

func document(t *testing.T) []byte {
	t.Helper()
	raw, err := admin.Document()
	require.NoError(t, err)
	return raw
}

func TestDocumentation(t *testing.T) {
	compare(t, "../../docs/sidecar-openapi.json", document(t))

	const file, begin, end = "../../docs/api.md", "<!-- begin: routes of the sidecar's admin API, from the table in sidecar/admin -->\n", "<!-- end: routes of the sidecar -->\n"
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	before, rest, found := strings.Cut(string(text), begin)
	require.True(t, found)
	_, after, found := strings.Cut(rest, end)
	require.True(t, found)
	var table strings.Builder
	table.WriteString("| request | for | answer |\n| --- | --- | --- |\n")
	for _, r := range admin.Routes() {
		who := "this machine"
		if r.Open {
			who = "everybody"
		}
		table.WriteString("| `" + r.Method + " " + r.Path + "` | " + who + " | " + r.Summary + " |\n")
	}
	compare(t, file, []byte(before+begin+table.String()+end+after))
}

// everything is a status that has all that there is to tell.
func everything() status.Status {
	at := time.Date(2026, 11, 24, 9, 0, 0, 5e8, time.UTC)
	return status.Status{Instance: "orders-7d9f", Version: "v1", Started: at, Profile: "unstable", State: "resuming", Since: at, NotReady: "there is no tunnel", Quality: "fair", RTT: 1.5, Loss: .25,
		Tunnels: []status.Tunnel{{Slot: 1, ID: "8a9c", Endpoint: "wss://gateway.example/", Replica: "gw-0", Via: "gw-1", State: "resuming", Since: at, RTT: 1.5, Loss: .25, Quality: "fair", Streams: 1, Resumes: 2, Sent: 3,
			Received: 4, Replayed: 5, Error: "FL-N105 the lane was lost"}, {Slot: 2, State: "failed"}},
		Queue:     status.Queue{Length: 6, Size: 100, Pressure: true, Waiting: status.Waiting{High: 1, Normal: 2, Low: 3}, Refused: 4, Expired: 5},
		Spool:     &status.Spool{Connections: 1, Bytes: 2, Size: 3, Oldest: &at, Delivering: 1, Delivered: 4, Dropped: 5, Quarantined: 6, Error: "full"},
		Listeners: []status.Listener{{Name: "git", Listen: "127.0.0.1:2222", Route: "git", Priority: "high", Active: 1, Waiting: 1, Total: 2, Failed: 1, Sent: 3, Received: 4}},
		Heartbeat: status.Heartbeat{Interval: "22s", Learned: true, Reason: "cut at 30s"},
		Endpoints: []status.Endpoint{{URL: "wss://gateway.example/", Weight: 1, State: "failing", Active: true, Since: at, Error: "FL-N101"}},
		Shutdown:  &status.Shutdown{Phase: "serving", Reason: "sigterm", Connections: 1, SpoolBytes: 2, Deadline: at},
		Events:    []status.Event{{Time: at, Tunnel: 1, State: "resuming", Attempt: 1, DelayMS: 200, Endpoint: "wss://gateway.example/", Code: "FL-N105", Reason: "lost"}}}
}

// Each answer of each request, and each way to refuse one, is what the document says: of a sidecar with everything to tell,
// and of one that offers the least.
func TestAnswersAreAsDocumented(t *testing.T) {
	check := openapi.New(t, document(t))
	nothing := func() {}
	level := func(l string) error {
		if l == "loud" {
			return errs.New(errs.ConfigInvalid, "no such level")
		}
		return nil
	}
	least := admin.Config{Listen: "127.0.0.1:0", Status: func() status.Status { return status.Status{State: "disconnected"} }, Reconnect: nothing, Drain: nothing, Quit: nothing,
		Ready: func() error { return errs.New(errs.NoTunnel, "there is no tunnel") }, SetLevel: level, Metrics: func(w io.Writer) error { _, err := io.WriteString(w, "up 1\n"); return err }, Logger: slog.New(slog.DiscardHandler)}
	most := least
	most.Status, most.Ready = everything, func() error { return nil }
	most.Configuration = func() []config.Entry {
		return []config.Entry{{Key: "queue.size", Value: 100, Source: "default"}, {Key: "listeners", Value: []string{}, Source: "a:1"}}
	}
	most.Reload = func() (status.Reloaded, error) { return status.Reloaded{Applied: []string{"log.level"}}, nil }
	invalid := most
	invalid.Reload = func() (status.Reloaded, error) {
		return status.Reloaded{}, errs.New(errs.ConfigInvalid, "queue.size: 0: allowed: 1 to 100000")
	}
	offered := map[int]int{}
	for _, cfg := range []admin.Config{least, most, invalid} {
		s := start(t, cfg)
		if cfg.Reload != nil {
			require.Eventually(t, func() bool { return s.text(t, "GET", "/api/history", "") != "[]\n" }, time.Minute, 20*time.Millisecond, "the first sample")
		}
		for _, r := range admin.Routes() {
			body := ""
			if r.Body {
				body = `{"level":"debug"}`
			}
			requests := []*http.Request{s.request(t, r.Method, r.Path, body)}
			if r.Body {
				requests = append(requests, s.request(t, r.Method, r.Path, `{"level":"loud"}`), s.request(t, r.Method, r.Path, `{"lev":1}`))
			}
			if r.Query {
				requests = append(requests, s.request(t, r.Method, r.Path+"?after=2026-11-24T06:00:00.5Z", ""), s.request(t, r.Method, r.Path+"?after=now", ""), s.request(t, r.Method, r.Path+"?x=1", ""))
			}
			if !r.Open {
				evil := s.request(t, r.Method, r.Path, body)
				evil.Header.Set("Origin", "https://evil.example")
				requests = append(requests, evil)
			}
			for i, req := range requests {
				resp, text := s.send(t, req)
				assert.Empty(t, check.Answer(req, resp, text), "%s %s: %d %s", req.Method, req.URL, resp.StatusCode, text)
				if i == 0 {
					offered[resp.StatusCode]++
				}
			}
		}
	}
	assert.Equal(t, map[int]int{200: 8 + 11 + 10, 202: 9, 404: 2, 503: 1, errs.ConfigInvalid.Info().HTTP: 1}, offered)
	assert.Empty(t, check.Request(httpRequest(t, "PUT", "/api/log-level", "Content-Type", "application/json"), `{"level":"debug"}`))
	assert.NotEmpty(t, check.Request(httpRequest(t, "PUT", "/api/log-level", "Content-Type", "application/json"), `{"level":"loud"}`))
}

// The example in the documentation is an answer that could be.
func TestTheExampleIsAsDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/api.md")
	require.NoError(t, err)
	_, rest, found := strings.Cut(string(text), "<!-- end: routes of the sidecar -->")
	require.True(t, found)
	_, rest, found = strings.Cut(rest, "`GET /api/status`:\n\n```json\n")
	require.True(t, found)
	example, _, found := strings.Cut(rest, "```\n")
	require.True(t, found)
	answer := &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"application/json"}}}
	assert.Empty(t, openapi.New(t, document(t)).Answer(httpRequest(t, "GET", "/api/status", "", ""), answer, example))
}

// The checker can say no.
func TestTheCheckerFinds(t *testing.T) {
	check := openapi.New(t, document(t))
	s := start(t, admin.Config{Listen: "127.0.0.1:0", Status: everything, Ready: func() error { return nil }, Logger: slog.New(slog.DiscardHandler), Metrics: func(io.Writer) error { return nil },
		Reconnect: func() {}, Drain: func() {}, Quit: func() {}})
	req := s.request(t, "GET", "/api/status", "")
	resp, body := s.send(t, req)
	require.Empty(t, check.Answer(req, resp, body))
	for what, changed := range map[string]string{"a field that is missing": strings.Replace(body, `"replica"`, `"replicas"`, 1), "a wrong type": strings.Replace(body, `"resumes": 2`, `"resumes": "2"`, 1),
		"a wrong word": strings.Replace(body, `"resuming"`, `"asleep"`, 1), "no time": strings.Replace(body, "2026-", "26-", 1), "a new field": strings.Replace(body, "{", `{"x": 1,`, 1)} {
		require.NotEqual(t, body, changed, what)
		assert.NotEmpty(t, check.Answer(req, resp, changed), what)
	}
	var nulled map[string]any
	require.NoError(t, json.Unmarshal([]byte(body), &nulled))
	for field, may := range map[string]bool{"spool": true, "shutdown": true, "queue": false, "tunnels": false, "started": false} {
		was := nulled[field]
		nulled[field] = nil
		raw, err := json.Marshal(nulled)
		require.NoError(t, err)
		assert.Equal(t, may, len(check.Answer(req, resp, string(raw))) == 0, "%s may be null", field)
		nulled[field] = was
	}
}

// server is a running API.
type server struct{ *admin.Server }

func start(t *testing.T, cfg admin.Config) server {
	t.Helper()
	s, err := admin.New(cfg)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- s.Serve() }()
	t.Cleanup(func() {
		assert.NoError(t, s.Shutdown(context.Background()))
		assert.NoError(t, <-done)
	})
	return server{s}
}

func (s server) request(t *testing.T, method, path, body string) *http.Request {
	t.Helper()
	req, err := http.NewRequest(method, "http://"+s.Addr().String()+path, strings.NewReader(body))
	require.NoError(t, err)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	return req
}

func (s server) send(t *testing.T, req *http.Request) (*http.Response, string) {
	t.Helper()
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp, string(body)
}

func (s server) text(t *testing.T, method, path, body string) string {
	t.Helper()
	_, text := s.send(t, s.request(t, method, path, body))
	return text
}

func httpRequest(t *testing.T, method, path string, header ...string) *http.Request {
	t.Helper()
	req, err := http.NewRequest(method, "http://127.0.0.1"+path, nil)
	require.NoError(t, err)
	req.Header.Set(header[0], header[1])
	return req
}
