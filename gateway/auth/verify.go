package auth

import (
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"

	"fairlead/shared/errs"
)

const maxToken = 16 << 10 // bytes

// Verify checks the token and says who it speaks for. The token is not kept. It may wait up to a second for new keys of
// the issuer, or until ctx ends.
//
// Errors are errs.TokenMissing, TokenInvalid, TokenExpired, TokenNotYet (with RetryAfter), KeysUnavailable while the
// issuer's keys could not be fetched, and Canceled. Their text names the issuer at most, never the token.
func (v *Verifier) Verify(ctx context.Context, token string) (Identity, error) {
	id, err := v.verify(ctx, token)
	v.counts.outcome(err)
	return id, err
}

func (v *Verifier) verify(ctx context.Context, token string) (Identity, error) {
	if token == "" {
		return Identity{}, errs.New(errs.TokenMissing, "the request carries no token")
	}
	if len(token) > maxToken {
		return Identity{}, errs.New(errs.TokenInvalid, "the token is longer than %d bytes", maxToken)
	}
	sum := sha256.Sum256([]byte(token))
	if e, ok := v.cache.get(sum); ok {
		v.counts.hits.Inc()
		return v.recheck(sum, e)
	}
	iss, err := v.issuerOf(token)
	if err != nil {
		return Identity{}, err
	}
	e, err := iss.verify(ctx, token)
	if err != nil {
		return Identity{}, err
	}
	v.cache.put(sum, e)
	return e.identity, nil
}

// recheck applies to a remembered token what time changes.
func (v *Verifier) recheck(sum [sha256.Size]byte, e verified) (Identity, error) {
	now := v.now()
	if now.Before(e.deadline) {
		return e.identity, nil
	}
	v.cache.drop(sum)
	return Identity{}, expired(e.issuer.cfg.Issuer, e.identity.Expires, now)
}

// issuerOf selects the issuer by the token's own word, which is only a choice of keys: the signature decides. It also
// refuses algorithms that are not the issuer's, before any key is touched.
func (v *Verifier) issuerOf(token string) (*issuer, error) {
	if !wellFormed(token) {
		return nil, malformed()
	}
	claims := jwt.MapClaims{}
	parsed, _, err := jwt.NewParser(jwt.WithStrictDecoding()).ParseUnverified(token, claims)
	if errors.Is(err, jwt.ErrTokenUnverifiable) {
		return nil, errs.New(errs.TokenInvalid, "the token names no signing algorithm that exists")
	}
	if err != nil {
		return nil, malformed()
	}
	name, ok := claims["iss"].(string)
	if !ok || name == "" {
		return nil, errs.New(errs.TokenInvalid, "the token names no issuer (iss)")
	}
	iss, ok := v.issuers[name]
	if !ok {
		return nil, errs.New(errs.TokenInvalid, "the token's issuer %s is not known here", quote(name))
	}
	if !slices.Contains(iss.algorithms, parsed.Method.Alg()) {
		return nil, errs.New(errs.TokenInvalid, "the token is signed by %s, which is not allowed for issuer %s", parsed.Method.Alg(), quote(name))
	}
	return iss, nil
}

// wellFormed admits the characters of a compact JWS only (RFC 7515 section 7.1): the base64 decoder skips line breaks,
// which would give one token many spellings.
func wellFormed(token string) bool {
	for i := range len(token) {
		c := token[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.') {
			return false
		}
	}
	return true
}

func malformed() error { return errs.New(errs.TokenInvalid, "the token is not a well-formed JWT") }

// verify checks everything about a token of this issuer. When its key is not known, it looks for newer keys once.
func (i *issuer) verify(ctx context.Context, token string) (verified, error) {
	keys := i.source.current()
	if keys == nil {
		keys = i.source.missing(ctx)
	}
	if keys == nil {
		return verified{}, i.noKeys(ctx)
	}
	claims, err := i.parse(ctx, keys, token)
	if errors.Is(err, jwkset.ErrKeyNotFound) {
		if newer := i.source.missing(ctx); newer != keys {
			keys = newer
			claims, err = i.parse(ctx, keys, token)
		}
	}
	if err != nil {
		return verified{}, i.explain(ctx, claims, err)
	}
	id, err := i.identity(claims)
	if err != nil {
		return verified{}, err
	}
	return verified{identity: id, deadline: id.Expires.Add(i.cfg.Leeway), issuer: i, keys: keys}, nil
}

func (i *issuer) noKeys(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return canceled(err)
	}
	return errs.New(errs.KeysUnavailable, "the keys of issuer %s could not be fetched yet", quote(i.cfg.Issuer)).After(keysRetryAfter)
}

func canceled(cause error) error {
	return errs.Wrap(errs.Canceled, cause, "the check of a token was given up")
}

func (i *issuer) parse(ctx context.Context, keys *keySet, token string) (jwt.MapClaims, error) {
	claims := jwt.MapClaims{}
	_, err := i.parser.ParseWithClaims(token, claims, func(t *jwt.Token) (any, error) { return keys.find(ctx, t) })
	return claims, err
}

// explain turns the library's error into ours. The library's text is dropped: it repeats parts of the token. Problems
// that no renewal mends are named before those of time.
func (i *issuer) explain(ctx context.Context, claims jwt.MapClaims, err error) error {
	var own *errs.Error
	name := quote(i.cfg.Issuer)
	switch {
	case errors.As(err, &own):
		return own
	case errors.Is(err, jwkset.ErrKeyNotFound) && ctx.Err() != nil:
		return canceled(ctx.Err())
	case errors.Is(err, jwkset.ErrKeyNotFound):
		return errs.New(errs.TokenInvalid, "the token's signing key is not among the keys of issuer %s", name)
	case errors.Is(err, keyfunc.ErrKeyfunc):
		return errs.New(errs.TokenInvalid, "the token's key id or algorithm does not fit the keys of issuer %s", name)
	case errors.Is(err, jwt.ErrTokenUnverifiable):
		return errs.New(errs.TokenInvalid, "issuer %s has no key to check the token's signature with", name)
	case errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return errs.New(errs.TokenInvalid, "the token's signature is not by a key of issuer %s", name)
	case errors.Is(err, jwt.ErrTokenRequiredClaimMissing), errors.Is(err, jwt.ErrInvalidType):
		return errs.New(errs.TokenInvalid, "the token of issuer %s has no usable %s claim", name, firstUnusable(claims))
	case errors.Is(err, jwt.ErrTokenInvalidAudience):
		return errs.New(errs.TokenInvalid, "the token of issuer %s is not meant for this gateway: its audience lacks %s", name, quote(i.cfg.Audience))
	case errors.Is(err, jwt.ErrTokenExpired):
		return expired(i.cfg.Issuer, timeOf(claims.GetExpirationTime()), i.now())
	case errors.Is(err, jwt.ErrTokenNotValidYet):
		return i.notYet(claims)
	}
	return malformed()
}

// firstUnusable names the registered claim that is missing or of the wrong type.
func firstUnusable(claims jwt.MapClaims) string {
	if exp, err := claims.GetExpirationTime(); err != nil || exp == nil {
		return "exp"
	}
	if _, err := claims.GetNotBefore(); err != nil {
		return "nbf"
	}
	return "aud"
}

func expired(issuer string, at, now time.Time) error {
	return errs.New(errs.TokenExpired, "the token of issuer %s expired %v ago", quote(issuer), now.Sub(at).Round(time.Second))
}

func (i *issuer) notYet(claims jwt.MapClaims) error {
	wait := timeOf(claims.GetNotBefore()).Add(-i.cfg.Leeway).Sub(i.now())
	return errs.New(errs.TokenNotYet, "the token of issuer %s becomes valid in %v", quote(i.cfg.Issuer), wait.Round(time.Second)).After(wait)
}

func timeOf(d *jwt.NumericDate, err error) time.Time {
	if err != nil || d == nil {
		return time.Time{}
	}
	return d.Time
}

// identity reads a verified token's claims.
func (i *issuer) identity(claims jwt.MapClaims) (Identity, error) {
	id := Identity{Issuer: i.cfg.Issuer, Tier: defaultTier, Expires: timeOf(claims.GetExpirationTime())}
	var err error
	if id.Tenant, err = i.tenant.apply(claims); err != nil {
		return Identity{}, i.unusable("tenant", err)
	}
	if i.tier != nil {
		if id.Tier, err = i.tier.apply(claims); isMissing(err) {
			id.Tier = defaultTier
		} else if err != nil {
			return Identity{}, i.unusable("tier", err)
		}
	}
	if id.Subject, err = textClaim(claims, "sub", maxSubjectBytes); err != nil && !isMissing(err) {
		return Identity{}, i.unusable("subject", err)
	}
	if id.TokenID, err = textClaim(claims, "jti", maxTokenIDBytes); err != nil && !isMissing(err) {
		return Identity{}, i.unusable("token id", err)
	}
	return id, nil
}

func isMissing(err error) bool {
	var e *claimError
	return errors.As(err, &e) && e.missing
}

func (i *issuer) unusable(what string, cause error) error {
	return errs.Wrap(errs.TokenInvalid, cause, "the token of issuer %s gives no %s", quote(i.cfg.Issuer), what)
}
