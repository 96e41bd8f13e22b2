package auth

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/VictoriaMetrics/metrics"
	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"fairlead/shared/errs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testIssuer   = "https://issuer.example"
	testAudience = "fairlead"
)

// rsaKey is generated once for all tests: it takes long.
var rsaKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

func ecKey(t testing.TB) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return key
}

func edKey(t testing.TB) ed25519.PrivateKey {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	return key
}

// jwks renders the public halves of keys, by key id.
func jwks(t testing.TB, keys map[string]crypto.Signer) []byte {
	documents := []jwkset.JWKMarshal{}
	for kid, key := range keys {
		jwk, err := jwkset.NewJWKFromKey(key.Public(), jwkset.JWKOptions{Metadata: jwkset.JWKMetadataOptions{KID: kid, USE: jwkset.UseSig}})
		require.NoError(t, err)
		documents = append(documents, jwk.Marshal())
	}
	data, err := json.Marshal(map[string]any{"keys": documents})
	require.NoError(t, err)
	return data
}

func writeFile(t testing.TB, data []byte) string {
	path := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(path, data, 0o600))
	return path
}

// clock is a clock that tests move.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func newClock() *clock { return &clock{at: time.Unix(1_800_000_000, 0)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// goodClaims are accepted by the test issuer at the clock's time.
func goodClaims(now time.Time, more ...any) jwt.MapClaims {
	claims := jwt.MapClaims{
		"iss": testIssuer, "aud": testAudience, "sub": "payments", "jti": "id-1",
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	}
	for i := 0; i < len(more); i += 2 {
		if more[i+1] == nil {
			delete(claims, more[i].(string))
			continue
		}
		claims[more[i].(string)] = more[i+1]
	}
	return claims
}

func sign(t testing.TB, method jwt.SigningMethod, kid string, key any, claims jwt.MapClaims) string {
	token := jwt.NewWithClaims(method, claims)
	if kid != "" {
		token.Header["kid"] = kid
	}
	text, err := token.SignedString(key)
	require.NoError(t, err)
	return text
}

func newVerifier(t testing.TB, clock *clock, issuers ...Issuer) *Verifier {
	v, err := New(Config{Issuers: issuers, Metrics: metrics.NewSet(), Now: clock.now})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, v.Close()) })
	return v
}

func fileIssuer(t testing.TB, keys map[string]crypto.Signer) Issuer {
	return Issuer{Issuer: testIssuer, Audience: testAudience, JWKSFile: writeFile(t, jwks(t, keys))}
}

func secretIssuer(t testing.TB, secret []byte) Issuer {
	return Issuer{Issuer: testIssuer, Audience: testAudience, HMACSecretFile: writeFile(t, secret)}
}

func newSecret() []byte { return []byte(rand.Text() + rand.Text()) }

// requireRefused checks code and sentence, and that the error gives away nothing of the token.
func requireRefused(t testing.TB, err error, code errs.Code, sentence, token string) {
	t.Helper()
	require.ErrorIs(t, err, code)
	require.Contains(t, err.Error(), sentence)
	for _, part := range strings.Split(token, ".") {
		if len(part) > 8 {
			require.NotContains(t, err.Error(), part[:8])
		}
	}
}

// keyServer serves a JSON Web Key Set that tests change.
type keyServer struct {
	mu      sync.Mutex
	status  int
	body    []byte
	fetches int
	stalled bool // answers never come
}

func (s *keyServer) set(status int, body []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status, s.body = status, body
}

func (s *keyServer) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fetches
}

func (s *keyServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.fetches++
	status, body, stalled := s.status, s.body, s.stalled
	s.mu.Unlock()
	if stalled {
		<-r.Context().Done()
		return
	}
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// RoundTrip lets a keyServer stand for the network where time is synthetic.
func (s *keyServer) RoundTrip(r *http.Request) (*http.Response, error) {
	rec := httptest.NewRecorder()
	s.ServeHTTP(rec, r)
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	return rec.Result(), nil
}

// pass lets synthetic time go by, and what it sets off come to rest.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}
