package auth

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

func TestDevelopGivesTheTenant(t *testing.T) {
	clock := newClock()
	cases := map[string]string{
		"":      "payments/orders",
		"{sub}": "dev",
		"{kubernetes.io.namespace}/{kubernetes.io.serviceaccount.name}": "payments/orders",
		"dev:{org}:{team}": "dev:acme:red",
		"{a}/b/{c}.x":      "p/b/q.x",
		"everybody":        "everybody",
		"{iss}":            testIssuer,
	}
	for source, tenant := range cases {
		iss := secretIssuer(t, newSecret())
		iss.Tenant, iss.Tier = source, "{tier}"
		token, err := Develop(iss, tenant, time.Hour, clock.now())
		require.NoError(t, err, source)
		again, err := Develop(iss, tenant, time.Hour, clock.now())
		require.NoError(t, err)
		require.NotEqual(t, token, again, "token ids are random")
		v := newVerifier(t, clock, iss)
		id, err := v.Verify(t.Context(), token)
		require.NoError(t, err, source)
		require.Equal(t, tenant, id.Tenant)
		require.Equal(t, "default", id.Tier)
		require.NotEmpty(t, id.TokenID)
		require.True(t, clock.now().Add(time.Hour).Equal(id.Expires))
	}
}

func TestDevelopRefusesWhatItCannotDo(t *testing.T) {
	iss := secretIssuer(t, newSecret())
	cases := []struct{ template, tenant string }{
		{"{ns}/{sa}", "dev"}, {"{ns}/{sa}", "a/b/c"}, {"{ns}/{sa}", "/b"}, {"x-{ns}", "dev"}, {"{ns}-x", "dev"},
		{"everybody", "dev"}, {"{sub}", ""}, {"{sub}", "a\nb"}, {"{sub}/{sub}", "a/b"}, {"{iss}", "dev"},
	}
	for _, c := range cases {
		iss.Tenant = c.template
		_, err := Develop(iss, c.tenant, time.Hour, time.Unix(0, 0))
		require.ErrorIs(t, err, errs.ConfigInvalid, "%q %q", c.template, c.tenant)
	}
	iss.Tenant = ""
	_, err := Develop(iss, "dev", 0, time.Unix(0, 0))
	require.ErrorIs(t, err, errs.ConfigInvalid)
	iss.HMACSecretFile = writeFile(t, []byte("short\n"))
	_, err = Develop(iss, "dev", time.Hour, time.Unix(0, 0))
	require.ErrorIs(t, err, errs.KeyUnreadable)
	iss.HMACSecretFile = ""
	_, err = Develop(iss, "dev", time.Hour, time.Unix(0, 0))
	require.ErrorIs(t, err, errs.ConfigInvalid)
}
