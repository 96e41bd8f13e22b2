package tunnel

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/link"
)

// recover decides what follows a failed round, or the loss of a lane that was served; it waits, and says whether to go on.
func (s *slot) recover(ctx context.Context, err error, served bool) bool {
	s.mu.Lock()
	t, attempt, endpoint, leaving := s.tunnel, s.attempt, s.endpoint, s.leaving
	if t != nil && !served {
		s.rounds++
		s.sought = errors.Is(err, errs.OwnerUnknown)
		if s.asked != nil { // it may not come back
			s.asked = &notice{at: time.Now(), reason: s.asked.reason}
		}
	}
	s.mu.Unlock()
	told := errs.From(err).RetryAfter
	anew := false
	if t != nil && (s.gone(t, err, served) || outlived(t, s.lost)) {
		s.giveUpTunnel(t, err)
		anew = !served && s.over != nil // a refusal that leaves nothing to wait for
		t = nil
	}
	switch {
	case s.replacement() && s.why.asked():
		return s.persist(ctx, err)
	case s.superfluous(t, err, leaving, served):
		s.move(Disconnected, Event{Attempt: attempt, Endpoint: endpoint}, err)
		s.p.nudge()
		return false
	}
	if !s.p.config().Reconnect {
		return s.giveUpAlone(ctx, err)
	}
	s.retry.b = s.p.config().Backoff
	if anew && told == 0 {
		s.retry.reset()
		s.move(Disconnected, Event{Attempt: max(attempt, 1), Endpoint: endpoint}, err)
		return ctx.Err() == nil
	}
	wait, turned := s.soon(err, t != nil)
	switch {
	case turned && told == 0:
	case served && s.retry.failures == 0 && told == 0:
		wait = s.retry.first()
	default:
		var spent bool
		wait, spent = s.retry.next(s.eager(t), told)
		if s.p.isHalted() {
			return s.giveUp(ctx, err, false)
		}
		if spent && s.p.connected() == 0 {
			return s.giveUp(ctx, err, s.p.halt(err))
		}
	}
	to := Disconnected
	if t != nil {
		to = Resuming
	}
	s.move(to, Event{Attempt: max(attempt, 1), DelayMS: wait.Milliseconds(), Endpoint: endpoint}, err)
	if t != nil && !served {
		s.p.nudge() // another tunnel may have to take the new streams
	}
	return s.pause(ctx, wait, told > 0, err)
}

// superfluous says whether the pool does without a slot that has no tunnel any more, or got none.
func (s *slot) superfluous(t *link.Tunnel, err error, leaving, served bool) bool {
	switch {
	case t == nil && s.p.bequeath(s):
		return true
	case s.replacement(): // it is tried again, or not, when it is time to
		s.p.moved(s, err)
		return true
	case leaving && t == nil:
		return true
	case errors.Is(err, errs.TunnelLimit) && s.p.spare(s):
		return true
	}
	return t == nil && !served && s.p.enough(s)
}

// heldAtMost bounds how long a tunnel is tried to be resumed whose gateway did not say how long it holds it.
const heldAtMost = 2 * time.Minute

// outlived says whether no gateway can hold a tunnel any more whose lane was lost then. Its applications need not wait for
// one to say so.
func outlived(t *link.Tunnel, lost time.Time) bool {
	held := t.HeldFor()
	if held == 0 {
		held = heldAtMost
	}
	return time.Since(lost) > held
}

// gone says whether a tunnel cannot be resumed any more.
func (s *slot) gone(t *link.Tunnel, err error, served bool) bool {
	return t.Err() != nil || s.over != nil || served && s.ends(tried{e: s.homeNow(), err: err})
}

// mostEndings is how often a gateway that takes upgrades must refuse to resume a tunnel, for a reason for which tunnels are
// ended, until that is believed to be its end: it may as well be what the gateway itself is about, and not the next one.
const mostEndings = 3

// ends says whether what came of an attempt to resume, or of a lane, means that the tunnel is over. What replicas know of
// each other's tunnels they share, so it counts whoever says it; that an endpoint other than its own has never heard of the
// tunnel says nothing.
func (s *slot) ends(got tried) bool {
	switch code := errs.CodeOf(got.err); code {
	case errs.OwnerGone, errs.OwnerUnreachable, errs.LeaseLost, errs.TunnelLost, errs.DrainEnded:
		return true
	case errs.TunnelUnknown:
		return got.e == s.homeNow()
	case errs.ShuttingDown, errs.TokenExpired, errs.TokenInvalid, errs.TokenRevoked, errs.RouteForbidden:
		if got.met { // else it is the token of the attempt, and a renewed one may do
			s.endings++
		}
		return s.endings >= mostEndings
	}
	return false
}

// giveUpTunnel ends the streams of a tunnel that is over, with the reason that is known.
func (s *slot) giveUpTunnel(t *link.Tunnel, err error) {
	why, code := errs.Wrap(errs.TunnelLost, err, "the gateway has given the tunnel up"), errs.TunnelLost
	switch e := errs.From(err); {
	case t.Err() != nil: // its streams have ended with that
		code = errs.CodeOf(t.Err())
	case e.Code == errs.TunnelUnknown:
		code = e.Code
	case !outlived(t, s.lost) || s.over != nil:
		why, code = errs.New(e.Code, "the tunnel is over: %s", e.Message), e.Code
	}
	if !s.ownEnd.Load() {
		s.p.lost(code)
	}
	s.drop(why)
}

// lost counts a tunnel that is over without this side having wished that.
func (p *Pool) lost(code errs.Code) {
	name := "other" // a peer can make up as many codes as there are numbers
	if slices.Contains(errs.Codes(), code) {
		name = code.String()
	}
	p.config().Metrics.GetOrCreateCounter(fmt.Sprintf("fairlead_sidecar_tunnels_lost_total{code=%q}", name)).Inc()
}

// giveUp waits until somebody asks to try again. The first slot of the pool that gives up says so.
func (s *slot) giveUp(ctx context.Context, err error, first bool) bool {
	failures := s.retry.failures
	s.drop(errs.Wrap(errs.GaveUp, err, "reconnecting was given up"))
	why := errs.Wrap(errs.GaveUp, err, "gave up after %d failed attempts", failures)
	if first {
		s.move(Failed, Event{Attempt: failures}, why)
	} else {
		s.follow(why)
	}
	select {
	case <-ctx.Done():
		return false
	case <-s.again:
	}
	s.retry.reset()
	return true
}

// giveUpAlone is for a pool that does not reconnect: a slot's first failure is its last, whatever the others do.
func (s *slot) giveUpAlone(ctx context.Context, err error) bool {
	s.retry.failures = max(s.retry.failures, 1)
	told := func() {
		if s.p.hopeless() {
			s.p.givenUp.Inc()
			s.p.config().GaveUp(err)
		}
	}
	s.drop(errs.Wrap(errs.GaveUp, err, "reconnecting is switched off"))
	s.move(Failed, Event{Attempt: s.retry.failures}, errs.Wrap(errs.GaveUp, err, "reconnecting is switched off"))
	told()
	select {
	case <-ctx.Done():
		return false
	case <-s.again:
	}
	s.retry.reset()
	return true
}

// pause waits before the next attempt. A wait that a server asked for is cut short only by a person.
func (s *slot) pause(ctx context.Context, wait time.Duration, told bool, err error) bool {
	drain(s.hurry)
	hurry := s.hurry
	if told {
		hurry = nil
	}
	start := time.Now()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
	case <-hurry:
		s.retry.reset()
	case <-s.again:
		s.retry.reset()
	case <-s.p.haltedNow():
		return s.giveUp(ctx, err, false)
	}
	s.mu.Lock()
	s.waited = time.Since(start)
	s.mu.Unlock()
	return true
}
