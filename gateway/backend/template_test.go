package backend

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestTemplatesAreChecked(t *testing.T) {
	for _, good := range []string{"{tenant}", "{tenant.0}:{tenant.1}", "fairlead/{gateway}:tenant={tenant}:pod={pod}", "constant", "x{subject}y{issuer}z{backend}"} {
		_, err := parseTemplate(good)
		require.NoError(t, err, good)
	}
	for _, bad := range []string{"", "{", "{tenant", "}", "{}", "{Tenant}", "{tenant.10}", "{tenant.x}", "{tenant.}", "{pod}{tenant}", "a b", "a,b", "a\n", "{a{b}}", "ä", `"`, "*", "#"} {
		_, err := parseTemplate(bad)
		require.Error(t, err, "%q", bad)
	}
}

func TestTemplateValues(t *testing.T) {
	v := &values{Caller: Caller{Tenant: "payments/orders", Subject: "system:sa", Issuer: "https://issuer", Pod: ""}, gateway: "gw-0", backend: "bastion"}
	for source, want := range map[string]string{
		"{tenant}": "payments/orders", "{tenant.0}": "payments", "{tenant.1}": "orders", "{subject}": "system:sa", "{issuer}": "https://issuer",
		"{gateway}/{backend}": "gw-0/bastion", "p={pod}": "p=-", "t={tenant.7}": "t=-",
	} {
		tpl, err := parseTemplate(source)
		require.NoError(t, err)
		got, err := tpl.render(v, 100, true)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}

// genTemplate makes templates that parse.
func genTemplate(t *rapid.T) *template {
	fields := rapid.SampledFrom([]string{"{tenant}", "{tenant.0}", "{tenant.1}", "{subject}", "{issuer}", "{pod}", "{gateway}", "{backend}"})
	literals := rapid.StringMatching(`[ab:/|-]{1,3}`)
	var b strings.Builder
	b.WriteString(rapid.StringMatching(`[ab:/]{0,2}`).Draw(t, "head"))
	for i := range rapid.IntRange(1, 4).Draw(t, "fields") {
		if i > 0 {
			b.WriteString(literals.Draw(t, "literal"))
		}
		b.WriteString(fields.Draw(t, "field"))
	}
	tpl, err := parseTemplate(b.String())
	require.NoError(t, err)
	return tpl
}

func genValues(t *rapid.T) *values {
	text := rapid.OneOf(rapid.StringMatching(`[ab:/|-]{0,4}`), rapid.String())
	return &values{Caller: Caller{Tenant: text.Draw(t, "tenant"), Subject: text.Draw(t, "subject"), Issuer: text.Draw(t, "issuer"), Pod: text.Draw(t, "pod")},
		gateway: text.Draw(t, "gateway"), backend: text.Draw(t, "backend")}
}

// Two callers who differ in what a template shows never come out the same, and nothing comes out that would end or split
// an entry of a list.
func TestRenderedNamesAreUnambiguous(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tpl, one, other := genTemplate(t), genValues(t), genValues(t)
		blank := rapid.Bool().Draw(t, "blank")
		a, errA := tpl.render(one, maxPrincipal, blank)
		b, errB := tpl.render(other, maxPrincipal, blank)
		for _, text := range []string{a, b} {
			if strings.ContainsAny(text, "\x00\r\n\t ,\"'\\*?!#$`;&<>()%") || len(text) > maxPrincipal || strings.HasPrefix(text, "-") {
				t.Fatalf("%q rendered %q", tpl.source, text)
			}
		}
		if errA != nil || errB != nil || a != b {
			return
		}
		for _, p := range tpl.parts {
			if p.field != "" && one.of(p) != other.of(p) {
				t.Fatalf("%q renders %q for both %q and %q", tpl.source, a, one, other)
			}
		}
	})
}

func FuzzTemplate(f *testing.F) {
	f.Add("{tenant}:{pod}", "a:b", "c", "a", "b:c")
	f.Add("x{tenant.0}-{tenant.1}", "a-b/c", "", "a/b-c", "")
	f.Add(DefaultKeyID, "t:pod=x", "y", "t", "x:pod=y")
	f.Fuzz(func(t *testing.T, source, tenantA, podA, tenantB, podB string) {
		tpl, err := parseTemplate(source)
		if err != nil {
			return
		}
		one := &values{Caller: Caller{Tenant: tenantA, Pod: podA}, gateway: "g", backend: "b"}
		other := &values{Caller: Caller{Tenant: tenantB, Pod: podB}, gateway: "g", backend: "b"}
		a, errA := tpl.render(one, maxKeyID, true)
		b, errB := tpl.render(other, maxKeyID, true)
		for i := range len(a) {
			if !plain(a[i]) {
				t.Fatalf("%q", a)
			}
		}
		if len(a) > maxKeyID {
			t.Fatalf("%d bytes", len(a))
		}
		if errA == nil && errB == nil && a == b {
			for _, p := range tpl.parts {
				if p.field != "" && one.of(p) != other.of(p) {
					t.Fatalf("%q renders %q twice", source, a)
				}
			}
		}
	})
}
