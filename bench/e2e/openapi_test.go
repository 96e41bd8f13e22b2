package e2e

import (
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/testbed/openapi"
)

// notOffered are requests that this gateway refuses because it has nothing behind them.
func notOffered() []string {
	return []string{"DELETE /api/revocations/{id}", "DELETE /api/streams/{tunnel}/{id}"}
}

// Every request that the admin API's document describes is made of a gateway at work, and answered as the document says.
//
// Verifies: R2.7, R3.4, R9.6
func TestTheAdminAPIIsAsDocumented(t *testing.T) {
	w := newWorld(t, withTarget("echo", newTarget(t, echoServer)), withForward("behind", newTarget(t, echoServer)))
	echoes(t, w.dial("echo"), "one")
	echoes(t, w.dial("behind"), "two")
	names := strings.NewReplacer("{tunnel}", "plain", "{name}", "echo", "{profile}", "goroutine", "/api/tunnels/{id}", "/api/tunnels/"+w.gateway.tunnels(t)[0].ID, "{id}", "1")
	bodies := map[string]string{"PUT /api/backends/{name}/breaker": `{"mode":"auto"}`, "POST /api/revocations": `{"subject":"nobody"}`,
		"POST /api/policy/test": `{"tenant":"dev","route":"echo"}`, "PUT /api/log-level": `{"level":"debug"}`}
	operations, refused := askAll(t, w.gateway.running, names, bodies)
	require.Greater(t, operations, 30)
	assert.Equal(t, notOffered(), refused)
}

// The same of a sidecar at work.
//
// Verifies: R1.5, R2.8
func TestTheSidecarsAdminAPIIsAsDocumented(t *testing.T) {
	w := newWorld(t, withTarget("echo", newTarget(t, echoServer)))
	echoes(t, w.dial("echo"), "one")
	operations, refused := askAll(t, w.sidecar.running, strings.NewReplacer(), map[string]string{"PUT /api/log-level": `{"level":"debug"}`})
	require.Greater(t, operations, 10)
	for _, operation := range refused { // of what a sidecar may go without
		assert.Contains(t, []string{"GET /api/config", "POST /api/reload"}, operation)
	}
}

// askAll makes every request that the document of a program's admin API describes, and checks that it is answered as the
// document says. It returns how many there were, and those that were refused.
func askAll(t *testing.T, of *running, names *strings.Replacer, bodies map[string]string) (asked int, refused []string) {
	t.Helper()
	document := get(t, of.url("/api/openapi.json"))
	check := openapi.New(t, []byte(document))
	var d struct {
		Paths map[string]map[string]json.RawMessage
	}
	require.NoError(t, json.Unmarshal([]byte(document), &d))
	var operations []string
	for path, item := range d.Paths {
		for method := range item {
			if path != "/quitquitquit" { // after which there is nothing more to ask
				operations = append(operations, strings.ToUpper(method)+" "+path)
			}
		}
	}
	sort.Slice(operations, func(i, j int) bool { return late(operations[i]) < late(operations[j]) })
	for _, operation := range operations {
		method, path, _ := strings.Cut(names.Replace(operation), " ")
		if path == "/debug/pprof/profile" || path == "/debug/pprof/trace" {
			path += "?seconds=1"
		}
		body := bodies[operation]
		r, err := http.NewRequestWithContext(t.Context(), method, of.url(path), strings.NewReader(body))
		require.NoError(t, err)
		if body != "" {
			r.Header.Set("Content-Type", "application/json")
		}
		answer, err := httpClient().Do(r)
		require.NoError(t, err)
		text, err := io.ReadAll(answer.Body)
		require.NoError(t, err)
		require.NoError(t, answer.Body.Close())
		assert.Empty(t, check.Answer(r, answer, string(text)), "%s: %d %s", operation, answer.StatusCode, text)
		if answer.StatusCode >= 400 {
			refused = append(refused, operation)
		}
	}
	slices.Sort(refused)
	return len(operations), refused
}

// late makes an order in which what ends something comes last.
func late(operation string) string {
	switch {
	case operation == "POST /api/drain":
		return "3 " + operation
	case strings.HasPrefix(operation, "DELETE"):
		return "2 " + operation
	}
	return "1 " + operation
}
