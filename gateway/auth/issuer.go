package auth

import (
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/golang-jwt/jwt/v5"

	"fairlead/shared/errs"
)

const (
	hs256         = "HS256"
	rs256         = "RS256"
	es256         = "ES256"
	eddsa         = "EdDSA"
	defaultTenant = "{sub}"
	defaultTier   = "default"
)

// issuer is an Issuer made ready: templates parsed, algorithms pinned, keys at hand.
type issuer struct {
	cfg        Issuer
	algorithms []string
	tenant     *template
	tier       *template // nil: always defaultTier
	source     keySource
	review     *reviewer   // nil: tokens are not reviewed
	parser     *jwt.Parser // checks signature and all registered claims
	now        func() time.Time
}

// newIssuer checks cfg, which is complete, and reads its key file. It starts nothing. If before (nil: none) has its keys
// from the same source, that goes on.
func newIssuer(cfg Issuer, in surroundings, before *issuer) (*issuer, error) {
	i := &issuer{cfg: cfg, now: in.now}
	if err := checkNames(cfg); err != nil {
		return nil, err
	}
	var err error
	if i.algorithms, err = pinAlgorithms(cfg); err != nil {
		return nil, err
	}
	if i.tenant, i.tier, err = templates(cfg); err != nil {
		return nil, err
	}
	if before != nil && sameSource(before.cfg, cfg) {
		i.source = before.source
	} else if i.source, err = newSource(cfg, in); err != nil {
		return nil, err
	}
	if cfg.Kubernetes != nil && cfg.Kubernetes.Review {
		if i.review, err = newReviewer(cfg, i.source.(*remoteKeys).api, in); err != nil {
			return nil, err
		}
	}
	i.parser = jwt.NewParser(
		jwt.WithValidMethods(i.algorithms),
		jwt.WithIssuer(cfg.Issuer),
		jwt.WithAudience(cfg.Audience),
		jwt.WithExpirationRequired(),
		jwt.WithIssuedAt(),
		jwt.WithLeeway(cfg.Leeway),
		jwt.WithTimeFunc(in.now),
		jwt.WithStrictDecoding(),
	)
	return i, nil
}

// means says whether a token that i has accepted could be another tenant's, or not be accepted, by its claims alone, if
// other were asked: false then. Keys come and go without that.
func (i *issuer) means(other *issuer) bool {
	return i == other || i.cfg.Tenant == other.cfg.Tenant && i.cfg.Audience == other.cfg.Audience
}

func checkNames(cfg Issuer) error {
	switch {
	case cfg.Issuer == "":
		return errs.New(errs.ConfigInvalid, "an entry of auth.issuers has no issuer")
	case strings.ContainsFunc(cfg.Issuer, func(r rune) bool { return r > unicode.MaxASCII || !unicode.IsPrint(r) }):
		return errs.New(errs.ConfigInvalid, "issuer %s: only printable ASCII is allowed", quote(cfg.Issuer))
	case cfg.Audience == "":
		return errs.New(errs.ConfigInvalid, "issuer %s: audience is required, so that tokens for other services are refused", quote(cfg.Issuer))
	case cfg.Leeway < 0:
		return errs.New(errs.ConfigInvalid, "issuer %s: leeway %v is negative", quote(cfg.Issuer), cfg.Leeway)
	}
	return checkSource(cfg)
}

func checkSource(cfg Issuer) error {
	set := 0
	for _, there := range []bool{cfg.JWKSURL != "", cfg.JWKSFile != "", cfg.JWKS != "", cfg.HMACSecretFile != "", cfg.Kubernetes != nil} {
		if there {
			set++
		}
	}
	if set != 1 {
		return errs.New(errs.ConfigInvalid, "issuer %s: exactly one of jwks_url, jwks_file, jwks, hmac_secret_file and kubernetes must be set, not %d", quote(cfg.Issuer), set)
	}
	if cfg.JWKSURL == "" {
		return nil
	}
	u, err := url.Parse(cfg.JWKSURL)
	if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" || u.User != nil {
		// The URL itself stays out of the message: it may hold a password.
		return errs.New(errs.ConfigInvalid, "issuer %s: jwks_url must be an http or https URL with a host and without a user", quote(cfg.Issuer))
	}
	return nil
}

// pinAlgorithms keeps shared secrets and public keys apart, so that nobody can sign with a public key as if it were a
// secret.
func pinAlgorithms(cfg Issuer) ([]string, error) {
	allowed := []string{rs256, es256, eddsa}
	if cfg.HMACSecretFile != "" {
		allowed = []string{hs256}
	}
	if len(cfg.Algorithms) == 0 {
		return allowed, nil
	}
	for _, a := range cfg.Algorithms {
		if !slices.Contains(allowed, a) {
			return nil, errs.New(errs.ConfigInvalid, "issuer %s: algorithm %s is not allowed with its kind of keys; allowed: %s",
				quote(cfg.Issuer), quote(a), strings.Join(allowed, ", "))
		}
	}
	return slices.Clone(cfg.Algorithms), nil
}

func templates(cfg Issuer) (tenant, tier *template, err error) {
	source := cfg.Tenant
	if source == "" {
		source = defaultTenant
	}
	if tenant, err = parseTemplate(source); err != nil {
		return nil, nil, errs.Wrap(errs.ConfigInvalid, err, "issuer %s: tenant template %s", quote(cfg.Issuer), quote(source))
	}
	if cfg.Tier == "" {
		return tenant, nil, nil
	}
	if tier, err = parseTemplate(cfg.Tier); err != nil {
		return nil, nil, errs.Wrap(errs.ConfigInvalid, err, "issuer %s: tier template %s", quote(cfg.Issuer), quote(cfg.Tier))
	}
	return tenant, tier, nil
}
