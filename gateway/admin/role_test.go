package admin_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/gateway/admin"
	"fairlead/gateway/audit"
	"fairlead/shared/errs"
)

// questions are requests that change nothing although their method is not GET.
var questions = map[string]bool{"POST /api/policy/test": true, "POST /debug/pprof/symbol": true}

// sample are paths, bodies and the status of success for routes that need more than their path.
func sample(r admin.RouteInfo) (path, body string) {
	path = strings.NewReplacer("{$}", "", "{tunnel}", "t1", "{name}", "git", "{profile}", "goroutine").Replace(r.Path)
	switch {
	case strings.HasPrefix(path, "/api/tunnels/"):
		path = strings.ReplaceAll(path, "{id}", "t1")
	case strings.HasPrefix(path, "/api/streams/"):
		path = strings.ReplaceAll(path, "{id}", "1")
	}
	path = strings.ReplaceAll(path, "{id}", "r1")
	bodies := map[string]string{"PUT /api/backends/{name}/breaker": `{"mode":"auto"}`, "POST /api/revocations": `{"subject":"s"}`, "POST /api/policy/test": `{"tenant":"dev","route":"git"}`,
		"PUT /api/log-level": `{"level":"debug"}`}
	if path == "/debug/pprof/profile" || path == "/debug/pprof/trace" {
		path += "?seconds=1"
	}
	return path, bodies[r.Method+" "+r.Path]
}

// Every route has a role, and nothing that changes something is for viewers.
func TestTheTableIsWhole(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range admin.RoutesOf(full(&api{})) {
		name := r.Method + " " + r.Path
		assert.False(t, seen[name], name)
		seen[name] = true
		assert.Contains(t, []admin.Role{admin.Anyone, admin.Viewer, admin.Operator}, r.Role, name)
		assert.NotEmpty(t, r.Summary, name)
		assert.NotEmpty(t, r.Group, name)
		if r.Changes {
			assert.Equal(t, admin.Operator, r.Role, "%s changes something", name)
		}
		assert.Equal(t, r.Method != "GET" && !questions[name], r.Changes, "%s: requests other than GET change something, and are recorded", name)
		if strings.HasPrefix(r.Path, "/debug/") {
			assert.Equal(t, admin.Operator, r.Role, name)
		}
		if r.Role == admin.Anyone {
			assert.Contains(t, []string{"/healthz", "/readyz", "/startupz", "/metrics"}, r.Path, "nothing else is for everybody")
		}
	}
}

func TestWhoMayDoWhat(t *testing.T) {
	a := serve(t, withTokens(t))
	routes := admin.RoutesOf(a.cfg)
	require.Greater(t, len(routes), 30)
	for _, r := range routes {
		path, body := sample(r)
		name := r.Method + " " + path
		if strings.Contains(path, "seconds=") {
			continue // takes a second, and is asked for in TestAnswersAreAsDocumented
		}
		a.effects()
		a.taken()

		got := a.send(a.request(r.Method, path, body))
		if r.Role == admin.Anyone {
			assert.Equal(t, 200, got.StatusCode, name)
			continue
		}
		assert.Equal(t, 401, got.StatusCode, name)
		assert.Equal(t, errs.AdminDenied.String(), got.code(t), name)
		assert.Equal(t, `Bearer realm="fairlead"`, got.Header.Get("WWW-Authenticate"), name)
		assert.Equal(t, []string{"audit refused"}, a.effects(), name)

		got = a.send(a.request(r.Method, path, body, as(viewerToken)...))
		if r.Role == admin.Operator {
			assert.Equal(t, 403, got.StatusCode, name)
			assert.Equal(t, errs.RoleForbidden.String(), got.code(t), name)
			assert.Equal(t, []string{"audit refused"}, a.effects(), name)
			e := a.taken()[1]
			assert.Equal(t, []any{audit.Administer, "grafana", r.Method + " " + path, "127.0.0.1", errs.RoleForbidden}, []any{e.Action, e.Actor, e.Target, e.Client, e.Code}, name)
		} else {
			assert.Equal(t, 200, got.StatusCode, "%s: %s", name, got.body)
			assert.Empty(t, a.effects(), name)
		}

		got = a.send(a.request(r.Method, path, body, as(operatorToken)...))
		assert.Less(t, got.StatusCode, 300, "%s: %s", name, got.body)
		if effects := a.effects(); r.Changes {
			require.Len(t, effects, 2, name)
			assert.Equal(t, "audit allowed", effects[0], name)
		} else {
			assert.Empty(t, effects, name)
		}
		a.pass(time.Minute)
	}
	assert.NotContains(t, a.log.String(), viewerToken)
	assert.NotContains(t, a.log.String(), operatorToken)
}

func TestOnlyATokenThatIsKnown(t *testing.T) {
	a := serve(t, withTokens(t))
	for _, header := range [][]string{nil, {"Authorization", ""}, {"Authorization", "Bearer "}, {"Authorization", "Bearer wrong-wrong-wrong"}, {"Authorization", operatorToken},
		{"Authorization", "Bearer " + operatorToken + "x"}, {"Authorization", "Bearer " + operatorToken[:10]}, {"Authorization", "Basic " + operatorToken},
		{"Authorization", "Bearer  " + operatorToken}, {"Authorization", "Bearer " + operatorToken + " " + viewerToken}} {
		for _, path := range []string{"/api/tunnels", "/debug/pprof/", "/api/log-level", "/nowhere"} {
			got := a.send(a.request("GET", path, "", header...))
			assert.Equal(t, 401, got.StatusCode, "%v %s", header, path)
			assert.Equal(t, errs.AdminDenied.String(), got.code(t))
		}
		a.pass(time.Minute)
	}
	twice := a.request("GET", "/api/tunnels", "", as(operatorToken)...)
	twice.Header.Add("Authorization", "Bearer "+operatorToken)
	assert.Equal(t, 401, a.send(twice).StatusCode)
	assert.Equal(t, 200, a.send(a.request("GET", "/api/tunnels", "", "Authorization", "bearer "+operatorToken)).StatusCode, "schemes have no case")
	assert.Equal(t, 200, a.send(a.request("GET", "/", "")).StatusCode, "the page asks for the token itself")
}

func TestAChangedTokenFileCountsAtOnce(t *testing.T) {
	a := serve(t, withTokens(t))
	const next = "another-token-of-some-length"
	require.NoError(t, os.WriteFile(a.cfg.TokenFile, []byte(next), 0o600))
	status, _ := a.ask("GET", "/api/tunnels", "", as(next)...)
	assert.Equal(t, 200, status)
	status, _ = a.ask("GET", "/api/tunnels", "", as(operatorToken)...)
	assert.Equal(t, 401, status)
	for i := range 20 { // faster than the clocks of file systems tick, and of equal length
		token := next[:len(next)-1] + string(rune('a'+i))
		require.NoError(t, os.WriteFile(a.cfg.TokenFile, []byte(token), 0o600))
		status, _ = a.ask("GET", "/api/tunnels", "", as(token)...)
		assert.Equal(t, 200, status)
	}

	require.NoError(t, os.Remove(a.cfg.TokenFile))
	for range 3 {
		got := a.send(a.request("GET", "/api/tunnels", "", as(next)...))
		assert.Equal(t, 500, got.StatusCode)
		assert.Equal(t, errs.KeyUnreadable.String(), got.code(t))
		assert.NotContains(t, got.body, a.cfg.TokenFile, "strangers are not told of files")
	}
	assert.Equal(t, 1, strings.Count(a.log.String(), "an admin token cannot be used"), "once")
	assert.Contains(t, a.log.String(), a.cfg.TokenFile)
	status, _ = a.ask("GET", "/api/tunnels", "", as(viewerToken)...)
	assert.Equal(t, 200, status, "the others go on")

	require.NoError(t, os.WriteFile(a.cfg.TokenFile, []byte(viewerToken), 0o600))
	status, body := a.ask("GET", "/api/tunnels", "", as(viewerToken)...)
	assert.Equal(t, 500, status, "whose it is nobody knows: %s", body)
}

func TestTokensThatCannotBeUsed(t *testing.T) {
	good := write(t, operatorToken)
	for _, c := range []struct {
		change func(*admin.Config)
		code   errs.Code
		text   string
	}{
		{func(c *admin.Config) { c.TokenFile = write(t, "short") }, errs.KeyUnreadable, "does not hold 16 to 4096 bytes"},
		{func(c *admin.Config) {
			c.TokenFile = write(t, strings.Repeat(" ", 10)+"short"+strings.Repeat("\n", 10))
		}, errs.KeyUnreadable, "does not hold"},
		{func(c *admin.Config) { c.TokenFile = write(t, strings.Repeat("x", 4097)) }, errs.KeyUnreadable, "does not hold"},
		{func(c *admin.Config) { c.TokenFile = good + "-missing" }, errs.KeyUnreadable, good + "-missing"},
		{func(c *admin.Config) { c.TokenFile = t.TempDir() }, errs.KeyUnreadable, "operator"},
		{func(c *admin.Config) {
			c.TokenFile, c.Tokens = good, []admin.Token{{Name: "other", Role: admin.Viewer, File: write(t, operatorToken+"\n")}}
		}, errs.ConfigInvalid, "operator and other have the same token"},
		{func(c *admin.Config) {
			c.TokenFile, c.Tokens = good, []admin.Token{{Name: "operator", Role: admin.Viewer, File: good}}
		}, errs.ConfigInvalid, "taken"},
		{func(c *admin.Config) { c.Tokens = []admin.Token{{Name: "local", Role: admin.Viewer, File: good}} }, errs.ConfigInvalid, "taken"},
		{func(c *admin.Config) { c.Tokens = []admin.Token{{Name: "a b", Role: admin.Viewer, File: good}} }, errs.ConfigInvalid, "not a name"},
		{func(c *admin.Config) { c.Tokens = []admin.Token{{Role: admin.Viewer, File: good}} }, errs.ConfigInvalid, "not a name"},
		{func(c *admin.Config) {
			c.Tokens = []admin.Token{{Name: strings.Repeat("x", 65), Role: admin.Viewer, File: good}}
		}, errs.ConfigInvalid, "not a name"},
		{func(c *admin.Config) { c.Tokens = []admin.Token{{Name: "a", Role: "admin", File: good}} }, errs.ConfigInvalid, "allowed are viewer and operator"},
		{func(c *admin.Config) { c.Tokens = []admin.Token{{Name: "a", Role: admin.Anyone, File: good}} }, errs.ConfigInvalid, "allowed are viewer and operator"},
	} {
		_, err := admin.New(newAPI(t, c.change).cfg)
		require.ErrorIs(t, err, c.code, c.text)
		assert.ErrorContains(t, err, c.text)
		assert.NotContains(t, err.Error(), operatorToken)
	}
}

func TestWithoutTokensWebPagesAreRefused(t *testing.T) {
	a := serve(t, nil)
	got := a.send(a.request("POST", "/api/drain", "", "Origin", "https://evil.example"))
	assert.Equal(t, 401, got.StatusCode)
	assert.Equal(t, []string{"audit refused"}, a.effects())
	got = a.send(a.request("POST", "/api/drain", ""))
	assert.Equal(t, 202, got.StatusCode)
	assert.Equal(t, "local", a.taken()[1].Actor)
}
