package breaker

import (
	"context"
	"crypto/rand"
	"slices"
	"time"

	"fairlead/shared/errs"
)

const (
	claimWithin = 50 * time.Millisecond // that a probe waits for the store
	claimAgain  = time.Second           // until a replica that was not elected asks again; at most retryAfter
)

// claim is the right to probe, among replicas.
type claim struct {
	by    string // unlike any other, so that giving it back late takes nothing from the next one
	until time.Time
}

// elected runs fn as the probe if no other replica probes. A store that cannot be asked leaves it to each replica.
func (c *circuit) elected(ctx context.Context, a admission, fn func(context.Context) error, unlessClosed bool) (bool, error) {
	mine, claimed, err := c.claim(ctx)
	if err == nil && !claimed {
		return true, c.leave(a)
	}
	if c.movedOn(a) {
		c.release(mine)
		return c.do(ctx, fn, unlessClosed)
	}
	defer c.release(mine) // also what was not granted for all we know: the answer may have been lost
	if claimed {
		var done context.CancelFunc
		ctx, done = context.WithDeadline(ctx, mine.until) // then another replica may probe
		defer done()
	}
	if !a.again {
		return true, c.throughHystrix(ctx, a, fn)
	}
	if err := c.start(&a); err != nil {
		return true, err
	}
	err = c.guard(ctx, fn)
	c.settle(err, a)
	return true, err
}

// claim asks whether this replica may probe, and how the last probe ended, which may be why the claim was free.
func (c *circuit) claim(ctx context.Context) (mine claim, claimed bool, err error) {
	s := c.breaker.share
	mine = claim{by: s.replica + "/" + rand.Text(), until: time.Now().Add(s.probeFor)}
	ctx, cancel := context.WithTimeout(ctx, claimWithin)
	defer cancel()
	claimed, err = s.store.ClaimProbe(ctx, c.backend, mine.by, s.probeFor)
	if err != nil || !claimed {
		return mine, false, err
	}
	list, err := s.store.Circuits(ctx)
	if err != nil { // then we go by what we know
		return mine, true, nil
	}
	for _, told := range list {
		if told.Backend == c.backend && told.valid() && c.adopt(heard{told, time.Now()}) {
			c.breaker.watchers.Tell(c.backend)
		}
	}
	return mine, true, nil
}

// leave leaves the probe to another replica.
func (c *circuit) leave(a admission) error {
	c.breaker.share.poke() // its probe may be over
	c.mu.Lock()
	defer c.mu.Unlock()
	if a.epoch == c.epoch {
		c.asking = false
	}
	wait := min(claimAgain, c.retryAfter)
	c.common.elsewhere = time.Now().Add(wait)
	c.refused.Inc()
	c.counts.Refused++
	return errs.New(errs.CircuitOpen, "backend %q failed %d times in a row, and another replica is trying whether it is well again", c.backend, c.consecutive).After(wait)
}

// movedOn reports whether the circuit is not any more what it was when a call was to be the probe.
func (c *circuit) movedOn(a admission) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a.epoch != c.epoch {
		return true
	}
	if a.version == c.common.version {
		return false
	}
	c.asking = false
	return true
}

// release has Run give a claim back, once what the probe has shown is told.
func (c *circuit) release(mine claim) {
	c.mu.Lock()
	c.common.claims = append(c.common.claims, mine)
	if n := len(c.common.claims) - maxClaims; n > 0 {
		c.common.claims = slices.Delete(c.common.claims, 0, n)
	}
	c.mu.Unlock()
	c.breaker.share.poke()
}

// released forgets a claim that was given back.
func (c *circuit) released(one claim) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.common.claims = slices.DeleteFunc(c.common.claims, func(each claim) bool { return each == one })
}
