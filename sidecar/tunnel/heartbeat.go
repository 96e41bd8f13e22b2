package tunnel

import (
	"fmt"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/logging"
)

// defaultHeartbeat is that of a link whose configuration leaves it open.
const defaultHeartbeat = 30 * time.Second

// interval is the time between heartbeats on the way to an endpoint.
func (p *Pool) interval(e *endpoint) time.Duration {
	d := p.uncut()
	p.learning.Lock()
	defer p.learning.Unlock()
	if learned := e.beat.now(); learned > 0 {
		d = min(d, learned)
	}
	return d
}

// uncut is the interval where nothing is learned. With a choice of endpoints, one that has gone silent is to be noticed soon
// enough to use another.
func (p *Pool) uncut() time.Duration {
	cfg := p.config()
	d := cfg.Link.Heartbeat
	if d == 0 {
		d = defaultHeartbeat
	}
	if p.ends.several() {
		d = min(d, cfg.Probe)
	}
	return d
}

// cutQuiet is how quiet a lane had been that a path may have cut for it; 0: it ended for another reason.
func cutQuiet(lane *link.Lane, err error) time.Duration {
	if code := errs.CodeOf(err); code != errs.LaneLost && code != errs.LaneDead {
		return 0
	}
	return lane.Quiet()
}

// learn takes a lane that was lost after having been quiet for so long, and could be resumed at once.
func (p *Pool) learn(s *slot, e *endpoint, quiet time.Duration) {
	if quiet < leastCut {
		return
	}
	p.idleCuts.Inc()
	now := time.Now()
	p.learning.Lock()
	changed := e.beat.lost(quiet, now)
	cut := e.beat.cut
	p.learning.Unlock()
	s.log.Info("an idle connection was cut", "idle", quiet.Round(time.Millisecond).String(), logging.FieldEndpoint, e.url)
	if changed {
		p.tellHeartbeat(e, fmt.Sprintf("idle connections are cut after %v", cut.Round(100*time.Millisecond)))
	}
}

// tellHeartbeat says once that an interval has changed, and applies it.
func (p *Pool) tellHeartbeat(e *endpoint, why string) {
	d := p.interval(e)
	p.log.Warn("heartbeat changed", "interval", d.String(), logging.FieldEndpoint, e.url, logging.FieldReason, why)
	p.history.add(Event{Time: time.Now(), State: Connected, Endpoint: e.url, Reason: fmt.Sprintf("heartbeat every %v: %s", d, why)})
	p.applyHeartbeats()
	p.changed()
}

// applyHeartbeats sets the intervals of all tunnels.
func (p *Pool) applyHeartbeats() {
	for _, s := range p.list() {
		if t := s.current(); t != nil {
			t.SetHeartbeat(p.interval(s.homeNow()))
		}
	}
}

// tendHeartbeats begins and ends trials of longer intervals.
func (p *Pool) tendHeartbeats(now time.Time) {
	survived := map[*endpoint]time.Duration{}
	for _, s := range p.list() {
		if t := s.usable(); t != nil {
			e := s.homeNow()
			survived[e] = max(survived[e], t.Stats().Survived)
		}
	}
	configured := p.uncut()
	for e, quiet := range survived {
		p.learning.Lock()
		changed := e.beat.look(quiet, configured, now)
		trial := e.beat.trial > 0
		p.learning.Unlock()
		if changed && trial {
			p.tellHeartbeat(e, "it is tried whether a longer interval does")
		} else if changed {
			p.tellHeartbeat(e, "the longer interval does")
		}
	}
}

// HeartbeatStatus says how often the link is kept alive, on the way to the endpoint that new tunnels go to.
type HeartbeatStatus struct {
	Interval string `json:"interval"`
	Learned  bool   `json:"learned"`
	Reason   string `json:"reason"`
}

func (p *Pool) heartbeat() HeartbeatStatus {
	e, base := p.ends.activeNow(), p.uncut()
	if p.ends.isWeighted() { // the one that is kept alive most often
		for _, other := range p.ends.all() {
			if p.interval(other) < p.interval(e) {
				e = other
			}
		}
	}
	p.learning.Lock()
	b := e.beat
	p.learning.Unlock()
	d := p.interval(e)
	st := HeartbeatStatus{Interval: d.String(), Learned: d < base, Reason: "configured"}
	switch {
	case st.Learned && b.trial > 0:
		st.Reason = "a longer interval is tried on " + e.url
	case st.Learned && b.cut > 0:
		st.Reason = fmt.Sprintf("idle connections to %s are cut after %v", e.url, b.cut.Round(100*time.Millisecond))
	case st.Learned:
		st.Reason = "learned on " + e.url
	case d == p.config().Probe && p.ends.several():
		st.Reason = "as often as endpoints are probed, since there are several"
	}
	return st
}
