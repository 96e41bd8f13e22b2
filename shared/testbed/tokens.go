package testbed

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/hex"
	"fmt"
	"maps"
	"path/filepath"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// Defaults of an Issuer.
const (
	DefaultIssuer   = "https://issuer.test"
	DefaultAudience = "fairlead"
	defaultLifetime = time.Hour
)

// Claims are the claims of a token. In Issuer.Sign a nil value takes a default claim away.
type Claims = map[string]any

// IssuerConfig says what an Issuer signs with.
type IssuerConfig struct {
	Algorithm string // HS256 (default), RS256, ES256 or EdDSA
	Issuer    string // the claim iss; default DefaultIssuer
	Audience  string // the claim aud; default DefaultAudience
	KeyID     string // the header kid; default the algorithm's name
	Dir       string // for SecretFile and JWKSFile; must exist
}

// Issuer signs tokens with one key.
type Issuer struct {
	cfg    IssuerConfig
	method jwt.SigningMethod
	key    any // []byte, or a private key
}

// NewIssuer makes an issuer with a new key and writes its file: the secret for HS256, else a JSON Web Key Set.
func NewIssuer(cfg IssuerConfig) (*Issuer, error) {
	if cfg.Algorithm == "" {
		cfg.Algorithm = "HS256"
	}
	if cfg.Issuer == "" {
		cfg.Issuer = DefaultIssuer
	}
	if cfg.Audience == "" {
		cfg.Audience = DefaultAudience
	}
	if cfg.KeyID == "" {
		cfg.KeyID = cfg.Algorithm
	}
	i := &Issuer{cfg: cfg, method: jwt.GetSigningMethod(cfg.Algorithm)}
	var err error
	if i.key, err = newKey(cfg.Algorithm); err != nil {
		return nil, err
	}
	if secret, ok := i.key.([]byte); ok {
		return i, writeAtomic(i.SecretFile(), secret)
	}
	return i, WriteJWKS(i.JWKSFile(), i)
}

func newKey(algorithm string) (any, error) {
	switch algorithm {
	case "HS256":
		raw := make([]byte, 32)
		if _, err := rand.Read(raw); err != nil {
			return nil, err
		}
		return []byte(hex.EncodeToString(raw)), nil // text, as a person would put it into the file
	case "RS256":
		return rsa.GenerateKey(rand.Reader, 2048)
	case "ES256":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "EdDSA":
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	}
	return nil, fmt.Errorf("no key for the algorithm %q: HS256, RS256, ES256 and EdDSA are known", algorithm)
}

// Issuer is the claim iss of its tokens.
func (i *Issuer) Issuer() string { return i.cfg.Issuer }

// Audience is the claim aud of its tokens.
func (i *Issuer) Audience() string { return i.cfg.Audience }

// Algorithm is the header alg of its tokens.
func (i *Issuer) Algorithm() string { return i.cfg.Algorithm }

// SecretFile is the path of the HMAC secret; only with HS256.
func (i *Issuer) SecretFile() string { return filepath.Join(i.cfg.Dir, i.cfg.KeyID+".secret") }

// JWKSFile is the path of the issuer's key set; not with HS256.
func (i *Issuer) JWKSFile() string { return filepath.Join(i.cfg.Dir, i.cfg.KeyID+".jwks.json") }

// PublicKey verifies the tokens; nil with HS256.
func (i *Issuer) PublicKey() crypto.PublicKey {
	if signer, ok := i.key.(crypto.Signer); ok {
		return signer.Public()
	}
	return nil
}

// Sign makes a token with the default claims (iss, aud, iat, nbf, and exp in an hour) changed by claims.
func (i *Issuer) Sign(claims Claims) (string, error) {
	now := time.Now()
	all := jwt.MapClaims{
		"iss": i.cfg.Issuer, "aud": i.cfg.Audience,
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(defaultLifetime).Unix(),
	}
	maps.Copy(all, claims)
	maps.DeleteFunc(all, func(_ string, v any) bool { return v == nil })
	token := jwt.NewWithClaims(i.method, all)
	token.Header["kid"] = i.cfg.KeyID
	return token.SignedString(i.key)
}

// Valid makes a token for a subject that is valid for ttl.
func (i *Issuer) Valid(subject string, ttl time.Duration) (string, error) {
	return i.Sign(Claims{"sub": subject, "exp": time.Now().Add(ttl).Unix()})
}

// Expired makes a token that was valid until an hour ago.
func (i *Issuer) Expired(subject string) (string, error) {
	then := time.Now().Add(-time.Hour)
	return i.Sign(Claims{"sub": subject, "exp": then.Unix(), "iat": then.Add(-time.Hour).Unix(), "nbf": then.Add(-time.Hour).Unix()})
}

// NotYetValid makes a token that is valid from in an hour on.
func (i *Issuer) NotYetValid(subject string) (string, error) {
	then := time.Now().Add(time.Hour)
	return i.Sign(Claims{"sub": subject, "nbf": then.Unix(), "exp": then.Add(time.Hour).Unix()})
}

// WrongAudience makes a token for somebody else's service.
func (i *Issuer) WrongAudience(subject string) (string, error) {
	return i.Sign(Claims{"sub": subject, "aud": "not-" + i.cfg.Audience})
}

// WrongSignature makes a token that is right but for its key: same algorithm, same key id, another key.
func (i *Issuer) WrongSignature(subject string) (string, error) {
	key, err := newKey(i.cfg.Algorithm)
	if err != nil {
		return "", err
	}
	forger := &Issuer{cfg: i.cfg, method: i.method, key: key}
	return forger.Sign(Claims{"sub": subject})
}

// WriteToken replaces a token file in one step.
func WriteToken(path, token string) error { return writeAtomic(path, []byte(token+"\n")) }
