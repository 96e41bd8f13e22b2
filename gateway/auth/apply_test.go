package auth

import (
	"context"
	"crypto"
	"encoding/json"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/MicahParks/jwkset"
	"github.com/VictoriaMetrics/metrics"
	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

func named(iss Issuer, name string) Issuer {
	iss.Issuer, iss.Tenant = name, name+":{sub}"
	return iss
}

func TestIssuersChangeWhileRunning(t *testing.T) {
	clock, secretA, secretB, key := newClock(), newSecret(), newSecret(), ecKey(t)
	keys := &keyServer{status: 200, body: keysOf(t, "1", key)}
	server := httptest.NewServer(keys)
	defer server.Close()
	a, b, c := named(secretIssuer(t, secretA), "a"), named(secretIssuer(t, secretB), "b"), named(urlIssuer(server.URL+"/?key=hunter2"), "c")
	set := metrics.NewSet()
	v, err := New(Config{Issuers: []Issuer{a, c}, Metrics: set, Now: clock.now})
	require.NoError(t, err)
	defer v.Close()
	tokenA := sign(t, jwt.SigningMethodHS256, "", secretA, goodClaims(clock.now(), "iss", "a"))
	tokenB := sign(t, jwt.SigningMethodHS256, "", secretB, goodClaims(clock.now(), "iss", "b"))
	tokenC := sign(t, jwt.SigningMethodES256, "1", key, goodClaims(clock.now(), "iss", "c"))
	verify := func(token string) error { _, err := v.Verify(t.Context(), token); return err }
	idA, err := v.Verify(t.Context(), tokenA)
	require.NoError(t, err)
	require.NoError(t, verify(tokenC))
	requireRefused(t, verify(tokenB), errs.TokenInvalid, "is not known here", tokenB)

	// Whole or not at all.
	broken := b
	broken.Audience = ""
	require.ErrorIs(t, v.Apply([]Issuer{b, broken}), errs.ConfigInvalid)
	require.ErrorIs(t, v.Apply([]Issuer{b, b}), errs.ConfigInvalid)
	require.ErrorIs(t, v.Apply(nil), errs.ConfigInvalid)
	broken = b
	broken.HMACSecretFile += "x"
	require.ErrorIs(t, v.Apply([]Issuer{c, broken}), errs.KeyUnreadable)
	requireRefused(t, verify(tokenB), errs.TokenInvalid, "is not known here", tokenB)
	require.NoError(t, verify(tokenA))

	// c stays with its keys and what is remembered, a is gone, b is there.
	hits, fetches := v.counts.hits.Get(), keys.count()
	require.NoError(t, v.Apply([]Issuer{b, c}))
	require.NoError(t, verify(tokenC))
	require.Equal(t, hits+1, v.counts.hits.Get())
	requireRefused(t, verify(tokenA), errs.TokenInvalid, "is not known here", tokenA)
	requireRefused(t, v.Check(t.Context(), idA), errs.TokenInvalid, "no longer accepted", tokenA)
	require.NoError(t, verify(tokenB))

	// What c means changes: tokens are read anew, by the keys that are there.
	changed := c
	changed.Tenant = "d:{sub}"
	idC, err := v.Verify(t.Context(), tokenC)
	require.NoError(t, err)
	idB, err := v.Verify(t.Context(), tokenB)
	require.NoError(t, err)
	require.NoError(t, v.Apply([]Issuer{b, changed}))
	id, err := v.Verify(t.Context(), tokenC)
	require.NoError(t, err)
	require.Equal(t, "d:payments", id.Tenant)
	requireRefused(t, v.Check(t.Context(), idC), errs.TokenInvalid, "mean something else", tokenC)
	require.NoError(t, v.Check(t.Context(), id))
	require.NoError(t, v.Check(t.Context(), idB))
	faster := changed
	faster.Leeway++
	require.NoError(t, v.Apply([]Issuer{b, faster}))
	require.NoError(t, v.Check(t.Context(), id), "it means the same")
	require.Equal(t, fetches, keys.count(), "the keys were not fetched again")
	changed.Audience = "other"
	require.NoError(t, v.Apply([]Issuer{b, changed}))
	requireRefused(t, verify(tokenC), errs.TokenInvalid, "its audience lacks", tokenC)

	// Another source is fetched from; the one before is let go.
	require.Contains(t, text(set), `fairlead_gateway_jwks_keys{issuer="c"} 1`)
	require.NoError(t, v.Apply([]Issuer{b}))
	require.NotContains(t, text(set), `fairlead_gateway_jwks_keys{issuer="c"}`)
	require.NoError(t, v.Apply([]Issuer{b, c}))
	require.NoError(t, verify(tokenC))
	require.Equal(t, fetches+1, keys.count())

	status := v.Status()
	require.Len(t, status, 2)
	require.Equal(t, []any{"b", "secret", 1}, []any{status[0].Issuer, status[0].Source, status[0].Keys})
	require.Equal(t, []any{"c", "url", 1}, []any{status[1].Issuer, status[1].Source, status[1].Keys})
	require.False(t, status[1].Fetched.IsZero())
	asJSON, err := json.Marshal(status)
	require.NoError(t, err)
	require.NotContains(t, string(asJSON), "hunter2")

	require.NoError(t, v.Close())
	require.ErrorIs(t, v.Apply([]Issuer{a}), errs.ShuttingDown)
	require.NoError(t, verify(tokenB), "keys that are there go on")
}

func TestApplyWhileVerifying(t *testing.T) {
	clock, secret := newClock(), newSecret()
	a, b := named(secretIssuer(t, secret), "a"), named(secretIssuer(t, secret), "b")
	v := newVerifier(t, clock, a, b)
	tokens := map[string]string{}
	for _, name := range []string{"a", "b"} {
		tokens[name] = sign(t, jwt.SigningMethodHS256, "", secret, goodClaims(clock.now(), "iss", name))
	}
	var workers sync.WaitGroup
	for range 4 {
		workers.Go(func() {
			for range 300 {
				if id, err := v.Verify(context.Background(), tokens["a"]); err != nil || id.Tenant != "a:payments" {
					t.Errorf("a, which never goes, gave %v, %v", id.Tenant, err)
				}
				if id, err := v.Verify(context.Background(), tokens["b"]); err == nil && id.Tenant != "b:payments" {
					t.Errorf("b gave %v", id.Tenant)
				}
			}
		})
	}
	workers.Go(func() {
		for i := range 100 {
			list := []Issuer{a, b}[:1+i%2]
			if err := v.Apply(list); err != nil {
				t.Error(err)
			}
		}
	})
	workers.Wait()
}

func TestInlineKeys(t *testing.T) {
	clock, key := newClock(), ecKey(t)
	iss := Issuer{Issuer: testIssuer, Audience: testAudience, JWKS: string(keysOf(t, "1", key))}
	v := newVerifier(t, clock, iss)
	_, err := v.Verify(t.Context(), es256Token(t, "1", key, clock.now()))
	require.NoError(t, err)
	_, err = v.Verify(t.Context(), es256Token(t, "2", key, clock.now()))
	requireRefused(t, err, errs.TokenInvalid, "signing key is not among", "")
	require.Equal(t, []IssuerStatus{{Issuer: testIssuer, Source: "inline", Keys: 1}}, v.Status())

	private, err := jwkset.NewJWKFromKey(key, jwkset.JWKOptions{Marshal: jwkset.JWKMarshalOptions{Private: true}})
	require.NoError(t, err)
	whole, err := json.Marshal(map[string]any{"keys": []any{private.Marshal()}})
	require.NoError(t, err)
	for _, bad := range []string{"{", `{"keys":[]}`, `{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}`, string(whole)} {
		iss.JWKS = bad
		_, err := New(Config{Issuers: []Issuer{iss}})
		require.ErrorIs(t, err, errs.ConfigInvalid)
		require.NotContains(t, err.Error(), "c2VjcmV0")
	}
}

func TestChangedKeyFilesAreNoticed(t *testing.T) {
	published, secret, newer := map[string]crypto.Signer{"k": ecKey(t)}, newSecret(), newSecret()
	a, b := named(fileIssuer(t, published), "a"), named(secretIssuer(t, secret), "b")
	write := func(path string, data []byte) { require.NoError(t, os.WriteFile(path, data, 0o600)) }
	synctest.Test(t, func(t *testing.T) {
		clock := newClock()
		v, log := newLoggedVerifier(t, clock, nil, a, b)
		defer v.Close()
		old := sign(t, jwt.SigningMethodHS256, "", secret, goodClaims(clock.now(), "iss", "b"))
		verify := func(token string) error { _, err := v.Verify(t.Context(), token); return err }
		require.NoError(t, verify(old))
		pass(3 * filePoll)
		require.NoError(t, verify(old))
		require.EqualValues(t, 1, v.counts.hits.Get(), "files that are the same change nothing")

		write(b.HMACSecretFile, newer[:minSecret-1]) // half written
		pass(5 * filePoll)
		require.NoError(t, verify(old), "the secret before stays")
		require.Equal(t, 1, strings.Count(log.String(), "the changed key file cannot be used"), "said once")
		require.Contains(t, v.Status()[1].Error, "openssl rand -hex 32")

		key := ecKey(t)
		write(a.JWKSFile, keysOf(t, "k2", key))
		pass(filePoll)
		require.NoError(t, verify(sign(t, jwt.SigningMethodES256, "k2", key, goodClaims(clock.now(), "iss", "a"))), "one bad file holds up no other")

		write(b.HMACSecretFile, newer)
		pass(filePoll)
		require.NoError(t, verify(sign(t, jwt.SigningMethodHS256, "", newer, goodClaims(clock.now(), "iss", "b"))))
		requireRefused(t, verify(old), errs.TokenInvalid, "signature is not by a key", old)
		require.Empty(t, v.Status()[1].Error)
		require.Equal(t, 2, strings.Count(log.String(), "key file reloaded"))

		require.NoError(t, os.Remove(b.HMACSecretFile))
		pass(2 * filePoll)
		require.Equal(t, 2, strings.Count(log.String(), "the changed key file cannot be used"), "another failure is said")
	})
}
