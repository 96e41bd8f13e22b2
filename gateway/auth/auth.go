// Package auth turns the token of a request into the identity that the rest of the gateway works with.
//
// Tokens are signed JWTs (RFC 7519). Which keys, algorithms, audience and templates apply is decided by the token's
// issuer alone, before its signature is checked; everything else about the token counts only after that.
package auth

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// Issuer says whose tokens are accepted, by which keys, and what they mean.
type Issuer struct {
	Issuer   string // exact value of the claim iss; required, unique. Empty with Kubernetes: that of the gateway's own token
	Audience string // value that the claim aud must hold; required

	// Exactly one source of keys is set.
	JWKSURL        string      // http or https URL of a JSON Web Key Set, fetched in the background
	JWKSFile       string      // file with a JSON Web Key Set; a changed file is noticed
	JWKS           string      // a JSON Web Key Set itself, public keys only
	HMACSecretFile string      // file with a shared secret of at least 32 bytes, for development; a changed file is noticed
	Kubernetes     *Kubernetes // the cluster's API, for tokens of service accounts

	// Algorithms are the accepted values of the header alg. Empty: HS256 for a secret; RS256, ES256 and EdDSA for key
	// sets. Secrets and key sets never share an algorithm.
	Algorithms []string

	Tenant string        // template of claims; empty: "{sub}", with Kubernetes namespace and service account
	Tier   string        // template of claims; empty: every token has the tier "default"
	Leeway time.Duration // tolerated difference between the clocks of issuer and gateway; not negative

	// SharedTenants says that this issuer may speak for tenants that another issuer, which says so too, speaks for as
	// well. Without it, issuers whose templates can give the same name are refused: whoever has a token of the weaker
	// one would be the other's tenant.
	SharedTenants bool
}

// Config is what a Verifier needs.
type Config struct {
	Issuers     []Issuer         // at least one
	Revocations *Revocations     // what was revoked; nil: nothing ever is. The caller's to close, if at all
	Logger      *slog.Logger     // background refreshes of keys; nil: silent
	Metrics     *metrics.Set     // nil: counted nowhere
	Now         func() time.Time // clock for expiry; nil: time.Now
	HTTPClient  *http.Client     // fetches key sets behind URLs; nil: one with bounded times that never follows https to http
}

// Verifier checks tokens. It is safe for concurrent use. Close it to end its background work.
type Verifier struct {
	issuers atomic.Pointer[issuers] // replaced whole by Apply
	revoked *Revocations
	cache   *cache
	counts  *counts
	log     *slog.Logger
	now     func() time.Time
	client  *http.Client
	idle    func() // closes idle connections of an HTTP client of our own

	reload sync.Mutex // one change of issuers or key files at a time
	closed bool       // guarded by reload
	cancel context.CancelFunc
	done   chan struct{} // closed when the watch of files has ended
}

// issuers are the issuers of one configuration by the claim iss. Never changed once it is in use.
type issuers map[string]*issuer

// New reads all key files and starts fetching the key sets behind URLs. It does not wait for those: until the first
// fetch has succeeded, tokens of that issuer are refused with errs.KeysUnavailable. Errors are errs.ConfigInvalid and
// errs.KeyUnreadable.
func New(cfg Config) (*Verifier, error) {
	v := &Verifier{revoked: cfg.Revocations, counts: newCounts(cfg.Metrics), log: cfg.Logger, now: cfg.Now, client: cfg.HTTPClient,
		idle: func() {}, done: make(chan struct{})}
	if v.now == nil {
		v.now = time.Now
	}
	if v.log == nil {
		v.log = slog.New(slog.DiscardHandler)
	}
	if v.client == nil {
		v.client = newHTTPClient()
		v.idle = v.client.CloseIdleConnections
	}
	var err error
	if v.cache, err = newCache(); err != nil {
		return nil, err
	}
	v.issuers.Store(&issuers{})
	if err := v.Apply(cfg.Issuers); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	v.cancel = cancel
	go v.watchFiles(ctx) // the last step, so that nothing has to be stopped when an earlier one fails
	return v, nil
}

// issuer returns the issuer of that name, if its tokens are accepted now.
func (v *Verifier) issuer(name string) (*issuer, bool) {
	iss, ok := (*v.issuers.Load())[name]
	return iss, ok
}

// Close ends the background work and waits for it. Verify keeps working with the keys that are there. Never fails; may be
// called more than once.
func (v *Verifier) Close() error {
	v.reload.Lock()
	first := !v.closed
	v.closed = true // from here on the issuers stay what they are
	v.reload.Unlock()
	v.cancel()
	<-v.done
	if !first {
		return nil
	}
	for _, iss := range *v.issuers.Load() {
		iss.stop()
	}
	v.idle()
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
