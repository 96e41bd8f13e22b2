package auth

import (
	"bytes"
	"crypto"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

func TestNewRefusesBadConfiguration(t *testing.T) {
	good := secretIssuer(t, newSecret())
	keys := writeFile(t, jwks(t, map[string]crypto.Signer{"e": ecKey(t)}))
	empty := writeFile(t, []byte(`{"keys":[]}`))
	cases := map[string]struct {
		change   func(*Issuer)
		code     errs.Code
		sentence string
	}{
		"no issuer":           {func(i *Issuer) { i.Issuer = "" }, errs.ConfigInvalid, "has no issuer"},
		"issuer not ASCII":    {func(i *Issuer) { i.Issuer = "ä" }, errs.ConfigInvalid, "printable ASCII"},
		"no audience":         {func(i *Issuer) { i.Audience = "" }, errs.ConfigInvalid, "audience is required"},
		"negative leeway":     {func(i *Issuer) { i.Leeway = -1 }, errs.ConfigInvalid, "leeway"},
		"no keys":             {func(i *Issuer) { i.HMACSecretFile = "" }, errs.ConfigInvalid, "exactly one of"},
		"two sources of keys": {func(i *Issuer) { i.JWKSFile = keys }, errs.ConfigInvalid, "exactly one of"},
		"scheme of the URL":   {func(i *Issuer) { i.HMACSecretFile, i.JWKSURL = "", "ftp://x/" }, errs.ConfigInvalid, "jwks_url must be"},
		"user in the URL":     {func(i *Issuer) { i.HMACSecretFile, i.JWKSURL = "", "https://u:hunter2@x/" }, errs.ConfigInvalid, "jwks_url must be"},
		"public algorithm":    {func(i *Issuer) { i.Algorithms = []string{"RS256"} }, errs.ConfigInvalid, "allowed: HS256"},
		"none":                {func(i *Issuer) { i.Algorithms = []string{"none"} }, errs.ConfigInvalid, "allowed: HS256"},
		"secret algorithm":    {func(i *Issuer) { i.HMACSecretFile, i.JWKSFile, i.Algorithms = "", keys, []string{"RS256", "HS256"} }, errs.ConfigInvalid, "allowed: RS256, ES256, EdDSA"},
		"tenant template":     {func(i *Issuer) { i.Tenant = "{a}{b}" }, errs.ConfigInvalid, "tenant template"},
		"tier template":       {func(i *Issuer) { i.Tier = "{" }, errs.ConfigInvalid, "tier template"},
		"no secret file":      {func(i *Issuer) { i.HMACSecretFile += "x" }, errs.KeyUnreadable, "hmac_secret_file"},
		"short secret":        {func(i *Issuer) { i.HMACSecretFile = writeFile(t, []byte(strings.Repeat("x", 31)+"\n")) }, errs.KeyUnreadable, "openssl rand -hex 32"},
		"huge secret":         {func(i *Issuer) { i.HMACSecretFile = writeFile(t, make([]byte, maxKeyFile+1)) }, errs.KeyUnreadable, "larger than"},
		"no key set file":     {func(i *Issuer) { i.HMACSecretFile, i.JWKSFile = "", keys+"x" }, errs.KeyUnreadable, "jwks_file"},
		"not a key set":       {func(i *Issuer) { i.JWKSFile, i.HMACSecretFile = i.HMACSecretFile, "" }, errs.KeyUnreadable, "not a JSON Web Key Set"},
		"no key in the set":   {func(i *Issuer) { i.HMACSecretFile, i.JWKSFile = "", empty }, errs.KeyUnreadable, "holds no key"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			iss := good
			c.change(&iss)
			_, err := New(Config{Issuers: []Issuer{iss}})
			require.ErrorIs(t, err, c.code)
			require.Contains(t, err.Error(), c.sentence)
			require.NotContains(t, err.Error(), "hunter2")
		})
	}
	_, err := New(Config{})
	require.ErrorIs(t, err, errs.ConfigInvalid)
	_, err = New(Config{Issuers: []Issuer{good, good}})
	require.ErrorIs(t, err, errs.ConfigInvalid)
	require.Contains(t, err.Error(), "twice")
}

func TestBinarySecretKeepsItsLastByte(t *testing.T) {
	clock := newClock()
	secret := append(bytes.Repeat([]byte{0xfe}, 32), '\n')
	v := newVerifier(t, clock, secretIssuer(t, secret))
	_, err := v.Verify(t.Context(), sign(t, jwt.SigningMethodHS256, "", secret, goodClaims(clock.now())))
	require.NoError(t, err)
}

func TestReloadIsWholeOrNotAtAll(t *testing.T) {
	clock, oldSecret, newerSecret := newClock(), newSecret(), newSecret()
	oldKey, newKey := ecKey(t), ecKey(t)
	published := fileIssuer(t, map[string]crypto.Signer{"k": oldKey})
	shared := secretIssuer(t, oldSecret)
	shared.Issuer = "shared"
	published.SharedTenants, shared.SharedTenants = true, true
	v := newVerifier(t, clock, published, shared)
	byKey := func(key crypto.Signer) string {
		return sign(t, jwt.SigningMethodES256, "k", key, goodClaims(clock.now()))
	}
	bySecret := func(secret []byte) string {
		return sign(t, jwt.SigningMethodHS256, "", secret, goodClaims(clock.now(), "iss", "shared"))
	}
	oldTokens := []string{byKey(oldKey), bySecret(oldSecret)}
	newTokens := []string{byKey(newKey), bySecret(newerSecret)}
	requireAll := func(tokens []string, ok bool) {
		t.Helper()
		for i, token := range tokens {
			_, err := v.Verify(t.Context(), token)
			if ok {
				require.NoError(t, err, i)
			} else {
				requireRefused(t, err, errs.TokenInvalid, "signature is not by a key", token)
			}
		}
	}
	requireAll(oldTokens, true)
	requireAll(newTokens, false)

	require.NoError(t, os.WriteFile(published.JWKSFile, jwks(t, map[string]crypto.Signer{"k": newKey}), 0o600))
	require.NoError(t, os.WriteFile(shared.HMACSecretFile, []byte("too short"), 0o600))
	require.ErrorIs(t, v.Reload(), errs.KeyUnreadable)
	requireAll(oldTokens, true)
	requireAll(newTokens, false)

	require.NoError(t, os.WriteFile(shared.HMACSecretFile, newerSecret, 0o600))
	require.NoError(t, v.Reload())
	requireAll(oldTokens, false) // although they were remembered
	requireAll(newTokens, true)
}

func TestTokensOfOneIssuerAreNothingToAnother(t *testing.T) {
	clock, a, b := newClock(), newSecret(), newSecret()
	one, two := secretIssuer(t, a), secretIssuer(t, b)
	one.Issuer, one.Tenant = "one", "one:{sub}"
	two.Issuer, two.Tenant = "two", "two:{sub}"
	v := newVerifier(t, clock, one, two)
	for name, secret := range map[string][]byte{"one": a, "two": b} {
		token, err := Develop(map[string]Issuer{"one": one, "two": two}[name], name+":x", time.Hour, clock.now())
		require.NoError(t, err)
		id, err := v.Verify(t.Context(), token)
		require.NoError(t, err)
		require.Equal(t, name+":x", id.Tenant)
		other := map[string]string{"one": "two", "two": "one"}[name]
		_, err = v.Verify(t.Context(), sign(t, jwt.SigningMethodHS256, "", secret, goodClaims(clock.now(), "iss", other)))
		requireRefused(t, err, errs.TokenInvalid, "signature is not by a key", "")
	}
}
