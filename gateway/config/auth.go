package config

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"fairlead/shared/config"
)

// Signature algorithms of tokens.
const (
	RS256 = "RS256"
	ES256 = "ES256"
	EdDSA = "EdDSA"
	HS256 = "HS256"
)

// Auth is whose tokens are accepted.
type Auth struct {
	// Issuers are at least one.
	Issuers []Issuer `koanf:"issuers" allowed:"at least one" doc:"issuers whose tokens are accepted"`
}

// Issuer is one issuer of tokens. Its keys come from exactly one of JWKSURL, JWKSFile and HMACSecretFile.
type Issuer struct {
	// Issuer is the iss claim.
	Issuer string `koanf:"issuer" allowed:"required; issuer and audience together are unique" doc:"the iss claim" example:"https://kubernetes.default.svc.cluster.local"`
	// Audience must be among the aud claim's.
	Audience string `koanf:"audience" allowed:"required" doc:"what the aud claim must contain" example:"fairlead"`
	// JWKSURL is where the issuer's key set is fetched.
	JWKSURL string `koanf:"jwks_url" allowed:"https://, or http:// to a loopback address; one of jwks_url, jwks_file and hmac_secret_file" doc:"URL of the issuer's key set" example:"https://issuer.example/keys"`
	// JWKSFile is a file with the issuer's key set.
	JWKSFile string `koanf:"jwks_file" allowed:"one of jwks_url, jwks_file and hmac_secret_file" doc:"file with the issuer's key set" example:"/etc/fairlead/jwks.json"`
	// HMACSecretFile is a file with a secret shared with the issuer, for development.
	HMACSecretFile string `koanf:"hmac_secret_file" allowed:"one of jwks_url, jwks_file and hmac_secret_file" doc:"file with a secret shared with the issuer; for development, since who can check such a token can make one" example:"/etc/fairlead/hmac"`
	// Algorithms are those that tokens may be signed with; empty: see AllowedAlgorithms.
	Algorithms []string `koanf:"algorithms" enum:"RS256|ES256|EdDSA|HS256" allowed:"HS256 with hmac_secret_file, and only there" doc:"signature algorithms that are accepted; empty: HS256 with hmac_secret_file, otherwise the three others" example:"RS256,ES256"`
	// Tenant is a template over claims.
	Tenant string `koanf:"tenant" allowed:"text and {claim}" doc:"tenant that a token speaks for; {a.b} stands for the claim b in a" example:"{kubernetes.io.namespace}/{kubernetes.io.serviceaccount.name}"`
	// Tier is a template over claims; empty: the tier "default".
	Tier string `koanf:"tier" allowed:"text and {claim}" doc:"tier that a token's tenant has; empty, or a tier that does not exist: default" example:"{tier}"`
	// Leeway is by how much the clocks of issuer and gateway may differ.
	Leeway time.Duration `koanf:"leeway" max:"5m" doc:"by how much the clocks of issuer and gateway may differ" example:"1m"`
}

// SetDefaults sets what an issuer that does not say otherwise has.
func (i *Issuer) SetDefaults() { *i = Issuer{Tenant: "{sub}", Leeway: 30 * time.Second} }

// AllowedAlgorithms are the algorithms that tokens of the issuer may be signed with: those configured, or else those that
// fit its key source.
func (i Issuer) AllowedAlgorithms() []string {
	switch {
	case len(i.Algorithms) > 0:
		return slices.Clone(i.Algorithms)
	case i.HMACSecretFile != "":
		return []string{HS256}
	}
	return []string{RS256, ES256, EdDSA}
}

func (a Auth) validate(check *config.Check) {
	if len(a.Issuers) == 0 {
		check.Refuse("auth.issuers", "allowed: at least one issuer; without any, nobody could connect")
	}
	seen := make(map[[2]string]int)
	for n, i := range a.Issuers {
		key := config.At("auth.issuers", n)
		i.validate(check, key)
		id := [2]string{i.Issuer, i.Audience}
		if first, twice := seen[id]; twice && i.Issuer != "" {
			check.Refuse(key+".issuer", "used already, with the same audience, by %s", config.At("auth.issuers", first))
			continue
		}
		seen[id] = n
	}
}

func (i Issuer) validate(check *config.Check, key string) {
	check.Required(key+".issuer", i.Issuer)
	check.Required(key+".audience", i.Audience)
	i.validateKeys(check, key)
	i.validateAlgorithms(check, key+".algorithms")
	if check.Required(key+".tenant", i.Tenant) {
		validateTemplate(check, key+".tenant", i.Tenant)
	}
	validateTemplate(check, key+".tier", i.Tier)
}

func (i Issuer) validateKeys(check *config.Check, key string) {
	sources := 0
	for _, s := range []string{i.JWKSURL, i.JWKSFile, i.HMACSecretFile} {
		if s != "" {
			sources++
		}
	}
	if sources != 1 {
		check.Refuse(key, "%s", fmt.Sprintf("%d key sources; allowed: exactly one of jwks_url, jwks_file and hmac_secret_file", sources))
	}
	if i.JWKSURL == "" {
		return
	}
	u := check.URL(key+".jwks_url", i.JWKSURL, "https", "http")
	if u != nil && u.Scheme == "http" && !loopback(u) { // whoever can change the keys on their way can make tokens
		check.Refuse(key+".jwks_url", "allowed: https://; http:// only to a loopback address")
	}
}

func loopback(u *url.URL) bool {
	ip := net.ParseIP(u.Hostname())
	return u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
}

// validateAlgorithms keeps HS256 apart from the others: a verifier that takes both could be made to use a public key as
// a shared secret.
func (i Issuer) validateAlgorithms(check *config.Check, key string) {
	for n, a := range i.Algorithms {
		at := config.At(key, n)
		switch {
		case a == HS256 && i.HMACSecretFile == "":
			check.Refuse(at, "allowed: RS256, ES256 and EdDSA; HS256 only with hmac_secret_file")
		case a != HS256 && i.HMACSecretFile != "":
			check.Refuse(at, "allowed with hmac_secret_file: only HS256")
		case slices.Contains(i.Algorithms[:n], a):
			check.Refuse(at, "given twice")
		}
	}
}

// validateTemplate refuses braces that do not pair up, and empty claims.
func validateTemplate(check *config.Check, key, template string) {
	for rest := template; rest != ""; {
		open := strings.IndexAny(rest, "{}")
		if open < 0 {
			return
		}
		rest = rest[open:]
		end := strings.IndexAny(rest[1:], "{}") + 1
		if rest[0] == '}' || end < 2 || rest[end] == '{' {
			check.Refuse(key, "allowed: text in which {claim} or {claim.inner} stands for a claim of the token")
			return
		}
		rest = rest[end+1:]
	}
}
