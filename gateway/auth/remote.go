package auth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
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
)

// remoteKeys are keys from a URL. One goroutine fetches them: at once, every refreshEvery, after a failure with growing
// pauses, and when asked. A failed fetch leaves the keys as they are.
//
// The fetching is not left to the key set library, because its goroutine cannot be waited for, its answers are not
// bounded, and of many tokens that arrive with a new key it serves only the one that triggered the fetch.
type remoteKeys struct {
	name   string // the issuer's
	url    string
	client *http.Client
	log    *slog.Logger
	counts *issuerCounts
	asked  *rate.Limiter

	keys atomic.Pointer[keySet]

	wake   chan struct{} // buffered: one fetch is wanted
	cancel context.CancelFunc
	done   chan struct{}

	mu    sync.Mutex
	round chan struct{} // closed when the fetch that is wanted or under way has ended; nil: there is none
	ended bool          // the goroutine has ended or is about to
}

func startRemote(cfg Issuer, client *http.Client, log *slog.Logger, counts *issuerCounts) *remoteKeys {
	ctx, cancel := context.WithCancel(context.Background())
	r := &remoteKeys{
		name: cfg.Issuer, url: cfg.JWKSURL, client: client, counts: counts,
		log:    log.With(logging.FieldComponent, "auth", "issuer", cfg.Issuer),
		asked:  rate.NewLimiter(rate.Every(askEvery), 1),
		wake:   make(chan struct{}, 1),
		cancel: cancel,
		done:   make(chan struct{}),
		round:  make(chan struct{}), // the first fetch: tokens may wait for it from the very start
	}
	if !strings.HasPrefix(strings.ToLower(cfg.JWKSURL), "https:") {
		r.log.Warn("jwks_url is not https: whoever is on the way can put in keys of their own")
	}
	go r.run(ctx)
	return r
}

func (r *remoteKeys) stop() {
	r.cancel()
	<-r.done
}

func (r *remoteKeys) current() *keySet { return r.keys.Load() }

func (r *remoteKeys) missing(ctx context.Context) *keySet {
	if round := r.join(); round != nil {
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

// join returns the fetch under way, or starts one when that is allowed by now; nil when not.
func (r *remoteKeys) join() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.round == nil && !r.ended && r.asked.Allow() {
		r.want()
	}
	return r.round
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

func (r *remoteKeys) fetch(ctx context.Context) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url, nil)
	if err != nil {
		return nil, withoutURL(err)
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, withoutURL(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("answered %s", resp.Status)
	}
	return readBounded(resp.Body)
}

// withoutURL drops the URL from an error: its query may hold a secret.
func withoutURL(err error) error {
	var e *url.Error
	if errors.As(err, &e) {
		return e.Err
	}
	return err
}

func newHTTPClient() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
			TLSHandshakeTimeout:    5 * time.Second,
			ForceAttemptHTTP2:      true,
			MaxIdleConnsPerHost:    1,
			IdleConnTimeout:        90 * time.Second,
			MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if len(via) >= 5 {
				return errors.New("redirected too often")
			}
			if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
				return errors.New("redirected from https to http")
			}
			return nil
		},
	}
}
