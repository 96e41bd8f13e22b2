package tunnel

import (
	"slices"
	"time"

	"fairlead/shared/logging"
)

const (
	// doubtAfter is how long a ping may be without any sign of life before new streams go elsewhere, if they can.
	doubtAfter = 2 * time.Second
	// resumeAlone is how long a tunnel is tried to be resumed before another one is made for new streams.
	resumeAlone = 2 * time.Second
	// overFor is how long there may be more tunnels than Max: one may be about to take another one's place.
	overFor = time.Second
	// probeTimeout bounds a probe.
	probeTimeout = 5 * time.Second
)

// use is what the slots carry that are there to stay.
type use struct {
	active, streams int
	any, bulk       bool
	stalled         bool    // a tunnel cannot take new streams for now
	settled         []*slot // slots whose tunnel works and stays
	due             []*slot // slots whose tunnel is to be moved now, on its gateway's wish
}

// adjust removes slots that have ended, ends drained ones, and grows or shrinks the pool as its use asks.
func (p *Pool) adjust(now time.Time) {
	var u use
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
	if u.stalled && len(u.settled) == 0 {
		p.growTo(1, u.active) // one finds out whether there is a way; the others may be resumed
	} else {
		p.growTo(want, u.active)
	}
	if len(u.settled) <= cfg.Max {
		p.overFrom = time.Time{}
	} else if p.overFrom.IsZero() {
		p.overFrom = now
	}
	if len(u.settled) > want {
		p.shrink(!p.overFrom.IsZero() && now.Sub(p.overFrom) >= overFor)
	}
	p.heed(&u, want, now)
	p.relocate(u.settled, want, now)
}

// elect lets new tunnels go to an endpoint that works when the one that they went to does not, and says so.
func (p *Pool) elect(now time.Time) {
	working, bad := map[*endpoint]bool{}, map[*endpoint]bool{}
	for _, s := range p.list() {
		s.mu.Lock()
		home, ok, t, away := s.home, s.machine.state.up() && !s.doubt, s.tunnel, s.asked.goesAway()
		s.mu.Unlock()
		if home == nil || t == nil || away { // a gateway that goes away does not show whether its endpoint takes tunnels
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
	s.watchOpens()
	s.mu.Lock()
	t, state, rate, leaving, asked := s.tunnel, s.machine.state, s.busy.rate, s.leaving, s.asked
	stalled := t != nil && state == Resuming && (s.sought || several && (s.rounds > 0 || now.Sub(s.machine.since) > resumeAlone))
	s.mu.Unlock()
	n := 0
	if t != nil {
		st := t.Stats()
		n = st.Streams
		s.doubtIf(several && state.up() && st.Silent > max(doubtAfter, 4*st.RTT), st.Silent)
	}
	if leaving {
		if t == nil || s.closeIfIdle(t) {
			s.stop()
		}
		return
	}
	if stalled && n == 0 && p.enough(s) {
		s.stop() // nothing would be lost with it
		return
	}
	if asked != nil && !now.Before(asked.at) {
		u.due = append(u.due, s)
	}
	if stalled || s.doubted() {
		u.stalled = true
		if p.replaced(s) {
			u.active++
		}
		return // another one takes the new streams meanwhile
	}
	if s.replacement() {
		return // it counts once the one whose place it takes does not any more
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
		if asked == nil {
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
			s.leave("the pool has enough other tunnels")
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
