package limit

import (
	"container/list"
	"hash/maphash"
	"sync"
	"time"

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

// use finds the tenant, or makes it. Called with the shard's lock held, under which the rules do not change for this
// tenant. The error is errs.MemoryLimit, and is counted.
func (l *Limiter) use(s *tenantShard, name string, now time.Time) (*tenant, error) {
	if e, ok := s.byName[name]; ok {
		s.recent.MoveToFront(e)
		t := e.Value.(*tenant)
		t.used = now
		return t, nil
	}
	if err := s.makeRoom(now); err != nil {
		l.counts.tenants.Inc()
		return nil, err
	}
	r := l.rules.Load()
	t := &tenant{name: name, rules: r, exempt: r.tenant(name), opens: buckets{at: now}, used: now}
	if l.shared != nil {
		t.joint = &joint{}
	}
	s.byName[name] = s.recent.PushFront(t)
	return t, nil
}

// touch notes that the tenant was there just now. Called with the lock held, for a tenant that is in the shard.
func (s *tenantShard) touch(t *tenant, now time.Time) {
	t.used = now
	s.recent.MoveToFront(s.byName[t.name])
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
		if t.holds() {
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
