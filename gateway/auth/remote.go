package auth

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/time/rate"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

const (
	refreshEvery   = 5 * time.Minute
	askEvery       = 30 * time.Second // fetches that tokens with unknown keys can cause
	askWait        = time.Second      // how long a token waits for such a fetch
	fetchTimeout   = 10 * time.Second
	firstRetry     = time.Second
	lastRetry      = 30 * time.Second
	keysRetryAfter = 5 * time.Second // what callers are told while there are no keys
	maxWaiting     = 256             // tokens that wait for a fetch; others are answered by the keys at hand
)

// remoteKeys are keys from a URL. One goroutine fetches them: at once, every refreshEvery, after a failure with growing
// pauses, and when asked. A failed fetch leaves the keys as they are.
//
// A flood of tokens with made-up key ids costs one fetch in askEvery, no goroutines, and a place among maxWaiting: tokens
// whose keys are at hand never come here.
//
// The fetching is not left to the key set library, because its goroutine cannot be waited for, its answers are not
// bounded, and of many tokens that arrive with a new key it serves only the one that triggered the fetch.
type remoteKeys struct {
	name   string // the issuer's
	kind   string // as IssuerStatus has it
	fetch  func(context.Context) ([]byte, error)
	plain  bool     // over http
	api    *kubeAPI // what fetch asks, closed by stop; nil for URLs
	log    *slog.Logger
	counts *issuerCounts
	asked  *rate.Limiter

	keys atomic.Pointer[keySet]

	wake   chan struct{} // buffered: one fetch is wanted
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{} // closed when the goroutine has ended; nil before start

	mu      sync.Mutex
	round   chan struct{} // closed when the fetch that is wanted or under way has ended; nil: there is none
	waiting int           // tokens that wait for a round
	ended   bool          // the goroutine has ended or is about to
	state   IssuerStatus
}

func newRemote(name, kind string, fetch func(context.Context) ([]byte, error), in surroundings) *remoteKeys {
	ctx, cancel := context.WithCancel(context.Background())
	return &remoteKeys{
		name: name, kind: kind, fetch: fetch, counts: in.counts.forIssuer(name),
		log:   in.log.With(logging.FieldComponent, "auth", "issuer", name),
		asked: rate.NewLimiter(rate.Every(askEvery), 1),
		wake:  make(chan struct{}, 1),
		ctx:   ctx, cancel: cancel,
		round: make(chan struct{}), // the first fetch: tokens may wait for it from the very start
	}
}

func (r *remoteKeys) start() {
	if r.plain {
		r.log.Warn("jwks_url is not https: whoever is on the way can put in keys of their own")
	}
	r.done = make(chan struct{})
	go r.run(r.ctx)
}

func (r *remoteKeys) stop() {
	r.cancel()
	if r.done != nil {
		<-r.done
	}
	if r.api != nil {
		r.api.close()
	}
}

func (r *remoteKeys) current() *keySet { return r.keys.Load() }

func (r *remoteKeys) status() IssuerStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.state
	s.Source, s.Keys = r.kind, r.size()
	return s
}

func (r *remoteKeys) missing(ctx context.Context, had *keySet) *keySet {
	if round := r.join(had); round != nil {
		defer r.leave()
		timer := time.NewTimer(askWait)
		defer timer.Stop()
		select {
		case <-round:
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	return r.keys.Load()
}

// join returns the fetch under way, or starts one when that is allowed by now; nil when not, when too many wait, or when the
// keys have changed meanwhile. Who got one must leave.
func (r *remoteKeys) join(had *keySet) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.keys.Load() != had {
		return nil
	}
	if r.round == nil && !r.ended && r.asked.Allow() {
		r.want()
	}
	if r.round == nil || r.waiting >= maxWaiting {
		return nil
	}
	r.waiting++
	return r.round
}

func (r *remoteKeys) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting--
}

// nudge asks for a fetch regardless of the rate.
func (r *remoteKeys) nudge() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ended {
		r.want()
	}
}

// want is called with mu held.
func (r *remoteKeys) want() {
	if r.round == nil {
		r.round = make(chan struct{})
	}
	select {
	case r.wake <- struct{}{}:
	default: // already wanted
	}
}

func (r *remoteKeys) run(ctx context.Context) {
	defer close(r.done)
	defer r.end(true)
	pauses := backoff.NewExponentialBackOff()
	pauses.InitialInterval, pauses.MaxInterval = firstRetry, lastRetry
	failed := false
	for {
		r.begin()
		err := r.refresh(ctx)
		if ctx.Err() != nil {
			return
		}
		pause := refreshEvery
		if err != nil {
			pause = pauses.NextBackOff()
		} else {
			pauses.Reset()
		}
		r.report(err, failed, pause) // before tokens are answered, so that the cause is in the log by then
		r.end(false)
		failed = err != nil
		if !r.wait(ctx, pause) {
			return
		}
	}
}

// wait returns true when the next fetch is due, false when the verifier is closed.
func (r *remoteKeys) wait(ctx context.Context, pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.wake:
		return true
	case <-ctx.Done():
		return false
	}
}

// begin marks a fetch as under way, and takes back a wish that came while its timer fired: this fetch serves it.
func (r *remoteKeys) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.round == nil {
		r.round = make(chan struct{})
	}
	select {
	case <-r.wake:
	default:
	}
}

// end wakes the tokens that wait.
func (r *remoteKeys) end(final bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = r.ended || final
	if r.round != nil {
		close(r.round)
		r.round = nil
	}
}

func (r *remoteKeys) report(err error, failedBefore bool, pause time.Duration) {
	r.note(err)
	if err != nil {
		r.counts.failed.Inc()
		e := errs.Wrap(errs.KeysUnavailable, err, "cannot fetch the key set of issuer %s", quote(r.name))
		r.log.Warn("key set not refreshed; the keys at hand stay in use", logging.FieldCode, e.Code.String(), logging.FieldError, e.Text(),
			logging.FieldDelayMS, pause.Milliseconds(), "keys", r.size())
		return
	}
	r.counts.fetched.Inc()
	r.counts.keys.Set(float64(r.size()))
	r.counts.at.Set(float64(time.Now().Unix()))
	if failedBefore {
		r.log.Info("key set refreshed again", "keys", r.size())
	}
}

func (r *remoteKeys) note(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.state.Error, r.state.ErrorAt = err.Error(), time.Now()
		return
	}
	r.state.Fetched, r.state.Error, r.state.ErrorAt = time.Now(), "", time.Time{}
}

func (r *remoteKeys) size() int {
	if keys := r.keys.Load(); keys != nil {
		return keys.size
	}
	return 0
}

// refresh replaces the keys when the document has changed. A set that has become empty replaces them too: the issuer
// says that none of its keys are good any more.
func (r *remoteKeys) refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	data, err := r.fetch(ctx)
	if err != nil {
		return err
	}
	keys, err := parseKeySet(data)
	if err != nil {
		return err
	}
	before := r.keys.Load()
	if before != nil && before.sum == keys.sum {
		return nil
	}
	r.keys.Store(keys)
	level := slog.LevelInfo
	if keys.size == 0 {
		level = slog.LevelWarn
	}
	r.log.Log(ctx, level, "key set changed", "keys", keys.size)
	return nil
}
