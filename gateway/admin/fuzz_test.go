package admin_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/gateway/admin"
	"fairlead/shared/errs"
)

func FuzzAuthorization(f *testing.F) {
	for _, s := range []string{"", "Bearer", "Bearer x", "bearer  x", "Bearer " + operatorToken, "Basic x", "Bearer \x00", "Bearer " + strings.Repeat("x", 5000), "\tBearer x", "Bearer é"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		token, err := admin.Bearer(http.Header{"Authorization": {value}})
		if err != nil {
			assert.ErrorIs(t, err, errs.AdminDenied)
			assert.Less(t, len(err.Error()), 200)
			return
		}
		assert.NotEmpty(t, token)
		assert.LessOrEqual(t, len(token), 4096)
		assert.True(t, strings.EqualFold("Bearer "+token, value))
		assert.NotContains(t, token, " ")
	})
}

func FuzzCursor(f *testing.F) {
	for _, s := range []string{"", "e30", "eyJzIjoxLCJhIjoidDEifQ", "eyJzIjoxLCJhIjoidDEiLCJiIjoiMSJ9", "!", "eyJzIjoxfQ=="} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		again, err := admin.Cursor(s)
		if err != nil {
			assert.ErrorIs(t, err, errs.BadRequest)
			return
		}
		assert.Equal(t, s, again, "each place has one cursor")
	})
}

// Whatever is asked, the answer is one that the API gives, and nothing takes effect that was not recorded.
func FuzzRequest(f *testing.F) {
	for _, c := range [][4]string{{"GET", "/api/tunnels", "tenant=dev&limit=1", ""}, {"PUT", "/api/backends/git/breaker", "", "open"}, {"PUT", "/api/log-level", "", `{"level":"debug"}`},
		{"POST", "/api/revocations", "", `{"token_id":"j","expires":"2026-11-24T07:00:00Z"}`}, {"POST", "/api/policy/test", "", `{"tenant":"dev","route":"git"}`},
		{"DELETE", "/api/streams/t1/1", "", ""}, {"GET", "/api/events", "after=1", ""}, {"GET", "/api/live", "after=2026-11-24T07:00:00Z", ""}, {"PATCH", "/api/../x//y", "%zz", "\x00"}} {
		f.Add(c[0], c[1], c[2], c[3])
	}
	a := &api{}
	cfg := full(a)
	cfg.RequestsPerMinute = 1 << 30
	h, err := admin.Handler(cfg)
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, method, path, query, body string) {
		if method == "" || strings.ContainsFunc(method, func(c rune) bool { return c < 'A' || c > 'Z' }) || !strings.HasPrefix(path, "/api/") {
			t.Skip() // net/http refuses those, and profiles take time
		}
		a.effects()
		w := local(h, method, (&url.URL{Path: path, RawQuery: query}).String(), body)
		assert.Contains(t, []int{200, 201, 202, 204, 301, 307, 400, 404, 405}, w.Code, "%s", w.Body)
		if w.Code >= 400 {
			var e errs.Answer
			require.NoError(t, json.Unmarshal(w.Body.Bytes(), &e), "%s", w.Body)
			assert.NotEmpty(t, e.Code)
			assert.Less(t, w.Body.Len(), 2000)
		}
		recorded := false
		for _, effect := range a.effects() {
			recorded = recorded || effect == "audit allowed"
			assert.True(t, recorded || strings.HasPrefix(effect, "audit"), effect)
		}
	})
}
