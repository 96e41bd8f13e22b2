package limit

import (
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"fairlead/shared/errs"
)

// When trying again may help whoever has all slots in use. Nobody knows; streams tend to end sooner than tunnels do, and a
// tunnel whose sidecar is gone is held for a while.
const (
	streamRetry = time.Second
	tunnelRetry = 10 * time.Second
)

// tenant is guarded by its shard's lock.
type tenant struct {
	name             string
	rules            *rules // which the rest follows
	exempt           set
	opens            buckets
	tunnels, streams int
	pacing           *pacing // nil: was never paced
	memory           *memory // nil: no tunnel has a budget
	used             time.Time
}

// Open takes a stream slot of the tenant and one open of its rate; an unknown tier counts as DefaultTier. A refusal takes
// nothing. release gives the slot back; it may be called more than once, from any goroutine, and is nil with an error.
//
// Errors are errs.StreamLimit, errs.OpenRate, both with Quota and RetryAfter, and errs.MemoryLimit when more tenants hold
// slots than can be tracked.
func (l *Limiter) Open(name, tier string) (release func(), err error) {
	now, s := l.now(), l.shard(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	t, err := l.use(s, name, now)
	if err != nil {
		return nil, err
	}
	tier, limits := t.rules.tier(tier)
	if limits.Streams > 0 && t.streams >= limits.Streams && t.exempt&ofStreams == 0 {
		l.counts.streams.Inc()
		return nil, errs.New(errs.StreamLimit, "tenant %s has %d streams, of %d that its tier allows", quote(name), t.streams, limits.Streams).
			Within(limits.Streams, 0, 0).After(about(streamRetry))
	}
	if limits.OpensPerMinute > 0 && t.exempt&ofOpens == 0 {
		t.opens.advance(now)
		if k := t.opens.of(tier, limits); k.tokens < 1 {
			l.counts.opens.Inc()
			return nil, errs.New(errs.OpenRate, "tenant %s opens streams faster than the %d per minute that its tier allows", quote(name), limits.OpensPerMinute).
				Within(limits.Burst, 0, k.reset()).After(k.wait())
		}
		t.opens.count()
	}
	t.streams++
	return l.releaser(s, t, &t.streams), nil
}

// Tunnel takes a tunnel slot of the tenant, like Open but without a rate. Errors are errs.TunnelLimit, with Quota and
// RetryAfter, and errs.MemoryLimit.
func (l *Limiter) Tunnel(name, tier string) (release func(), err error) {
	now, s := l.now(), l.shard(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	t, err := l.use(s, name, now)
	if err != nil {
		return nil, err
	}
	_, limits := t.rules.tier(tier)
	if limits.Tunnels > 0 && t.tunnels >= limits.Tunnels && t.exempt&ofTunnels == 0 {
		l.counts.tunnels.Inc()
		return nil, errs.New(errs.TunnelLimit, "tenant %s has %d tunnels, of %d that its tier allows", quote(name), t.tunnels, limits.Tunnels).
			Within(limits.Tunnels, 0, 0).After(about(tunnelRetry))
	}
	t.tunnels++
	return l.releaser(s, t, &t.tunnels), nil
}

// releaser gives back one of held, a counter of t. A tenant that holds slots is never dropped from its shard, so t is
// still the one that is counted.
func (l *Limiter) releaser(s *tenantShard, t *tenant, held *int) func() {
	var done atomic.Bool
	return func() {
		if done.Swap(true) {
			return
		}
		now := l.now()
		s.mu.Lock()
		defer s.mu.Unlock()
		*held--
		s.touch(t, now)
	}
}

// Standing is where the tenant stands with its rate of opens, for answers to those that were granted. Limit is 0 when the
// rate is unlimited.
func (l *Limiter) Standing(name, tier string) errs.Quota {
	now, s := l.now(), l.shard(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	e, known := s.byName[name]
	if !known {
		r := l.rules.Load()
		tier, limits := r.tier(tier)
		if limits.OpensPerMinute == 0 || r.tenant(name)&ofOpens != 0 {
			return errs.Quota{}
		}
		return newBucket(tier, limits).quota()
	}
	t := e.Value.(*tenant)
	tier, limits := t.rules.tier(tier)
	if limits.OpensPerMinute == 0 || t.exempt&ofOpens != 0 {
		return errs.Quota{}
	}
	t.opens.advance(now)
	return t.opens.of(tier, limits).quota()
}

func (k bucket) quota() errs.Quota {
	return *new(errs.Error).Within(int(k.burst), int(k.tokens), k.reset()).Quota
}

// Usage is what the tenant holds at this gateway right now.
func (l *Limiter) Usage(name string) (tunnels, streams int) {
	s := l.shard(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.byName[name]; ok {
		t := e.Value.(*tenant)
		return t.tunnels, t.streams
	}
	return 0, 0
}

// follow takes over rules: what it was granted before stays counted.
func (t *tenant) follow(r *rules, now time.Time) {
	t.rules, t.exempt = r, r.tenant(t.name)
	t.opens.advance(now)
	t.opens.follow(r)
	if t.pacing != nil {
		t.pacing.follow(r, t.exempt)
	}
	if t.memory != nil {
		t.memory.follow(r)
	}
}

// held says whether the tenant holds anything that must stay counted.
func (t *tenant) held() bool {
	return t.tunnels > 0 || t.streams > 0 || t.memory != nil || t.pacing != nil && t.pacing.conns > 0
}

// recovered says whether the tenant has all of its rates again, and loses nothing by being forgotten.
func (t *tenant) recovered(now time.Time) bool {
	t.opens.advance(now)
	for i := range t.opens.all {
		if !t.opens.all[i].full() {
			return false
		}
	}
	return true
}

// about spreads those who were refused together, so that they do not come back together.
func about(d time.Duration) time.Duration {
	return (d/2 + rand.N(d)).Truncate(time.Millisecond)
}

func quote(s string) string {
	if len(s) > maxQuoted {
		return fmt.Sprintf("%q…", s[:maxQuoted])
	}
	return fmt.Sprintf("%q", s)
}
