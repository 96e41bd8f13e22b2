package tunnel

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"fairlead/shared/errs"
)

const (
	// sameFirst is how often a replacement that is turned away by a gateway that drains tries the same endpoint: there may be
	// others behind it. After that it goes to any.
	sameFirst = 3
	// mostSoon is how often an attempt is repeated soon that was turned away by a replica behind a load balancer which may lead
	// to another one next time.
	mostSoon = 25
	// mostSoonOwner is the same where every replica is likely to say the same.
	mostSoonOwner = 5
	// turnEvery is between attempts of the whole pool that are repeated soon.
	turnEvery = 50 * time.Millisecond
)

// heed makes replacements for tunnels whose gateways have asked for that, each when its time has come. They move
// independently of each other.
func (p *Pool) heed(u *use, want int, now time.Time) {
	for _, s := range u.due {
		s.mu.Lock()
		t, n, cramped, wait := s.tunnel, s.asked, s.cramped, s.leaving || now.Before(s.nextMove)
		s.mu.Unlock()
		switch {
		case n == nil || wait:
		case len(u.settled) >= want:
			s.leave("the pool has enough other tunnels")
		case cramped && t != nil && s.closeIfIdle(t): // its replacement has been waiting for that
			s.log.Info("tunnel ends: there is no room for it and its replacement")
			s.stop()
		case !p.replaced(s):
			why := moveRebalance
			if n.goesAway() {
				why = moveDrain
			}
			p.move(s, nil, why)
		}
	}
}

// replaced says whether another slot is to take the place of this one.
func (p *Pool) replaced(old *slot) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.slots, func(s *slot) bool { return s.replaces == old })
}

// bequeath makes a slot that was to take the place of this one on its gateway's wish a slot like any other, which makes its
// tunnel now, and says whether there was one.
func (p *Pool) bequeath(old *slot) (found bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.slots {
		if s.replaces == old && s.why.asked() {
			s.replaces, found = nil, true
			notify(s.hurry)
		}
	}
	return found
}

// persist is what follows a failed round of a slot that is to take the place of another one on its gateway's wish: it goes on
// trying for as long as that one lives. It says whether to go on.
func (s *slot) persist(ctx context.Context, err error) bool {
	s.p.mu.Lock()
	old := s.replaces
	s.p.mu.Unlock()
	s.mu.Lock()
	attempt, endpoint := s.attempt, s.endpoint
	s.mu.Unlock()
	if !s.p.config().Reconnect {
		if old != nil {
			old.postpone()
		}
		s.p.moved(s, err)
		s.move(Disconnected, Event{Attempt: attempt, Endpoint: endpoint}, err)
		return false
	}
	code, told := errs.CodeOf(err), errs.From(err).RetryAfter
	wait, turned := s.soon(err, false)
	switch {
	case told > 0:
		wait = min(told, mostTold)
	case code == errs.TunnelLimit:
		wait = time.Second/2 + rand.N(time.Second)
	case !turned:
		s.retry.b = s.p.config().Backoff
		wait, _ = s.retry.next(true, 0)
	}
	if code == errs.TunnelLimit && old != nil {
		old.mu.Lock()
		old.cramped = true
		old.mu.Unlock()
		s.p.nudge()
	}
	s.hush(turned && s.turned > 1 && s.turned%10 != 0) // else the history would tell of nothing else
	s.move(Disconnected, Event{Attempt: max(attempt, 1), DelayMS: wait.Milliseconds(), Endpoint: endpoint}, err)
	return s.pause(ctx, wait, told > 0 && code != errs.TunnelLimit, err)
}

// postpone lets no replacement be made for a while.
func (s *slot) postpone() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nextMove = time.Now().Add(s.p.config().Probe)
}

func (s *slot) hush(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hushed = on
}

// soon is how long to wait before an attempt that was turned away by a replica which is not the right one, while others may
// be: shortly, without growing. ok is false when it was not turned away, or too often.
func (s *slot) soon(err error, resume bool) (wait time.Duration, ok bool) {
	most := mostSoon
	switch code := errs.CodeOf(err); {
	case code == errs.Draining && !resume:
	case code == errs.OwnerUnknown && resume:
		most = mostSoonOwner
	default:
		s.turned = 0
		return 0, false
	}
	s.turned++
	if s.turned > most && s.replacement() { // nobody waits for it yet; others draining too is no reason to stop asking
		return time.Second/2 + rand.N(time.Second), true
	}
	return s.p.turn(100*time.Millisecond + rand.N(200*time.Millisecond)), s.turned <= most
}

// turn makes a wait long enough for the attempts of the whole pool not to come too close.
func (p *Pool) turn(wait time.Duration) time.Duration {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	at := now.Add(wait)
	if next := p.lastTurn.Add(turnEvery); at.Before(next) {
		at = next
	}
	p.lastTurn = at
	return at.Sub(now)
}
