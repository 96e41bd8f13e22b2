package auth

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

// claimsText is goodClaims as JSON in which a test can write what no encoder would.
func claimsText(now time.Time, change string) string {
	n := now.Unix()
	text := fmt.Sprintf(`{"iss":%q,"aud":%q,"sub":"payments","jti":"id-1","iat":%d,"nbf":%d,"exp":%d}`, testIssuer, testAudience, n, n, n+3600)
	old, replacement, _ := strings.Cut(change, "=>")
	return strings.NewReplacer(strings.NewReplacer("NOW", fmt.Sprint(n), "EXP", fmt.Sprint(n+3600)).Replace(old), replacement).Replace(text)
}

func TestOddClaims(t *testing.T) {
	clock, secret := newClock(), newSecret()
	iss := secretIssuer(t, secret)
	iss.Leeway = 30 * time.Second
	v := newVerifier(t, clock, iss)
	n := clock.now().Unix()
	good := []string{
		``, `"exp":EXP=>"exp":1.8000036e9`, `"exp":EXP=>"exp":18000036E2`, fmt.Sprintf(`"exp":EXP=>"exp":%d.75`, n+60), `"exp":EXP=>"exp":253402300799`,
		`"aud":"fairlead"=>"aud":["x","fairlead"]`, `"aud":"fairlead"=>"aud":["fairlead","fairlead"]`,
		fmt.Sprintf(`"nbf":NOW=>"nbf":%d`, n+30), fmt.Sprintf(`"iat":NOW=>"iat":%d`, n+30), `"iat":NOW,=>`, `"nbf":NOW,=>`,
		`"sub":"payments"=>"sub":"payments","SUB":"finance"`, `"jti":"id-1"=>"jti":"id-1","x":{"a":{"b":1},"c":{"b":2}},"y":[{"a":1},{"a":2}]`,
	}
	for _, change := range good {
		id, err := v.Verify(t.Context(), rawToken(t, jwt.SigningMethodHS256, secret, `{"alg":"HS256"}`, claimsText(clock.now(), change)))
		require.NoError(t, err, change)
		require.Equal(t, "payments", id.Tenant, change)
	}
	bad := map[string]struct {
		code     errs.Code
		sentence string
	}{
		`"exp":EXP=>"exp":1e300`:                                                   {errs.TokenInvalid, "no usable exp"},
		`"exp":EXP=>"exp":1e18`:                                                    {errs.TokenInvalid, "no usable exp"},
		`"exp":EXP=>"exp":253402300800`:                                            {errs.TokenInvalid, "no usable exp"},
		`"exp":EXP=>"exp":-1`:                                                      {errs.TokenInvalid, "no usable exp"},
		`"exp":EXP=>"exp":0`:                                                       {errs.TokenInvalid, "no usable exp"},
		`"exp":EXP=>"exp":-0`:                                                      {errs.TokenInvalid, "no usable exp"},
		`"exp":EXP=>"exp":null`:                                                    {errs.TokenInvalid, "no usable exp"},
		`"exp":EXP=>"exp":true`:                                                    {errs.TokenInvalid, "no usable exp"},
		`"exp":EXP=>"exp":[1800003600]`:                                            {errs.TokenInvalid, "no usable exp"},
		`"exp":EXP=>"exp":"1800003600"`:                                            {errs.TokenInvalid, "no usable exp"},
		`"exp":EXP=>"EXP":1800003600`:                                              {errs.TokenInvalid, "no usable exp"},
		`"exp":EXP=>"exp":1e400`:                                                   {errs.TokenInvalid, "not a well-formed"},
		`"exp":EXP=>"exp":NaN`:                                                     {errs.TokenInvalid, "not a well-formed"},
		`"exp":EXP=>"exp":0x7fffffff`:                                              {errs.TokenInvalid, "not a well-formed"},
		`"nbf":NOW=>"nbf":1e300`:                                                   {errs.TokenInvalid, "no usable nbf"},
		`"nbf":NOW=>"nbf":null`:                                                    {errs.TokenInvalid, "no usable nbf"},
		`"iat":NOW=>"iat":"now"`:                                                   {errs.TokenInvalid, "no usable iat"},
		`"aud":"fairlead"=>"aud":[]`:                                               {errs.TokenInvalid, "no usable aud"},
		`"aud":"fairlead"=>"aud":["x",1]`:                                          {errs.TokenInvalid, "no usable aud"},
		`"aud":"fairlead"=>"aud":{"fairlead":1}`:                                   {errs.TokenInvalid, "no usable aud"},
		`"aud":"fairlead"=>"aud":"fairlead,x"`:                                     {errs.TokenInvalid, "audience lacks"},
		`"aud":"fairlead"=>"aud":"Fairlead"`:                                       {errs.TokenInvalid, "audience lacks"},
		fmt.Sprintf(`"nbf":NOW=>"nbf":%d`, n+31):                                   {errs.TokenNotYet, "valid in 1s"},
		fmt.Sprintf(`"iat":NOW=>"iat":%d`, n+90):                                   {errs.TokenNotYet, "valid in 1m0s"},
		fmt.Sprintf(`"exp":EXP=>"exp":%d`, n-30):                                   {errs.TokenExpired, "expired 30s ago"},
		`"sub":"payments"=>"sub":"payments","sub":"finance"`:                       {errs.TokenInvalid, "says one thing twice"},
		`"sub":"payments"=>"sub":"payments","s\u0075b":"finance"`:                  {errs.TokenInvalid, "says one thing twice"},
		`"sub":"payments"=>"sub":"payments","exp":1e10`:                            {errs.TokenInvalid, "says one thing twice"},
		`"sub":"payments"=>"sub":"payments","kubernetes.io":{"a":1,"a":1}`:         {errs.TokenInvalid, "says one thing twice"},
		`"sub":"payments"=>"sub":"payments","x":[[{"a":1,"b":{},"a":1}]]`:          {errs.TokenInvalid, "says one thing twice"},
		`"sub":"payments"=>"sub":"payments","` + "\xff" + `":1,"` + "\xfe" + `":2`: {errs.TokenInvalid, "says one thing twice"},
	}
	for change, want := range bad {
		text := claimsText(clock.now(), change)
		require.NotEqual(t, claimsText(clock.now(), ""), text, change)
		token := rawToken(t, jwt.SigningMethodHS256, secret, `{"alg":"HS256"}`, text)
		_, err := v.Verify(t.Context(), token)
		requireRefused(t, err, want.code, want.sentence, token)
	}
}

// Headers that name keys or places of keys are a stranger's word: nothing is fetched or trusted by them.
func TestHeadersThatNameKeys(t *testing.T) {
	clock, key, stranger := newClock(), ecKey(t), ecKey(t)
	asked := make(chan string, 10)
	lure := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked <- r.URL.String() }))
	defer lure.Close()
	v := newVerifier(t, clock, Issuer{Issuer: testIssuer, Audience: testAudience, JWKS: string(keysOf(t, "1", key))})
	claims := claimsText(clock.now(), "")
	headers := []string{
		fmt.Sprintf(`{"alg":"ES256","kid":"1","jku":%q}`, lure.URL),
		fmt.Sprintf(`{"alg":"ES256","kid":"1","x5u":%q}`, lure.URL),
		fmt.Sprintf(`{"alg":"ES256","jku":%q}`, lure.URL),
		fmt.Sprintf(`{"alg":"ES256","kid":%q}`, lure.URL),
		`{"alg":"ES256","kid":"1","x5c":["AAAA"]}`,
		`{"alg":"ES256","kid":"../../../dev/null"}`, `{"alg":"ES256","kid":"1' OR '1'='1"}`, `{"alg":"ES256","kid":"1\u0000"}`, `{"alg":"ES256","kid":""}`,
		`{"alg":"ES256","kid":null}`, `{"alg":"ES256","kid":["1"]}`, `{"alg":"ES256","kid":{"1":1}}`,
		`{"alg":["ES256"]}`, `{"alg":null}`, `{"alg":"es256"}`, `{"alg":"ES256 "}`, `{"alg":""}`, `{"ALG":"ES256"}`,
		`{"alg":"none","alg":"ES256","kid":"1"}`, `{"alg":"ES256","kid":"1","kid":"1"}`,
		`{"alg":"ES256","kid":"1","crit":["exp"],"exp":1}`, `{"alg":"ES256","kid":"1","crit":[]}`, `{"alg":"ES256","kid":"1","crit":null}`,
	}
	for _, header := range headers {
		token := rawToken(t, jwt.SigningMethodES256, stranger, header, claims)
		_, err := v.Verify(t.Context(), token)
		require.ErrorIs(t, err, errs.TokenInvalid, header)
	}
	for _, header := range headers[len(headers)-5:] { // not even with the right key
		_, err := v.Verify(t.Context(), rawToken(t, jwt.SigningMethodES256, key, header, claims))
		require.ErrorIs(t, err, errs.TokenInvalid, header)
	}
	_, err := v.Verify(t.Context(), rawToken(t, jwt.SigningMethodES256, key, headers[0], claims))
	require.NoError(t, err, "ignored, not obeyed")
	require.Empty(t, asked)
}

func TestHugeTokens(t *testing.T) {
	clock, secret := newClock(), newSecret()
	v := newVerifier(t, clock, secretIssuer(t, secret))
	verify := func(padding string) error {
		_, err := v.Verify(t.Context(), rawToken(t, jwt.SigningMethodHS256, secret, `{"alg":"HS256"}`, claimsText(clock.now(), `"jti":"id-1"=>"jti":"id-1","x":`+padding)))
		return err
	}
	require.NoError(t, verify(`"`+strings.Repeat("x", 11_000)+`"`))
	require.NoError(t, verify(strings.Repeat("[", 5_000)+strings.Repeat("]", 5_000)))
	requireRefused(t, verify(`"`+strings.Repeat("x", 13_000)+`"`), errs.TokenInvalid, "longer than 16384 bytes", "")
	many := make([]string, 1_000)
	for i := range many {
		many[i] = fmt.Sprintf(`"%d":0`, i)
	}
	require.NoError(t, verify(`{`+strings.Join(many, ",")+`}`))
	requireRefused(t, verify(`{`+strings.Join(append(many, `"0":0`), ",")+`}`), errs.TokenInvalid, "says one thing twice", "")
}

func FuzzSaysTwice(f *testing.F) {
	for _, seed := range []string{`{}`, `{"a":1,"a":2}`, `{"a":{"a":1}}`, `[{"a":1},{"a":1}]`, `{"a":[1,"a",{"b":"a"}],"b":"a"}`, `"a"`, `{"a":"a","b":"b"}`, `{"a"`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, document []byte) {
		twice := saysTwice(document)
		var value any
		if json.Unmarshal(document, &value) != nil {
			return // the library refuses it
		}
		// What an encoder writes says nothing twice; what it read says so if the encoder writes fewer members.
		data, err := json.Marshal(value)
		if err != nil {
			t.Skip()
		}
		if saysTwice(data) {
			t.Fatalf("%s says nothing twice", data)
		}
		if lost := members(document) != members(data); lost != twice {
			t.Fatalf("%q: says twice %v, members lost %v", document, twice, lost)
		}
	})
}

// members counts the names in a JSON document by another way than saysTwice: the colons outside of strings.
func members(document []byte) (n int) {
	inside, escaped := false, false
	for _, c := range document {
		switch {
		case escaped:
			escaped = false
		case inside && c == '\\':
			escaped = true
		case c == '"':
			inside = !inside
		case c == ':' && !inside:
			n++
		}
	}
	return n
}

func FuzzHeader(f *testing.F) {
	for _, seed := range []string{"", "Bearer", "Bearer a.b.c", "bearer  a", "Basic x", "Bearer\ta", "Bearer a b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		token, err := TokenFromHeader(header)
		switch {
		case err == nil && (token == "" || !strings.Contains(header, token) || len(token)+len("Bearer ") > len(header)):
			t.Fatalf("%q gave %q", header, token)
		case err != nil && token != "":
			t.Fatalf("%q gave both", header)
		case err != nil && errs.CodeOf(err) != errs.TokenMissing && errs.CodeOf(err) != errs.TokenInvalid:
			t.Fatalf("%q: %v", header, err)
		}
	})
}

func FuzzKeySet(f *testing.F) {
	f.Add(keysOf(f, "1", ecKey(f)))
	f.Add(keysOf(f, "1", rsaKey()))
	f.Add([]byte(`{"keys":[{"kty":"oct","k":"AAAA"}]}`))
	f.Fuzz(func(t *testing.T, document []byte) {
		keys, err := parseKeySet(document)
		if err == nil && (keys.size > maxKeys || keys.secret != nil) {
			t.Fatalf("%d keys, secret %v", keys.size, keys.secret)
		}
	})
}
