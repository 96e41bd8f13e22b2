package tunnel

import (
	"context"
	"errors"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/link"
)

// recover decides what follows a failed round, or the loss of a lane that was served; it waits, and says whether to go on.
func (s *slot) recover(ctx context.Context, err error, served bool) bool {
	s.mu.Lock()
	t, attempt, endpoint, leaving := s.tunnel, s.attempt, s.endpoint, !s.moveAt.IsZero()
	if t != nil && !served {
		s.rounds++
	}
	s.mu.Unlock()
	if t != nil && (s.gone(t, err) || outlived(t, s.lost)) {
		s.drop(errs.Wrap(errs.TunnelLost, err, "the gateway has given the tunnel up"))
		t = nil
	}
	if s.superfluous(t, err, leaving, served) {
		s.move(Disconnected, Event{Attempt: attempt, Endpoint: endpoint}, err)
		s.p.nudge()
		return false
	}
	if !s.p.config().Reconnect {
		return s.giveUpAlone(ctx, err)
	}
	s.retry.b = s.p.config().Backoff
	var wait time.Duration
	told := errs.From(err).RetryAfter
	if served && s.retry.failures == 0 && told == 0 {
		wait = s.retry.first()
	} else {
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

// gone says whether a tunnel cannot be resumed any more: it is over, or its gateway does not know it. That another endpoint
// does not know it says nothing.
func (s *slot) gone(t *link.Tunnel, err error) bool {
	if t.Err() != nil {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Is(err, errs.TunnelUnknown) && s.endpoint == s.home.url
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
