package limit

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"fairlead/shared/errs"
)

// strangerRetry is when a connection may be free again: most strangers make themselves known, or are cut off, soon.
const strangerRetry = time.Second

// strangers counts connections whose client is not known yet. The table holds only addresses that have some, so it is as
// bounded as they are.
type strangers struct {
	limit, each int // at once; 0: unlimited
	total       atomic.Int64
	seed        maphash.Seed
	shards      []strangerShard
}

type strangerShard struct {
	mu   sync.Mutex
	held map[netip.Prefix]int
	_    [64]byte // keeps the locks of two shards off one cache line
}

func newStrangers(limit, each int) *strangers {
	s := &strangers{limit: limit, each: each, seed: maphash.MakeSeed(), shards: make([]strangerShard, maxShards)}
	for i := range s.shards {
		s.shards[i].held = map[netip.Prefix]int{}
	}
	return s
}

// Admit takes a place for a connection of the client at addr, until its client is known or it is closed: then release
// gives the place back. It may be called more than once, and is nil with an error. IPv6 addresses count by their /64; all
// invalid addresses count as one.
//
// Errors, with Quota and RetryAfter, are errs.HandshakeLimit when this address has too many, and errs.Overloaded when all
// have.
func (l *Limiter) Admit(addr netip.Addr) (release func(), err error) {
	s := l.strangers
	if !s.enter() {
		l.counts.strangers.Inc()
		return nil, errs.New(errs.Overloaded, "%d connections wait for their clients to be known, which is the limit", s.limit).
			Within(s.limit, 0, 0).After(about(strangerRetry))
	}
	if s.each == 0 || l.rules.Load().address(addr)&ofUnauthenticated != 0 {
		var done atomic.Bool
		return func() {
			if !done.Swap(true) {
				s.total.Add(-1)
			}
		}, nil
	}
	key := client(addr)
	shard := &s.shards[maphash.Comparable(s.seed, key)%uint64(len(s.shards))]
	if !shard.enter(key, s.each) {
		s.total.Add(-1)
		l.counts.strangers.Inc()
		return nil, errs.New(errs.HandshakeLimit, "%d connections from %s wait for their clients to be known, which is the limit", s.each, key).
			Within(s.each, 0, 0).After(about(strangerRetry))
	}
	var done atomic.Bool
	return func() {
		if !done.Swap(true) {
			shard.leave(key)
			s.total.Add(-1)
		}
	}, nil
}

// Strangers is the number of connections whose client is not known yet.
func (l *Limiter) Strangers() int { return int(l.strangers.total.Load()) }

func (s *strangers) enter() bool {
	for {
		n := s.total.Load()
		if s.limit > 0 && n >= int64(s.limit) {
			return false
		}
		if s.total.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (s *strangerShard) enter(key netip.Prefix, limit int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[key] >= limit {
		return false
	}
	s.held[key]++
	return true
}

func (s *strangerShard) leave(key netip.Prefix) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[key]--; s.held[key] == 0 {
		delete(s.held, key)
	}
}
