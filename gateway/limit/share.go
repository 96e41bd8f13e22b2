package limit

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// mode is who decides about what replicas share.
type mode int32

const (
	together  mode = iota // Shared; for a single call that it has no answer for, the share
	alone                 // the share
	rejoining             // both: Shared can be asked again, but may not know yet what replicas hold
)

// whyShare is why less is granted than a tier allows.
const whyShare = " at one replica while replicas cannot count together"

// standing is the mode, and how often it became rejoining.
type standing struct {
	mu       sync.Mutex
	now      atomic.Int32 // changed with mu held
	turn     uint64
	restored chan struct{} // Shared may have forgotten something
}

func (s *standing) load() mode { return mode(s.now.Load()) }

// rejoin is called with mu held.
func (sh *shared) rejoin() {
	sh.mode.now.Store(int32(rejoining))
	sh.mode.turn++
	signal(sh.mode.restored)
	signal(sh.returns.again)
}

// rejoins is the number of the rejoining that goes on, if one does.
func (s *standing) rejoins() (turn uint64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.turn, s.load() == rejoining
}

// joined ends a rejoining unless another one has begun.
func (s *standing) joined(turn uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.turn == turn && s.load() == rejoining {
		s.now.Store(int32(together))
	}
}

// SetShare says how many replicas there are. Each grants its part of the limits while Shared has no answer: of tunnels,
// streams, opens per minute and burst, rounded down, but at least 1. What was used carries over. Until the first call, and
// with less than 1, there is one replica.
func (l *Limiter) SetShare(replicas int) {
	if l.shared == nil {
		return
	}
	l.changing.Lock()
	defer l.changing.Unlock()
	if n := max(replicas, 1); n != l.replicas {
		l.replicas = n
		r := *l.rules.Load()
		l.put(&r)
	}
}

// SetDegraded says whether Shared is known to be unusable. Then nobody waits for it and the share decides, until it is
// usable again, Run has told it what is held here, and the other replicas have had the time to do so too. It need not be
// called for the limits to hold: as long as Shared is asked in vain, each answer is the share's.
func (l *Limiter) SetDegraded(degraded bool) {
	if l.shared == nil {
		return
	}
	m := &l.shared.mode
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case degraded:
		m.now.Store(int32(alone))
	case m.load() == alone:
		l.shared.rejoin()
	}
}

// Restore says that Shared has lost what it knew. It is told anew, and until then the share decides too.
func (l *Limiter) Restore() {
	if l.shared == nil {
		return
	}
	m := &l.shared.mode
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.load() != alone {
		l.shared.rejoin()
	}
}

// divided are the rules of one of n replicas, as far as replicas share limits.
func (r *rules) divided(n int) *rules {
	part := func(whole int) int {
		if whole == 0 {
			return 0
		}
		return max(whole/n, 1)
	}
	d := &rules{tiers: make(map[string]Tier, len(r.tiers))}
	for name, t := range r.tiers {
		d.tiers[name] = Tier{OpensPerMinute: part(t.OpensPerMinute), Burst: part(t.Burst), Streams: part(t.Streams), Tunnels: part(t.Tunnels)}
	}
	return d
}

// shareOfOpens is what the tenant has used of the share of its rate. It begins with what it has used of the whole.
func (t *tenant) shareOfOpens(now time.Time) *buckets {
	j := t.joint
	if j.opens == nil {
		t.opens.advance(now)
		j.opens = &buckets{all: slices.Clone(t.opens.all), at: t.opens.at}
		j.opens.follow(t.rules.share)
		for i := range j.opens.all { // what is pending is counted when it is granted
			k := &j.opens.all[i]
			k.tokens = min(k.tokens, k.burst)
		}
	}
	return j.opens
}

// signal wakes who waits for c, which holds one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
