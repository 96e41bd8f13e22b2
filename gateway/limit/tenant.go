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

// kind is what a tenant may have so many of.
type kind int

const (
	streams kind = iota
	tunnels
	kinds
)

func (k kind) String() string { return [kinds]string{Streams, Tunnels}[k] }

func (k kind) exempt() set { return [kinds]set{ofStreams, ofTunnels}[k] }

// tenant is guarded by its shard's lock.
type tenant struct {
	name   string
	rules  *rules // which the rest follows
	exempt set
	opens  buckets
	held   [kinds]int
	joint  *joint  // nil: nobody shares the limits
	pacing *pacing // nil: was never paced
	memory *memory // nil: no tunnel has a budget
	used   time.Time
}

// allowance is what a token's tier allows of a kind, without what the tenant is exempt from.
type allowance struct {
	kind  kind
	slots int  // at once; 0: unlimited
	rate  Rate // PerMinute 0: unlimited, or it is no open
}

// Open takes a stream slot of the tenant and one open of its rate; an unknown tier counts as DefaultTier. A refusal takes
// nothing. release gives the slot back; it may be called more than once, from any goroutine, and is nil with an error.
//
// With Shared it waits for the answer, for Timeout at most; who is exempt from what the tier limits, or has a tier without
// limits, does not wait.
//
// Errors are errs.StreamLimit, errs.OpenRate, both with Quota and RetryAfter, and errs.MemoryLimit when more tenants hold
// slots than can be tracked.
func (l *Limiter) Open(name, tier string) (release func(), err error) {
	return l.take(name, tier, streams)
}

// Tunnel takes a tunnel slot of the tenant, like Open but without a rate. Errors are errs.TunnelLimit, with Quota and
// RetryAfter, and errs.MemoryLimit.
func (l *Limiter) Tunnel(name, tier string) (release func(), err error) {
	return l.take(name, tier, tunnels)
}

func (l *Limiter) take(name, tier string, k kind) (release func(), err error) {
	if l.shared != nil {
		return l.takeShared(name, tier, k)
	}
	now, s := l.now(), l.shard(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	t, err := l.use(s, name, now)
	if err != nil {
		return nil, err
	}
	a := t.allowed(t.rules, tier, k)
	if err := l.refuse(t, &a, &t.opens, now, ""); err != nil {
		return nil, err
	}
	if a.rate.PerMinute > 0 {
		t.opens.count()
	}
	t.held[k]++
	return l.releaser(s, t, &t.held[k]), nil
}

func (t *tenant) allowed(r *rules, tier string, k kind) allowance {
	tier, limits := r.tier(tier)
	a := allowance{kind: k, slots: limits.slots(k)}
	if t.exempt&k.exempt() != 0 {
		a.slots = 0
	}
	if k == streams && t.exempt&ofOpens == 0 {
		a.rate = limits.rate(tier)
	}
	return a
}

// refuse says why the tenant may have nothing more by an allowance, with what it has used of its rate: nil if it may. An
// allowance that is less than the tier's is said to be so by why.
func (l *Limiter) refuse(t *tenant, a *allowance, used *buckets, now time.Time, why string) error {
	if a.slots > 0 && t.held[a.kind] >= a.slots {
		return l.full(t, a, t.held[a.kind], why)
	}
	if a.rate.PerMinute > 0 {
		used.advance(now)
		if k := used.of(a.rate); used.left(k) < 1 {
			return l.tooFast(t, a, k.reset(), used.wait(k), why)
		}
	}
	return nil
}

// full is the refusal of a tenant that has all slots.
func (l *Limiter) full(t *tenant, a *allowance, has int, why string) error {
	code, retry, refusals := errs.StreamLimit, streamRetry, l.counts.streams
	if a.kind == tunnels {
		code, retry, refusals = errs.TunnelLimit, tunnelRetry, l.counts.tunnels
	}
	refusals.Inc()
	return errs.New(code, "tenant %s has %d %v, of %d that its tier allows%s", quote(t.name), has, a.kind, a.slots, why).
		Within(a.slots, 0, 0).After(about(retry))
}

// tooFast is the refusal of a tenant that has used up its rate.
func (l *Limiter) tooFast(t *tenant, a *allowance, reset, wait time.Duration, why string) error {
	l.counts.opens.Inc()
	return errs.New(errs.OpenRate, "tenant %s opens streams faster than the %d per minute that its tier allows%s", quote(t.name), a.rate.PerMinute, why).
		Within(a.rate.Burst, 0, reset).After(wait)
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

// Standing is where the tenant stands with its rate of opens, as far as is known here, for answers to those that were
// granted. Limit is 0 when the rate is unlimited.
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
		return newBucket(limits.rate(tier)).quota()
	}
	t := e.Value.(*tenant)
	a := t.allowed(t.rules, tier, streams)
	if a.rate.PerMinute == 0 {
		return errs.Quota{}
	}
	t.opens.advance(now)
	k := *t.opens.of(a.rate)
	if t.joint != nil && t.joint.said.tier == a.rate.Tier {
		k.tokens = min(k.tokens, float64(t.joint.said.left)+k.rate*now.Sub(t.joint.said.at).Seconds())
	}
	return k.quota()
}

func (k bucket) quota() errs.Quota {
	return *new(errs.Error).Within(int(k.burst), int(min(k.tokens, k.burst)), k.reset()).Quota
}

// Usage is what the tenant holds at this replica right now.
func (l *Limiter) Usage(name string) (tunnelsHeld, streamsHeld int) {
	s := l.shard(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.byName[name]; ok {
		t := e.Value.(*tenant)
		return t.held[tunnels], t.held[streams]
	}
	return 0, 0
}

// follow takes over rules: what it was granted before stays counted.
func (t *tenant) follow(r *rules, now time.Time) {
	t.rules, t.exempt = r, r.tenant(t.name)
	t.opens.advance(now)
	t.opens.follow(r)
	if t.joint != nil {
		t.joint.follow(r, now)
	}
	if t.pacing != nil {
		t.pacing.follow(r, t.exempt)
	}
	if t.memory != nil {
		t.memory.follow(r)
	}
}

// holds says whether the tenant holds anything that must stay counted.
func (t *tenant) holds() bool {
	return t.held[tunnels] > 0 || t.held[streams] > 0 || t.memory != nil || t.pacing != nil && t.pacing.conns > 0
}

// recovered says whether the tenant has all of its rates again, and nothing is lost by forgetting it.
func (t *tenant) recovered(now time.Time) bool {
	return t.opens.full(now) && (t.joint == nil || t.joint.recovered(now))
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
