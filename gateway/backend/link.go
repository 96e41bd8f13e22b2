package backend

import (
	"net"
	"strconv"
	"sync/atomic"
	"time"

	"fairlead/shared/logging"
)

// farewell is how long the end of an SSH connection waits for the server to confirm the close of its channels.
const farewell = time.Second

// Peer is what the two sides of an SSH connection agreed on.
type Peer struct {
	Version     string // version line of the server
	KeyExchange string
	HostKey     string // algorithm of the host key's signature
	Cipher      string // towards the server
}

// link is one SSH connection of a pool.
type link struct {
	pool *pool
	set  *Set
	id   string // its own TCP address, by which sshd's log knows it too
	*session
	made time.Time

	// Guarded by Set.mu.
	channels  int // slots in use
	opened    uint64
	retired   bool
	idleSince time.Time
	ending    bool
	reason    string                    // why it ends
	conns     map[*channelConn]struct{} // open ones

	finish chan struct{} // closed by endLocked
	broken chan struct{} // closed when the SSH connection has ended
	poke   chan struct{} // asks for a keepalive now
	dead   atomic.Bool   // a keepalive was not answered
}

func newLink(p *pool, ses *session) *link {
	now := time.Now()
	return &link{
		pool: p, set: p.set, session: ses, id: ses.wire.LocalAddr().String(), made: now, idleSince: now,
		conns:  make(map[*channelConn]struct{}),
		finish: make(chan struct{}), broken: make(chan struct{}), poke: make(chan struct{}, 1),
	}
}

// startLocked serves what the server sends besides data, and looks after the connection. When the Set is being closed
// already the connection ends at once; these goroutines are then waited for through the dial that made it.
func (l *link) startLocked() {
	l.pool.b.counts.conns.Inc()
	l.set.work.Go(func() { refuseAll(l.session.channels, l.requests) })
	l.set.work.Go(func() {
		_ = l.conn.Wait() // why it ended is told by run
		close(l.broken)
	})
	l.set.work.Go(l.run)
	if l.set.closed {
		l.endLocked("shutdown")
	}
}

// run looks after the connection until it has ended.
func (l *link) run() {
	defer l.gone()
	cfg := l.set.pool
	keepalive := time.NewTicker(cfg.Keepalive)
	defer keepalive.Stop()
	idle := time.NewTimer(cfg.Idle)
	defer idle.Stop()
	age := time.NewTimer(cfg.MaxAge)
	defer age.Stop()
	for {
		select {
		case <-l.broken:
			return
		case <-l.finish:
			l.hangUp()
			return
		case <-keepalive.C:
			l.alive()
		case <-l.poke:
			l.alive()
		case <-idle.C:
			idle.Reset(l.checkIdle())
		case <-age.C:
			l.retire()
		}
	}
}

// alive asks the server for a sign of life and waits for it, up to KeepaliveTimeout; then the connection is closed, since
// whoever uses it would wait forever. sshd answers with a failure, which is an answer.
func (l *link) alive() bool {
	timer := time.AfterFunc(l.set.pool.KeepaliveTimeout, func() {
		l.dead.Store(true)
		_ = l.wire.Close()
	})
	defer timer.Stop()
	_, _, err := l.conn.SendRequest("keepalive@openssh.com", true, nil)
	return err == nil
}

// checkIdle ends a connection that nobody uses, and returns when to look again.
func (l *link) checkIdle() time.Duration {
	l.set.mu.Lock()
	defer l.set.mu.Unlock()
	idle := l.set.pool.Idle
	if l.channels > 0 {
		return idle
	}
	if rest := idle - time.Since(l.idleSince); rest > 0 {
		return rest
	}
	l.endLocked("idle")
	return idle
}

// retire lets the connection end with its last channel.
func (l *link) retire() {
	l.set.mu.Lock()
	defer l.set.mu.Unlock()
	if l.ending {
		return
	}
	if l.channels == 0 {
		l.endLocked("max_age")
		return
	}
	l.retired = true
	l.pool.removeLocked(l)
	l.pool.retired[l] = struct{}{}
}

// endLocked takes the connection out of service and has run close it. The deadline is for a dead peer, which must not hold
// up the end; setting it does not wait.
func (l *link) endLocked(reason string) {
	if l.ending {
		return
	}
	l.ending, l.reason = true, reason
	close(l.finish)
	_ = l.wire.SetDeadline(time.Now().Add(2 * farewell)) // fails only on a connection that is gone
	l.pool.removeLocked(l)
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
	l.pool.b.counts.conns.Dec()
	l.set.mu.Lock()
	if !l.ending {
		l.ending, l.reason = true, "closed_by_backend"
		if l.dead.Load() {
			l.reason = "keepalive_unanswered"
		}
		l.pool.removeLocked(l)
	} else if l.dead.Load() {
		l.reason = "keepalive_unanswered"
	}
	reason, opened := l.reason, l.opened
	l.set.mu.Unlock()
	args := append(fields(l.pool.b, l.pool.tenant), "connection", l.id, logging.FieldReason, reason, "channels", strconv.FormatUint(opened, 10))
	if l.dead.Load() {
		l.pool.b.counts.dead.Inc()
		l.set.log.Warn("an SSH connection to a backend was dead", args...)
		return
	}
	l.set.log.Info("an SSH connection to a backend ended", args...)
}

// releaseLocked gives a slot back.
func (l *link) releaseLocked() {
	l.channels--
	l.pool.channels--
	l.idleSince = time.Now()
	if l.channels == 0 && l.retired {
		l.endLocked("max_age")
	}
	l.pool.serveLocked()
	l.pool.forgetLocked()
}

// discard takes a connection that just failed out of service, before its own goroutine notices.
func (l *link) discard() {
	l.set.mu.Lock()
	defer l.set.mu.Unlock()
	l.endLocked("broken")
}

// suspect asks for a keepalive now instead of at the next tick.
func (l *link) suspect() {
	select {
	case l.poke <- struct{}{}:
	default: // one is due already
	}
}

// addresses of the TCP connection, which stand for those of its channels.
func (l *link) addresses() (local, remote net.Addr) { return l.wire.LocalAddr(), l.wire.RemoteAddr() }
