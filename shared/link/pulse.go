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
	l.pulse.timer = time.AfterFunc(l.t.cfg.Heartbeat/2, l.beat)
}

func (l *Lane) ping() {
	p := &l.pulse
	p.pinging, p.pingDue, p.pingAt = true, true, time.Now()
	p.token++
	l.t.wakeLane()
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
	if alive {
		p.pinging = false
	}
	heartbeat := l.t.cfg.Heartbeat
	patience := heartbeat / 2
	if p.hurried {
		patience = min(patience, max(pulseDead, 8*l.t.rtt.smoothed))
	}
	asked := time.Since(p.pingAt)
	if p.pinging && asked >= patience {
		l.abort(errs.New(errs.LaneDead, "the peer was silent for %v after a ping", asked.Round(time.Millisecond)))
		return
	}
	p.hurried = p.hurried && (l.t.unacked > 0 || l.t.opening > 0)
	switch {
	case p.pinging && p.hurried:
		p.timer.Reset(min(patience-asked, l.fastPulse()))
	case p.pinging:
		p.timer.Reset(patience - asked)
	case asked >= heartbeat || p.hurried && !alive:
		l.ping()
		p.timer.Reset(l.untilBeat(patience))
	default:
		p.timer.Reset(l.untilBeat(heartbeat - asked))
	}
}

func (l *Lane) fastPulse() time.Duration { return min(pulseFast, l.t.cfg.Heartbeat/2) }

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
		l.t.rtt.add(time.Since(p.pingAt))
	}
}
