package backend

import (
	"strconv"
	"time"

	"fairlead/shared/logging"
)

// farewell is how long the end of an SSH connection waits for the server to confirm the close of its channels.
const farewell = time.Second

// Why SSH connections end, besides on their own.
const (
	reasonIdle         = "idle"
	reasonMaxAge       = "max_age"
	reasonBroken       = "broken"
	reasonShutdown     = "shutdown"
	reasonEvicted      = "evicted"      // another certificate of the same tenant needed the room
	reasonReconfigured = "reconfigured" // the backend leads elsewhere, or is logged in to otherwise
	reasonRemoved      = "removed"      // the backend is not configured any more
	reasonByBackend    = "closed_by_backend"
	reasonDead         = "keepalive_unanswered"
)

// endLocked takes the connection out of service and has run close it. The deadline is for a dead peer, which must not hold
// up the end; setting it does not wait.
func (l *link) endLocked(reason string) {
	if l.cutLocked(reason) {
		l.pool.group.serveLocked(l.pool)
		l.pool.forgetLocked()
	}
}

// cutLocked is endLocked for callers who see to those who wait themselves; false: it was ending already.
func (l *link) cutLocked(reason string) bool {
	if l.ending {
		return false
	}
	l.ending, l.reason = true, reason
	close(l.finish)
	_ = l.wire.SetDeadline(time.Now().Add(2 * farewell)) // fails only on a connection that is gone
	l.leaveLocked()
	return true
}

// leaveLocked takes the connection out of its pool.
func (l *link) leaveLocked() {
	if l.retired {
		l.b.counts.retired.Dec()
	}
	l.pool.detachLocked(l)
}

// hangUp closes the channels that are still open, waits a moment for the server to confirm, and ends the connection with
// a disconnect message.
func (l *link) hangUp() {
	l.set.mu.Lock()
	conns := make([]*channelConn, 0, len(l.conns))
	for c := range l.conns {
		conns = append(conns, c)
	}
	l.set.mu.Unlock()
	for _, c := range conns {
		c.hangUp()
	}
	timer := time.NewTimer(farewell)
	defer timer.Stop()
	for _, c := range conns {
		select {
		case <-c.gone:
			continue
		case <-l.broken:
		case <-timer.C:
		}
		break
	}
	disconnect(l.conn, "the gateway has no more use for the connection ("+l.reason+")")
	_ = l.conn.Close()
	<-l.broken
}

// gone settles a connection that has ended.
func (l *link) gone() {
	_ = l.wire.Close()
	l.b.counts.conns.Dec()
	l.set.mu.Lock()
	if !l.ending {
		l.ending, l.reason = true, reasonByBackend
		l.leaveLocked()
		l.pool.group.serveLocked(l.pool)
		l.pool.forgetLocked()
	}
	if l.dead.Load() {
		l.reason = reasonDead
	}
	reason, opened := l.reason, l.opened
	l.set.mu.Unlock()
	l.b.counts.ended(reason)
	args := append(fields(l.b, l.pool.tenant), "connection", l.id, logging.FieldReason, reason, "channels", strconv.FormatUint(opened, 10))
	if l.dead.Load() {
		l.b.counts.dead.Inc()
		l.set.log.Warn("an SSH connection to a backend was dead", args...)
		return
	}
	l.set.log.Info("an SSH connection to a backend ended", args...)
}

// discard takes a connection that just failed out of service, before its own goroutine notices.
func (l *link) discard() {
	l.set.mu.Lock()
	defer l.set.mu.Unlock()
	l.endLocked(reasonBroken)
}
