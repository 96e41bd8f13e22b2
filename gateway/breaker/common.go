package breaker

import (
	"context"
	"slices"
	"time"
)

// common is the part of a circuit that replicas have in common.
type common struct {
	version   uint64    // Circuit.Version; 0: it has never changed
	since     time.Time // Circuit.Since
	by        string    // Circuit.By
	stored    uint64    // the highest version that the store is known to have had
	untold    bool      // the store has something older, or nothing
	elsewhere time.Time // until then another replica is left to probe
	claims    []claim   // that are to be released
}

// Versions count an operator's decisions in their upper part, and what happened since the last one in their lower part. They
// have no more bits than a number in JSON is sure to keep.
const (
	operatorShift = 32
	maxVersion    = 1<<53 - 1
	automaticMask = 1<<operatorShift - 1
)

// maxClaims bounds the claims that wait to be released; the oldest end by themselves.
const maxClaims = 4

// clocksWithin is how far the clocks of replicas may differ without a probe coming too early: see dueIn.
const clocksWithin = 10 * time.Second

// shareLocked notes a change that others are to hear of. operator is who decided it; empty: nobody.
//
// Changes that follow each other while the store cannot be told have one version: a replica that was alone must not
// overrule, by their number, what the others have found out together.
func (c *circuit) shareLocked(operator string) {
	s := c.breaker.share
	if s == nil {
		return
	}
	k := &c.common
	switch {
	case operator != "":
		k.version = min((k.version>>operatorShift+1)<<operatorShift, maxVersion)
		k.by = operator
	default:
		if k.version <= k.stored || k.version&automaticMask == 0 {
			k.version = min(k.version+1, maxVersion)
		}
		k.by = s.replica
	}
	k.since = time.Now().Round(0).Truncate(time.Millisecond)
	k.untold = true
	s.poke()
}

// recordLocked is what others are told.
func (c *circuit) recordLocked(now time.Time) Circuit {
	t := Circuit{Backend: c.backend, Open: c.open, By: c.common.by, Since: c.common.since, Failures: c.consecutive, Code: c.lastFailure.Code,
		Changed: now.Round(0), Version: c.common.version}
	if c.mode != Auto {
		t.Mode = string(c.mode)
	}
	if c.open {
		t.Retry = c.since.Add(c.retryAfter).Round(0)
	}
	return t
}

// compare notes whether the store has to be told, which has told, or nothing.
func (c *circuit) compare(told Circuit) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.common.stored = max(c.common.stored, told.Version)
	c.common.untold = c.common.version > 0 && c.recordLocked(time.Now()).order(told) != 0
}

// tell puts what the store must be told, and gives claims back that are not needed any more, in this order: whoever
// claims next is to know how the last probe ended.
func (c *circuit) tell(ctx context.Context) error {
	c.mu.Lock()
	untold, record, claims := c.common.untold && !c.forgotten, c.recordLocked(time.Now()), slices.Clone(c.common.claims)
	c.mu.Unlock()
	store := c.breaker.share.store
	if untold {
		keep := keepCircuit
		if record.Mode != "" {
			keep = keepMode
		}
		if err := store.PutCircuit(ctx, record, keep); err != nil {
			return err
		}
		c.mu.Lock()
		c.common.stored = max(c.common.stored, record.Version)
		if c.common.version == record.Version && c.common.since.Equal(record.Since) {
			c.common.untold = false
		}
		c.mu.Unlock()
	}
	for _, each := range claims {
		if time.Now().Before(each.until) {
			if err := store.ReleaseProbe(ctx, c.backend, each.by); err != nil {
				return err
			}
		}
		c.released(each)
	}
	return nil
}

// adopt takes over what another replica has changed, if it is newer, and reports whether anything is different now.
func (c *circuit) adopt(told heard) bool {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.forgotten || told.order(c.recordLocked(now)) <= 0 {
		return false
	}
	before, mode, wasOpen := c.stateLocked(now), c.mode, c.open
	operator := told.Version>>operatorShift != c.common.version>>operatorShift && (told.Version&automaticMask == 0 || told.mode() != mode)
	c.common.version, c.common.since, c.common.by = told.Version, told.Since, told.By
	c.common.stored = max(c.common.stored, told.Version)
	c.common.elsewhere = time.Time{}
	if c.mode = told.mode(); c.mode != mode || !told.Open && wasOpen {
		c.epoch++ // what is under way counts no more
		c.consecutive, c.asking, c.probing, c.again = 0, false, false, false
	}
	switch {
	case told.Open:
		c.openAsLocked(told)
	case wasOpen:
		c.closeLocked()
	}
	return c.adoptedLocked(told.By, before, mode, wasOpen, operator)
}

// adoptedLocked tells what adopt has changed.
func (c *circuit) adoptedLocked(who string, before State, mode Mode, wasOpen, operator bool) bool {
	after, by := c.stateLocked(time.Now()), "replica "+who
	switch {
	case operator && (mode != c.mode || before != after || wasOpen != c.open):
		return c.changedLocked(before, after, ReasonOperator, who)
	case mode != c.mode:
		return c.changedLocked(before, after, ReasonOperator, by)
	case wasOpen && !c.open:
		return c.changedLocked(before, after, ReasonProbeSucceeded, by)
	case !wasOpen && c.open:
		return c.changedLocked(before, after, ReasonFailures, by)
	case c.open:
		return c.changedLocked(before, after, ReasonProbeFailed, by)
	}
	return false
}

// openAsLocked opens the circuit as another replica did, or keeps it open. hystrix is not told: it lets the first one that
// asks be the probe, and nobody asks before it is time.
func (c *circuit) openAsLocked(told heard) {
	if !c.open {
		c.openedAt = told.at
		if told.Since.Before(told.at) {
			c.openedAt = told.Since
		}
	}
	c.open, c.again = true, false
	c.since = told.at.Add(told.dueIn(told.at, c.retryAfter) - c.retryAfter)
	c.consecutive = told.Failures
	if told.Code != 0 {
		c.lastFailure = Failure{Code: told.Code, Text: bounded("as replica " + told.By + " saw it: " + told.Code.Info().Title), At: told.at}
	}
}

// dueIn is how long a circuit that was told of is to be left alone from now on: as long as was left when it was put, as if that
// were now, since the clocks of replicas differ. Who hears of it late would wait too long that way: it goes by the clocks, as far
// as they can be trusted, when that is sooner.
func (t Circuit) dueIn(now time.Time, longest time.Duration) time.Duration {
	left := min(t.Retry.Sub(t.Changed), t.Retry.Sub(now.Round(0))+clocksWithin)
	return min(max(left, 0), longest)
}
