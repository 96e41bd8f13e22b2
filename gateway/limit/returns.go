package limit

import (
	"context"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// returns are the tenants that have slots to be returned to Shared. Nothing waits for there to be many: what has piled up
// while a batch was under way is the next one.
type returns struct {
	waiting atomic.Int64 // slots that are idle
	most    int64        // of them
	wake    chan struct{}
	again   chan struct{} // Shared can be asked again
	mu      sync.Mutex
	tenants []*tenant // each once; guarded by mu
}

// How long it takes until something is sent again that was sent in vain.
const (
	leastRetry = 100 * time.Millisecond
	mostRetry  = 5 * time.Second
)

// giveBack makes a slot that is not held idle, from where it is returned or taken over. Called with the shard's lock held.
func (l *Limiter) giveBack(x *slot, now time.Time) {
	r, j := &l.shared.returns, x.t.joint
	if r.waiting.Add(1) > r.most || !r.queue(x.t, r.most) {
		r.waiting.Add(-1)
		l.shared.counts.dropped.Inc()
		return
	}
	x.lapses = now.Add(l.shared.lease)
	j.idle[x.kind] = append(j.idle[x.kind], x)
}

// queue makes sure that the tenant is among those that have something idle, unless there are so many.
func (r *returns) queue(t *tenant, most int64) bool {
	if t.joint.queued {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if int64(len(r.tenants)) >= most {
		return false
	}
	t.joint.queued = true
	r.tenants = append(r.tenants, t)
	signal(r.wake)
	return true
}

// next takes a tenant from the queue; nil: there is none.
func (r *returns) next() *tenant {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.tenants) == 0 {
		r.tenants = nil // what has grown large once is not kept
		return nil
	}
	t := r.tenants[0]
	r.tenants[0] = nil
	r.tenants = r.tenants[1:]
	return t
}

// returner sends what is idle.
type returner struct {
	l     *Limiter
	batch []*slot // on its way, or to be sent again
	retry time.Duration
}

func (l *Limiter) returnSlots(ctx context.Context) {
	r := &returner{l: l}
	timer := time.NewTimer(0)
	defer timer.Stop()
	wake := l.shared.returns.wake
	for {
		select {
		case <-ctx.Done():
			r.last(ctx)
			return
		case <-wake:
		case <-timer.C:
		case <-l.shared.returns.again:
			r.retry = 0
		}
		wake = l.shared.returns.wake
		if !r.work(ctx) {
			wake = nil
			timer.Reset(r.wait())
		}
	}
}

// work sends until nothing is idle; false: it is to be tried again.
func (r *returner) work(ctx context.Context) bool {
	for {
		if r.l.shared.mode.load() == alone {
			return false
		}
		switch sent, err := r.send(ctx); {
		case err != nil:
			return false
		case sent == 0:
			return true
		}
		r.retry = 0
	}
}

// wait is how long to wait after a failure, longer each time, and not as long as others do.
func (r *returner) wait() time.Duration {
	r.retry = min(max(2*r.retry, leastRetry), mostRetry)
	return r.retry/2 + rand.N(r.retry)
}

// last tries once more to return everything, because this replica ends.
func (r *returner) last(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), sendTimeout)
	defer cancel()
	r.work(ctx)
}

// send returns one batch, and says how many slots were in it.
func (r *returner) send(ctx context.Context) (int, error) {
	sh := r.l.shared
	sh.sending <- struct{}{}
	defer func() { <-sh.sending }()
	flight := make(chan struct{})
	defer close(flight)
	if r.batch = r.keep(r.batch); len(r.batch) == 0 {
		r.batch = r.collect(flight)
	} else {
		r.mark(func(j *joint) { j.flight = flight })
	}
	if len(r.batch) == 0 {
		return 0, nil
	}
	list := make([]Slot, len(r.batch))
	for i, x := range r.batch {
		list[i] = sh.outward(x)
	}
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	err := sh.Return(ctx, list...)
	r.mark(func(j *joint) {
		j.flight = nil
		j.returned++
	})
	if err == nil {
		r.batch = nil
	}
	return len(list), err
}

// mark does something with the tenants of the batch.
func (r *returner) mark(do func(*joint)) {
	for i, x := range r.batch {
		if i > 0 && r.batch[i-1].t == x.t {
			continue
		}
		s := r.l.shard(x.t.name)
		s.mu.Lock()
		do(x.t.joint)
		s.mu.Unlock()
	}
}

// keep drops those whose lease is over.
func (r *returner) keep(batch []*slot) []*slot {
	now, kept := r.l.now(), batch[:0]
	for _, x := range batch {
		if now.Before(x.lapses) {
			kept = append(kept, x)
		}
	}
	return kept
}

// collect takes what is idle of the tenants that are queued, as much as makes a batch, and says that it is on its way.
func (r *returner) collect(flight chan struct{}) (batch []*slot) {
	q, now := &r.l.shared.returns, r.l.now()
	for len(batch) < batchSlots {
		t := q.next()
		if t == nil {
			break
		}
		s := r.l.shard(t.name)
		s.mu.Lock()
		t.joint.queued = false
		before, left := len(batch), 0
		for k, idle := range t.joint.idle {
			from := max(len(idle)-(batchSlots-len(batch)), 0)
			for _, x := range idle[from:] {
				if now.Before(x.lapses) {
					batch = append(batch, x)
				}
			}
			clear(idle[from:])
			q.waiting.Add(int64(from - len(idle)))
			t.joint.idle[k] = idle[:from]
			left += from
		}
		if len(batch) > before {
			t.joint.flight = flight
		}
		if left > 0 {
			q.queue(t, math.MaxInt64) // it was there just now
		}
		s.mu.Unlock()
	}
	return batch
}
