package auth

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

func urlIssuer(url string) Issuer {
	return Issuer{Issuer: testIssuer, Audience: testAudience, JWKSURL: url}
}

func keysOf(t testing.TB, kid string, key crypto.Signer) []byte {
	return jwks(t, map[string]crypto.Signer{kid: key})
}

func es256Token(t testing.TB, kid string, key *ecdsa.PrivateKey, now time.Time) string {
	return sign(t, jwt.SigningMethodES256, kid, key, goodClaims(now))
}

// inTime runs f where time is synthetic, with a verifier whose keys come from server.
func inTime(t *testing.T, server *keyServer, f func(t *testing.T, v *Verifier)) {
	synctest.Test(t, func(t *testing.T) {
		v, err := New(Config{Issuers: []Issuer{urlIssuer("https://issuer.example/keys?secret=hunter2")}, HTTPClient: &http.Client{Transport: server}})
		require.NoError(t, err)
		defer v.Close()
		f(t, v)
	})
}

func TestKeysRotateOverHTTP(t *testing.T) {
	first, second, now := ecKey(t), ecKey(t), time.Now()
	keys := &keyServer{status: 200, body: keysOf(t, "1", first)}
	server := httptest.NewServer(keys)
	defer server.Close()
	set := metrics.NewSet()
	v, err := New(Config{Issuers: []Issuer{urlIssuer(server.URL)}, Metrics: set})
	require.NoError(t, err)
	defer v.Close()

	old := es256Token(t, "1", first, now)
	_, err = v.Verify(t.Context(), old) // waits for the first fetch
	require.NoError(t, err)

	keys.set(200, keysOf(t, "2", second))
	var workers sync.WaitGroup
	for range 16 { // every one of the tokens that come with the new key is served, by one fetch
		workers.Go(func() {
			if _, err := v.Verify(context.Background(), es256Token(t, "2", second, now)); err != nil {
				t.Error(err)
			}
		})
	}
	workers.Wait()
	require.Equal(t, 2, keys.count())

	_, err = v.Verify(t.Context(), old)
	requireRefused(t, err, errs.TokenInvalid, "signing key is not among the keys", old)
	require.Equal(t, 2, keys.count(), "the next fetch on demand must wait")

	keys.set(200, keysOf(t, "1", first))
	require.NoError(t, v.Reload())
	require.Eventually(t, func() bool { _, err := v.Verify(t.Context(), old); return err == nil }, 5*time.Second, 5*time.Millisecond)

	var text bytes.Buffer
	set.WritePrometheus(&text)
	require.Contains(t, text.String(), `fairlead_gateway_jwks_keys{issuer="https://issuer.example"} 1`)
	require.Contains(t, text.String(), `fairlead_gateway_jwks_fetches_total{issuer="https://issuer.example",outcome="ok"} 3`)
	require.Contains(t, text.String(), `fairlead_gateway_token_checks_total{outcome="invalid"}`)
}

func TestKeysThatAreDownAtStart(t *testing.T) {
	key := ecKey(t)
	server := httptest.NewServer(http.NotFoundHandler())
	url := server.URL
	server.Close() // nothing listens there now
	var log bytes.Buffer
	v, err := New(Config{Issuers: []Issuer{urlIssuer(url)}, Logger: slog.New(slog.NewJSONHandler(&log, nil))})
	require.NoError(t, err, "the gateway starts")
	token := es256Token(t, "1", key, time.Now())
	_, err = v.Verify(t.Context(), token)
	requireRefused(t, err, errs.KeysUnavailable, `the keys of issuer "https://issuer.example" could not be fetched yet`, token)
	require.Positive(t, errs.From(err).RetryAfter)
	require.NoError(t, v.Close())
	require.NoError(t, v.Close())
	require.Contains(t, log.String(), "key set not refreshed")
	require.Contains(t, log.String(), "refused") // the cause
	require.Contains(t, log.String(), "jwks_url is not https")
}

func TestFetchIsRetriedUntilKeysAreThere(t *testing.T) {
	key := ecKey(t)
	server := &keyServer{status: 503}
	inTime(t, server, func(t *testing.T, v *Verifier) {
		token := es256Token(t, "1", key, time.Now())
		_, err := v.Verify(t.Context(), token)
		require.ErrorIs(t, err, errs.KeysUnavailable)
		pass(20 * time.Second)
		require.GreaterOrEqual(t, server.count(), 3)
		server.set(200, keysOf(t, "1", key))
		pass(45 * time.Second) // the longest pause, with its jitter
		_, err = v.Verify(t.Context(), token)
		require.NoError(t, err)
	})
}

func TestKeysAreRefreshedEveryFiveMinutes(t *testing.T) {
	first, second := ecKey(t), ecKey(t)
	server := &keyServer{status: 200, body: keysOf(t, "1", first)}
	inTime(t, server, func(t *testing.T, v *Verifier) {
		token := es256Token(t, "1", first, time.Now())
		verify := func() error { _, err := v.Verify(t.Context(), token); return err }
		require.NoError(t, verify())
		pass(refreshEvery + time.Second)
		require.Equal(t, 2, server.count())
		require.NoError(t, verify())
		require.EqualValues(t, 1, v.counts.hits.Get(), "unchanged keys keep what is remembered")

		server.set(500, nil)
		pass(refreshEvery)
		require.NoError(t, verify(), "a failed fetch leaves the keys")

		server.set(200, keysOf(t, "2", second))
		pass(time.Minute)
		requireRefused(t, verify(), errs.TokenInvalid, "signing key is not among", token)

		server.set(200, []byte(`{"keys":[]}`))
		pass(refreshEvery)
		_, err := v.Verify(t.Context(), es256Token(t, "", second, time.Now()))
		requireRefused(t, err, errs.TokenInvalid, "no key to check the token's signature with", "")
	})
}

func TestUnknownKeysCauseOneFetchInThirtySeconds(t *testing.T) {
	key := ecKey(t)
	server := &keyServer{status: 200, body: keysOf(t, "1", key)}
	inTime(t, server, func(t *testing.T, v *Verifier) {
		synctest.Wait()
		flood := func() {
			for range 50 {
				token := es256Token(t, "nobody", key, time.Now())
				_, err := v.Verify(t.Context(), token)
				requireRefused(t, err, errs.TokenInvalid, "signing key is not among", token)
			}
		}
		flood()
		require.Equal(t, 2, server.count())
		pass(29 * time.Second)
		flood()
		require.Equal(t, 2, server.count())
		pass(time.Second)
		flood()
		require.Equal(t, 3, server.count())
	})
}

func TestTokensWaitAtMostASecondForKeys(t *testing.T) {
	key := ecKey(t)
	server := &keyServer{status: 200, body: keysOf(t, "1", key), stalled: true}
	inTime(t, server, func(t *testing.T, v *Verifier) {
		token := es256Token(t, "1", key, time.Now())
		begin := time.Now()
		_, err := v.Verify(t.Context(), token)
		require.ErrorIs(t, err, errs.KeysUnavailable)
		require.Equal(t, askWait, time.Since(begin))

		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		begin = time.Now()
		_, err = v.Verify(ctx, token)
		require.ErrorIs(t, err, errs.Canceled)
		require.Equal(t, 100*time.Millisecond, time.Since(begin))
	})
}

func TestBadAnswersAreNoKeys(t *testing.T) {
	key := ecKey(t)
	answers := map[string]struct {
		status int
		body   []byte
		cause  string
	}{
		"status":    {404, keysOf(t, "1", key), "answered 404"},
		"not a set": {200, []byte("<html>"), "not a JSON Web Key Set"},
		"too large": {200, append(keysOf(t, "1", key), bytes.Repeat([]byte(" "), maxKeyFile)...), "larger than"},
	}
	for name, answer := range answers {
		t.Run(name, func(t *testing.T) {
			server := &keyServer{status: answer.status, body: answer.body}
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				v, err := New(Config{Issuers: []Issuer{urlIssuer("https://issuer.example/keys?secret=hunter2")},
					Logger: slog.New(slog.NewTextHandler(&log, nil)), HTTPClient: &http.Client{Transport: server}})
				require.NoError(t, err)
				_, err = v.Verify(t.Context(), es256Token(t, "1", key, time.Now()))
				require.ErrorIs(t, err, errs.KeysUnavailable)
				require.NoError(t, v.Close())
				require.Contains(t, log.String(), answer.cause)
				require.NotContains(t, log.String(), "hunter2")
			})
		})
	}
}

func TestOwnClientNeverLeavesHTTPS(t *testing.T) {
	plain := httptest.NewServer(&keyServer{status: 200, body: keysOf(t, "1", ecKey(t))})
	defer plain.Close()
	secure := httptest.NewTLSServer(http.RedirectHandler(plain.URL, http.StatusFound))
	defer secure.Close()
	client := newHTTPClient()
	defer client.CloseIdleConnections()
	client.Transport.(*http.Transport).TLSClientConfig = secure.Client().Transport.(*http.Transport).TLSClientConfig
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, secure.URL, nil)
	require.NoError(t, err)
	resp, err := client.Do(req)
	if resp != nil {
		resp.Body.Close()
	}
	require.ErrorContains(t, err, "redirected from https to http")
}
