// Package auth turns the token of a request into the identity that the rest of the gateway works with.
//
// Tokens are signed JWTs (RFC 7519). Which keys, algorithms, audience and templates apply is decided by the token's
// issuer alone, before its signature is checked; everything else about the token counts only after that.
package auth

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/shared/errs"
)

// Identity is who a verified token speaks for.
type Identity struct {
	Tenant  string    // from the issuer's tenant template; never empty
	Subject string    // the claim sub; may be empty
	Issuer  string    // the claim iss, as configured
	TokenID string    // the claim jti, by which a token can be revoked; may be empty
	Tier    string    // from the issuer's tier template; "default" when the token names none
	Expires time.Time // the claim exp, without leeway
}

// Issuer says whose tokens are accepted, by which keys, and what they mean.
type Issuer struct {
	Issuer   string // exact value of the claim iss; required, unique
	Audience string // value that the claim aud must hold; required

	// Exactly one source of keys is set.
	JWKSURL        string // http or https URL of a JSON Web Key Set, fetched in the background
	JWKSFile       string // file with a JSON Web Key Set
	HMACSecretFile string // file with a shared secret of at least 32 bytes, for development

	// Algorithms are the accepted values of the header alg. Empty: HS256 for a secret; RS256, ES256 and EdDSA for key
	// sets. Secrets and key sets never share an algorithm.
	Algorithms []string

	Tenant string        // template of claims; empty: "{sub}"
	Tier   string        // template of claims; empty: every token has the tier "default"
	Leeway time.Duration // tolerated difference between the clocks of issuer and gateway; not negative
}

// Config is what a Verifier needs.
type Config struct {
	Issuers    []Issuer         // at least one
	Logger     *slog.Logger     // background refreshes of key sets; nil: silent
	Metrics    *metrics.Set     // nil: counted nowhere
	Now        func() time.Time // clock for expiry; nil: time.Now
	HTTPClient *http.Client     // fetches key sets; nil: one with bounded times that never follows https to http
}

// Verifier checks tokens. It is safe for concurrent use. Close it to end its background work.
type Verifier struct {
	issuers map[string]*issuer
	cache   *cache
	counts  *counts
	now     func() time.Time

	reload  sync.Mutex // one Reload at a time
	remotes []*remoteKeys
	idle    func() // closes idle connections of an HTTP client of our own; nil otherwise
	closing sync.Once
}

// New reads all key files and starts fetching the key sets behind URLs. It does not wait for those: until the first
// fetch has succeeded, tokens of that issuer are refused with errs.KeysUnavailable. Errors are errs.ConfigInvalid and
// errs.KeyUnreadable.
func New(cfg Config) (*Verifier, error) {
	if len(cfg.Issuers) == 0 {
		return nil, errs.New(errs.ConfigInvalid, "auth.issuers is empty: no token could ever be accepted")
	}
	v := &Verifier{issuers: make(map[string]*issuer), counts: newCounts(cfg.Metrics), now: cfg.Now}
	if v.now == nil {
		v.now = time.Now
	}
	var err error
	if v.cache, err = newCache(); err != nil {
		return nil, err
	}
	for _, each := range cfg.Issuers {
		if err := v.add(each); err != nil {
			return nil, err
		}
	}
	v.startRemotes(cfg)
	return v, nil
}

func (v *Verifier) add(cfg Issuer) error {
	if _, twice := v.issuers[cfg.Issuer]; twice {
		return errs.New(errs.ConfigInvalid, "issuer %s appears twice in auth.issuers", quote(cfg.Issuer))
	}
	iss, err := newIssuer(cfg, v.now)
	if err != nil {
		return err
	}
	v.issuers[cfg.Issuer] = iss
	return nil
}

// startRemotes is the last step of New, so that nothing has to be stopped when an earlier one fails.
func (v *Verifier) startRemotes(cfg Config) {
	client, log := cfg.HTTPClient, cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	for _, iss := range v.issuers {
		if iss.cfg.JWKSURL == "" {
			continue
		}
		if client == nil {
			client = newHTTPClient()
			v.idle = client.CloseIdleConnections
		}
		remote := startRemote(iss.cfg, client, log, v.counts.forIssuer(iss.cfg.Issuer))
		iss.source = remote
		v.remotes = append(v.remotes, remote)
	}
}

// Reload reads all key files again, whole or not at all: when one cannot be used, every issuer keeps the keys it has and
// the errors (errs.KeyUnreadable) are returned together. Cached tokens are checked anew afterwards. Key sets behind URLs
// are fetched again in the background.
func (v *Verifier) Reload() error {
	v.reload.Lock()
	defer v.reload.Unlock()
	loaded := make(map[*fileKeys]*keySet)
	var problems []error
	for _, iss := range v.issuers {
		file, ok := iss.source.(*fileKeys)
		if !ok {
			continue
		}
		keys, err := file.load()
		if err != nil {
			problems = append(problems, err)
			continue
		}
		loaded[file] = keys
	}
	if len(problems) > 0 {
		return errors.Join(problems...)
	}
	for file, keys := range loaded {
		file.keys.Store(keys)
	}
	for _, remote := range v.remotes {
		remote.nudge()
	}
	return nil
}

// Close ends the background fetches and waits for them. Verify keeps working with the keys that are there. Never fails;
// may be called more than once.
func (v *Verifier) Close() error {
	v.closing.Do(func() {
		for _, remote := range v.remotes {
			remote.stop()
		}
		if v.idle != nil {
			v.idle()
		}
	})
	return nil
}

const maxQuoted = 128 // bytes of a stranger's text in a message

// quote makes text that a stranger may have chosen safe to show: on one line, escaped and bounded.
func quote(s string) string {
	if len(s) > maxQuoted {
		return fmt.Sprintf("%q…", s[:maxQuoted])
	}
	return fmt.Sprintf("%q", s)
}
