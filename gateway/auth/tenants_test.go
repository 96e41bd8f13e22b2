package auth

import (
	"context"
	"testing"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"fairlead/shared/errs"
)

func TestIssuersCannotSpeakForEachOthersTenants(t *testing.T) {
	secret := newSecret()
	pair := func(a, b string) error {
		one, two := secretIssuer(t, secret), secretIssuer(t, secret)
		one.Tenant, two.Issuer, two.Tenant = a, "two", b
		v, err := New(Config{Issuers: []Issuer{one, two}})
		if err == nil {
			require.NoError(t, v.Close())
		}
		return err
	}
	for _, same := range [][2]string{{"{sub}", "{sub}"}, {"{sub}", clusterTenant}, {clusterTenant, "{org}/{team}"}, {"{sub}", "dev:{sub}"}, {"all", "{sub}"},
		{"dev:{sub}", "d{sub}"}, {"{sub}.dev", "{sub}"}, {"all", "all"}} {
		err := pair(same[0], same[1])
		require.ErrorIs(t, err, errs.ConfigInvalid, same)
		require.ErrorContains(t, err, "can speak for the same tenants")
	}
	for _, apart := range [][2]string{{"dev:{sub}", clusterTenant}, {"dev:{sub}", "prod:{sub}"}, {"{a}/{b}", "{a}/{b}/{c}"}, {"{sub}.dev", "{sub}.prod"}, {"all", "none"}} {
		require.NoError(t, pair(apart[0], apart[1]), apart)
	}
	one, two := secretIssuer(t, secret), secretIssuer(t, secret)
	one.SharedTenants, two.Issuer = true, "two"
	_, err := New(Config{Issuers: []Issuer{one, two}})
	require.ErrorIs(t, err, errs.ConfigInvalid, "both must say so")
}

func TestTemplatesSeenApartNeverGiveOneName(t *testing.T) {
	draw := func(t *rapid.T, label string) (*template, string) {
		part := rapid.StringOfN(rapid.SampledFrom([]rune("ab/")), 0, 2, -1)
		source := part.Draw(t, label+" begins")
		for i := range rapid.IntRange(0, 2).Draw(t, label+" claims") {
			source += "{" + string(rune('x'+i)) + "}" + part.Draw(t, label+" goes on")
		}
		tpl, err := parseTemplate(source)
		if err != nil {
			t.Skip(source)
		}
		return tpl, source
	}
	rapid.Check(t, func(t *rapid.T) {
		one, first := draw(t, "one")
		two, second := draw(t, "two")
		if one.apart(two) != two.apart(one) {
			t.Fatalf("%q and %q: not the same both ways", first, second)
		}
		if !one.apart(two) {
			return
		}
		value := rapid.StringOfN(rapid.SampledFrom([]rune("ab/")), 1, 4, -1)
		for range 8 {
			a, errA := one.apply(map[string]any{"x": value.Draw(t, "x"), "y": value.Draw(t, "y")})
			b, errB := two.apply(map[string]any{"x": value.Draw(t, "x"), "y": value.Draw(t, "y")})
			if errA == nil && errB == nil && a == b {
				t.Fatalf("%q and %q both give %q", first, second, a)
			}
		}
	})
}

// The whole way, from the bytes of a token to the tenant: whatever the claims hold, two tuples are two tenants.
func TestDifferentTuplesAreDifferentTenants(t *testing.T) {
	clock, secret := newClock(), newSecret()
	iss := secretIssuer(t, secret)
	iss.Tenant = "{kubernetes.io.namespace}/{kubernetes.io.serviceaccount.name}"
	v := newVerifier(t, clock, iss)
	text := rapid.OneOf(rapid.StringOfN(rapid.SampledFrom([]rune("ab/.:{}\\\"")), 1, 4, -1), rapid.String())
	of := func(t *rapid.T, namespace, account string) (string, bool) {
		token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, goodClaims(clock.now(), "kubernetes.io",
			map[string]any{"namespace": namespace, "serviceaccount": map[string]any{"name": account}})).SignedString(secret)
		if err != nil {
			t.Skip()
		}
		id, err := v.Verify(context.Background(), token)
		return id.Tenant, err == nil
	}
	rapid.Check(t, func(t *rapid.T) {
		n1, a1, n2, a2 := text.Draw(t, "n1"), text.Draw(t, "a1"), text.Draw(t, "n2"), text.Draw(t, "a2")
		one, ok1 := of(t, n1, a1)
		two, ok2 := of(t, n2, a2)
		if ok1 && ok2 && one == two && (n1 != n2 || a1 != a2) {
			t.Fatalf("%q %q and %q %q are both %q", n1, a1, n2, a2, one)
		}
	})
}
