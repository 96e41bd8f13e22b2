package auth

import (
	"log/slog"
	"net/http"
	"reflect"
	"time"

	"fairlead/shared/errs"
)

// surroundings are what issuers need from their Verifier.
type surroundings struct {
	client *http.Client
	log    *slog.Logger
	counts *counts
	now    func() time.Time
}

// Apply replaces the issuers while running, and reads all key files anew, whole or not at all. Issuers that are the same
// keep their remembered tokens, those that differ keep their keys if the source of keys is the same, and tokens of those
// that are gone are refused from then on. Errors are errs.ConfigInvalid and errs.KeyUnreadable, and errs.ShuttingDown after
// Close.
func (v *Verifier) Apply(list []Issuer) error {
	commit, err := v.Prepare(list)
	if err == nil {
		commit()
	}
	return err
}

// Prepare is the part of Apply that can fail: nothing has changed until commit is called. The two are not to be mixed with
// those of another caller.
func (v *Verifier) Prepare(list []Issuer) (commit func(), err error) {
	v.reload.Lock()
	defer v.reload.Unlock()
	if v.closed {
		return nil, errs.New(errs.ShuttingDown, "the gateway is shutting down")
	}
	next, err := v.build(list, *v.issuers.Load())
	if err != nil {
		return nil, err
	}
	keys, err := next.readFiles()
	if err != nil {
		return nil, err
	}
	return func() { v.replace(next, keys) }, nil
}

func (v *Verifier) replace(next issuers, keys map[*fileKeys]*keySet) {
	v.reload.Lock()
	defer v.reload.Unlock()
	if v.closed {
		return
	}
	before := *v.issuers.Load()
	for file, k := range keys {
		file.use(k)
	}
	for _, iss := range next {
		if old, ok := before[iss.cfg.Issuer]; !ok || old.source != iss.source { // those that go on are started already
			iss.source.start()
		}
	}
	v.issuers.Store(&next)
	for name, old := range before {
		v.retire(name, old, next[name])
	}
}

// Reload is Apply with the issuers that there are, and Refresh.
func (v *Verifier) Reload() error {
	var list []Issuer
	for _, iss := range *v.issuers.Load() {
		list = append(list, iss.cfg)
	}
	err := v.Apply(list)
	if err == nil {
		v.Refresh()
	}
	return err
}

// Refresh has key sets behind URLs fetched again, in the background.
func (v *Verifier) Refresh() {
	for _, iss := range *v.issuers.Load() {
		if remote, ok := iss.source.(*remoteKeys); ok {
			remote.nudge()
		}
	}
}

// build makes a set of issuers, and starts nothing.
func (v *Verifier) build(list []Issuer, before issuers) (issuers, error) {
	if len(list) == 0 {
		return nil, errs.New(errs.ConfigInvalid, "auth.issuers is empty: no token could ever be accepted")
	}
	in := surroundings{v.client, v.log, v.counts, v.now}
	next := make(issuers, len(list))
	for _, cfg := range list {
		cfg, err := cfg.complete()
		if err != nil {
			return nil, err
		}
		if _, twice := next[cfg.Issuer]; twice {
			return nil, errs.New(errs.ConfigInvalid, "issuer %s appears twice in auth.issuers", quote(cfg.Issuer))
		}
		old := before[cfg.Issuer]
		if old != nil && reflect.DeepEqual(old.cfg, cfg) {
			next[cfg.Issuer] = old
			continue
		}
		if next[cfg.Issuer], err = newIssuer(cfg, in, old); err != nil {
			return nil, err
		}
	}
	return next, apartFromEachOther(next)
}

// retire ends what the issuer that follows (nil: none) does not go on with.
func (v *Verifier) retire(name string, old, follows *issuer) {
	if old == follows {
		return
	}
	if old.review != nil {
		old.review.stop()
	}
	if follows == nil || follows.source != old.source {
		old.source.stop()
	}
	if follows == nil {
		v.counts.forget(name)
	}
}

// stop ends the issuer's background work.
func (i *issuer) stop() {
	if i.review != nil {
		i.review.stop()
	}
	i.source.stop()
}

// sameSource reports whether both take their keys from the same place.
func sameSource(a, b Issuer) bool {
	if (a.Kubernetes == nil) != (b.Kubernetes == nil) {
		return false
	}
	if a.Kubernetes != nil && a.Kubernetes.place() != b.Kubernetes.place() {
		return false
	}
	return a.JWKSURL == b.JWKSURL && a.JWKSFile == b.JWKSFile && a.JWKS == b.JWKS && a.HMACSecretFile == b.HMACSecretFile
}
