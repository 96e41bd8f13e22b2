package auth

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"

	"github.com/MicahParks/jwkset"
	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

func encode(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// rawToken signs exactly these bytes, so that headers and claims can be what no library would write.
func rawToken(t *testing.T, method jwt.SigningMethod, key any, header, claims string) string {
	text := encode(header) + "." + encode(claims)
	sig, err := method.Sign(text, key)
	require.NoError(t, err)
	return text + "." + base64.RawURLEncoding.EncodeToString(sig)
}

func TestForgedTokensAreRefused(t *testing.T) {
	clock, ec, ed, stranger := newClock(), ecKey(t), edKey(t), ecKey(t)
	document := jwks(t, map[string]crypto.Signer{"r": rsaKey(), "e": ec, "d": ed})
	iss := Issuer{Issuer: testIssuer, Audience: testAudience, JWKSFile: writeFile(t, document)}
	secret := newSecret()
	shared := secretIssuer(t, secret)
	shared.Issuer = "shared"
	iss.SharedTenants, shared.SharedTenants = true, true
	v := newVerifier(t, clock, iss, shared)

	der, err := x509.MarshalPKIXPublicKey(rsaKey().Public())
	require.NoError(t, err)
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	claims := goodClaims(clock.now())
	text, err := json.Marshal(claims)
	require.NoError(t, err)
	good := sign(t, jwt.SigningMethodES256, "e", ec, claims)
	_, err = v.Verify(t.Context(), good)
	require.NoError(t, err)
	parts := strings.Split(good, ".")
	other := encode(strings.Replace(string(text), "payments", "finances", 1))
	ownKey, err := jwkset.NewJWKFromKey(stranger.Public(), jwkset.JWKOptions{})
	require.NoError(t, err)
	embedded, err := json.Marshal(ownKey.Marshal())
	require.NoError(t, err)
	hs := jwt.SigningMethodHS256

	cases := map[string]struct{ token, sentence string }{
		"alg none":                        {sign(t, jwt.SigningMethodNone, "e", jwt.UnsafeAllowNoneSignatureType, claims), "signed by none, which is not allowed"},
		"alg none, other case":            {encode(`{"alg":"nOnE"}`) + "." + parts[1] + ".", "no signing algorithm"},
		"no alg":                          {encode(`{"kid":"e"}`) + "." + parts[1] + "." + parts[2], "no signing algorithm"},
		"public key as secret (PEM)":      {sign(t, hs, "r", public, claims), "signed by HS256, which is not allowed"},
		"public key as secret (DER)":      {sign(t, hs, "r", der, claims), "signed by HS256, which is not allowed"},
		"public key as secret (set)":      {sign(t, hs, "r", document, claims), "signed by HS256, which is not allowed"},
		"empty secret":                    {sign(t, hs, "", []byte{}, goodClaims(clock.now(), "iss", "shared")), "signature"},
		"RSA key for a shared secret":     {sign(t, jwt.SigningMethodRS256, "r", rsaKey(), goodClaims(clock.now(), "iss", "shared")), "signed by RS256, which is not allowed"},
		"hash that is not pinned":         {sign(t, jwt.SigningMethodRS512, "r", rsaKey(), claims), "signed by RS512, which is not allowed"},
		"padding that is not pinned":      {sign(t, jwt.SigningMethodPS256, "r", rsaKey(), claims), "signed by PS256, which is not allowed"},
		"key of another type":             {sign(t, jwt.SigningMethodES256, "r", ec, claims), "signature is not by a key"},
		"key of a stranger":               {sign(t, jwt.SigningMethodES256, "e", stranger, claims), "signature is not by a key"},
		"key of a stranger, no key id":    {sign(t, jwt.SigningMethodES256, "", stranger, claims), "signature is not by a key"},
		"unknown key":                     {sign(t, jwt.SigningMethodES256, "x\n", stranger, claims), "signing key is not among the keys"},
		"key id is not text":              {rawToken(t, jwt.SigningMethodES256, ec, `{"alg":"ES256","kid":7}`, string(text)), "key id or algorithm"},
		"key inside the token":            {rawToken(t, jwt.SigningMethodES256, stranger, fmt.Sprintf(`{"alg":"ES256","jwk":%s}`, embedded), string(text)), "signature is not by a key"},
		"keys of another issuer":          {sign(t, jwt.SigningMethodES256, "e", ec, goodClaims(clock.now(), "iss", "shared")), "not allowed for issuer"},
		"secret of another issuer":        {sign(t, hs, "", secret, claims), "not allowed for issuer"},
		"issuer in another case":          {rawToken(t, hs, secret, `{"alg":"HS256"}`, strings.Replace(string(text), `"iss":`, `"ISS":"shared","iss":`, 1)), "not allowed for issuer"},
		"critical extension":              {rawToken(t, jwt.SigningMethodES256, ec, `{"alg":"ES256","kid":"e","crit":["b64"],"b64":false}`, string(text)), "demands extensions"},
		"changed claims":                  {parts[0] + "." + other + "." + parts[2], "signature is not by a key"},
		"no signature":                    {parts[0] + "." + parts[1] + ".", "signature is not by a key"},
		"signature cut off":               {parts[0] + "." + parts[1], "not a well-formed"},
		"four parts":                      {good + ".x", "not a well-formed"},
		"line break":                      {good[:40] + "\n" + good[40:], "not a well-formed"},
		"base64 padding":                  {parts[0] + "=." + parts[1] + "." + parts[2], "not a well-formed"},
		"standard base64":                 {parts[0] + "." + parts[1] + ".+/+/", "not a well-formed"},
		"claims that are not an object":   {rawToken(t, jwt.SigningMethodES256, ec, `{"alg":"ES256"}`, `[]`), "not a well-formed"},
		"claims that are null":            {rawToken(t, jwt.SigningMethodES256, ec, `{"alg":"ES256"}`, `null`), "names no issuer"},
		"header that is not an object":    {rawToken(t, jwt.SigningMethodES256, ec, `"ES256"`, string(text)), "not a well-formed"},
		"not a token":                     {"hunter2", "not a well-formed"},
		"only dots":                       {"..", "not a well-formed"},
		"longer than any token":           {strings.Repeat("a", maxToken+1), "longer than 16384 bytes"},
		"claims nested without an end":    {rawToken(t, jwt.SigningMethodES256, ec, `{"alg":"ES256"}`, strings.Repeat(`{"a":`, 2000)), "not a well-formed"},
		"signature of the other spelling": {respell(good), "not a well-formed"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := v.Verify(t.Context(), c.token)
			requireRefused(t, err, errs.TokenInvalid, c.sentence, c.token)
		})
	}
}

// respell sets the unused bits of the last character, which a lax decoder ignores (RFC 4648 section 3.5).
func respell(token string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, token[len(token)-1])
	return token[:len(token)-1] + alphabet[last|1:last|1+1]
}

func TestKeySetsHoldOnlyFitKeys(t *testing.T) {
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	require.NoError(t, err)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	require.NoError(t, err)
	good := ecKey(t)
	marshal := func(key any, meta jwkset.JWKMetadataOptions) jwkset.JWKMarshal {
		jwk, err := jwkset.NewJWKFromKey(key, jwkset.JWKOptions{Metadata: meta, Marshal: jwkset.JWKMarshalOptions{Private: true}})
		require.NoError(t, err)
		return jwk.Marshal()
	}
	unfit := []jwkset.JWKMarshal{
		marshal([]byte("0123456789abcdef0123456789abcdef"), jwkset.JWKMetadataOptions{KID: "symmetric"}),
		marshal(weak.Public(), jwkset.JWKMetadataOptions{KID: "weak"}),
		marshal(p384.Public(), jwkset.JWKMetadataOptions{KID: "curve"}),
		marshal(good.Public(), jwkset.JWKMetadataOptions{KID: "encryption", USE: jwkset.UseEnc}),
		marshal(good.Public(), jwkset.JWKMetadataOptions{KID: "signing only", KEYOPS: []jwkset.KEYOPS{jwkset.KeyOpsSign}}),
		marshal(rsaKey().Public(), jwkset.JWKMetadataOptions{KID: "other padding", ALG: jwkset.AlgPS256}),
		{KID: "unknown type", KTY: "XX"},
		{KID: "broken", KTY: "EC", CRV: "P-256", X: "AA", Y: "AA"},
	}
	set := func(keys ...jwkset.JWKMarshal) []byte {
		data, err := json.Marshal(map[string]any{"keys": keys})
		require.NoError(t, err)
		return data
	}
	keys, err := parseKeySet(set(unfit...))
	require.NoError(t, err)
	require.Zero(t, keys.size)

	keys, err = parseKeySet(set(append(unfit, marshal(good.Public(), jwkset.JWKMetadataOptions{KID: "good", ALG: jwkset.AlgES256}), marshal(good, jwkset.JWKMetadataOptions{KID: "with its private half"}))...))
	require.NoError(t, err)
	require.Equal(t, 2, keys.size)

	for _, bad := range []string{``, `[]`, `{}`, `{"keys":null}`, `{"keys":{}}`, `<html>`, `{"keys":[` + strings.Repeat(`{},`, maxKeys) + `{}]}`} {
		_, err := parseKeySet([]byte(bad))
		require.Error(t, err, bad)
	}
}

func FuzzVerify(f *testing.F) {
	clock, secret := newClock(), newSecret()
	iss := Issuer{Issuer: testIssuer, Audience: testAudience, HMACSecretFile: writeFile(f, secret)}
	v := newVerifier(f, clock, iss)
	f.Add("a.b.c")
	f.Add(encode(`{"alg":"HS256"}`) + "." + encode(`{"iss":"`+testIssuer+`","exp":1e300}`) + ".AAAA")
	f.Fuzz(func(t *testing.T, token string) {
		id, err := v.Verify(t.Context(), token)
		if err == nil {
			t.Fatalf("accepted as %+v", id)
		}
		if c := errs.CodeOf(err); c != errs.TokenInvalid && c != errs.TokenMissing {
			t.Fatalf("unexpected code %v", c)
		}
	})
}
