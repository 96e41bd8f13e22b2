package glob

import (
	"path"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"dev", "dev", true}, {"dev", "de", false}, {"*", "dev", true}, {"*", "a/b", true}, {"*/*", "a/b", true}, {"*/*", "a", false},
		{"payments/*", "payments/orders", true}, {"payments/*", "payments/a/b", false}, {"payments/*", "payments", false},
		{"payments/*", "payments/", false}, {"payments/*", "/payments/orders", false}, {"payments/*", "payments//orders", false},
		{"payments/*", "payments-evil/orders", false}, {"payments/*", "Payments/orders", false},
		{"pay?/[a-c]*", "pays/billing", true}, {"pay?/[a-c]*", "pays/zoo", false}, {"*", "", false}, {"a/*", "a/*", true}, {"a/b", "a/*", false},
	} {
		p, err := Compile(c.pattern)
		require.NoError(t, err)
		require.Equal(t, c.pattern, p.String())
		require.Equal(t, c.want, p.Match(c.name), "%s %s", c.pattern, c.name)
	}
	require.False(t, Pattern{}.Match("dev"))
	require.False(t, Pattern{}.Match(""))
}

func TestCompileRefuses(t *testing.T) {
	for pattern, sentence := range map[string]string{
		"": "empty part", "a//b": "empty part", "a/": "empty part", "/a": "empty part", "x/b[/c": `"x/b[/c" is not a pattern`, "abc[x": "not a pattern", "[": "not a pattern", "a[/]b": "not a pattern",
	} {
		_, err := Compile(pattern)
		require.ErrorContains(t, err, sentence, pattern)
	}
	_, err := Compile(strings.Repeat("[", 10_000) + "\n")
	require.Less(t, len(err.Error()), 400)
}

// The walk over the parts agrees with splitting both and matching each pair.
func TestMatchingAgreesWithItsDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pattern := strings.Join(rapid.SliceOfN(rapid.StringOfN(rapid.SampledFrom([]rune("ab*?")), 1, 3, -1), 1, 3).Draw(t, "pattern"), "/")
		name := rapid.StringOfN(rapid.SampledFrom([]rune("ab/")), 1, 8, -1).Draw(t, "name")
		p, err := Compile(pattern)
		if err != nil {
			t.Fatal(err)
		}
		patterns, parts := strings.Split(pattern, "/"), strings.Split(name, "/")
		want := len(patterns) == len(parts)
		for i := 0; want && i < len(parts); i++ {
			ok, _ := path.Match(patterns[i], parts[i])
			want = ok && parts[i] != ""
		}
		want = want || pattern == All
		if got := p.Match(name); got != want {
			t.Fatalf("pattern %q, name %q: %v", pattern, name, got)
		}
	})
}

func BenchmarkMatch(b *testing.B) {
	p, err := Compile("payments/*")
	require.NoError(b, err)
	b.ReportAllocs()
	for b.Loop() {
		if !p.Match("payments/orders") {
			b.Fatal("no match")
		}
	}
}
