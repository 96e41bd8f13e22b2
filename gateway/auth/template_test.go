package auth

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestTemplates(t *testing.T) {
	claims := map[string]any{
		"sub": "a/b", "ns": "payments", "sa": "orders-1", "empty": "", "n": 1.0, "list": []any{"x"}, "nul": nil,
		"kubernetes.io":            map[string]any{"namespace": "payments", "serviceaccount": map[string]any{"name": "orders"}},
		"kubernetes.io.x":          map[string]any{"pod": "p-2"},
		"kubernetes":               map[string]any{"io.y": map[string]any{"pod": "p-1"}},
		"a.b":                      map[string]any{"x": "longest"},
		"a":                        map[string]any{"b.c": "via a", "b": map[string]any{"c": "or so", "d": "deep"}, "d.e": "one", "d": map[string]any{"f": "two"}},
		"https://example.com/team": "red",
		"ctl":                      "a\x00b", "bidi": "a\u202eb", "broken": "a\uFFFD", "long": strings.Repeat("x", 254), "full": strings.Repeat("x", 253), "umlaut": "größe",
	}
	good := map[string]string{
		"{sub}": "a/b", // one single claim may hold a slash
		"{kubernetes.io.namespace}/{kubernetes.io.serviceaccount.name}": "payments/orders",
		"{kubernetes.io.y.pod}":      "p-1", // the longest key has no such member, a shorter one has
		"{a.b.d}":                    "deep",
		"{a.d.e}":                    "one",
		"{a.d.f}":                    "two",
		"{a.b.x}":                    "longest",
		"{https://example.com/team}": "red",
		"k8s:{ns}":                   "k8s:payments",
		"{ns}/{sa}":                  "payments/orders-1",
		"{ns}:{sa}":                  "payments:orders-1",
		"{ns}-x/{sa}":                "payments-x/orders-1",
		"everybody":                  "everybody",
		"{full}":                     strings.Repeat("x", 253),
		"{umlaut}":                   "größe",
	}
	for source, want := range good {
		tpl, err := parseTemplate(source)
		require.NoError(t, err, source)
		got, err := tpl.apply(claims)
		require.NoError(t, err, source)
		require.Equal(t, want, got, source)
	}
	bad := map[string]string{
		"{nothing}":       `claim "nothing" is missing`,
		"{a.b.c}":         `claim "a.b.c" is there more than once`, // whoever can name claims could choose the tenant
		"{ns.x}":          `claim "ns.x" is missing`,
		"{ns}/{sub}":      `claim "sub" holds a character that the template uses to join claims`,
		"{sub}!":          `claim "sub" holds a character that the template uses to join claims`,
		"{ns}-{sa}":       `claim "sa" holds a character that the template uses to join claims`,
		"{empty}":         `claim "empty" is empty`,
		"{n}":             `claim "n" is not a string`,
		"{nul}":           `claim "nul" is not a string`,
		"{list}":          `claim "list" is not a string`,
		"{kubernetes.io}": `claim "kubernetes.io" is not a string`,
		"{ctl}":           `claim "ctl" holds characters that cannot be printed`,
		"{bidi}":          `claim "bidi" holds characters that cannot be printed`,
		"{broken}":        `claim "broken" holds characters that cannot be printed`,
		"{long}":          `claim "long" is longer than 253 bytes`,
	}
	for source, want := range bad {
		tpl, err := parseTemplate(source)
		require.NoError(t, err, source)
		_, err = tpl.apply(claims)
		require.EqualError(t, err, want, source)
	}
	for _, source := range []string{"", "{", "}", "{}", "{a", "a}", "{a{b}}", "{a}{b}", "{a}\n{b}"} {
		_, err := parseTemplate(source)
		require.Error(t, err, source)
	}
}

// A tenant that could be reached by two different sets of claims would be a way into somebody else's.
func TestTemplatesNeverJoinDifferentClaimsToOneName(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		alphabet := rapid.StringOfN(rapid.SampledFrom([]rune("ab-/.:")), 1, 4, -1)
		n := rapid.IntRange(1, 3).Draw(t, "claims")
		source := rapid.StringOfN(rapid.SampledFrom([]rune("a-/")), 0, 2, -1).Draw(t, "prefix")
		names := []string{"x", "y", "z"}[:n]
		for i, name := range names {
			if i > 0 {
				source += alphabet.Draw(t, "between")
			}
			source += "{" + name + "}"
		}
		tpl, err := parseTemplate(source)
		if err != nil {
			t.Fatal(err)
		}
		one, two, same := map[string]any{}, map[string]any{}, true
		for _, name := range names {
			one[name], two[name] = alphabet.Draw(t, "one"), alphabet.Draw(t, "two")
			same = same && one[name] == two[name]
		}
		first, err1 := tpl.apply(one)
		second, err2 := tpl.apply(two)
		if err1 == nil && err2 == nil && first == second && !same {
			t.Fatalf("%q: %v and %v both give %q", source, one, two, first)
		}
	})
}
