package tunnel

import (
	"context"
	"slices"
	"time"

	"fairlead/shared/logging"
)

const (
	// doubtAfter is how long a ping may be without any sign of life before new streams go elsewhere, if they can.
	doubtAfter = 2 * time.Second
	// resumeAlone is how long a tunnel is tried to be resumed before another one is made for new streams.
	resumeAlone = 2 * time.Second
	// probeTimeout bounds a probe.
	probeTimeout = 5 * time.Second
)

// use is what the slots carry that are there to stay.
type use struct {
	active, streams int
	any, bulk       bool
	working, bad    map[*endpoint]bool // endpoints with tunnels that work, and with tunnels in trouble
	settled         []*slot            // slots whose tunnel works and stays
}

// adjust removes slots that have ended, ends drained ones, and grows or shrinks the pool as its use asks.
func (p *Pool) adjust(now time.Time) {
	u := use{working: map[*endpoint]bool{}, bad: map[*endpoint]bool{}}
	several := p.ends.several()
	for _, s := range p.list() {
		select {
		case <-s.done:
			p.remove(s)
		default:
			p.survey(s, &u, several, now)
		}
	}
	cfg := p.config()
	want := max(cfg.Min, (u.streams+streamsPerTunnel-1)/streamsPerTunnel)
	if u.any && (u.bulk || cfg.Mixed) {
		want = max(want, 2)
	}
	want = min(want, cfg.Max)
	p.mu.Lock()
	p.want = want
	p.mu.Unlock()
	p.elect(now)
	p.growTo(want, u.active)
	if u.active > want {
		p.shrink(u.active > cfg.Max)
	}
	p.relocate(u.settled, want, now)
}

// elect lets new tunnels go to an endpoint that works when the one that they went to does not, and says so.
func (p *Pool) elect(now time.Time) {
	working, bad := map[*endpoint]bool{}, map[*endpoint]bool{}
	for _, s := range p.list() {
		s.mu.Lock()
		home, ok, t := s.home, s.machine.state == Connected && !s.doubt, s.tunnel
		s.mu.Unlock()
		if home == nil || t == nil {
			continue
		}
		working[home] = working[home] || ok
		bad[home] = bad[home] || !ok
	}
	for e := range working {
		if working[e] {
			delete(bad, e)
			p.report(e, nil, now)
		}
	}
	p.ends.suspects(bad)
	if from, to := p.ends.elect(working); to != nil {
		p.failovers.Inc()
		p.log.Warn("failover: new tunnels go to another endpoint", logging.FieldEndpoint, to.url, "from", from.url)
		p.history.add(Event{Time: now, State: Connected, Endpoint: to.url, Reason: "failover from " + from.url})
		p.changed()
	}
}

// survey adds what a slot carries to u. A slot whose place another one takes ends with its last stream.
func (p *Pool) survey(s *slot, u *use, several bool, now time.Time) {
	s.mu.Lock()
	t, state, rate, leaving := s.tunnel, s.machine.state, s.busy.rate, !s.moveAt.IsZero()
	away := leaving && !now.Before(s.moveAt)
	stalled := t != nil && state == Resuming && (several || s.refused) && (s.rounds > 0 || now.Sub(s.machine.since) > resumeAlone)
	s.mu.Unlock()
	n := 0
	if t != nil {
		st := t.Stats()
		n = st.Streams
		s.doubtIf(several && state == Connected && st.Silent > max(doubtAfter, 4*st.RTT), st.Silent)
	}
	if away {
		if t == nil || t.CloseIfIdle() {
			s.stop()
		}
		return
	}
	if stalled && n == 0 && p.enough(s) {
		s.stop() // nothing would be lost with it
		return
	}
	if stalled || s.doubted() {
		return // another one takes the new streams meanwhile
	}
	u.active++
	switch {
	case n > 0:
		s.idleSince = time.Time{}
	case s.idleSince.IsZero():
		s.idleSince = now
	}
	if state == Connected {
		u.streams += n
		u.any = u.any || n > 0
		u.bulk = u.bulk || rate > bulkRate
		if !leaving {
			u.settled = append(u.settled, s)
		}
	}
}

// doubtIf marks a tunnel whose peer is silent, or ends that.
func (s *slot) doubtIf(doubt bool, silent time.Duration) {
	s.mu.Lock()
	was := s.doubt
	s.doubt = doubt
	s.mu.Unlock()
	if doubt && !was {
		s.log.Warn("the gateway is silent: new streams go elsewhere", "silent", silent.Round(time.Millisecond).String())
	}
	if was && !doubt && s.usable() != nil {
		s.p.config().Up() // connections that wait can have it again
	}
	if was != doubt {
		s.p.changed()
	}
}

func (s *slot) doubted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.doubt
}

// shrink ends one tunnel that has been idle for as long as this side or its gateway allows, the youngest first; or at once
// when there are more than there may be.
func (p *Pool) shrink(over bool) {
	for _, s := range slices.Backward(p.list()) {
		t := s.usable()
		if t == nil || s.idleSince.IsZero() && !over {
			continue
		}
		idle := time.Since(s.idleSince)
		if allowed := shorter(p.config().Idle, t.Idle()); over || allowed > 0 && idle >= allowed {
			s.log.Info("a tunnel that the pool does not want ends", "idle", !s.idleSince.IsZero(), "over_max", over)
			s.retire()
			return
		}
	}
}

// shorter is the shorter of two times, of which 0 has no end.
func shorter(a, b time.Duration) time.Duration {
	if a == 0 || b > 0 && b < a {
		return b
	}
	return a
}

// growTo adds slots until there are want; the first ones are always kept, further ones only once a tunnel works.
func (p *Pool) growTo(want, active int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx.Err() != nil {
		return
	}
	if active >= p.config().Min && time.Now().Before(p.noSpare) {
		return
	}
	for ; active < want; active++ {
		p.addSlot(&slot{})
	}
}

// relocate moves tunnels to the endpoint where they should be, one at a time, the new one first: back to one that is
// preferred and has recovered, and away from one that is no longer configured.
func (p *Pool) relocate(settled []*slot, want int, now time.Time) {
	p.mu.Lock()
	hold := now.Before(p.noMove) || now.Before(p.noSpare) || slices.ContainsFunc(p.slots, func(s *slot) bool { return s.replaces != nil })
	p.mu.Unlock()
	if hold || len(settled) == 0 {
		return
	}
	if e, out := p.ends.recovered(now); e != nil {
		p.failback(e, settled, out, now)
		return
	}
	right := 0
	var stray *slot
	for _, s := range settled {
		stays, ok := p.ends.home(s.homeNow())
		switch {
		case ok:
			right++
		case stray == nil || !stays:
			stray = s
		}
	}
	switch {
	case stray == nil:
	case right >= want:
		stray.log.Info("tunnel ends: its endpoint is not where tunnels should be", logging.FieldEndpoint, stray.homeNow().url)
		stray.retire()
	default:
		p.move(stray, nil)
	}
}

// failback lets tunnels go to an endpoint again. In order, the first one there decides whether all follow; by weight each of
// those that were made while it was out moves with the chance that it would have had to be there.
func (p *Pool) failback(e *endpoint, settled []*slot, out, now time.Time) {
	if out.IsZero() {
		p.move(settled[0], e)
		return
	}
	for _, s := range settled {
		if s.homeNow() != e && s.madeAfter(out) && p.ends.float() < p.ends.share(e, now) {
			p.move(s, e)
		}
	}
}

// move makes a tunnel that takes the place of another one, at an endpoint or, with nil, wherever new tunnels go.
func (p *Pool) move(old *slot, to *endpoint) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.addSlot(&slot{replaces: old, pinned: to})
}

// moved ends a move, by the slot that has made the new tunnel or has failed to.
func (p *Pool) moved(s *slot, err error) {
	p.mu.Lock()
	old, pinned := s.replaces, s.pinned
	s.replaces, s.pinned = nil, nil
	if err != nil {
		p.noMove = time.Now().Add(p.config().Probe)
	}
	p.mu.Unlock()
	if err != nil {
		return
	}
	if pinned != nil {
		p.failbacks.Inc()
		from := pinned
		if !p.ends.isWeighted() {
			from = p.ends.activate(pinned)
		}
		p.log.Info("failback: tunnels go to the endpoint that has recovered", logging.FieldEndpoint, pinned.url, "from", from.url)
		p.history.add(Event{Time: time.Now(), Tunnel: s.n, State: Connected, Endpoint: pinned.url, Reason: "failback to " + pinned.url})
	}
	old.retire()
}

// report takes how an attempt or a probe went, and tells of a change of health.
func (p *Pool) report(e *endpoint, err error, now time.Time) {
	if !p.ends.report(e, err, now) {
		return
	}
	if err == nil {
		p.log.Info("endpoint is healthy", logging.FieldEndpoint, e.url)
	} else {
		p.log.Warn("endpoint is failing", append([]any{logging.FieldEndpoint, e.url}, logging.Error(err)...)...)
	}
	p.changed()
}

// probe asks the endpoints that carry no tunnel whether they are there, when it is time to.
func (p *Pool) probe(ctx context.Context, now time.Time) {
	cfg := p.config()
	carrying := map[*endpoint]bool{}
	for _, s := range p.list() {
		if s.usable() != nil {
			carrying[s.homeNow()] = true
		}
	}
	for _, e := range p.ends.due(now, cfg.Probe, carrying) {
		p.tasks.Go(func() {
			defer p.ends.probed(e)
			ctx, cancel := context.WithTimeout(ctx, min(probeTimeout, max(cfg.ConnectTimeout, time.Second)))
			defer cancel()
			err := cfg.Dialer.Probe(ctx, e.url)
			if p.ctx.Err() == nil {
				p.report(e, err, time.Now())
			}
		})
	}
}
