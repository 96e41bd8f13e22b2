package admin_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/gateway/admin"
	"fairlead/shared/errs"
)

// Verifies: R2.7, R3.4, R9.6
func TestAddresses(t *testing.T) {
	a := serve(t, nil)
	for path, want := range map[string]string{"/api/tunnel/diagnostics": `"store": "redis"`, "/api/tunnel/config": `"source": "x.yaml:1"`, "/api/tunnels": `"id": "t1"`,
		"/api/tunnels/t2": `"state": "detached"`, "/api/tunnels?tenant=dev": `"id": "t2"`, "/api/tunnels?route=git": `"id": "t1"`, "/api/streams?tenant=dev": "[]\n",
		"/api/streams?tunnel=t1&route=git&backend=git": `"pod": "p-0"`, "/api/streams?backend=other": "[]\n", "/api/tenants": `"bandwidth": 0`, "/api/backends": `"name": "git"`,
		"/api/backends/git": `"name": "git"`, "/api/revocations": `"id": "r1"`, "/api/live?after=2026-11-24T06:00:00.5Z": `"t": "2026-11-24T06:00:01.123456789Z"`,
		"/api/replicas": `"self": "gw/1"`, "/api/drain": `"phase": "moving"`, "/api/tunnels/t1": `"via": "gw-b"`, "/api/events?after=1": `"id": 2`, "/api/log-level": `"level": "info"`, "/api/openapi.json": `"openapi": "3.1.0"`,
		"/api/tunnel/metrics": "up 1", "/metrics": "up 1", "/healthz": "ok", "/readyz?probe=1": "ready", "/debug/pprof/": "goroutine", "/debug/pprof/goroutine?debug=1": "goroutine profile",
		"/debug/pprof/cmdline": "admin.test", "/": "<title>page</title>", "/ui/app.js": "<title>page</title>"} {
		status, body := a.ask("GET", path, "")
		assert.Equal(t, 200, status, path)
		assert.Contains(t, body, want, path)
	}
	_, body := a.ask("GET", "/api/tunnels?route=other", "")
	assert.Equal(t, "[]\n", body)
	_, body = a.ask("GET", "/api/tunnels?tenant=dev", "")
	assert.NotContains(t, body, "payments")
	_, body = a.ask("GET", "/api/events?after=1", "")
	assert.NotContains(t, body, `"id": 1`)
	for _, path := range []string{"/api/tunnels/t3", "/api/backends/none", "/nowhere", "/api/", "/debug/pprof/none"} {
		status, _ := a.ask("GET", path, "")
		assert.Equal(t, 404, status, path)
	}
}

func TestChanges(t *testing.T) {
	a := serve(t, nil)
	for _, c := range []struct {
		method, path, body string
		status             int
		effect             string
	}{
		{"DELETE", "/api/tunnels/t1", "", 204, "end t1"},
		{"DELETE", "/api/tunnels/t3", "", 404, "end t3"},
		{"DELETE", "/api/streams/t1/1", "", 204, "end t1/1"},
		{"DELETE", "/api/streams/t1/2", "", 404, "end t1/2"},
		{"PUT", "/api/backends/git/breaker", "open", 200, "breaker open"},
		{"PUT", "/api/backends/git/breaker", `{"mode":"auto"}`, 200, "breaker auto"},
		{"PUT", "/api/backends/none/breaker", "closed\n", 404, "breaker closed"},
		{"POST", "/api/revocations", `{"token_id":"j","expires":"2026-11-24T07:00:00Z"}`, 201, "revoke"},
		{"DELETE", "/api/revocations/r1", "", 204, "unrevoke r1"},
		{"DELETE", "/api/revocations/r9", "", 404, "unrevoke r9"},
		{"POST", "/api/reload", "", 200, "reload"},
		{"POST", "/api/drain", "{}", 202, "drain"},
	} {
		status, body := a.ask(c.method, c.path, c.body)
		assert.Equal(t, c.status, status, "%s %s: %s", c.method, c.path, body)
		effects := a.effects()
		require.GreaterOrEqual(t, len(effects), 2, c.path)
		assert.Equal(t, []string{"audit allowed", c.effect}, effects[:2], "%s %s: recorded before it takes effect", c.method, c.path)
		if c.status >= 400 {
			assert.Equal(t, []string{"audit failed"}, effects[2:], "%s %s", c.method, c.path)
			assert.Contains(t, body, "FL-S419")
		} else {
			assert.Empty(t, effects[2:], c.path)
		}
	}
}

// Verifies: R9.8, R11.7
func TestLogLevel(t *testing.T) {
	a := serve(t, nil)
	for _, level := range []string{"error", "warn", "info", "debug", "trace"} {
		for _, body := range []string{level, level + "\n", `{"level": "` + level + `"}`} {
			status, _ := a.ask("PUT", "/api/log-level", body)
			assert.Equal(t, 200, status)
			assert.Equal(t, []string{"audit allowed", "level " + level}, a.effects())
		}
	}
	status, body := a.ask("PUT", "/api/log-level", "loud")
	assert.Equal(t, 400, status)
	assert.Contains(t, body, `\"level\" takes one of error, warn, info, debug, trace`)
	assert.Equal(t, []string{"audit refused"}, a.effects())
}

// What is asked wrongly is refused by the name of the field, and does nothing.
func TestRequestsAreReadStrictly(t *testing.T) {
	a := serve(t, nil)
	for _, c := range [][4]string{
		{"PUT", "/api/backends/git/breaker", "ajar", `"mode" takes one of open, closed, auto`},
		{"PUT", "/api/backends/git/breaker", "", `"mode" is missing; it takes one of open, closed, auto`},
		{"PUT", "/api/backends/git/breaker", `{"mode":"open","x":1}`, `there is no "x" here; allowed are mode`},
		{"PUT", "/api/backends/git/breaker", `{"Mode":"open"}`, `there is no "Mode" here`},
		{"PUT", "/api/backends/git/breaker", `{"mode":"open","mode":"closed"}`, `"mode" is given twice`},
		{"PUT", "/api/backends/git/breaker", `{"mode":1}`, `"mode" takes one of`},
		{"PUT", "/api/backends/git/breaker", `{"mode":null}`, `"mode" takes one of`},
		{"PUT", "/api/backends/git/breaker", `{"mode":"open"} {}`, `something follows the JSON object`},
		{"PUT", "/api/backends/git/breaker", `{"mode":"open"`, `not valid JSON`},
		{"PUT", "/api/backends/git/breaker", "{\"mode\":\"\xff\"}", `not UTF-8`},
		{"PUT", "/api/backends/git/breaker", strings.Repeat("x", 4097), `the body is over 4096 bytes`},
		{"PUT", "/api/backends/git/breaker?force=1", "open", `there is no "force" here; nothing is allowed`},
		{"POST", "/api/revocations", `{}`, `at least one of token_id, subject, tenant is needed`},
		{"POST", "/api/revocations", `{"token_id":""}`, `at least one of`},
		{"POST", "/api/revocations", `["j"]`, `not a JSON object`},
		{"POST", "/api/revocations", `{"tenant":"` + strings.Repeat("x", 513) + `"}`, `"tenant" takes a text of at most 512 bytes`},
		{"POST", "/api/revocations", `{"token_id":"j","expires":"tomorrow"}`, `"expires" takes a time such as`},
		{"POST", "/api/policy/test", `{"tenant":"dev"}`, `"route" is missing; it takes a text of at most 255 bytes`},
		{"POST", "/api/policy/test", `{"tenant":"dev","route":""}`, `"route" takes a text`},
		{"POST", "/api/drain", `{"now":true}`, `there is no "now" here; nothing is allowed`},
		{"POST", "/api/drain", `now`, `not a JSON object`},
		{"GET", "/api/tunnels?tennant=dev", "", `there is no "tennant" here; allowed are tenant, route, limit, after`},
		{"GET", "/api/tunnels?limit=0", "", `"limit" takes a whole number of at least 1 and at most 5000`},
		{"GET", "/api/tunnels?limit=5001", "", `"limit" takes`},
		{"GET", "/api/tunnels?limit=1&limit=2", "", `"limit" is given 2 times`},
		{"GET", "/api/tunnels?after=x", "", `"after" takes what the header Link`},
		{"GET", "/api/tunnels?a=%zz", "", `the query is malformed`},
		{"GET", "/api/tunnels?tenant=a;b", "", `the query is malformed`},
		{"GET", "/api/events?after=-1", "", `"after" takes a whole number`},
		{"GET", "/api/live?after=now", "", `"after" takes a time`},
		{"GET", "/api/tunnels", "{}x", `something follows`},
		{"GET", "/debug/pprof/heap?seconds=1000", "", `"seconds" takes a whole number of at most 100`},
	} {
		got := a.send(a.request(c[0], c[1], c[2]))
		assert.Equal(t, 400, got.StatusCode, c)
		assert.Equal(t, errs.BadRequest.String(), got.code(t), c)
		assert.Contains(t, got.message(t), c[3], c)
		for _, effect := range a.effects() {
			assert.Equal(t, "audit refused", effect, c)
		}
	}
}

func TestMethods(t *testing.T) {
	a := serve(t, nil)
	for path, allow := range map[string]string{"/api/tunnels": "GET, HEAD, OPTIONS", "/api/tunnels/x": "GET, HEAD, DELETE, OPTIONS", "/api/log-level": "GET, HEAD, PUT, OPTIONS",
		"/api/drain": "GET, HEAD, POST, OPTIONS", "/healthz": "GET, HEAD, OPTIONS"} {
		got := a.send(a.request("PATCH", path, ""))
		assert.Equal(t, 405, got.StatusCode, path)
		assert.Equal(t, allow, got.Header.Get("Allow"), path)
		assert.Contains(t, got.message(t), "allowed are "+allow)
		got = a.send(a.request("OPTIONS", path, ""))
		assert.Equal(t, 204, got.StatusCode, path)
		assert.Equal(t, allow, got.Header.Get("Allow"), path)
	}
	got := a.send(a.request("HEAD", "/api/tunnels", ""))
	assert.Equal(t, 200, got.StatusCode)
	assert.Equal(t, "2", got.Header.Get("X-Total-Count"))
	assert.Empty(t, got.body)
	assert.Equal(t, 404, a.send(a.request("OPTIONS", "/nowhere", "")).StatusCode)
	assert.Empty(t, a.effects())
}

// Nothing keeps an answer, guesses its type, or shows it in a frame; and the logs know it by an id.
func TestHeaders(t *testing.T) {
	a := serve(t, nil)
	ids := map[string]bool{}
	for _, path := range []string{"/api/tunnels", "/api/nowhere", "/api/tunnels?x=1", "/metrics", "/debug/pprof/"} {
		got := a.send(a.request("GET", path, "", "X-Request-Id", "mine"))
		for name, want := range map[string]string{"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
			"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'"} {
			assert.Equal(t, want, got.Header.Get(name), path)
		}
		id := got.Header.Get("X-Request-Id")
		assert.Regexp(t, "^[0-9a-f]{16}$", id)
		assert.False(t, ids[id])
		ids[id] = true
		assert.Equal(t, 1, strings.Count(a.log.String(), "request="+id), "one line for a request")
	}
	assert.Contains(t, a.log.String(), "actor=local role=operator method=GET path=/api/tunnels status=200 duration_ms=")
	assert.Empty(t, a.send(a.request("GET", "/", "")).Header.Get("Content-Security-Policy"), "the page has its own")
}

func TestAPanicCostsARequest(t *testing.T) {
	a := serve(t, func(c *admin.Config) { c.Diagnostics = func() admin.Diagnostics { panic("boom") } })
	status, body := a.ask("GET", "/api/tunnel/diagnostics", "")
	assert.Equal(t, 500, status)
	assert.NotContains(t, body, "boom")
	assert.Contains(t, a.log.String(), "panic=boom")
	status, _ = a.ask("GET", "/api/tunnels", "")
	assert.Equal(t, 200, status)
}

func TestWhatAGatewayDoesNotHave(t *testing.T) {
	a := serve(t, func(c *admin.Config) {
		c.Live, c.Events, c.Streams, c.EndStream, c.Tenants, c.Revocations, c.Revoke, c.Unrevoke, c.Reload, c.Level, c.Page, c.Audit, c.Registry, c.Replicas, c.DrainProgress = nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil
	})
	for _, c := range [][2]string{{"GET", "/api/live"}, {"GET", "/api/events"}, {"GET", "/api/streams"}, {"DELETE", "/api/streams/t1/1"}, {"GET", "/api/tenants"}, {"GET", "/api/revocations"},
		{"DELETE", "/api/revocations/r1"}, {"POST", "/api/reload"}, {"GET", "/api/log-level"}, {"GET", "/"}} {
		status, body := a.ask(c[0], c[1], "")
		assert.Equal(t, 404, status, c)
		assert.Contains(t, body, "FL-S419", c)
	}
	status, _ := a.ask("GET", "/api/tunnels?route=git", "")
	assert.Equal(t, 400, status)
	status, _ = a.ask("POST", "/api/drain", "")
	assert.Equal(t, 202, status)
	assert.Equal(t, http.StatusOK, a.send(a.request("GET", "/api/tunnels", "")).StatusCode)
}
