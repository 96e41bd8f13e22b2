package limit

import (
	"container/list"
	"fmt"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"fairlead/shared/errs"
)

// tenantShard holds the tenants whose hash leads here.
type tenantShard struct {
	mu     sync.Mutex
	byName map[string]*list.Element // of *tenant
	recent *list.List               // the most recently used first
	max    int
	_      [64]byte // keeps the locks of two shards off one cache line
}

// tenant is guarded by its shard's lock.
type tenant struct {
	name             string
	opens            *rate.Limiter
	applied          Tier // what opens was set to last
	tunnels, streams int
	used             time.Time
}

func newTenantShards(max int) []tenantShard {
	count, each := shards(max)
	all := make([]tenantShard, count)
	for i := range all {
		all[i].byName, all[i].recent, all[i].max = make(map[string]*list.Element), list.New(), each
	}
	return all
}

func (l *Limiter) shard(name string) *tenantShard {
	return &l.tenants[maphash.String(l.seed, name)%uint64(len(l.tenants))]
}

// Open takes a stream slot of the tenant and one open of its rate; an unknown tier counts as DefaultTier. A refusal takes
// nothing. release gives the slot back; it may be called more than once, from any goroutine, and is nil with an error.
//
// Errors are errs.StreamLimit, errs.OpenRate with RetryAfter, and errs.MemoryLimit when more tenants hold slots than can
// be tracked.
func (l *Limiter) Open(name, tier string) (release func(), err error) {
	limits, now, s := l.tier(tier), l.now(), l.shard(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	t, err := s.use(name, limits, now)
	if err != nil {
		l.counts.tenants.Inc()
		return nil, err
	}
	if limits.Streams > 0 && t.streams >= limits.Streams {
		l.counts.streams.Inc()
		return nil, errs.New(errs.StreamLimit, "tenant %s has %d streams, of %d that its tier allows", quote(name), t.streams, limits.Streams)
	}
	if !t.opens.AllowN(now, 1) {
		l.counts.opens.Inc()
		return nil, errs.New(errs.OpenRate, "tenant %s opens streams faster than the %d per minute that its tier allows", quote(name), limits.OpensPerMinute).
			After(untilNext(t.opens, now))
	}
	t.streams++
	return l.releaser(s, t, &t.streams), nil
}

// Tunnel takes a tunnel slot of the tenant, like Open but without a rate. Errors are errs.TunnelLimit and
// errs.MemoryLimit.
func (l *Limiter) Tunnel(name, tier string) (release func(), err error) {
	limits, s := l.tier(tier), l.shard(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	t, err := s.use(name, limits, l.now())
	if err != nil {
		l.counts.tenants.Inc()
		return nil, err
	}
	if limits.Tunnels > 0 && t.tunnels >= limits.Tunnels {
		l.counts.tunnels.Inc()
		return nil, errs.New(errs.TunnelLimit, "tenant %s has %d tunnels, of %d that its tier allows", quote(name), t.tunnels, limits.Tunnels)
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
		t.used = now
		s.recent.MoveToFront(s.byName[t.name])
	}
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

// Tracked is the number of tenants that are tracked right now.
func (l *Limiter) Tracked() int {
	n := 0
	for i := range l.tenants {
		s := &l.tenants[i]
		s.mu.Lock()
		n += len(s.byName)
		s.mu.Unlock()
	}
	return n
}

// use finds the tenant, or makes it, and applies the limits to it. Called with the lock held.
func (s *tenantShard) use(name string, limits Tier, now time.Time) (*tenant, error) {
	if e, ok := s.byName[name]; ok {
		s.recent.MoveToFront(e)
		t := e.Value.(*tenant)
		t.used = now
		t.apply(limits, now)
		return t, nil
	}
	if err := s.makeRoom(now); err != nil {
		return nil, err
	}
	t := &tenant{name: name, opens: rate.NewLimiter(perMinute(limits.OpensPerMinute), limits.Burst), applied: limits, used: now}
	s.byName[name] = s.recent.PushFront(t)
	return t, nil
}

// apply follows a change of the tenant's tier. What it has used of its rate carries over, so that switching between
// limited tiers gains nothing.
func (t *tenant) apply(limits Tier, now time.Time) {
	switch {
	case limits.OpensPerMinute == t.applied.OpensPerMinute && limits.Burst == t.applied.Burst:
	case t.applied.OpensPerMinute == 0: // nothing was counted so far
		t.opens = rate.NewLimiter(perMinute(limits.OpensPerMinute), limits.Burst)
	default:
		t.opens.SetLimitAt(now, perMinute(limits.OpensPerMinute))
		t.opens.SetBurstAt(now, limits.Burst)
	}
	t.applied = limits
}

// makeRoom drops the longest unused tenant when it has been idle for long, and otherwise only when the shard is full.
// Then one whose rate has recovered goes first: it loses nothing by being forgotten. Tenants with slots stay.
func (s *tenantShard) makeRoom(now time.Time) error {
	full := s.recent.Len() >= s.max
	var second *list.Element
	for e := s.recent.Back(); e != nil; e = e.Prev() {
		t := e.Value.(*tenant)
		if !full && now.Sub(t.used) < tenantIdle {
			return nil
		}
		if t.tunnels > 0 || t.streams > 0 {
			continue
		}
		if t.recovered(now) {
			s.drop(e)
			return nil
		}
		if second == nil {
			second = e
		}
	}
	if !full {
		return nil
	}
	if second == nil {
		return errs.New(errs.MemoryLimit, "too many tenants are connected to this gateway")
	}
	s.drop(second)
	return nil
}

func (s *tenantShard) drop(e *list.Element) {
	delete(s.byName, e.Value.(*tenant).name)
	s.recent.Remove(e)
}

func (t *tenant) recovered(now time.Time) bool {
	return t.opens.Limit() == rate.Inf || t.opens.TokensAt(now) >= float64(t.opens.Burst())
}

func perMinute(n int) rate.Limit {
	if n == 0 {
		return rate.Inf
	}
	return rate.Limit(float64(n) / 60)
}

// untilNext is how long it takes until r allows one more, in whole milliseconds rounded up, because that is what answers
// carry.
func untilNext(r *rate.Limiter, now time.Time) time.Duration {
	missing := 1 - r.TokensAt(now)
	wait := time.Duration(missing / float64(r.Limit()) * float64(time.Second))
	return max(wait.Truncate(time.Millisecond)+time.Millisecond, time.Millisecond)
}

func quote(s string) string {
	if len(s) > maxQuoted {
		return fmt.Sprintf("%q…", s[:maxQuoted])
	}
	return fmt.Sprintf("%q", s)
}
