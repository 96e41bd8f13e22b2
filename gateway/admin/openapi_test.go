package admin_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/gateway/admin"
	"fairlead/shared/testbed/openapi"
)

var update = flag.Bool("update", false, "write docs/openapi.json, and the table in docs/api.md")

func document(t *testing.T) []byte {
	t.Helper()
	raw, err := admin.Document(full(&api{}))
	require.NoError(t, err)
	return raw
}

// compare writes a file of the documentation, or says that it is not what the table of routes says.
func compare(t *testing.T, file string, want []byte) {
	t.Helper()
	if *update {
		require.NoError(t, os.WriteFile(file, want, 0o644))
	}
	got, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(want, got), "%s is out of date: go test ./gateway/admin -run Documentation -update", file)
}

func TestDocumentation(t *testing.T) {
	compare(t, "../../docs/openapi.json", document(t))

	const file, begin, end = "../../docs/api.md", "<!-- begin: routes of the gateway's admin API, from the table in gateway/admin -->\n", "<!-- end: routes -->\n"
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	before, rest, found := strings.Cut(string(text), begin)
	require.True(t, found)
	_, after, found := strings.Cut(rest, end)
	require.True(t, found)
	var table strings.Builder
	table.WriteString("| request | role | answer |\n| --- | --- | --- |\n")
	for _, r := range admin.RoutesOf(full(&api{})) {
		table.WriteString("| `" + r.Method + " " + r.Listed + "` | " + string(r.Role) + " | " + r.Summary + " |\n")
	}
	compare(t, file, []byte(before+begin+table.String()+end+after))
}

// Everything that the document says is there is there, and the other way round.
func TestTheDocumentIsTheTable(t *testing.T) {
	var d struct {
		Paths map[string]map[string]struct {
			OperationID string     `json:"operationId"`
			Role        admin.Role `json:"x-role"`
			Responses   map[string]any
		}
	}
	require.NoError(t, json.Unmarshal(document(t), &d))
	ids, n := map[string]bool{}, 0
	for _, operations := range d.Paths {
		for _, o := range operations {
			assert.False(t, ids[o.OperationID], o.OperationID)
			ids[o.OperationID] = true
			n++
		}
	}
	routes := admin.RoutesOf(full(&api{}))
	assert.Len(t, routes, n)
	for _, r := range routes {
		o, ok := d.Paths[r.Listed][strings.ToLower(r.Method)]
		require.True(t, ok, "%s %s", r.Method, r.Listed)
		assert.Equal(t, r.Role, o.Role)
		if r.Role != admin.Anyone {
			assert.Contains(t, o.Responses, "401", r.Path)
			assert.Contains(t, o.Responses, "429", r.Path)
		}
	}
}

// Each answer, of each request, with everything that it may hold, is what the document says; so are refusals.
func TestAnswersAreAsDocumented(t *testing.T) {
	a := serve(t, withTokens(t))
	check := openapi.New(t, document(t))
	same := func(got answer) {
		t.Helper()
		assert.Empty(t, check.Answer(got.req, got.Response, got.body), "%s %s: %d %s", got.req.Method, got.req.URL, got.StatusCode, got.body)
	}
	for _, r := range admin.RoutesOf(a.cfg) {
		path, body := sample(r)
		header := as(operatorToken)
		if r.Body {
			header = append(header, "Content-Type", "application/json")
		}
		req := a.request(r.Method, path, body, header...)
		assert.Empty(t, check.Request(req, body), "%s %s", r.Method, path)
		got := a.send(a.request(r.Method, path, body, header...))
		assert.Less(t, got.StatusCode, 300, "%s: %s", path, got.body)
		same(got)
		if r.Role == admin.Anyone {
			continue
		}
		same(a.send(a.request(r.Method, path, body)))                              // 401
		same(a.send(a.request(r.Method, path, body, as(viewerToken)...)))          // 200, or 403
		same(a.send(a.request(r.Method, path, "nonsense", as(operatorToken)...)))  // 400
		same(a.send(a.request(r.Method, path+"?x=1", body, as(operatorToken)...))) // 400
	}
	for _, path := range []string{"/api/tunnels/none", "/api/backends/none"} {
		got := a.send(a.request("GET", path, "", as(viewerToken)...))
		assert.Equal(t, http.StatusNotFound, got.StatusCode)
		same(got)
	}
	got := a.send(a.request("GET", "/api/tunnels?limit=1", "", as(viewerToken)...))
	assert.NotEmpty(t, got.Header.Get("Link"))
	same(got)
}

// The checker can say no.
func TestTheCheckerFinds(t *testing.T) {
	a := serve(t, nil)
	check := openapi.New(t, document(t))
	got := a.send(a.request("GET", "/api/tunnels/t1", ""))
	require.Empty(t, check.Answer(got.req, got.Response, got.body))
	for what, body := range map[string]string{"a field that is missing": strings.Replace(got.body, `"tenant"`, `"tenet"`, 1),
		"a wrong type": strings.Replace(got.body, `"streams": 1`, `"streams": "1"`, 1), "a wrong word": strings.Replace(got.body, `"connected"`, `"asleep"`, 1),
		"no time": strings.Replace(got.body, "2026-", "26-", 1), "a new field": strings.Replace(got.body, "{", `{"x": 1,`, 1), "null": "null", "null inside": strings.Replace(got.body, `"resumes": 9`, `"resumes": null`, 1)} {
		require.NotEqual(t, got.body, body)
		assert.NotEmpty(t, check.Answer(got.req, got.Response, body), what)
	}
	for _, body := range []string{`{"mode":"ajar"}`, `{}`, `{"mode":"open","x":1}`, `{"mode":1}`} {
		req := a.request("PUT", "/api/backends/git/breaker", body, "Content-Type", "application/json")
		assert.NotEmpty(t, check.Request(req, body), body)
	}
	for _, body := range []string{`{}`, `{"reason":"x"}`, `{"tenant":"` + strings.Repeat("x", 513) + `"}`, `{"tenant":"a","expires":"soon"}`} {
		req := a.request("POST", "/api/revocations", body, "Content-Type", "application/json")
		assert.NotEmpty(t, check.Request(req, body), body)
	}
}
