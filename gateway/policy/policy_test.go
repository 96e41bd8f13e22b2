package policy

import (
	"path"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"fairlead/shared/errs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newPolicy(t testing.TB, rules ...Rule) *Policy {
	p, err := New(rules)
	require.NoError(t, err)
	return p
}

// Verifies: R4.1
func TestTenantsReachOnlyTheirRoutes(t *testing.T) {
	p := newPolicy(t,
		Rule{Tenants: []string{"payments/*"}, Routes: []string{"git", "orders-db"}},
		Rule{Tenants: []string{"ops/admin", "root?"}, Routes: []string{"*"}},
		Rule{Tenants: []string{"*"}, Routes: []string{"public"}},
		Rule{Tenants: []string{"team-[ab]/*/web"}, Routes: []string{"web"}},
	)
	cases := []struct {
		tenant, route string
		want          bool
	}{
		{"payments/orders", "git", true},
		{"payments/orders", "orders-db", true},
		{"payments/orders", "web", false},
		{"payments", "git", false},          // too few parts
		{"payments/orders/x", "git", false}, // too many
		{"payments/", "git", false},         // an empty part is no name
		{"/payments/orders", "git", false},
		{"payments//orders", "git", false},
		{"xpayments/orders", "git", false},
		{"payments-evil/orders", "git", false},
		{"Payments/orders", "git", false},
		{"*", "git", false},               // a tenant is no pattern
		{"payments/*", "orders-db", true}, // only a strange name below payments
		{"ops/admin", "git", true},
		{"ops/admin", "whatever", true},
		{"ops/admins", "git", false},
		{"root1", "git", true},
		{"root12", "git", false},
		{"dev", "public", true},
		{"a/b/c/d", "public", true},
		{"dev", "*", false},
		{"dev", "", false},
		{"", "public", false},
		{"", "git", false},
		{"team-a/x/web", "web", true},
		{"team-c/x/web", "web", false},
		{"team-a/x/y/web", "web", false},
	}
	for _, c := range cases {
		err := p.Allow(c.tenant, c.route)
		if c.want {
			require.NoError(t, err, "%q %q", c.tenant, c.route)
		} else {
			require.ErrorIs(t, err, errs.RouteForbidden, "%q %q", c.tenant, c.route)
		}
		require.Equal(t, c.want, p.Explain(c.tenant, c.route).Allowed)
	}
}

// Verifies: R2.9, R4.1
func TestForbiddenAndUnknownRoutesLookTheSame(t *testing.T) {
	p := newPolicy(t, Rule{Tenants: []string{"a"}, Routes: []string{"secret"}})
	told := func(route string) (int, string, int, string) {
		err := p.Allow("b", route)
		status, body := errs.HTTP(err)
		code, reason := errs.CloseFrame(err)
		neutral := func(s string) string { return strings.ReplaceAll(s, route, "ROUTE") }
		return status, neutral(string(body)), code, neutral(reason)
	}
	status, body, code, reason := told("secret")
	require.Equal(t, 403, status)
	require.Equal(t, errs.ClosePolicy, code)
	require.Contains(t, body, "FL-A204")
	status2, body2, code2, reason2 := told("absent")
	require.Equal(t, []any{status, body, code, reason}, []any{status2, body2, code2, reason2})
}

func TestWithoutRulesEverythingIsDenied(t *testing.T) {
	p := newPolicy(t)
	require.ErrorIs(t, p.Allow("dev", "git"), errs.RouteForbidden)
	require.Equal(t, Decision{Rule: -1, Reason: `no rule gives tenant "dev" the route "git"`}, p.Explain("dev", "git"))
}

func TestExplainNamesTheEarliestRule(t *testing.T) {
	p := newPolicy(t,
		Rule{Tenants: []string{"x"}, Routes: []string{"git"}},
		Rule{Tenants: []string{"a", "*"}, Routes: []string{"git", "*"}},
		Rule{Tenants: []string{"b"}, Routes: []string{"git"}},
	)
	require.Equal(t, Decision{Allowed: true, Rule: 1, Tenants: "*", Route: "git", Reason: `policy[1] gives tenants "*" the route "git"`}, p.Explain("b", "git"))
	require.Equal(t, Decision{Allowed: true, Rule: 1, Tenants: "a", Route: "*", Reason: `policy[1] gives tenants "a" the route "*"`}, p.Explain("a", "other"))

	p = newPolicy(t, Rule{Tenants: []string{"*"}, Routes: []string{"*"}}, Rule{Tenants: []string{"b"}, Routes: []string{"git"}})
	require.Equal(t, 0, p.Explain("b", "git").Rule)
}

func TestExplainShowsWhatComesNear(t *testing.T) {
	p := newPolicy(t,
		Rule{Tenants: []string{"payments/*"}, Routes: []string{"git", "db"}},
		Rule{Tenants: []string{"billing/*"}, Routes: []string{"db"}},
		Rule{Tenants: []string{"other"}, Routes: []string{"logs"}},
	)
	require.Equal(t, "refused: no rule gives tenant \"billing/api\" the route \"git\"\n"+
		"  policy[0] has the route, but its tenants are payments/*\n"+
		"  policy[1] has the tenant, but its routes are db\n", p.Explain("billing/api", "git").String())
	require.Equal(t, "allowed: policy[0] gives tenants \"payments/*\" the route \"git\"\n", p.Explain("payments/api", "git").String())
	many := make([]Rule, 30)
	for i := range many {
		many[i] = Rule{Tenants: []string{"x"}, Routes: []string{"git"}}
	}
	near := newPolicy(t, many...).Explain("y", "git").Near
	require.Len(t, near, maxNear+1)
	require.Equal(t, "and more", near[maxNear])
}

func TestMessagesAreBounded(t *testing.T) {
	err := newPolicy(t).Allow("dev\n", strings.Repeat("x", 10_000))
	require.Less(t, len(err.Error()), 400)
	require.NotContains(t, err.Error(), "\n")
}

func TestNewRefusesBadRules(t *testing.T) {
	cases := []struct {
		rule     Rule
		sentence string
	}{
		{Rule{Routes: []string{"git"}}, "policy[1] needs"},
		{Rule{Tenants: []string{"a"}}, "policy[1] needs"},
		{Rule{Tenants: []string{""}, Routes: []string{"git"}}, "policy[1].tenants"},
		{Rule{Tenants: []string{"a//b"}, Routes: []string{"git"}}, "policy[1].tenants"},
		{Rule{Tenants: []string{"a", "x/b[/c"}, Routes: []string{"git"}}, `"x/b[/c" is not a pattern`},
		{Rule{Tenants: []string{"abc[x"}, Routes: []string{"git"}}, `"abc[x" is not a pattern`},
		{Rule{Tenants: []string{"a"}, Routes: []string{""}}, "policy[1].routes"},
		{Rule{Tenants: []string{"a"}, Routes: []string{"git*"}}, `"git*" is not a route's name`},
	}
	for _, c := range cases {
		_, err := New([]Rule{{Tenants: []string{"*"}, Routes: []string{"*"}}, c.rule})
		require.ErrorIs(t, err, errs.ConfigInvalid)
		require.Contains(t, err.Error(), c.sentence)
	}
}

// The walk over the parts agrees with splitting both and matching each pair.
func TestMatchingAgreesWithItsDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pattern := strings.Join(rapid.SliceOfN(rapid.StringOfN(rapid.SampledFrom([]rune("ab*?")), 1, 3, -1), 1, 3).Draw(t, "pattern"), "/")
		tenant := rapid.StringOfN(rapid.SampledFrom([]rune("ab/")), 1, 8, -1).Draw(t, "tenant")
		p, err := New([]Rule{{Tenants: []string{pattern}, Routes: []string{"r"}}})
		if err != nil {
			t.Fatal(err)
		}
		patterns, parts := strings.Split(pattern, "/"), strings.Split(tenant, "/")
		want := len(patterns) == len(parts)
		for i := 0; want && i < len(parts); i++ {
			ok, _ := path.Match(patterns[i], parts[i])
			want = ok && parts[i] != ""
		}
		want = want || pattern == "*"
		if got := p.Allow(tenant, "r") == nil; got != want {
			t.Fatalf("pattern %q, tenant %q: %v", pattern, tenant, got)
		}
	})
}

func BenchmarkAllow(b *testing.B) {
	rules := make([]Rule, 0, 100)
	for i := range 100 {
		rules = append(rules, Rule{Tenants: []string{"team-" + string(rune('a'+i%26)) + "/*"}, Routes: []string{"git"}})
	}
	p := newPolicy(b, append(rules, Rule{Tenants: []string{"payments/*"}, Routes: []string{"git"}})...)
	b.ReportAllocs()
	for b.Loop() {
		if err := p.Allow("payments/orders", "git"); err != nil {
			b.Fatal(err)
		}
	}
}
