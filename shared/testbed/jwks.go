package testbed

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
)

// jwk is one public key of a JSON Web Key Set (RFC 7517, RFC 7518 section 6, RFC 8037 for Ed25519).
type jwk struct {
	Type      string `json:"kty"`
	Use       string `json:"use"`
	Algorithm string `json:"alg"`
	KeyID     string `json:"kid"`
	Modulus   string `json:"n,omitempty"`
	Exponent  string `json:"e,omitempty"`
	Curve     string `json:"crv,omitempty"`
	X         string `json:"x,omitempty"`
	Y         string `json:"y,omitempty"`
}

// JWKS is the key set of several issuers, as JSON. Secrets (HS256) are left out.
func JWKS(issuers ...*Issuer) ([]byte, error) {
	keys := []jwk{}
	for _, issuer := range issuers {
		if issuer.PublicKey() == nil {
			continue
		}
		key, err := issuer.jwk()
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	return json.MarshalIndent(map[string]any{"keys": keys}, "", "  ")
}

// WriteJWKS writes the key set of several issuers to a file, in one step.
func WriteJWKS(path string, issuers ...*Issuer) error {
	raw, err := JWKS(issuers...)
	if err != nil {
		return err
	}
	return writeAtomic(path, raw)
}

// JWKSHandler serves the key set that current returns at each request, so that a test can rotate keys.
func JWKSHandler(current func() []*Issuer) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		raw, err := JWKS(current()...)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/jwk-set+json")
		_, _ = w.Write(raw) // a client that left needs no answer
	})
}

func (i *Issuer) jwk() (jwk, error) {
	key := jwk{Use: "sig", Algorithm: i.cfg.Algorithm, KeyID: i.cfg.KeyID}
	switch public := i.PublicKey().(type) {
	case *rsa.PublicKey:
		key.Type, key.Modulus = "RSA", encode(public.N.Bytes())
		key.Exponent = encode(big.NewInt(int64(public.E)).Bytes())
	case *ecdsa.PublicKey:
		point, err := public.Bytes() // 0x04, x, y
		if err != nil {
			return jwk{}, err
		}
		half := (len(point) - 1) / 2
		key.Type, key.Curve = "EC", public.Curve.Params().Name
		key.X, key.Y = encode(point[1:1+half]), encode(point[1+half:])
	case ed25519.PublicKey:
		key.Type, key.Curve, key.X = "OKP", "Ed25519", encode(public)
	default:
		return jwk{}, fmt.Errorf("no JSON Web Key for %T", public)
	}
	return key, nil
}

func encode(raw []byte) string { return base64.RawURLEncoding.EncodeToString(raw) }
