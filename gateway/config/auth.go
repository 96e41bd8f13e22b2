package config

import (
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
	Issuer string `koanf:"issuer" allowed:"required, unique; empty with kubernetes: that of the gateway's own token" doc:"the iss claim" example:"https://kubernetes.default.svc.cluster.local"`
	// Audience must be among the aud claim's.
	Audience string `koanf:"audience" allowed:"required" doc:"what the aud claim must contain" example:"fairlead"`
	// JWKSURL is where the issuer's key set is fetched.
	JWKSURL string `koanf:"jwks_url" allowed:"https://, or http:// to a loopback address; one of the key sources" doc:"URL of the issuer's key set" example:"https://issuer.example/keys"`
	// JWKSFile is a file with the issuer's key set.
	JWKSFile string `koanf:"jwks_file" allowed:"one of the key sources" doc:"file with the issuer's key set" example:"/etc/fairlead/jwks.json"`
	// JWKS is the issuer's key set itself.
	JWKS string `koanf:"jwks" allowed:"one of the key sources" doc:"the issuer's key set itself, as JSON; public keys only" example:"{\"keys\":[]}"`
	// Kubernetes takes tokens of service accounts, with keys from the cluster.
	Kubernetes Kubernetes `koanf:"kubernetes" doc:"take tokens of the cluster's service accounts, with keys from its API"`
	// HMACSecretFile is a file with a secret shared with the issuer, for development.
	HMACSecretFile string `koanf:"hmac_secret_file" allowed:"one of the key sources" doc:"file with a secret shared with the issuer; for development, since who can check such a token can make one" example:"/etc/fairlead/hmac"`
	// Algorithms are those that tokens may be signed with; empty: see AllowedAlgorithms.
	Algorithms []string `koanf:"algorithms" enum:"RS256|ES256|EdDSA|HS256" allowed:"HS256 with hmac_secret_file, and only there" doc:"signature algorithms that are accepted; empty: HS256 with hmac_secret_file, otherwise the three others" example:"RS256,ES256"`
	// Tenant is a template over claims.
	Tenant string `koanf:"tenant" allowed:"text and {claim}" doc:"tenant that a token speaks for; {a.b} stands for the claim b in a. Empty: {sub}, with kubernetes {kubernetes.io.namespace}/{kubernetes.io.serviceaccount.name}" example:"{kubernetes.io.namespace}/{kubernetes.io.serviceaccount.name}"`
	// Tier is a template over claims; empty: the tier "default".
	Tier string `koanf:"tier" allowed:"text and {claim}" doc:"tier that a token's tenant has; empty, or a tier that does not exist: default" example:"{tier}"`
	// SharedTenants lets another issuer that has it too speak for the same tenants.
	SharedTenants bool `koanf:"shared_tenants" doc:"another issuer that has this too may speak for the same tenants; without it, issuers whose templates can give the same tenant are refused" example:"true"`
	// Leeway is by how much the clocks of issuer and gateway may differ.
	Leeway time.Duration `koanf:"leeway" max:"5m" doc:"by how much the clocks of issuer and gateway may differ" example:"1m"`
}

// SetDefaults sets what an issuer that does not say otherwise has.
func (i *Issuer) SetDefaults() {
	*i = Issuer{Leeway: 30 * time.Second, Kubernetes: Kubernetes{ReviewTTL: 10 * time.Second, ReviewGrace: 5 * time.Minute, ReviewTimeout: 3 * time.Second}}
}

// Kubernetes is the cluster whose service accounts' tokens are taken.
type Kubernetes struct {
	// Enabled makes this the source of keys.
	Enabled bool `koanf:"enabled" allowed:"one of the key sources" doc:"fetch the keys from the cluster's API, with the gateway's own token" example:"true"`
	// APIServer is the API's URL; empty: the one that the environment of a pod names.
	APIServer string `koanf:"api_server" allowed:"https://" doc:"URL of the cluster's API; empty: from KUBERNETES_SERVICE_HOST and _PORT" example:"https://10.96.0.1"`
	// TokenFile is the gateway's own token; empty: where a pod has it.
	TokenFile string `koanf:"token_file" doc:"the gateway's own token, read anew for each request; empty: /var/run/secrets/kubernetes.io/serviceaccount/token" example:"/var/run/secrets/api/token"`
	// CAFile is the authority of the API's certificate; empty: where a pod has it.
	CAFile string `koanf:"ca_file" doc:"authority of the API's certificate; empty: /var/run/secrets/kubernetes.io/serviceaccount/ca.crt" example:"/etc/fairlead/cluster-ca.crt"`
	// TokenReview also asks the cluster about each token.
	TokenReview bool `koanf:"token_review" doc:"also ask the cluster about each token, so that it stops counting when its pod or service account is deleted" example:"true"`
	// ReviewTTL is how long an answer counts.
	ReviewTTL time.Duration `koanf:"review_ttl" min:"1s" max:"10m" doc:"how long the cluster's answer about a token counts" example:"30s"`
	// ReviewGrace is for how long what is open goes on while the cluster does not answer.
	ReviewGrace time.Duration `koanf:"review_grace" min:"1s" max:"1h" doc:"for how long tunnels go on while the cluster cannot be asked; new ones are refused at once" example:"10m"`
	// ReviewTimeout bounds a question.
	ReviewTimeout time.Duration `koanf:"review_timeout" min:"100ms" max:"30s" doc:"how long the cluster may take to answer" example:"1s"`
}

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
	seen := make(map[string]int)
	for n, i := range a.Issuers {
		key := config.At("auth.issuers", n)
		i.validate(check, key)
		if first, twice := seen[i.Issuer]; twice && i.Issuer != "" {
			check.Refuse(key+".issuer", "used already by %s", config.At("auth.issuers", first))
			continue
		}
		seen[i.Issuer] = n
	}
}

func (i Issuer) validate(check *config.Check, key string) {
	if !i.Kubernetes.Enabled {
		check.Required(key+".issuer", i.Issuer)
	}
	check.Required(key+".audience", i.Audience)
	i.validateKeys(check, key)
	i.validateAlgorithms(check, key+".algorithms")
	validateTemplate(check, key+".tenant", i.Tenant)
	validateTemplate(check, key+".tier", i.Tier)
}

func (i Issuer) validateKeys(check *config.Check, key string) {
	sources := 0
	for _, given := range []bool{i.JWKSURL != "", i.JWKSFile != "", i.JWKS != "", i.HMACSecretFile != "", i.Kubernetes.Enabled} {
		if given {
			sources++
		}
	}
	if sources != 1 {
		check.Refuse(key, "%d key sources; allowed: exactly one of jwks_url, jwks_file, jwks, kubernetes and hmac_secret_file", sources)
	}
	if i.Kubernetes.APIServer != "" {
		check.URL(key+".kubernetes.api_server", i.Kubernetes.APIServer, "https")
	}
	if i.JWKSURL == "" {
		return
	}
	u := check.URL(key+".jwks_url", i.JWKSURL, "https", "http")
	if u != nil && u.Scheme == "http" && !Loopback(u.Hostname()) { // whoever can change the keys on their way can make tokens
		check.Refuse(key+".jwks_url", "allowed: https://; http:// only to a loopback address")
	}
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
