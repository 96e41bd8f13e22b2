package tunnel

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/logging"
	"fairlead/shared/ws"
)

const (
	// hedgeAfter is how long an attempt has for itself, while somebody waits, before another one is made beside it: at the next
	// endpoint, or on a new connection to the same one, because the first may hang in what the network has swallowed.
	hedgeAfter = 2 * time.Second
	// mostBeside bounds the attempts of one slot beside each other.
	mostBeside = 3
)

// round is attempts beside each other at a new tunnel, or at one that is to be resumed. One of them wins.
type round struct {
	s       *slot
	t       *link.Tunnel // to resume; nil: a new one is made
	token   string
	results chan tried
	over    chan struct{} // closed when nobody takes results any more

	mu  sync.Mutex // held during the handshake of a resume: a tunnel has one lane
	won bool
}

// tried is how an attempt went.
type tried struct {
	e      *endpoint
	number int
	jar    *jar
	fresh  bool // the answer has set cookies
	tunnel *link.Tunnel
	lane   *link.Lane
	via    string // the replica that answered, if it said so
	met    bool   // the gateway took the upgrade, so the token is good
	err    error
}

// connect makes a round of attempts: to resume the tunnel there is, or at a new one.
func (s *slot) connect(ctx context.Context) (*link.Lane, error) {
	t := s.current()
	eager := s.eager(t)
	targets := s.targets(t, eager)
	cfg := s.p.config()
	s.over = nil
	ctx, cancel := context.WithTimeout(ctx, cfg.ConnectTimeout+hedgeAfter*time.Duration(len(targets)-1))
	defer cancel()
	r := &round{s: s, t: t, results: make(chan tried), over: make(chan struct{})}
	defer close(r.over)
	var err error
	if r.token, err = cfg.Token(); err != nil {
		s.begin(t, targets[0])
		return nil, err
	}
	won, err := r.run(ctx, targets, eager)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.tunnel, s.jar, s.endpoint, s.via = won.tunnel, won.jar, won.e.url, ""
	if won.via != won.tunnel.Replica() {
		s.via = won.via
	}
	if t == nil {
		s.home, s.made = won.e, time.Now()
		s.asked, s.opens, s.refusing, s.cramped = nil, nil, false, false
	}
	home, leaving := s.home, s.leaving || s.asked != nil
	s.mu.Unlock()
	s.resumed = t != nil
	if t == nil {
		won.tunnel.SetHeartbeat(s.p.interval(home))
	}
	if won.e == home && !leaving { // where its owner is, new tunnels go too
		home.jar.replace(home.url, won.jar.list())
	}
	return won.lane, nil
}

// eager says whether somebody waits for the slot's tunnel, or for any.
func (s *slot) eager(t *link.Tunnel) bool {
	return t != nil && t.Stats().Streams > 0 || s.p.config().Waiting() || !s.p.Ready()
}

// targets lists where the attempts of a round go. A tunnel that is to be resumed lives at one endpoint; others may be doors to
// the same gateways, unless they have said since that they do not know it. A further tunnel has only one target: that the
// pool has others makes it no reason to go where tunnels should not be.
func (s *slot) targets(t *link.Tunnel, eager bool) []*endpoint {
	s.p.mu.Lock()
	pinned, replacement := s.pinned, s.replaces != nil
	s.p.mu.Unlock()
	if pinned != nil {
		return []*endpoint{pinned}
	}
	all := s.p.ends.candidates(time.Now())
	if t == nil {
		if s.turned < sameFirst && (!eager || replacement) {
			return all[:1]
		}
		return all
	}
	home := s.homeNow()
	targets := []*endpoint{home}
	for _, e := range all {
		if e != home && !slices.Contains(s.foreign, e) {
			targets = append(targets, e)
		}
	}
	return targets
}

// begin counts an attempt and tells of it.
func (s *slot) begin(t *link.Tunnel, e *endpoint) (number int) {
	s.mu.Lock()
	s.attempt++
	number = s.attempt
	s.endpoint = e.url
	delay := s.waited.Milliseconds()
	s.waited = 0
	s.mu.Unlock()
	s.p.attempts.Inc()
	if t == nil {
		s.move(Connecting, Event{Attempt: number, DelayMS: delay, Endpoint: e.url, Reason: "attempt"}, nil)
	} else {
		s.log.Info("resuming", logging.FieldTunnel, t.Name(), logging.FieldAttempt, number, logging.FieldDelayMS, delay, logging.FieldEndpoint, e.url,
			logging.FieldReason, "attempt")
	}
	return number
}

// run makes attempts until one wins or all have failed.
func (r *round) run(ctx context.Context, targets []*endpoint, eager bool) (tried, error) {
	var failed []error
	running, next := 0, 0
	start := func() {
		e := targets[next%len(targets)]
		next++
		running++
		number := r.s.begin(r.t, e)
		r.s.p.tasks.Go(func() { r.finish(r.try(ctx, e, number)) })
	}
	start()
	timer := time.NewTimer(hedgeAfter)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			if eager && running < mostBeside && ctx.Err() == nil {
				start()
			}
			timer.Reset(hedgeAfter)
		case got := <-r.results:
			running--
			if got.err == nil {
				r.s.p.report(got.e, nil, time.Now())
				return got, nil
			}
			failed = append(failed, got.err)
			more := next < len(targets) && ctx.Err() == nil
			if r.failed(ctx, got, more || running > 0 || next > 1) {
				return got, got.err
			}
			if more {
				start()
				timer.Reset(hedgeAfter)
			} else if running == 0 {
				return tried{}, telling(failed)
			}
		}
	}
}

// failed tells of an attempt that failed, and says whether that ends the round.
func (r *round) failed(ctx context.Context, got tried, others bool) (final bool) {
	s := r.s
	code := errs.CodeOf(got.err)
	turned := code == errs.Draining && s.turned < sameFirst && s.replacement() // there may be others behind the same endpoint
	if !turned && (ctx.Err() == nil || !errors.Is(context.Cause(ctx), context.Canceled)) {
		s.p.report(got.e, got.err, time.Now())
	}
	if others && !errors.Is(got.err, errs.Canceled) {
		s.log.Warn("attempt failed", append([]any{logging.FieldAttempt, got.number, logging.FieldEndpoint, got.e.url}, logging.Error(got.err)...)...)
		s.p.history.add(Event{Time: time.Now(), Tunnel: s.n, State: s.state(), Attempt: got.number, Endpoint: got.e.url,
			Code: errs.CodeOf(got.err).String(), Reason: got.err.Error()})
	}
	switch {
	case r.t != nil && s.ends(got):
		s.over = got.err
		got.e.jar.replace(got.e.url, nil) // whoever it leads to is not the owner any more
		return true
	case code == errs.TunnelUnknown && r.t != nil:
		s.foreign = append(s.foreign, got.e)
		return false
	case code == errs.TunnelLimit && r.t == nil && s.p.Ready():
		return true
	case code == errs.Draining || code == errs.ShuttingDown || code == errs.UpgradeFailed && !got.fresh: // the replica behind the cookie may be why
		got.e.jar.replace(got.e.url, nil)
	}
	return r.t != nil && r.t.Err() != nil
}

// telling is the error that says most of those of a round: a refusal of the token, else the first. A delay counts when all
// endpoints ask for one.
func telling(failed []error) error {
	first := errs.From(failed[0])
	least := first.RetryAfter
	for _, err := range failed[1:] {
		e := errs.From(err)
		least = min(least, e.RetryAfter)
		if e.Category() == errs.Authentication && first.Category() != errs.Authentication {
			first = e
		}
	}
	if first.RetryAfter == least {
		return first
	}
	told := *first
	return told.After(least)
}

// try makes one attempt.
func (r *round) try(ctx context.Context, e *endpoint, number int) tried {
	got := tried{e: e, number: number, tunnel: r.t}
	from := r.s.jarFor(e, r.t)
	got.jar = copyOf(from, e.url)
	cfg := r.s.p.config()
	conn, err := cfg.Dialer.Do(ctx, ws.Request{Endpoint: e.url, Header: header(r.token), Subprotocol: link.Subprotocol, Jar: got.jar,
		Answer: func(h http.Header) { got.via = replicaIn(h) }})
	if err != nil {
		got.err = err
		if set := got.jar.list(); !slices.Equal(set, from.list()) { // refusals may set cookies, too
			got.fresh = true
			from.replace(e.url, set)
		}
		return got
	}
	got.met = true
	if r.t != nil {
		got.lane, got.err = r.resume(ctx, conn)
	} else {
		got.tunnel, got.lane, got.err = r.s.make(ctx, conn)
	}
	if got.err != nil {
		conn.Close(errs.CloseFrame(got.err))
		conn.Abort()
		conn.Wait()
	}
	return got
}

// resume does the handshake of a resume, unless another attempt has won meanwhile.
func (r *round) resume(ctx context.Context, conn link.Conn) (*link.Lane, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.won || ctx.Err() != nil {
		return nil, errs.New(errs.Canceled, "another attempt was sooner")
	}
	lane, err := r.t.Resume(ctx, conn)
	r.won = err == nil
	return lane, err
}

// finish hands on how an attempt went. What comes too late to be used is ended in order.
func (r *round) finish(got tried) {
	select {
	case r.results <- got:
		return
	case <-r.over:
	}
	if got.err != nil {
		return
	}
	got.tunnel.Close(nil) // of a resume, too, this is the winner of a round that was given up
	_ = got.lane.Run()
	got.tunnel.Wait()
}

// make does the handshake of a new tunnel.
func (s *slot) make(ctx context.Context, conn link.Conn) (*link.Tunnel, *link.Lane, error) {
	cfg := s.p.config().Link
	cfg.Logger = s.log
	cfg.GoAway = s.goAway
	cfg.Renewed = s.renewed
	return link.Connect(ctx, conn, cfg)
}

// jarFor is the jar whose cookies an attempt sends: the tunnel's own lead back to its owner, also when newer tunnels go to
// another replica.
func (s *slot) jarFor(e *endpoint, t *link.Tunnel) *jar {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t != nil && e == s.home && s.jar != nil {
		return s.jar
	}
	return e.jar
}

// mostName bounds the name of a replica, in bytes.
const mostName = 128

// replicaIn is the replica that an answer comes from, if it says so in words that can be shown.
func replicaIn(h http.Header) string {
	name := h.Get("Fairlead-Replica")
	if len(name) > mostName || strings.ContainsFunc(name, func(c rune) bool { return c == utf8.RuneError || !unicode.IsPrint(c) }) {
		return ""
	}
	return name
}

// header carries the token of an attempt.
func header(token string) http.Header {
	return http.Header{"Authorization": {"Bearer " + token}}
}
