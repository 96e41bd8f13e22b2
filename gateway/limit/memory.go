package limit

import (
	"math"
	"sync/atomic"

	"fairlead/shared/link"
)

// memory is what the windows of one tenant's tunnels may hold. Guarded by the shard's lock.
type memory struct {
	budget *link.Budget
	tiers  map[string]int // tunnels, by the tier of their token
}

// Budget is what the windows of all tunnels of the tenant may hold together, under the budget of the process: as much as
// the best tier of those that they came with allows. It is that of the process, which may be nil, when the tier has no
// limit. release may be called more than once; it is to be called when the tunnel has given everything back. A tunnel
// without a limit when it came stays so; one that has a limit follows its tier.
func (l *Limiter) Budget(name, tier string) (b *link.Budget, release func()) {
	now, s := l.now(), l.shard(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	r := l.rules.Load()
	tier, limits := r.tier(tier)
	if limits.Memory == 0 {
		return l.memory, func() {}
	}
	t, err := l.use(s, name, now)
	if err != nil { // it holds no tunnel, so nobody counts it; it is not to go free for that
		return link.NewBudget(limits.Memory, l.memory), func() {}
	}
	if t.memory == nil {
		t.memory = &memory{budget: link.NewBudget(0, l.memory), tiers: map[string]int{}}
	}
	m := t.memory
	m.tiers[tier]++
	m.follow(r)
	var done atomic.Bool
	return m.budget, func() {
		if done.Swap(true) {
			return
		}
		now := l.now()
		s.mu.Lock()
		defer s.mu.Unlock()
		if m.tiers[tier]--; m.tiers[tier] == 0 {
			delete(m.tiers, tier)
		}
		if len(m.tiers) == 0 {
			t.memory = nil
		} else {
			m.follow(l.rules.Load())
		}
		s.touch(t, now)
	}
}

// follow sets the limit to that of the best tier.
func (m *memory) follow(r *rules) {
	best := int64(0)
	for name := range m.tiers {
		_, limits := r.tier(name)
		if limits.Memory == 0 {
			best = math.MaxInt64
		}
		best = max(best, limits.Memory)
	}
	m.budget.SetLimit(best)
}
