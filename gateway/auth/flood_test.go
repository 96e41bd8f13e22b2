package auth

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

// ours counts the goroutines that run code of this package. Those of other tests' servers come and go.
func ours() int {
	stacks := make([]byte, 16<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	count := 0
	for _, stack := range bytes.Split(stacks, []byte("\n\n")) {
		if bytes.Contains(stack, []byte("fairlead/gateway/auth.")) {
			count++
		}
	}
	return count
}

// A stranger sends tokens with made-up key ids while the key server hangs. Whoever has a good token notices nothing, and
// what the flood holds is bounded: no goroutines, and a number of tokens that wait.
func TestFloodOfUnknownKeysHoldsNobodyUp(t *testing.T) {
	const flood = 4 * maxWaiting
	key, stranger, other := ecKey(t), ecKey(t), newSecret()
	made := make([]string, flood)
	now := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // when synthetic time begins
	for i := range made {
		made[i] = es256Token(t, fmt.Sprint("made-up-", i), stranger, now)
	}
	shared := named(secretIssuer(t, other), "shared")
	server := &keyServer{status: 200, body: keysOf(t, "1", key)}
	published := urlIssuer("https://issuer.example/keys")
	published.Tenant = "web:{sub}"
	synctest.Test(t, func(t *testing.T) {
		v, err := New(Config{Issuers: []Issuer{published, shared}, HTTPClient: &http.Client{Transport: server}})
		require.NoError(t, err)
		defer v.Close()
		synctest.Wait()
		server.mu.Lock()
		server.stalled = true
		server.mu.Unlock()

		before := ours()
		var waited, atOnce atomic.Int32
		var strangers sync.WaitGroup
		for _, token := range made {
			strangers.Go(func() {
				begin := time.Now()
				_, err := v.Verify(context.Background(), token)
				if errs.CodeOf(err) != errs.TokenInvalid {
					t.Errorf("unexpected: %v", err)
				}
				switch time.Since(begin) {
				case 0:
					atOnce.Add(1)
				case askWait:
					waited.Add(1)
				default:
					t.Errorf("waited %v", time.Since(begin))
				}
			})
		}
		synctest.Wait() // those that wait do so now
		require.LessOrEqual(t, ours()-before, maxWaiting, "none but the strangers' own")
		remote := v.Status()[0]
		require.Equal(t, 1, remote.Keys)

		begin := time.Now()
		for range 20 {
			_, err := v.Verify(t.Context(), es256Token(t, "1", key, time.Now()))
			require.NoError(t, err)
			_, err = v.Verify(t.Context(), sign(t, jwt.SigningMethodHS256, "", other, goodClaims(time.Now(), "iss", "shared")))
			require.NoError(t, err)
		}
		require.Zero(t, time.Since(begin), "good tokens wait for nothing")
		strangers.Wait()
		require.EqualValues(t, maxWaiting, waited.Load())
		require.EqualValues(t, flood-maxWaiting, atOnce.Load())
		require.Equal(t, 2, server.count(), "one fetch at the start, one for all of the flood")
	})
}

// A key server that lies or dies changes nothing while it does, and is believed again when it is well.
func TestKeyServerThatLiesAndDies(t *testing.T) {
	key, newer := ecKey(t), ecKey(t)
	var answer atomic.Pointer[http.HandlerFunc]
	serve := func(f http.HandlerFunc) { answer.Store(&f) }
	good := func(body []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) }
	}
	set := keysOf(t, "1", key)
	serve(good(set))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*answer.Load())(w, r) }))
	defer server.Close()
	iss := urlIssuer(server.URL)
	v, err := New(Config{Issuers: []Issuer{iss}})
	require.NoError(t, err)
	defer v.Close()
	token := es256Token(t, "1", key, time.Now())
	check := func(token string) error { _, err := v.Verify(t.Context(), token); return err }
	require.NoError(t, check(token))
	cases := map[string]http.HandlerFunc{
		"a page":           good([]byte("<html>login</html>")),
		"an empty answer":  good(nil),
		"another document": good([]byte(`{"issuer":"x","jwks_uri":"y"}`)),
		"half of it":       good(set[:len(set)/2]),
		"shorter than it says": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "9999")
			_, _ = w.Write(set)
		},
		"endless": func(w http.ResponseWriter, r *http.Request) { endless(w, r) },
		"server error": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(500)
			_, _ = w.Write(keysOf(t, "2", newer))
		},
		"not modified":     func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(304) },
		"no content":       func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) },
		"a cut connection": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"round in circles": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/", http.StatusFound) },
	}
	for name, lie := range cases {
		serve(lie)
		before := v.Status()[0].ErrorAt
		require.NoError(t, v.Reload())
		require.Eventually(t, func() bool { return v.Status()[0].ErrorAt.After(before) }, 5*time.Second, time.Millisecond, name)
		require.NotEmpty(t, v.Status()[0].Error, name)
		require.NoError(t, check(token), name)
		require.NoError(t, v.Ready(), name)
	}
	serve(good(keysOf(t, "2", newer)))
	require.NoError(t, v.Reload())
	require.Eventually(t, func() bool { return check(es256Token(t, "2", newer, time.Now())) == nil }, 5*time.Second, time.Millisecond)
	requireRefused(t, check(token), errs.TokenInvalid, "signing key is not among", token)
	require.Empty(t, v.Status()[0].Error)
}

func endless(w http.ResponseWriter, r *http.Request) {
	block := make([]byte, 64<<10)
	for r.Context().Err() == nil {
		if _, err := w.Write(block); err != nil {
			return
		}
	}
}
