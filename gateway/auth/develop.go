package auth

import (
	"crypto/rand"
	"errors"
	"maps"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"fairlead/shared/errs"
)

// Develop signs a token with the issuer's HMAC secret for which Verify yields the tenant; it is valid from now for ttl
// (at least a second). For a template of several claims the tenant is split at the text between them.
//
// Errors are errs.KeyUnreadable for the secret, and errs.ConfigInvalid when the issuer has none, when its template cannot
// yield the tenant, and for a bad ttl.
func Develop(iss Issuer, tenant string, ttl time.Duration, now time.Time) (string, error) {
	if iss.HMACSecretFile == "" {
		return "", errs.New(errs.ConfigInvalid, "issuer %s has no hmac_secret_file: only issuers with a shared secret can have tokens made here", quote(iss.Issuer))
	}
	if ttl < time.Second {
		return "", errs.New(errs.ConfigInvalid, "a token's lifetime must be 1s or more, not %v", ttl)
	}
	ready, err := newIssuer(iss, surroundings{now: func() time.Time { return now }}, nil)
	if err != nil {
		return "", err
	}
	claims := jwt.MapClaims{
		"iss": iss.Issuer,
		"aud": iss.Audience,
		"jti": rand.Text(),
		"iat": now.Unix(),
		"nbf": now.Unix(),
		"exp": now.Add(ttl).Unix(),
	}
	if err := ready.tenant.fill(claims, tenant); err != nil {
		return "", errs.Wrap(errs.ConfigInvalid, err, "issuer %s cannot speak for tenant %s", quote(iss.Issuer), quote(tenant))
	}
	if _, ok := claims["sub"]; !ok {
		claims["sub"] = tenant
	}
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString(ready.source.current().secret)
	if err != nil {
		return "", errs.Wrap(errs.Internal, err, "cannot sign a token")
	}
	return token, nil
}

// fill adds to claims what makes the template yield name. A dotted path is set as one key: the longest key is looked up
// first. Claims that are there already are left alone; whether they fit shows in the final check.
func (t *template) fill(claims map[string]any, name string) error {
	values, ok := t.split(name)
	if !ok {
		return errors.New("the tenant does not have the form of the issuer's tenant template")
	}
	filled := maps.Clone(claims)
	for i, claim := range t.claims {
		if _, taken := filled[claim]; !taken {
			filled[claim] = values[i]
		}
	}
	got, err := t.apply(filled)
	if err != nil {
		return err
	}
	if got != name {
		return errors.New("the issuer's tenant template uses a claim more than once, or one that every token has")
	}
	maps.Copy(claims, filled)
	return nil
}

// split takes name apart at the template's text, from the left.
func (t *template) split(name string) ([]string, bool) {
	rest, ok := strings.CutPrefix(name, t.literals[0])
	if !ok {
		return nil, false
	}
	if len(t.claims) == 0 {
		return nil, rest == ""
	}
	values := make([]string, 0, len(t.claims))
	for _, between := range t.literals[1:len(t.claims)] {
		value, after, found := strings.Cut(rest, between)
		if !found {
			return nil, false
		}
		values, rest = append(values, value), after
	}
	last, ok := strings.CutSuffix(rest, t.literals[len(t.claims)])
	return append(values, last), ok
}
