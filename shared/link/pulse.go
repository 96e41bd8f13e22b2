package link

import (
	"time"

	"fairlead/shared/errs"
)

// pulse finds out whether the peer is alive.
type pulse struct {
	timer     *time.Timer
	hurried   bool   // bytes are in flight: look often
	heard     uint64 // Conn.Received at the last look
	pinging   bool   // a ping is unanswered, and nothing else has come since
	pingAt    time.Time
	quiet     time.Duration // how long the lane had carried nothing when that ping was made
	pingDue   bool
	token     uint64
	pong      bool // the peer's ping is to be answered
	pongToken uint64
}

// While bytes are in flight the peer is looked after every pulseFast, and is dead when it has been silent for pulseDead,
// or for 8 round trips where those are longer.
const (
	pulseFast = time.Second
	pulseDead = 4 * time.Second
)

// frame makes the PING or PONG that is due. Called with mu held.
func (p *pulse) frame(out *outgoing) bool {
	switch {
	case p.pong:
		p.pong = false
		out.set(header{kind: typePong, offset: p.pongToken}, nil)
	case p.pingDue:
		p.pingDue = false
		out.set(header{kind: typePing, offset: p.token}, nil)
	default:
		return false
	}
	return true
}

// startPulse begins with a ping, whose answer gives the first round trip. Called with mu held.
func (l *Lane) startPulse() {
	l.pulse.heard = l.conn.Received()
	l.ping()
	l.pulse.timer = time.AfterFunc(min(l.t.patience(), l.t.heartbeat), l.beat)
}

// patience is how long a peer on an idle lane may stay silent after a ping. It follows the heartbeat that was configured,
// not the one in force: a path that wants more pings does not answer them sooner.
func (t *Tunnel) patience() time.Duration { return t.cfg.Heartbeat / 2 }

func (l *Lane) ping() {
	p := &l.pulse
	p.quiet = l.quiet()
	p.pinging, p.pingDue, p.pingAt = true, true, time.Now()
	p.token++
	l.t.count.pingsSent.Add(1)
	l.t.wakeLane()
}

// setHeartbeat lets the next ping come when the interval that is now in force asks for it. Called with mu held.
func (l *Lane) setHeartbeat() {
	p := &l.pulse
	if p.timer == nil || l.stopped { // not run yet, or over
		return
	}
	if !p.pinging {
		p.timer.Reset(l.untilBeat(max(l.t.heartbeat-time.Since(p.pingAt), 0)))
	}
}

// hurryPulse looks after the peer soon, because data is on its way to it. Called with mu held.
func (l *Lane) hurryPulse() {
	p := &l.pulse
	if p.hurried {
		return
	}
	p.hurried = true
	p.timer.Reset(l.fastPulse())
}

// beat looks whether the peer has shown life since the last look, asks it when a heartbeat is due or bytes in flight stay
// unanswered, and gives the lane up when it stays silent after having been asked.
func (l *Lane) beat() {
	l.t.mu.Lock()
	defer l.t.mu.Unlock()
	if l.stopped || l.t.lane != l {
		return
	}
	p, now := &l.pulse, l.conn.Received()
	alive := now != p.heard
	p.heard = now
	if alive && p.pinging { // the answer itself may be behind what comes
		p.pinging = false
		l.t.count.pingsAnswered.Add(1)
	}
	heartbeat, patience := l.t.heartbeat, l.t.patience()
	if p.hurried {
		patience = min(patience, l.t.late())
	}
	asked := time.Since(p.pingAt)
	if p.pinging && asked >= patience {
		l.t.count.pingsLost.Add(1)
		l.abort(errs.New(errs.LaneDead, "the peer was silent for %v after a ping", asked.Round(time.Millisecond)))
		return
	}
	p.hurried = p.hurried && (l.t.unacked > 0 || l.t.opening > 0)
	switch {
	case p.pinging && p.hurried:
		p.timer.Reset(min(patience-asked, l.fastPulse()))
	case p.pinging:
		p.timer.Reset(min(patience-asked, heartbeat))
	case asked >= heartbeat || p.hurried && !alive:
		l.ping()
		p.timer.Reset(l.untilBeat(min(patience, heartbeat)))
	default:
		p.timer.Reset(l.untilBeat(heartbeat - asked))
	}
}

func (l *Lane) fastPulse() time.Duration { return min(pulseFast, l.t.patience()) }

// untilBeat is d, or sooner while bytes are in flight.
func (l *Lane) untilBeat(d time.Duration) time.Duration {
	if l.pulse.hurried {
		return min(d, l.fastPulse())
	}
	return d
}

// onPong takes a round trip. Called with mu held.
func (l *Lane) onPong(token uint64) {
	if p := &l.pulse; p.pinging && token == p.token {
		p.pinging = false
		took := time.Since(p.pingAt)
		if took > l.t.late() {
			l.t.count.pingsLost.Add(1)
		} else {
			l.t.count.pingsAnswered.Add(1)
		}
		l.t.rtt.add(took)
		l.t.survived = p.quiet
	}
}

// late is from when an answer to a ping counts as lost, also if it comes after all. Called with mu held.
func (t *Tunnel) late() time.Duration { return max(pulseDead, 8*t.rtt.smoothed) }

// silent is for how long a ping has been without any sign of life; 0 when none is. Called with mu held.
func (l *Lane) silent() time.Duration {
	if p := &l.pulse; p.pinging && l.conn.Received() == p.heard {
		return time.Since(p.pingAt)
	}
	return 0
}

// quiet is for how long the lane has carried nothing, in either direction, and nothing is under way. Called with mu held.
func (l *Lane) quiet() time.Duration {
	if !l.idle || l.t.unacked > 0 || l.t.opening > 0 {
		return 0
	}
	if l.heard.After(l.rested) {
		return time.Since(l.heard)
	}
	return time.Since(l.rested)
}

// noteEnd remembers how quiet the lane was before what ends it now. Called with mu held, by whoever ends it first.
func (l *Lane) noteEnd() {
	switch {
	case l.ended:
		return
	case l.t.unacked > 0 || l.t.opening > 0:
	case l.pulse.pinging:
		l.quietAtEnd = l.pulse.quiet
	default:
		l.quietAtEnd = l.quiet()
	}
	l.ended = true
}

// Quiet is for how long the lane had carried nothing, not even a heartbeat, before it was lost or before the heartbeat that
// stayed unanswered; 0 when something was under way. A path that cuts idle connections shows here. To be called after Run.
func (l *Lane) Quiet() time.Duration {
	l.t.mu.Lock()
	defer l.t.mu.Unlock()
	return l.quietAtEnd
}

// SetHeartbeat changes the time between pings, on the lane there is and on those that follow. How long an unanswered ping is
// waited for stays as configured.
func (t *Tunnel) SetHeartbeat(d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.heartbeat = d
	if t.lane != nil {
		t.lane.setHeartbeat()
	}
}
