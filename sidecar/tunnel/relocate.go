package tunnel

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// moveReason is why a tunnel is moved: another one is made that takes its place.
type moveReason string

const (
	moveDrain     moveReason = "drain"     // its gateway goes away
	moveRebalance moveReason = "rebalance" // its gateway asks for it, and stays
	moveFailback  moveReason = "failback"  // to an endpoint that is preferred and has recovered
	moveEndpoint  moveReason = "endpoint"  // its endpoint is not configured any more, or not the one for tunnels
)

// asked says whether a gateway has asked for the move.
func (r moveReason) asked() bool { return r == moveDrain || r == moveRebalance }

// relocate moves tunnels to the endpoint where they should be, one at a time, the new one first: back to one that is
// preferred and has recovered, and away from one that is no longer configured.
func (p *Pool) relocate(settled []*slot, want int, now time.Time) {
	p.mu.Lock()
	hold := now.Before(p.noMove) || slices.ContainsFunc(p.slots, func(s *slot) bool { return s.replaces != nil })
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
		stray.leave("its endpoint is not where tunnels should be")
	default:
		p.move(stray, nil, moveEndpoint)
	}
}

// failback lets tunnels go to an endpoint again. In order, the first one there decides whether all follow; by weight each of
// those that were made while it was out moves with the chance that it would have had to be there.
func (p *Pool) failback(e *endpoint, settled []*slot, out, now time.Time) {
	if out.IsZero() {
		if slices.ContainsFunc(settled, func(s *slot) bool { return s.homeNow() == e }) {
			p.failedBack(e, 0, now) // a tunnel of before the failover is there already
		} else {
			p.move(settled[0], e, moveFailback)
		}
		return
	}
	for _, s := range settled {
		if s.homeNow() != e && s.madeAfter(out) && p.ends.float() < p.ends.share(e, now) {
			p.move(s, e, moveFailback)
		}
	}
}

// move makes a tunnel that takes the place of another one, at an endpoint or, with nil, wherever new tunnels go.
func (p *Pool) move(old *slot, to *endpoint, why moveReason) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old.mu.Lock()
	over := old.leaving || why.asked() && old.asked == nil // another one has taken its place, or its tunnel has ended, just now
	old.mu.Unlock()
	if over {
		return
	}
	p.addSlot(&slot{replaces: old, pinned: to, why: why})
}

// moved ends a move, by the slot that has made the new tunnel or has failed to.
func (p *Pool) moved(s *slot, err error) {
	p.mu.Lock()
	old, pinned := s.replaces, s.pinned
	s.replaces, s.pinned = nil, nil
	if err == nil && old != nil { // at the same moment, else it would be replaced again, or both or neither would count
		old.mu.Lock()
		old.leaving = true
		old.mu.Unlock()
	}
	switch {
	case err == nil || s.why.asked():
	case errors.Is(err, errs.TunnelLimit): // there is no room for two
		p.noMove = time.Now().Add(growAfterLimit)
	default:
		p.noMove = time.Now().Add(p.config().Probe)
	}
	p.mu.Unlock()
	if err != nil || old == nil { // nil: it has ended meanwhile, and this one is just another one
		return
	}
	p.moves[s.why].Inc()
	if pinned != nil {
		p.failedBack(pinned, s.n, time.Now())
	}
	old.leave(fmt.Sprintf("new streams go to tunnel %d", s.n))
}

// failedBack says that tunnels go to an endpoint again.
func (p *Pool) failedBack(e *endpoint, slot int, now time.Time) {
	p.failbacks.Inc()
	if !p.ends.isWeighted() {
		p.ends.activate(e)
	}
	p.log.Info("failback: tunnels go to the endpoint that has recovered", logging.FieldEndpoint, e.url)
	p.history.add(Event{Time: now, Tunnel: slot, State: Connected, Endpoint: e.url, Reason: "failback to " + e.url})
	p.changed()
}
