package auth

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode"

	"github.com/MicahParks/jwkset"
	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"

	"fairlead/shared/errs"
)

const (
	minSecret  = 32      // bytes: as long as the output of HS256's hash (RFC 7518 section 3.2)
	maxKeyFile = 1 << 20 // bytes of a key file or an HTTP answer
	maxKeys    = 100     // a token without a key id is tried against all of them
	minRSABits = 2048    // RFC 7518 section 3.3
	maxRSABits = 8192    // verification beyond that is slow enough to be a lever
)

// keySource holds an issuer's keys. They change by replacing the whole set, so that a set's pointer tells its generation.
type keySource interface {
	// current returns the keys; nil while there are none.
	current() *keySet
	// missing is asked when current was had, which is nil or lacks a key: unless there are others by now, it looks for newer
	// keys. It waits a bounded time, and returns what is current then.
	missing(ctx context.Context, had *keySet) *keySet
	// status tells how the keys are; the caller adds the issuer.
	status() IssuerStatus
	// start begins work in the background, if there is any; stop ends it, and may follow on no start.
	start()
	stop()
}

// keySet is one immutable generation of an issuer's keys: a shared secret or public keys.
type keySet struct {
	secret []byte
	public keyfunc.Keyfunc
	size   int
	sum    digest // of the document that the keys came from
}

// find returns the key, or keys, that t's signature is checked with.
func (k *keySet) find(ctx context.Context, t *jwt.Token) (any, error) {
	if _, ok := t.Header["crit"]; ok {
		// RFC 7515 section 4.1.11: extensions that are not understood but critical make a token invalid.
		return nil, errs.New(errs.TokenInvalid, "the token demands extensions (crit) that are not supported")
	}
	if k.secret != nil {
		return k.secret, nil
	}
	return k.public.KeyfuncCtx(ctx)(t)
}

type digest = [sha256.Size]byte

// newSource prepares the source that cfg names; it reads files, and starts nothing.
func newSource(cfg Issuer, in surroundings) (keySource, error) {
	switch {
	case cfg.Kubernetes != nil:
		api, err := newKubeAPI(*cfg.Kubernetes, in.log)
		if err != nil {
			return nil, err
		}
		remote := newRemote(cfg.Issuer, "kubernetes", api.keys, in)
		remote.api = api
		return remote, nil
	case cfg.JWKSURL != "":
		remote := newRemote(cfg.Issuer, "url", fetcher(in.client, cfg.JWKSURL), in)
		remote.plain = !strings.HasPrefix(strings.ToLower(cfg.JWKSURL), "https:")
		return remote, nil
	case cfg.JWKS != "":
		return newInlineKeys(cfg)
	}
	return openFileKeys(cfg)
}

// inlineKeys are keys that the configuration itself holds.
type inlineKeys struct{ keys *keySet }

func newInlineKeys(cfg Issuer) (*inlineKeys, error) {
	if holdsPrivateKey([]byte(cfg.JWKS)) {
		return nil, errs.New(errs.ConfigInvalid, "jwks of issuer %s holds a private or shared key: configurations are shown and copied, so only public keys may be in them", quote(cfg.Issuer))
	}
	keys, err := parseKeySet([]byte(cfg.JWKS))
	if err != nil {
		return nil, errs.Wrap(errs.ConfigInvalid, err, "jwks of issuer %s", quote(cfg.Issuer))
	}
	if keys.size == 0 {
		return nil, errs.New(errs.ConfigInvalid, "jwks of issuer %s holds no key for checking signatures: RSA of %d bits or more, EC P-256 or Ed25519 is needed", quote(cfg.Issuer), minRSABits)
	}
	return &inlineKeys{keys}, nil
}

// holdsPrivateKey looks for the members that only private and shared keys have (RFC 7518 sections 6.2.2, 6.3.2 and 6.4).
func holdsPrivateKey(document []byte) bool {
	var set struct {
		Keys []struct {
			D json.RawMessage `json:"d"`
			P json.RawMessage `json:"p"`
			K json.RawMessage `json:"k"`
		} `json:"keys"`
	}
	_ = json.Unmarshal(document, &set) // what is no key set holds no key; the caller finds out
	for _, key := range set.Keys {
		if key.D != nil || key.P != nil || key.K != nil {
			return true
		}
	}
	return false
}

func (k *inlineKeys) current() *keySet                         { return k.keys }
func (k *inlineKeys) missing(context.Context, *keySet) *keySet { return k.keys }
func (k *inlineKeys) status() IssuerStatus                     { return IssuerStatus{Source: "inline", Keys: k.keys.size} }
func (k *inlineKeys) start()                                   {}
func (k *inlineKeys) stop()                                    {}

func loadSecret(cfg Issuer) (*keySet, error) {
	data, err := readFile(cfg.HMACSecretFile)
	if err != nil {
		return nil, errs.Wrap(errs.KeyUnreadable, err, "hmac_secret_file of issuer %s", quote(cfg.Issuer))
	}
	secret := trimNewline(data)
	if len(secret) < minSecret {
		return nil, errs.New(errs.KeyUnreadable, "hmac_secret_file %s of issuer %s holds %d bytes, but at least %d are needed: make a secret with `openssl rand -hex 32`",
			quote(cfg.HMACSecretFile), quote(cfg.Issuer), len(secret), minSecret)
	}
	return &keySet{secret: secret, size: 1, sum: sha256.Sum256(secret)}, nil
}

// trimNewline drops the newline that editors and shells put after a secret of text. Binary secrets are left alone: there
// it is one byte like any other.
func trimNewline(data []byte) []byte {
	text := strings.TrimRight(string(data), "\r\n")
	if strings.ContainsFunc(text, func(r rune) bool { return r > unicode.MaxASCII || !unicode.IsPrint(r) }) {
		return data
	}
	return []byte(text)
}

func loadKeySet(cfg Issuer) (*keySet, error) {
	data, err := readFile(cfg.JWKSFile)
	if err != nil {
		return nil, errs.Wrap(errs.KeyUnreadable, err, "jwks_file of issuer %s", quote(cfg.Issuer))
	}
	keys, err := parseKeySet(data)
	if err != nil {
		return nil, errs.Wrap(errs.KeyUnreadable, err, "jwks_file %s of issuer %s", quote(cfg.JWKSFile), quote(cfg.Issuer))
	}
	if keys.size == 0 {
		return nil, errs.New(errs.KeyUnreadable, "jwks_file %s of issuer %s holds no key for checking signatures: RSA of %d bits or more, EC P-256 or Ed25519 is needed",
			quote(cfg.JWKSFile), quote(cfg.Issuer), minRSABits)
	}
	return keys, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readBounded(f)
}

func readBounded(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxKeyFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxKeyFile {
		return nil, fmt.Errorf("is larger than %d bytes", maxKeyFile)
	}
	return data, nil
}

// parseKeySet reads a JSON Web Key Set (RFC 7517). Keys that cannot check a signature here (other types, other uses,
// too short) are left out, as the RFC asks; a set that is left empty is no error.
func parseKeySet(data []byte) (*keySet, error) {
	var document struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if json.Unmarshal(data, &document) != nil || document.Keys == nil {
		return nil, errors.New(`is not a JSON Web Key Set: an object with "keys" is expected`)
	}
	if len(document.Keys) > maxKeys {
		return nil, fmt.Errorf("holds %d keys, more than %d", len(document.Keys), maxKeys)
	}
	store, size := jwkset.NewMemoryStorage(), 0
	for _, raw := range document.Keys {
		key, err := jwkset.NewJWKFromRawJSON(raw, jwkset.JWKMarshalOptions{}, jwkset.JWKValidateOptions{})
		if err != nil || !usable(key) {
			continue
		}
		if err := store.KeyWrite(context.Background(), key); err != nil {
			return nil, err
		}
		size++
	}
	public, err := keyfunc.New(keyfunc.Options{Storage: store})
	if err != nil {
		return nil, err
	}
	return &keySet{public: public, size: size, sum: sha256.Sum256(data)}, nil
}

// usable reports whether key is a public key for checking signatures by one of our algorithms. Symmetric keys never are:
// who can read a key set could sign with them.
func usable(key jwkset.JWK) bool {
	m := key.Marshal()
	if m.USE != "" && m.USE != jwkset.UseSig {
		return false
	}
	if len(m.KEYOPS) > 0 && !slices.Contains(m.KEYOPS, jwkset.KeyOpsVerify) {
		return false
	}
	alg := m.ALG.String()
	switch public := key.Key().(type) {
	case *rsa.PublicKey:
		bits := public.N.BitLen()
		return bits >= minRSABits && bits <= maxRSABits && (alg == "" || alg == rs256)
	case *ecdsa.PublicKey:
		return public.Curve == elliptic.P256() && (alg == "" || alg == es256)
	case ed25519.PublicKey:
		return alg == "" || alg == eddsa
	}
	return false
}
