package auth

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"time"
	"unsafe"

	"github.com/MicahParks/jwkset"
	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"

	"fairlead/shared/errs"
)

const maxToken = 16 << 10 // bytes

// Verify checks the token and says who it speaks for. It may wait up to a second for new keys of the issuer, and as long
// as a review takes, or until ctx ends. The token is kept only where it is reviewed.
//
// Errors are errs.TokenMissing, TokenInvalid, TokenExpired, TokenNotYet (with RetryAfter), TokenRevoked, KeysUnavailable
// while the issuer's keys could not be fetched, ReviewUnavailable, ClientCertRefused for a token that is bound to a
// certificate (see VerifyWith), and Canceled. Their text names the issuer at most, never the token.
func (v *Verifier) Verify(ctx context.Context, token string) (Identity, error) {
	return v.VerifyWith(ctx, token, nil)
}

// VerifyWith is Verify for a connection whose peer has proven that it has the key of cert (nil: it showed none).
//
// Of a token that an issuer has signed, but that does not count any more or not here, the Identity is returned with the
// error, so that records can say whose it was.
func (v *Verifier) VerifyWith(ctx context.Context, token string, cert *x509.Certificate) (Identity, error) {
	id, err := v.verify(ctx, token)
	if err == nil {
		err = id.CheckCertificate(cert)
	}
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
	sum := sumOf(token)
	e, known := v.cache.get(sum, *v.issuers.Load())
	if known {
		v.counts.hits.Inc()
	} else {
		iss, err := v.issuerOf(token)
		if err != nil {
			return Identity{}, err
		}
		if e, err = iss.verify(ctx, token); err != nil {
			return Identity{}, err
		}
		if iss.review != nil {
			e.identity.Credential = &Credential{strings.Clone(token), sum}
		}
		v.cache.put(sum, e)
	}
	return e.identity, v.admit(ctx, sum, e)
}

// sumOf hashes without copying the token, which would cost as much again.
func sumOf(token string) digest {
	return sha256.Sum256(unsafe.Slice(unsafe.StringData(token), len(token)))
}

// admit applies to a good token, new or remembered, what may have changed since: time, revocations, the cluster's mind.
func (v *Verifier) admit(ctx context.Context, sum digest, e verified) error {
	if now := v.now(); !now.Before(e.deadline) {
		v.cache.drop(sum)
		return expired(e.issuer.cfg.Issuer, e.identity.Expires, now)
	}
	if err := v.revoked.Check(e.identity); err != nil {
		return err
	}
	if e.issuer.review == nil {
		return nil
	}
	return e.issuer.review.check(ctx, e.identity.Credential, e.identity.Subject)
}

// Check says whether what was admitted as id may go on: a tunnel, say, whose token nobody shows again. Time is the
// caller's to watch, by id.Expires. Revocations are looked up in well under a microsecond; where tokens are reviewed the
// cluster is asked when its last answer no longer counts, and each token costs one question then.
//
// Errors are errs.TokenRevoked, TokenInvalid when the issuer is no longer accepted, or gives its tokens another tenant or
// audience than when this one was verified, or when the cluster knows the token as something else, ReviewUnavailable when
// the cluster could not be asked for longer than ReviewGrace, and Canceled.
func (v *Verifier) Check(ctx context.Context, id Identity) error {
	iss, ok := v.issuer(id.Issuer)
	if !ok {
		return errs.New(errs.TokenInvalid, "the token's issuer %s is no longer accepted", quote(id.Issuer))
	}
	if id.by != nil && !id.by.means(iss) {
		return errs.New(errs.TokenInvalid, "tokens of issuer %s mean something else by now", quote(id.Issuer))
	}
	if err := v.revoked.Check(id); err != nil {
		return err
	}
	if iss.review == nil || id.Credential == nil {
		return nil
	}
	return iss.review.check(ctx, id.Credential, id.Subject)
}

// issuerOf selects the issuer by the token's own word, which is only a choice of keys: the signature decides. It also
// refuses algorithms that are not the issuer's, before any key is touched.
func (v *Verifier) issuerOf(token string) (*issuer, error) {
	if !wellFormed(token) {
		return nil, malformed()
	}
	claims := jwt.MapClaims{}
	parsed, parts, err := jwt.NewParser(jwt.WithStrictDecoding()).ParseUnverified(token, claims)
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
	iss, ok := v.issuer(name)
	if !ok {
		return nil, errs.New(errs.TokenInvalid, "the token's issuer %s is not known here", quote(name))
	}
	if !slices.Contains(iss.algorithms, parsed.Method.Alg()) {
		return nil, errs.New(errs.TokenInvalid, "the token is signed by %s, which is not allowed for issuer %s", parsed.Method.Alg(), quote(name))
	}
	if date := unusableDate(claims); date != "" {
		return nil, unusableClaim(name, date)
	}
	for _, part := range parts[:2] {
		if document, err := base64.RawURLEncoding.DecodeString(part); err != nil || saysTwice(document) {
			return nil, errs.New(errs.TokenInvalid, "the token of issuer %s says one thing twice, so that it could mean two things", quote(name))
		}
	}
	return iss, nil
}

func unusableClaim(issuer, claim string) error {
	return errs.New(errs.TokenInvalid, "the token of issuer %s has no usable %s claim", quote(issuer), claim)
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
		keys = i.source.missing(ctx, keys)
	}
	if keys == nil {
		return verified{}, i.noKeys(ctx)
	}
	claims, err := i.parse(ctx, keys, token)
	if errors.Is(err, jwkset.ErrKeyNotFound) {
		if newer := i.source.missing(ctx, keys); newer != keys {
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
		return unusableClaim(i.cfg.Issuer, firstUnusable(claims))
	case errors.Is(err, jwt.ErrTokenInvalidAudience):
		return errs.New(errs.TokenInvalid, "the token of issuer %s is not meant for this gateway: its audience lacks %s", name, quote(i.cfg.Audience))
	case errors.Is(err, jwt.ErrTokenExpired):
		return expired(i.cfg.Issuer, timeOf(claims.GetExpirationTime()), i.now())
	case errors.Is(err, jwt.ErrTokenNotValidYet), errors.Is(err, jwt.ErrTokenUsedBeforeIssued):
		return i.notYet(claims)
	}
	return malformed()
}

// firstUnusable names the registered claim that is missing or of the wrong type; dates of the wrong type never get here.
func firstUnusable(claims jwt.MapClaims) string {
	if exp, err := claims.GetExpirationTime(); err != nil || exp == nil {
		return "exp"
	}
	return "aud"
}

func expired(issuer string, at, now time.Time) error {
	return errs.New(errs.TokenExpired, "the token of issuer %s expired %v ago", quote(issuer), now.Sub(at).Round(time.Second))
}

func (i *issuer) notYet(claims jwt.MapClaims) error {
	from := timeOf(claims.GetNotBefore())
	if issued := timeOf(claims.GetIssuedAt()); issued.After(from) {
		from = issued
	}
	wait := from.Add(-i.cfg.Leeway).Sub(i.now())
	return errs.New(errs.TokenNotYet, "the token of issuer %s becomes valid in %v", quote(i.cfg.Issuer), wait.Round(time.Second)).After(wait)
}

func timeOf(d *jwt.NumericDate, err error) time.Time {
	if err != nil || d == nil {
		return time.Time{}
	}
	return d.Time
}
