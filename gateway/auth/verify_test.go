package auth

import (
	"context"
	"crypto"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

func TestVerifyAcceptsEachAlgorithm(t *testing.T) {
	clock, ec, ed, secret := newClock(), ecKey(t), edKey(t), newSecret()
	published := fileIssuer(t, map[string]crypto.Signer{"r": rsaKey(), "e": ec, "d": ed})
	shared := secretIssuer(t, append(secret, '\n'))
	cases := map[string]struct {
		issuer Issuer
		token  string
	}{
		"RS256":            {published, sign(t, jwt.SigningMethodRS256, "r", rsaKey(), goodClaims(clock.now()))},
		"ES256":            {published, sign(t, jwt.SigningMethodES256, "e", ec, goodClaims(clock.now()))},
		"EdDSA":            {published, sign(t, jwt.SigningMethodEdDSA, "d", ed, goodClaims(clock.now()))},
		"EdDSA, no key id": {published, sign(t, jwt.SigningMethodEdDSA, "", ed, goodClaims(clock.now()))},
		"HS256":            {shared, sign(t, jwt.SigningMethodHS256, "", secret, goodClaims(clock.now()))},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			v := newVerifier(t, clock, c.issuer)
			want := Identity{Tenant: "payments", Subject: "payments", Issuer: testIssuer, TokenID: "id-1", Tier: "default", Expires: clock.now().Add(time.Hour), IssuedAt: clock.now()}
			for range 2 { // checked, then remembered
				got, err := v.Verify(t.Context(), c.token)
				require.NoError(t, err)
				require.True(t, want.Expires.Equal(got.Expires))
				got.Expires, got.by = want.Expires, nil
				require.Equal(t, want, got)
			}
			require.EqualValues(t, 1, v.counts.hits.Get())
			require.EqualValues(t, 2, v.counts.ok.Get())
		})
	}
}

// Verifies: R2.9
func TestRefusalsAreToldApart(t *testing.T) {
	clock, secret := newClock(), newSecret()
	v := newVerifier(t, clock, secretIssuer(t, secret))
	hs := func(more ...any) string {
		return sign(t, jwt.SigningMethodHS256, "", secret, goodClaims(clock.now(), more...))
	}
	cases := []struct {
		name, token string
		code        errs.Code
		sentence    string
		status      int
		closeCode   int
	}{
		{"missing", "", errs.TokenMissing, "carries no token", 401, 4003},
		{"expired", hs("exp", clock.now().Add(-5*time.Minute).Unix()), errs.TokenExpired, "expired 5m0s ago", 401, 4001},
		{"not yet", hs("nbf", clock.now().Add(30*time.Second).Unix()), errs.TokenNotYet, "becomes valid in 30s", 401, 4003},
		{"invalid", sign(t, jwt.SigningMethodHS256, "", newSecret(), goodClaims(clock.now())), errs.TokenInvalid, "signature is not by a key of issuer", 401, 4003},
	}
	codes, sentences, advice := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, c := range cases {
		_, err := v.Verify(t.Context(), c.token)
		requireRefused(t, err, c.code, c.sentence, c.token)

		status, body := errs.HTTP(err)
		var answer errs.Answer
		require.NoError(t, json.Unmarshal(body, &answer))
		require.Equal(t, c.status, status, c.name)
		require.Equal(t, c.code.String(), answer.Code)
		require.Contains(t, answer.Message, c.sentence)
		closeCode, reason := errs.CloseFrame(err)
		require.Equal(t, c.closeCode, closeCode, c.name)
		require.Contains(t, reason, c.code.String())
		codes[answer.Code], sentences[answer.Message], advice[answer.Advice] = true, true, true
	}
	require.Len(t, codes, len(cases))
	require.Len(t, sentences, len(cases))
	require.Len(t, advice, len(cases))
}

func TestNotYetTellsWhen(t *testing.T) {
	clock, secret := newClock(), newSecret()
	v := newVerifier(t, clock, secretIssuer(t, secret))
	token := sign(t, jwt.SigningMethodHS256, "", secret, goodClaims(clock.now(), "nbf", clock.now().Add(40*time.Second).Unix()))
	_, err := v.Verify(t.Context(), token)
	require.Equal(t, 40*time.Second, errs.From(err).RetryAfter)
	clock.move(40 * time.Second)
	_, err = v.Verify(t.Context(), token)
	require.NoError(t, err)
}

func TestRememberedTokenStillExpires(t *testing.T) {
	clock, secret := newClock(), newSecret()
	iss := secretIssuer(t, secret)
	iss.Leeway = 10 * time.Second
	v := newVerifier(t, clock, iss)
	token := sign(t, jwt.SigningMethodHS256, "", secret, goodClaims(clock.now()))
	verify := func() error { _, err := v.Verify(t.Context(), token); return err }
	require.NoError(t, verify())
	clock.move(time.Hour + 9*time.Second)
	require.NoError(t, verify(), "within leeway")
	require.EqualValues(t, 1, v.counts.hits.Get())
	clock.move(time.Second)
	requireRefused(t, verify(), errs.TokenExpired, "expired 10s ago", token)
	require.EqualValues(t, 2, v.counts.hits.Get())
	requireRefused(t, verify(), errs.TokenExpired, "expired 10s ago", token)
	require.EqualValues(t, 2, v.counts.hits.Get(), "no longer remembered")
}

func TestVerifyRefusesBadClaims(t *testing.T) {
	clock, secret := newClock(), newSecret()
	v := newVerifier(t, clock, secretIssuer(t, secret))
	cases := map[string]struct {
		more     []any
		sentence string
	}{
		"no issuer":             {[]any{"iss", nil}, "names no issuer"},
		"issuer not text":       {[]any{"iss", 7}, "names no issuer"},
		"unknown issuer":        {[]any{"iss", "https://other.example\n"}, `issuer "https://other.example\n" is not known`},
		"issuer with a slash":   {[]any{"iss", testIssuer + "/"}, "is not known"},
		"long issuer":           {[]any{"iss", strings.Repeat("x", 500)}, strings.Repeat("x", maxQuoted) + `"… is not known`},
		"other audience":        {[]any{"aud", []string{"a", "b"}}, `its audience lacks "fairlead"`},
		"no audience":           {[]any{"aud", nil}, "no usable aud"},
		"no expiry":             {[]any{"exp", nil}, "no usable exp"},
		"expiry is text":        {[]any{"exp", "tomorrow"}, "no usable exp"},
		"not-before is text":    {[]any{"nbf", "now"}, "no usable nbf"},
		"audience and expiry":   {[]any{"aud", "x", "exp", 1}, "its audience lacks"},
		"tenant missing":        {[]any{"sub", nil}, `gives no tenant: claim "sub" is missing`},
		"tenant not text":       {[]any{"sub", 12}, `claim "sub" is not a string`},
		"tenant empty":          {[]any{"sub", ""}, `claim "sub" is empty`},
		"tenant with a newline": {[]any{"sub", "a\nb"}, `claim "sub" holds characters`},
		"tenant too long":       {[]any{"sub", strings.Repeat("t", 254)}, `claim "sub" is longer than 253 bytes`},
		"token id not text":     {[]any{"jti", 12}, `claim "jti" is not a string`},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			token := sign(t, jwt.SigningMethodHS256, "", secret, goodClaims(clock.now(), c.more...))
			for range 2 { // refusals are not remembered as successes
				_, err := v.Verify(t.Context(), token)
				requireRefused(t, err, errs.TokenInvalid, c.sentence, token)
			}
		})
	}
}

func TestTiers(t *testing.T) {
	clock, secret := newClock(), newSecret()
	iss := secretIssuer(t, secret)
	iss.Tier = "{tier}"
	v := newVerifier(t, clock, iss)
	verify := func(more ...any) (Identity, error) {
		return v.Verify(t.Context(), sign(t, jwt.SigningMethodHS256, "", secret, goodClaims(clock.now(), more...)))
	}
	id, err := verify("tier", "gold")
	require.NoError(t, err)
	require.Equal(t, "gold", id.Tier)
	id, err = verify()
	require.NoError(t, err)
	require.Equal(t, "default", id.Tier)
	_, err = verify("tier", 3)
	requireRefused(t, err, errs.TokenInvalid, `gives no tier: claim "tier" is not a string`, "")
}

func TestVerifyWhileReloading(t *testing.T) {
	clock, secret := newClock(), newSecret()
	v := newVerifier(t, clock, secretIssuer(t, secret))
	tokens := make([]string, 4)
	for i := range tokens {
		tokens[i] = sign(t, jwt.SigningMethodHS256, "", secret, goodClaims(clock.now(), "sub", string(rune('a'+i))))
	}
	var workers sync.WaitGroup
	for w := range 8 {
		workers.Go(func() {
			for i := range 200 {
				n := (w + i) % len(tokens)
				id, err := v.Verify(context.Background(), tokens[n])
				if err != nil || id.Tenant != string(rune('a'+n)) {
					t.Errorf("token %d gave %+v, %v", n, id, err)
				}
			}
		})
	}
	workers.Go(func() {
		for range 50 {
			if err := v.Reload(); err != nil {
				t.Error(err)
			}
		}
	})
	workers.Wait()
}

func TestTokenFromHeader(t *testing.T) {
	for header, want := range map[string]string{"Bearer abc": "abc", "bearer  abc ": "abc", "BEARER a.b.c": "a.b.c"} {
		got, err := TokenFromHeader(header)
		require.NoError(t, err, header)
		require.Equal(t, want, got)
	}
	for header, code := range map[string]errs.Code{
		"": errs.TokenMissing, "  ": errs.TokenMissing, "Bearer": errs.TokenMissing, "Bearer  ": errs.TokenMissing,
		"Basic Zm9vOmJhcg==": errs.TokenInvalid, "eyJhbGciOi.secret": errs.TokenInvalid, "Bearerabc": errs.TokenInvalid,
	} {
		_, err := TokenFromHeader(header)
		require.ErrorIs(t, err, code, header)
		if i := strings.LastIndexByte(header, ' '); code == errs.TokenInvalid {
			require.NotContains(t, err.Error(), header[i+1:])
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	clock, ec, secret := newClock(), ecKey(b), newSecret()
	published := fileIssuer(b, map[string]crypto.Signer{"r": rsaKey(), "e": ec})
	shared := secretIssuer(b, secret)
	shared.Issuer = "shared"
	published.SharedTenants, shared.SharedTenants = true, true
	v := newVerifier(b, clock, published, shared)
	tokens := []struct{ name, token string }{
		{"RS256", sign(b, jwt.SigningMethodRS256, "r", rsaKey(), goodClaims(clock.now()))},
		{"ES256", sign(b, jwt.SigningMethodES256, "e", ec, goodClaims(clock.now()))},
		{"HS256", sign(b, jwt.SigningMethodHS256, "", secret, goodClaims(clock.now(), "iss", "shared"))},
	}
	for _, c := range tokens {
		b.Run(c.name+"/uncached", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				v.cache.entries.Purge()
				if _, err := v.Verify(b.Context(), c.token); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("cached", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := v.Verify(b.Context(), tokens[0].token); err != nil {
				b.Fatal(err)
			}
		}
	})
}
