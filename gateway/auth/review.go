package auth

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

const (
	maxAsking    = 32          // questions at the cluster at once
	maxReviews   = 1024        // questions that wait or are asked; more are refused
	maxReviewed  = 20_000      // tokens whose last answer is remembered
	reviewPause  = time.Second // how long a cluster that did not answer is not asked
	clusterTrial = "/apis/authentication.k8s.io/v1/tokenreviews"
)

// reviewer asks a cluster whether tokens are still good. Each token is asked about once at a time, whoever waits for it,
// and not again while the answer counts.
//
// A cluster that cannot be asked refuses new tokens, and holds up nobody else: every question has a time limit, the
// number of questions is bounded, and after a failure all fail at once for reviewPause.
type reviewer struct {
	name     string // the issuer's
	audience string
	cfg      Kubernetes
	api      *kubeAPI
	log      *slog.Logger
	counts   *reviewCounts
	now      func() time.Time
	slots    chan struct{}
	ctx      context.Context
	cancel   context.CancelFunc
	wg       sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	known   *lru.Cache[digest, reviewed]
	flights map[digest]*flight
	until   time.Time // the cluster is not asked before; zero: it answered last
	state   ReviewStatus
}

// reviewed is the cluster's last answer about a token: one of the two.
type reviewed struct {
	good    time.Time // when it was found good
	refused time.Time // when it was refused
}

// flight is a question under way.
type flight struct {
	done chan struct{} // closed when err is set
	err  error         // nil: good; else errs.TokenRevoked, TokenInvalid or ReviewUnavailable
}

func newReviewer(cfg Issuer, api *kubeAPI, in surroundings) (*reviewer, error) {
	known, err := lru.New[digest, reviewed](maxReviewed)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &reviewer{
		name: cfg.Issuer, audience: cfg.Audience, cfg: *cfg.Kubernetes, api: api, now: in.now,
		log:    in.log.With(logging.FieldComponent, "auth", "issuer", cfg.Issuer),
		counts: in.counts.forReviews(cfg.Issuer),
		slots:  make(chan struct{}, maxAsking), ctx: ctx, cancel: cancel,
		known: known, flights: map[digest]*flight{},
	}, nil
}

// stop gives up the questions under way and waits for them.
func (r *reviewer) stop() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	r.wg.Wait()
}

func (r *reviewer) status() *ReviewStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.state
	s.UnderWay, s.Remembered = len(r.flights), r.known.Len()
	return &s
}

// check says whether the token is good, by what is known or by asking. subject is the token's. Errors are
// errs.TokenRevoked, TokenInvalid, ReviewUnavailable and Canceled.
func (r *reviewer) check(ctx context.Context, token *Credential, subject string) error {
	f, err := r.join(token, subject)
	if f == nil {
		return err
	}
	select {
	case <-f.done:
	case <-ctx.Done():
		return canceled(ctx.Err())
	}
	if errors.Is(f.err, errs.ReviewUnavailable) {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.without(token.sum, f.err)
	}
	return f.err
}

// join answers by what is known (then the flight is nil), or returns the question to wait for.
func (r *reviewer) join(token *Credential, subject string) (*flight, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	last, _ := r.known.Get(token.sum)
	switch {
	case !last.refused.IsZero() && now.Sub(last.refused) < r.cfg.ReviewTTL:
		return nil, r.refused()
	case !last.good.IsZero() && now.Sub(last.good) < r.cfg.ReviewTTL:
		return nil, nil
	}
	if f, ok := r.flights[token.sum]; ok {
		return f, nil
	}
	if r.closed || now.Before(r.until) || len(r.flights) >= maxReviews {
		return nil, r.without(token.sum, r.unavailable(errors.New("it did not answer before, or too many wait for it")))
	}
	f := &flight{done: make(chan struct{})}
	r.flights[token.sum] = f
	r.wg.Go(func() { r.fly(f, token, subject) })
	return f, nil
}

// without decides about a token when the cluster cannot be asked; mu is held. One that was good lives on for a while, so
// that tunnels outlast a restart of the cluster's API.
func (r *reviewer) without(sum digest, cause error) error {
	last, _ := r.known.Peek(sum)
	if last.good.IsZero() || r.now().Sub(last.good) >= r.cfg.ReviewGrace {
		return cause
	}
	r.counts.grace.Inc()
	return nil
}

func (r *reviewer) fly(f *flight, token *Credential, subject string) {
	ctx, cancel := context.WithTimeout(r.ctx, r.cfg.ReviewTimeout)
	defer cancel()
	var err error
	select {
	case r.slots <- struct{}{}:
		err = r.ask(ctx, token, subject)
		<-r.slots
	case <-ctx.Done():
		err = r.unavailable(errors.New("too many questions are under way"))
	}
	r.land(f, token.sum, err)
}

// land records an answer and wakes who waits for it.
func (r *reviewer) land(f *flight, sum digest, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer close(f.done)
	now := r.now()
	f.err = err
	delete(r.flights, sum)
	if errors.Is(err, errs.ReviewUnavailable) {
		r.counts.failed.Inc()
		if r.until.IsZero() && !r.closed {
			r.log.Error("the cluster cannot be asked about tokens: new ones are refused, tunnels go on for a while", append(logging.Error(err), "grace", r.cfg.ReviewGrace.String())...)
		}
		r.until = now.Add(reviewPause)
		r.state.Error, r.state.ErrorAt = errs.From(err).Text(), now
		return
	}
	if !r.until.IsZero() {
		r.log.Info("the cluster answers about tokens again")
	}
	r.until, r.state = time.Time{}, ReviewStatus{Asked: now}
	if err != nil {
		r.counts.refused.Inc()
		r.known.Add(sum, reviewed{refused: now})
		return
	}
	r.counts.good.Inc()
	r.known.Add(sum, reviewed{good: now})
}

// tokenReview is what the cluster is asked and answers:
// https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-review-v1/
type tokenReview struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Spec       struct {
		Token     string   `json:"token,omitempty"`
		Audiences []string `json:"audiences,omitempty"`
	} `json:"spec"`
	Status *struct {
		Authenticated bool     `json:"authenticated"`
		Audiences     []string `json:"audiences"`
		User          struct {
			Username string `json:"username"`
		} `json:"user"`
	} `json:"status,omitempty"`
}

// ask has the token reviewed. The cluster's own words (status.error) are dropped: they may repeat the token's.
func (r *reviewer) ask(ctx context.Context, token *Credential, subject string) error {
	question := tokenReview{APIVersion: "authentication.k8s.io/v1", Kind: "TokenReview"}
	question.Spec.Token, question.Spec.Audiences = token.token, []string{r.audience}
	data, err := r.api.ask(ctx, http.MethodPost, clusterTrial, question)
	if err != nil {
		return r.unavailable(err)
	}
	var answer tokenReview
	if json.Unmarshal(data, &answer) != nil || answer.Kind != "TokenReview" || answer.Status == nil {
		return r.unavailable(errors.New("answered something else than a TokenReview"))
	}
	switch {
	case !answer.Status.Authenticated:
		return r.refused()
	case !slices.Contains(answer.Status.Audiences, r.audience):
		// The field is empty when the cluster does not know of audiences: then it has not checked them.
		return errs.New(errs.TokenInvalid, "the cluster of issuer %s does not confirm that the token is meant for %s", quote(r.name), quote(r.audience))
	case answer.Status.User.Username != subject:
		return errs.New(errs.TokenInvalid, "the cluster of issuer %s knows the token as another user's", quote(r.name))
	}
	return nil
}

func (r *reviewer) refused() error {
	return errs.New(errs.TokenRevoked, "the cluster of issuer %s no longer accepts the token: its pod or service account is gone, or was made anew", quote(r.name))
}

func (r *reviewer) unavailable(cause error) error {
	return errs.Wrap(errs.ReviewUnavailable, cause, "the cluster of issuer %s could not be asked about the token", quote(r.name)).After(reviewPause)
}
