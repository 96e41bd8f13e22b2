package limit

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

const (
	// renewPause is between two batches, so that a replica renews at most 25,600 slots in a second.
	renewPause = 10 * time.Millisecond
	// owedFor is how long slots wait that the share has granted, for others to join them.
	owedFor = time.Second
)

// Run tells Shared what is released, and what is still held, until ctx ends; then it returns once more what was released
// until then. Without it, slots are neither returned nor renewed. The error is nil.
func (l *Limiter) Run(ctx context.Context) error {
	if l.shared == nil {
		<-ctx.Done()
		return nil
	}
	var both sync.WaitGroup
	both.Go(func() { l.returnSlots(ctx) })
	both.Go(func() { l.renewSlots(ctx) })
	both.Wait()
	return nil
}

// renewer renews what is held.
type renewer struct {
	l       *Limiter
	full    time.Time // when everything is due
	join    time.Time // when everybody has rejoined; zero: not yet
	turn    uint64    // that join is of
	retry   time.Duration
	pending bool // some slots are due before the others
}

func (l *Limiter) renewSlots(ctx context.Context) {
	r := &renewer{l: l}
	timer := time.NewTimer(r.whole(time.Now()))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.shared.mode.restored:
			timer.Reset(rand.N(l.shared.lease/90 + 1)) // not all replicas at once
			r.retry, r.join, r.full = 0, time.Time{}, time.Time{}
		case <-l.shared.owing:
			if !r.pending && r.retry == 0 && time.Until(r.full) > owedFor {
				r.pending = true
				timer.Reset(owedFor/2 + rand.N(owedFor/2))
			}
		case <-timer.C:
			timer.Reset(r.work(ctx))
		}
	}
}

// whole plans the next renewal of everything.
func (r *renewer) whole(now time.Time) time.Duration {
	third := r.l.shared.lease / 3
	wait := third - rand.N(third/10+1)
	r.full = now.Add(wait)
	return wait
}

// work does what is due, and says when there is something to do again.
func (r *renewer) work(ctx context.Context) time.Duration {
	sh, now := r.l.shared, time.Now()
	if sh.mode.load() == alone {
		r.pending = false
		return r.whole(now)
	}
	turn, rejoins := sh.mode.rejoins()
	if rejoins && !r.join.IsZero() && r.turn == turn && !now.Before(r.join) {
		sh.mode.joined(turn)
		rejoins = false
	}
	all := !now.Before(r.full)
	if (all || r.pending) && !r.l.renewAll(ctx, all) {
		r.retry = min(max(2*r.retry, leastRetry), mostRetry)
		return r.retry/2 + rand.N(r.retry)
	}
	r.pending, r.retry = false, 0
	if all {
		r.whole(now)
		if rejoins { // others may find out later that Shared is back
			r.turn, r.join = turn, time.Now().Add(sh.lease/6)
		}
	}
	next := r.full
	if rejoins && r.turn == turn && r.join.Before(next) {
		next = r.join
	}
	return max(time.Until(next), time.Millisecond)
}

// renewAll renews what is held, or only what Shared may not know, in batches; false: it did not get through.
func (l *Limiter) renewAll(ctx context.Context, all bool) bool {
	pause := time.NewTimer(renewPause)
	defer pause.Stop()
	for i := range l.tenants {
		s := &l.tenants[i]
		for batch := range slices.Chunk(s.slots(all), batchSlots) {
			n, err := l.renew(ctx, s, batch)
			if err != nil || l.shared.mode.load() == alone {
				return false
			}
			if n == 0 {
				continue
			}
			pause.Reset(renewPause)
			select {
			case <-pause.C:
			case <-ctx.Done():
				return false
			}
		}
	}
	return true
}

// slots are those that the tenants of the shard hold, or only those of which nothing is known.
func (s *tenantShard) slots(all bool) (list []*slot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for e := s.recent.Front(); e != nil; e = e.Next() {
		for _, held := range e.Value.(*tenant).joint.slots {
			for _, x := range held {
				if all || x.until.IsZero() {
					list = append(list, x)
				}
			}
		}
	}
	return list
}

// renew renews one batch of a shard, without those that were released meanwhile, and says how many there were.
func (l *Limiter) renew(ctx context.Context, s *tenantShard, batch []*slot) (int, error) {
	sh := l.shared
	sh.sending <- struct{}{}
	defer func() { <-sh.sending }()
	var list []Slot
	renewed := batch[:0]
	s.mu.Lock()
	for _, x := range batch {
		if x.index < 0 || !x.known && x.t.allowed(x.t.rules, x.tier, x.kind).slots == 0 {
			continue
		}
		x.known = true // also if nobody says so
		list, renewed = append(list, sh.outward(x)), append(renewed, x)
	}
	s.mu.Unlock()
	if len(list) == 0 {
		return 0, nil
	}
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	sent := l.now()
	if err := sh.Renew(ctx, sh.lease, list...); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range renewed {
		x.until = sent.Add(sh.lease)
	}
	sh.counts.renewed.Add(len(list))
	return len(list), nil
}
