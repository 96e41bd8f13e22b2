package testbed_test

import (
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/testbed"
)

// keys returns what verifies an issuer's tokens, read from its file.
func keys(t *testing.T, i *testbed.Issuer) jwt.Keyfunc {
	t.Helper()
	if i.Algorithm() == "HS256" {
		secret, err := os.ReadFile(i.SecretFile())
		require.NoError(t, err)
		return func(*jwt.Token) (any, error) { return secret, nil }
	}
	raw, err := os.ReadFile(i.JWKSFile())
	require.NoError(t, err)
	set, err := keyfunc.NewJWKSetJSON(raw)
	require.NoError(t, err)
	return set.Keyfunc
}

func TestTokens(t *testing.T) {
	for _, algorithm := range []string{"HS256", "RS256", "ES256", "EdDSA"} {
		t.Run(algorithm, func(t *testing.T) {
			i := testbed.NewTestIssuer(t, algorithm)
			parser := jwt.NewParser(jwt.WithValidMethods([]string{algorithm}), jwt.WithExpirationRequired(),
				jwt.WithIssuer(i.Issuer()), jwt.WithAudience(i.Audience()))
			for name, c := range map[string]struct {
				make func(string) (string, error)
				want error
			}{
				"valid":           {func(s string) (string, error) { return i.Valid(s, time.Minute) }, nil},
				"expired":         {i.Expired, jwt.ErrTokenExpired},
				"not yet valid":   {i.NotYetValid, jwt.ErrTokenNotValidYet},
				"wrong audience":  {i.WrongAudience, jwt.ErrTokenInvalidAudience},
				"wrong signature": {i.WrongSignature, jwt.ErrTokenSignatureInvalid},
			} {
				token, err := c.make("someone")
				require.NoError(t, err, name)
				parsed, err := parser.Parse(token, keys(t, i))
				if c.want != nil {
					require.ErrorIs(t, err, c.want, name)
					continue
				}
				require.NoError(t, err, name)
				subject, err := parsed.Claims.GetSubject()
				require.NoError(t, err)
				assert.Equal(t, "someone", subject)
			}
		})
	}
}

func TestTokenClaims(t *testing.T) {
	i := testbed.NewTestIssuer(t, "HS256")
	token, err := i.Sign(testbed.Claims{"sub": "a", "exp": nil, "kubernetes.io": map[string]any{"namespace": "payments"}})
	require.NoError(t, err)
	parsed, err := jwt.Parse(token, keys(t, i))
	require.NoError(t, err)
	claims := parsed.Claims.(jwt.MapClaims)
	assert.NotContains(t, claims, "exp")
	assert.Equal(t, map[string]any{"namespace": "payments"}, claims["kubernetes.io"])
	_, err = testbed.NewIssuer(testbed.IssuerConfig{Algorithm: "none", Dir: t.TempDir()})
	require.ErrorContains(t, err, `"none"`)

	path := filepath.Join(t.TempDir(), "token")
	require.NoError(t, testbed.WriteToken(path, "first"))
	require.NoError(t, testbed.WriteToken(path, token))
	raw, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, token+"\n", string(raw))
}

func TestJWKSHandlerServesTheKeysOfTheMoment(t *testing.T) {
	first, second := testbed.NewTestIssuer(t, "ES256"), testbed.NewTestIssuer(t, "EdDSA")
	current := []*testbed.Issuer{first, testbed.NewTestIssuer(t, "HS256")}
	handler := testbed.JWKSHandler(func() []*testbed.Issuer { return current })
	get := func() string {
		recorder := httptest.NewRecorder()
		handler.ServeHTTP(recorder, httptest.NewRequest("GET", "/", nil))
		raw, err := io.ReadAll(recorder.Result().Body)
		require.NoError(t, err)
		return string(raw)
	}
	assert.Contains(t, get(), `"kid": "ES256"`)
	assert.NotContains(t, get(), "HS256", "a secret is not published")
	current = []*testbed.Issuer{first, second}
	assert.Contains(t, get(), `"kid": "EdDSA"`)
}
