package auth

import (
	"cmp"
	"crypto/rand"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
	"fairlead/shared/notify"
)

// RevocationsConfig is what Revocations need.
type RevocationsConfig struct {
	Max int // of revocations at a time; zero: 100,000

	// Keep is how long a revocation lasts that does not say until when; zero: 24h. If a token was accepted meanwhile
	// that lives longer, it lasts as long as that one (a year at most): a revocation must not end before its tokens.
	Keep time.Duration

	Shared  SharedRevocations // what replicas have in common; nil: each has its own
	File    string            // where they survive a restart; empty: nowhere. One process only
	Logger  *slog.Logger      // nil: silent
	Metrics *metrics.Set      // nil: counted nowhere
	Now     func() time.Time  // nil: time.Now
}

const (
	defaultKeep    = 24 * time.Hour
	longestKeep    = 366 * 24 * time.Hour
	defaultRevoked = 100_000
	maxSame        = 32 // revocations of the same token, subject or tenant
	purgeEvery     = time.Minute
)

// Revocations are those in force. They are safe for concurrent use, and hold no goroutine. A nil *Revocations has none.
type Revocations struct {
	cfg   RevocationsConfig
	last  atomic.Int64 // latest expiry of an accepted token, in seconds since 1970
	count atomic.Int64 // of byID, so that an empty list costs nothing

	mu      sync.RWMutex
	byID    map[string]*Revocation
	tokens  map[string][]*Revocation // by TokenID
	subject map[string][]*Revocation // by Subject
	tenants map[string][]*Revocation // by Tenant
	purged  time.Time
	common  commonRevocations // with other replicas

	listeners notify.List[Revocation]

	saving  sync.Mutex // orders writes of the file
	unsaved atomic.Bool
}

// NewRevocations reads what File holds; that it does not exist yet is no error. Errors are errs.ConfigUnreadable.
func NewRevocations(cfg RevocationsConfig) (*Revocations, error) {
	cfg.Max, cfg.Keep = or(cfg.Max, defaultRevoked), or(cfg.Keep, defaultKeep)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	r := &Revocations{cfg: cfg, byID: map[string]*Revocation{}, tokens: map[string][]*Revocation{}, subject: map[string][]*Revocation{},
		tenants: map[string][]*Revocation{}}
	r.common.init()
	if err := r.load(); err != nil {
		return nil, err
	}
	if cfg.Metrics != nil {
		cfg.Metrics.NewGauge("fairlead_gateway_revocations", func() float64 { return float64(r.count.Load()) })
		cfg.Metrics.NewGauge("fairlead_gateway_revocations_unsaved", func() float64 {
			if r.unsaved.Load() {
				return 1
			}
			return 0
		})
		if cfg.Shared != nil {
			cfg.Metrics.NewGauge("fairlead_gateway_revocations_unshared", func() float64 { return float64(r.common.waiting.Load()) })
		}
	}
	return r, nil
}

// Check says whether tokens such as id's are revoked: errs.TokenRevoked.
func (r *Revocations) Check(id Identity) error {
	if r == nil {
		return nil
	}
	r.saw(id.Expires)
	if r.count.Load() == 0 {
		return nil
	}
	now := r.cfg.Now()
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, list := range [...][]*Revocation{r.of(r.tokens, id.TokenID), r.of(r.subject, id.Subject), r.of(r.tenants, id.Tenant)} {
		for _, each := range list {
			if each.hits(id, now) {
				return errs.New(errs.TokenRevoked, "the token was revoked, by the revocation %s of %s", each.ID, each.what())
			}
		}
	}
	return nil
}

// of is called with mu held.
func (r *Revocations) of(list map[string][]*Revocation, name string) []*Revocation {
	if len(list) == 0 || name == "" {
		return nil
	}
	return list[name]
}

// saw remembers how long accepted tokens live.
func (r *Revocations) saw(expires time.Time) {
	at := expires.Unix()
	for was := r.last.Load(); at > was; was = r.last.Load() {
		if r.last.CompareAndSwap(was, at) {
			return
		}
	}
}

// Add puts a revocation into force and tells the subscribers before it returns. ID and At are set here if they are
// empty, Until by RevocationsConfig.Keep. It returns the revocation as it is listed. Other replicas are told, for which it
// waits a second at most; if they cannot be, the next Sync tells them.
//
// Errors are errs.BadRequest for what makes no sense, errs.RequestLimit when there are too many, and errs.Internal when
// the file could not be written: then the revocation, which is returned, is in force, but a restart forgets it.
func (r *Revocations) Add(n Revocation) (Revocation, error) {
	now := r.cfg.Now()
	n, err := r.complete(n, now)
	if err != nil {
		return Revocation{}, err
	}
	if err := r.shareable(&n); err != nil {
		return Revocation{}, err
	}
	if err := r.add(n, now); err != nil {
		return Revocation{}, err
	}
	r.cfg.Logger.Info("tokens revoked", logging.FieldComponent, "auth", "revocation", n.ID, logging.FieldTenant, n.Tenant, logging.FieldSubject, n.Subject,
		"token_id", n.TokenID, "issuer", n.Issuer, "by", n.By, "until", n.Until.UTC().Format(time.RFC3339), logging.FieldReason, n.Reason)
	r.listeners.Tell(n)
	err = r.save()
	r.share(n.ID)
	return n, err
}

func (r *Revocations) complete(n Revocation, now time.Time) (Revocation, error) {
	n.ID, n.At = or(n.ID, rand.Text()), or(n.At, now)
	if n.Until.IsZero() {
		last := min(r.last.Load(), now.Add(longestKeep).Unix())
		n.Until = now.Add(r.cfg.Keep)
		if longest := time.Unix(last, 0).Add(time.Minute); longest.After(n.Until) { // the minute is for leeway
			n.Until = longest
		}
	}
	return n, n.problem(now)
}

// add puts one into force that was made here.
func (r *Revocations) add(n Revocation, now time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ended := r.common.removed[n.ID]; ended {
		return errs.New(errs.BadRequest, "there was a revocation with this id already")
	}
	if err := r.insertLocked(n, now, 1); err != nil {
		return err
	}
	r.markLocked(n.ID)
	return nil
}

// insertLocked puts one into force; there may be room times as many as are configured.
func (r *Revocations) insertLocked(n Revocation, now time.Time, room int) error {
	most := r.cfg.Max * room
	if len(r.byID) >= most || now.Sub(r.purged) >= purgeEvery {
		r.purge(now)
	}
	if len(r.byID) >= most {
		return errs.New(errs.RequestLimit, "there are %d revocations, as many as there may be: remove some, or revoke by subject or tenant", most).Within(most, 0, 0)
	}
	if _, taken := r.byID[n.ID]; taken {
		return errs.New(errs.BadRequest, "there is a revocation with this id already")
	}
	list, key := r.listOf(&n)
	if len(list[key]) >= maxSame*room {
		return errs.New(errs.BadRequest, "there are %d revocations of %s already: remove some", maxSame*room, n.what())
	}
	list[key] = append(list[key], &n)
	r.byID[n.ID] = &n
	r.count.Store(int64(len(r.byID)))
	return nil
}

func (r *Revocations) listOf(n *Revocation) (list map[string][]*Revocation, key string) {
	switch {
	case n.TokenID != "":
		return r.tokens, n.TokenID
	case n.Subject != "":
		return r.subject, n.Subject
	}
	return r.tenants, n.Tenant
}

// purge drops those that have ended; mu is held.
func (r *Revocations) purge(now time.Time) {
	r.purged = now
	for _, n := range r.byID {
		if !now.Before(n.Until) {
			r.drop(n)
		}
	}
	r.purgeCommonLocked(now)
}

// drop is called with mu held.
func (r *Revocations) drop(n *Revocation) {
	delete(r.byID, n.ID)
	r.count.Store(int64(len(r.byID)))
	list, key := r.listOf(n)
	rest := slices.DeleteFunc(list[key], func(each *Revocation) bool { return each == n })
	if list[key] = rest; len(rest) == 0 {
		delete(list, key)
	}
}

// Remove ends a revocation early, and returns it. Other replicas are told as by Add. Errors are errs.NotFound,
// errs.RequestLimit when other replicas would have to be reminded of too many that were removed, and errs.Internal when the
// file could not be written: then it is ended, but a restart brings it back.
func (r *Revocations) Remove(id string) (Revocation, error) {
	n, err := r.end(id)
	if err != nil {
		return Revocation{}, err
	}
	r.cfg.Logger.Info("revocation removed", logging.FieldComponent, "auth", "revocation", n.ID)
	err = r.save()
	r.share(id)
	return n, err
}

func (r *Revocations) end(id string) (Revocation, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, ok := r.byID[id]
	if !ok {
		return Revocation{}, errs.New(errs.NotFound, "there is no revocation %s", quote(id))
	}
	if r.cfg.Shared != nil {
		if len(r.common.removed) >= r.cfg.Max {
			r.purge(r.cfg.Now())
		}
		if len(r.common.removed) >= r.cfg.Max {
			return Revocation{}, errs.New(errs.RequestLimit, "%d revocations were removed before their time, as many as may be: wait until some of those would have ended", r.cfg.Max).
				Within(r.cfg.Max, 0, 0)
		}
		r.common.removed[id] = n.Until
		r.markLocked(id)
	}
	r.drop(n)
	return *n, nil
}

// List returns those in force, oldest first.
func (r *Revocations) List() []Revocation {
	now := r.cfg.Now()
	r.mu.RLock()
	all := make([]Revocation, 0, len(r.byID))
	for _, n := range r.byID {
		if now.Before(n.Until) {
			all = append(all, *n)
		}
	}
	r.mu.RUnlock()
	slices.SortFunc(all, func(a, b Revocation) int { return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.ID, b.ID)) })
	return all
}

// Subscribe has f called with each revocation that is added, in the goroutine that adds it: f must be quick and must not
// call Add or Subscribe. A tunnel that is being admitted while a revocation is added can be missed by f: check it once
// more after it can be found, or check all at intervals. cancel ends it; f may still run when it returns.
func (r *Revocations) Subscribe(f func(Revocation)) (cancel func()) { return r.listeners.Add(f) }
