package admin_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/gateway/admin"
	"fairlead/gateway/audit"
	"fairlead/shared/errs"
)

func TestWhatIsRecorded(t *testing.T) {
	a := serve(t, withTokens(t))
	got := a.send(a.request("POST", "/api/revocations", `{"tenant":"dev","reason":"stolen"}`, as(operatorToken)...))
	assert.Equal(t, 201, got.StatusCode)
	assert.Contains(t, got.body, `"by": "operator"`)
	require.Equal(t, []audit.Event{{Action: audit.Administer, Result: audit.Allowed, Actor: "operator", Client: "127.0.0.1", Target: "POST /api/revocations",
		Detail: `{"tenant":"dev","reason":"stolen"}`, Trace: got.Header.Get("X-Request-Id")}}, a.taken())

	got = a.send(a.request("PUT", "/api/backends/none/breaker", "open", as(operatorToken)...))
	assert.Equal(t, 404, got.StatusCode)
	events := a.taken()
	require.Len(t, events, 2)
	assert.Equal(t, `{"mode":"open"}`, events[0].Detail)
	assert.Equal(t, []any{audit.Failed, errs.NotFound, "PUT /api/backends/none/breaker", events[0].Trace}, []any{events[1].Result, events[1].Code, events[1].Target, events[1].Trace})

	a.send(a.request("GET", "/"+strings.Repeat("x", 4000), ""))
	e := a.taken()[0]
	assert.Less(t, len(e.Target), 200, "strangers' text is bounded")
	assert.Equal(t, "", e.Actor)
	a.send(a.request("GET", "/api/tunnels", "", as(viewerToken)...))
	a.send(a.request("GET", "/api/nothing", "", as(viewerToken)...))
	assert.Empty(t, a.taken(), "who may look is not recorded")
}

func TestWhatCannotBeRecordedDoesNotHappen(t *testing.T) {
	a := serve(t, nil)
	a.refuses = true
	for _, r := range admin.RoutesOf(a.cfg) {
		path, body := sample(r)
		if strings.Contains(path, "seconds=") {
			continue
		}
		status, answer := a.ask(r.Method, path, body)
		switch {
		case r.Changes && r.Closes:
			assert.Less(t, status, 300, "%s: what only takes away happens all the same", path)
		case r.Changes:
			assert.Equal(t, 503, status, path)
			assert.Contains(t, answer, "FL-S425")
		default:
			assert.Equal(t, 200, status, path)
		}
	}
	assert.Equal(t, []string{"revoke", "drain"}, a.effects())
	assert.Contains(t, a.log.String(), "a change is made that could not be recorded")
	assert.Contains(t, a.log.String(), "a refusal could not be recorded")
}
