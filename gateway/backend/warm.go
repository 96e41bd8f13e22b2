package backend

import (
	"math/rand/v2"
	"time"

	"fairlead/shared/errs"
)

// warmth is what keeps connections ready for a tenant that has used the backend lately. Guarded by Set.mu, but for nudge.
type warmth struct {
	used    time.Time     // when somebody last took or gave back a slot
	kept    bool          // keepWarm runs
	nudge   chan struct{} // tells it that a connection is missing
	notTill time.Time     // no dial for warmth before that
	backoff time.Duration
}

// Bounds of the wait after a dial that failed.
const (
	minWarmBackoff = time.Second
	maxWarmBackoff = time.Minute
)

func (w *warmth) succeeded() { w.backoff, w.notTill = 0, time.Time{} }

// failed waits longer each time, and as long as an open circuit says.
func (w *warmth) failed(err error) {
	w.backoff = min(max(2*w.backoff, minWarmBackoff), maxWarmBackoff)
	wait := w.backoff/2 + rand.N(w.backoff/2)
	w.notTill = time.Now().Add(max(wait, errs.From(err).RetryAfter))
}

// warmFor is how much longer connections are to be kept ready; 0: not any more. Those who have no stream and had none
// lately are never logged in for.
func (p *pool) warmForLocked(now time.Time) time.Duration {
	if p.b.Warm == 0 || p.stale || p.set.closed || p.warmth.used.IsZero() {
		return 0
	}
	lasts := p.set.poolConfig().WarmFor
	if p.channels > 0 {
		return lasts
	}
	return max(lasts-now.Sub(p.warmth.used), 0)
}

// readyLocked is how many connections can give a channel.
func (p *pool) readyLocked() int {
	n := 0
	for _, l := range p.live {
		if l.hasRoomLocked() {
			n++
		}
	}
	return n
}

// missingLocked reports whether one more connection should be made ready.
func (p *pool) missingLocked() bool {
	cfg := p.set.poolConfig()
	return p.readyLocked()+p.dialing < p.b.Warm && len(p.live)+p.dialing < cfg.Connections &&
		(p.b.Identity == nil || p.group.sizeLocked() < cfg.TenantConnections)
}

// warmLocked sees to it that a connection which is missing will be made.
func (p *pool) warmLocked() {
	if p.warmForLocked(time.Now()) == 0 || !p.missingLocked() {
		return
	}
	if !p.warmth.kept {
		p.warmth.nudge = make(chan struct{}, 1)
		p.warmth.kept = p.set.spawnLocked(p.keepWarm)
	}
	select {
	case p.warmth.nudge <- struct{}{}:
	default: // it will look anyway
	}
}

// keepWarm makes connections ready for as long as they are wanted.
func (p *pool) keepWarm() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-p.warmth.nudge:
		case <-p.set.base.Done():
		}
		wait, ok := p.topUp()
		if !ok {
			return
		}
		timer.Reset(wait)
	}
}

// topUp starts what is missing and returns when to look again; false: nothing is to be kept any more.
func (p *pool) topUp() (time.Duration, bool) {
	p.set.mu.Lock()
	defer p.set.mu.Unlock()
	now := time.Now()
	wait := p.warmForLocked(now)
	if wait == 0 {
		p.warmth.kept = false
		p.forgetLocked()
		return 0, false
	}
	for p.missingLocked() {
		if rest := p.warmth.notTill.Sub(now); rest > 0 {
			return min(wait, rest), true
		}
		if !p.startDialLocked() {
			break
		}
		p.b.counts.warmLogins.Inc()
	}
	return wait, true
}

// sparedLocked is for how long an idle connection is to be kept because it is one of those that are to be ready.
func (p *pool) sparedLocked(now time.Time) time.Duration {
	if p.readyLocked() > p.b.Warm {
		return 0
	}
	return p.warmForLocked(now)
}
