package limit

import (
	"context"
	"time"
)

// wish is a slot, and an open, that somebody asks for. What it needs of its tenant is guarded by the shard's lock.
type wish struct {
	allowance
	l        *Limiter
	s        *tenantShard
	t        *tenant
	tier     string // as the token has it
	x        *slot
	over     bool   // x was taken over from one that was released: Shared holds it already
	both     bool   // the share was asked too, and has one pending
	returned uint64 // joint.returned when Shared was asked
}

func (l *Limiter) takeShared(name, tier string, k kind) (release func(), err error) {
	now, s := l.now(), l.shard(name)
	s.mu.Lock()
	t, err := l.use(s, name, now)
	if err != nil {
		s.mu.Unlock()
		return nil, err
	}
	w := wish{allowance: t.allowed(t.rules, tier, k), l: l, s: s, t: t, tier: tier}
	decided, err := w.decide(now)
	s.mu.Unlock()
	if !decided {
		err = w.ask()
	}
	if err != nil {
		return nil, err
	}
	x := w.x
	return func() { l.release(s, x) }, nil
}

// decide is the answer of this replica, if it has one; else the wish is pending, and Shared decides.
func (w *wish) decide(now time.Time) (decided bool, err error) {
	l, t := w.l, w.t
	m := l.shared.mode.load()
	if m == together {
		err = l.refuse(t, &w.allowance, &t.opens, now, "")
	} else {
		err = w.refuseByShare(now)
	}
	if err != nil {
		return true, err
	}
	free := w.slots == 0 && w.rate.PerMinute == 0
	if free || m == alone {
		w.x = w.fresh()
		w.grant(now)
		return true, nil
	}
	over := w.takeOver(now)
	if !over {
		w.x = w.fresh()
	}
	if err := w.refusedBefore(now); err != nil {
		if over {
			l.giveBack(w.x, now)
		}
		return true, err
	}
	if over && w.rate.PerMinute == 0 {
		w.grant(now)
		return true, nil
	}
	w.reserve(m == rejoining, now)
	return false, nil
}

func (w *wish) fresh() *slot {
	return &slot{t: w.t, id: w.l.shared.ids.Add(1), kind: w.kind, tier: w.tier, index: -1}
}

// takeOver takes a slot that was released and is not being returned yet. Shared holds it for a while still, so it need not
// be asked for another one.
func (w *wish) takeOver(now time.Time) bool {
	idle := w.t.joint.idle[w.kind]
	if w.slots == 0 || len(idle) == 0 {
		return false
	}
	last := idle[len(idle)-1]
	if last.until.Sub(now) < w.l.shared.lease/9 {
		return false
	}
	idle[len(idle)-1] = nil
	w.t.joint.idle[w.kind] = idle[:len(idle)-1]
	w.l.shared.returns.waiting.Add(-1)
	// Another slot by the same id: the release of the first one may be called again.
	w.x = &slot{t: w.t, id: last.id, kind: w.kind, tier: w.tier, index: -1, known: true, until: last.until}
	w.over = true
	return true
}

// refusedBefore is the answer that Shared gave, while it would give it again.
func (w *wish) refusedBefore(now time.Time) error {
	if f := w.t.joint.full[w.kind]; !w.over && w.slots > 0 && w.slots <= f.limit && now.Before(f.until) {
		return w.l.full(w.t, &w.allowance, f.held, "")
	}
	if w.rate.PerMinute == 0 {
		return nil
	}
	if k := w.t.opens.of(w.rate); now.Before(k.shut) {
		return w.l.tooFast(w.t, &w.allowance, k.whole.Sub(now), told(k.shut.Sub(now).Seconds()), "")
	}
	return nil
}

// reserve keeps free what is asked for; settle ends that.
func (w *wish) reserve(both bool, now time.Time) {
	t := w.t
	t.held[w.kind]++
	w.returned = t.joint.returned
	if w.rate.PerMinute == 0 {
		return
	}
	t.opens.pending++
	if w.both = both; both {
		t.shareOfOpens(now).pending++
	}
}

func (w *wish) settle(granted bool, now time.Time) {
	t := w.t
	if !granted {
		t.held[w.kind]--
	}
	if w.rate.PerMinute == 0 {
		return
	}
	t.opens.advance(now)
	t.opens.settle(granted)
	share := t.joint.opens
	switch {
	case w.both:
		share.advance(now)
		share.settle(granted)
	case granted && share != nil:
		share.advance(now)
		share.count()
	}
}

// grant counts what was not pending.
func (w *wish) grant(now time.Time) {
	w.t.held[w.kind]++
	w.l.shared.hold(w.x)
	if w.rate.PerMinute == 0 {
		return
	}
	w.t.opens.advance(now)
	w.t.opens.of(w.rate)
	w.t.opens.count()
	if share := w.t.joint.opens; share != nil {
		share.advance(now)
		share.count()
	}
}

func (w *wish) refuseByShare(now time.Time) error {
	a := w.t.allowed(w.t.rules.share, w.tier, w.kind)
	return w.l.refuse(w.t, &a, w.t.shareOfOpens(now), now, whyShare)
}

// ask asks Shared, and is over when it has answered, or Timeout is.
func (w *wish) ask() error {
	ctx, cancel := context.WithTimeout(context.Background(), w.l.shared.timeout)
	defer cancel()
	for {
		ask := Ask{Slot: w.l.shared.outward(w.x), Limit: w.slots, Rate: w.rate, Lease: w.l.shared.lease}
		if w.over {
			ask.Limit = 0
		}
		sent := w.l.now()
		g, err := w.l.shared.Take(ctx, ask)
		again, err := w.answered(ctx, g, err, sent)
		if !again {
			return err
		}
	}
}

// answered takes over what Shared has said. again: it is to be asked once more, because what it knew is old.
func (w *wish) answered(ctx context.Context, g Grant, failure error, sent time.Time) (again bool, err error) {
	sh, now := w.l.shared, w.l.now()
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	switch {
	case failure != nil:
		sh.counts.failed.Inc()
		return false, w.failed(now)
	case g.Granted:
		sh.counts.granted.Inc()
		w.x.known, w.x.until = true, sent.Add(sh.lease)
		if w.settle(true, now); w.rate.PerMinute > 0 {
			w.t.joint.said = saying{w.rate.Tier, g.Remaining, now}
		}
		w.l.shared.hold(w.x)
		return false, nil
	}
	sh.counts.refused.Inc()
	if g.Full {
		again, err = w.full(ctx, g)
		return again, err
	}
	w.settle(false, now)
	if w.over {
		w.l.giveBack(w.x, now)
	}
	w.t.opens.shut(w.rate.Tier, now.Add(g.Wait), now.Add(g.Reset))
	return false, w.l.tooFast(w.t, &w.allowance, g.Reset, told(g.Wait.Seconds()), "")
}

// full is that Shared knows of too many slots. Some of them may have been released here meanwhile: then one is taken over,
// or Shared is asked again when it knows.
func (w *wish) full(ctx context.Context, g Grant) (again bool, err error) {
	j := w.t.joint
	now := w.l.now()
	if w.takeOver(now) {
		if w.rate.PerMinute > 0 {
			return true, nil
		}
		w.settle(true, now)
		w.l.shared.hold(w.x)
		return false, nil
	}
	if flight := j.flight; flight != nil {
		w.s.mu.Unlock()
		select {
		case <-flight:
			again = true
		case <-ctx.Done():
		}
		w.s.mu.Lock()
		now = w.l.now()
	}
	if again || j.returned != w.returned && ctx.Err() == nil {
		w.returned = j.returned
		return true, nil
	}
	w.settle(false, now)
	j.full[w.kind] = fullness{limit: w.slots, held: g.Held, until: now.Add(fullFor)}
	return false, w.l.full(w.t, &w.allowance, g.Held, "")
}

// failed is that Shared has no answer: the share decides. Shared may have granted the slot nevertheless.
func (w *wish) failed(now time.Time) error {
	w.settle(false, now)
	w.allowance = w.t.allowed(w.t.rules, w.tier, w.kind) // they may have changed
	w.x.known = true
	if err := w.refuseByShare(now); err != nil {
		w.l.giveBack(w.x, now)
		return err
	}
	w.grant(now)
	signal(w.l.shared.owing)
	return nil
}

// release gives back what w.x holds, here and at Shared.
func (l *Limiter) release(s *tenantShard, x *slot) {
	if x.released.Swap(true) {
		return
	}
	now := l.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	t := x.t
	t.held[x.kind]--
	l.shared.drop(x)
	t.joint.full[x.kind] = fullness{}
	s.touch(t, now)
	if x.known {
		l.giveBack(x, now)
	}
}
