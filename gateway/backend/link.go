package backend

import (
	"math/rand/v2"
	"net"
	"sync/atomic"
	"time"
)

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
	b    *remote // as it was logged in to
	id   string  // its own TCP address, by which sshd's log knows it too
	*session
	made time.Time
	luck float64 // from 0 to 1, by which its age is limited

	// Guarded by Set.mu.
	channels  int // slots in use
	opened    uint64
	retired   bool
	counted   bool   // as idle
	over      uint64 // channels that have ended
	idleSince time.Time
	ending    bool
	reason    string                    // why it ends
	conns     map[*channelConn]struct{} // open ones

	finish chan struct{} // closed by endLocked
	broken chan struct{} // closed when the SSH connection has ended
	poke   chan struct{} // asks for a keepalive now
	tune   chan struct{} // tells that the pool's configuration has changed
	dead   atomic.Bool   // a keepalive was not answered
	proven atomic.Uint64 // how many channels had ended when the server last gave a sign of life
}

func newLink(p *pool, b *remote, ses *session) *link {
	now := time.Now()
	return &link{
		pool: p, set: p.set, b: b, session: ses, id: ses.wire.LocalAddr().String(), made: now, luck: rand.Float64(), idleSince: now,
		conns:  make(map[*channelConn]struct{}),
		finish: make(chan struct{}), broken: make(chan struct{}), poke: make(chan struct{}, 1), tune: make(chan struct{}, 1),
	}
}

// never is longer than any connection lives.
const never = 1 << 62

// orNever is for tickers and timers of durations that are switched off.
func orNever(d time.Duration) time.Duration {
	if d < 0 {
		return never
	}
	return d
}

// lifetime is how long the connection gives channels: between 80 % and all of limit, so that connections that were made
// together do not all end together.
func (l *link) lifetime(limit time.Duration) time.Duration {
	if limit < 0 {
		return never
	}
	return limit - time.Duration(l.luck*float64(limit)/5)
}

// hasRoomLocked reports whether the connection can carry another channel.
func (l *link) hasRoomLocked() bool {
	return l.channels < l.set.poolConfig().ChannelsPerConnection
}

// countLocked keeps the number of idle connections after any change.
func (l *link) countLocked() {
	idle := l.channels == 0 && !l.ending && !l.retired
	switch {
	case idle && !l.counted:
		l.b.counts.idle.Inc()
	case !idle && l.counted:
		l.b.counts.idle.Dec()
	}
	l.counted = idle
}

// startLocked serves what the server sends besides data, and looks after the connection. When the Set is being closed
// already the connection ends at once; these goroutines are then waited for through the dial that made it.
func (l *link) startLocked() {
	l.b.counts.conns.Inc()
	l.countLocked()
	l.set.work.Go(func() { refuseAll(l.session.channels, l.requests) })
	l.set.work.Go(func() {
		_ = l.conn.Wait() // why it ended is told by run
		close(l.broken)
	})
	l.set.work.Go(l.run)
	if l.set.closed {
		l.endLocked(reasonShutdown)
	}
}

// run looks after the connection until it has ended.
func (l *link) run() {
	defer l.gone()
	cfg := l.set.poolConfig()
	keepalive := time.NewTicker(orNever(cfg.Keepalive))
	defer keepalive.Stop()
	idle := time.NewTimer(cfg.Idle)
	defer idle.Stop()
	age := time.NewTimer(l.lifetime(cfg.MaxAge))
	defer age.Stop()
	for {
		select {
		case <-l.broken:
			return
		case <-l.finish:
			if !l.wire.cut.Load() {
				l.alive() // proves that the channels so far were ended by the other side, for whoever has not read so far yet
			}
			l.hangUp()
			return
		case <-keepalive.C:
			l.alive()
		case <-l.poke:
			l.alive()
		case <-l.tune:
			cfg = l.set.poolConfig()
			keepalive.Reset(orNever(cfg.Keepalive))
			idle.Reset(l.checkIdle())
			age.Reset(max(l.lifetime(cfg.MaxAge)-time.Since(l.made), 0))
		case <-idle.C:
			idle.Reset(l.checkIdle())
		case <-age.C:
			l.retire()
		}
	}
}

// alive asks the server for a sign of life and waits for it, up to KeepaliveTimeout; then the connection is closed, since
// whoever uses it would wait forever. sshd answers with a failure, which is an answer. As long as there are answers, the
// channels that have ended were ended by the other side and not by the end of the connection.
func (l *link) alive() bool {
	l.set.mu.Lock()
	over := l.over
	l.set.mu.Unlock()
	timer := time.AfterFunc(l.set.poolConfig().KeepaliveTimeout, func() {
		l.dead.Store(true)
		_ = l.wire.Close()
	})
	defer timer.Stop()
	_, _, err := l.conn.SendRequest("keepalive@openssh.com", true, nil)
	if err != nil {
		return false
	}
	for before := l.proven.Load(); before < over && !l.proven.CompareAndSwap(before, over); before = l.proven.Load() {
	}
	return true
}

// checkIdle ends a connection that nobody uses, and returns when to look again.
func (l *link) checkIdle() time.Duration {
	l.set.mu.Lock()
	defer l.set.mu.Unlock()
	idle, now := l.set.poolConfig().Idle, time.Now()
	if l.channels > 0 {
		return idle
	}
	if rest := idle - now.Sub(l.idleSince); rest > 0 {
		return rest
	}
	if kept := l.pool.sparedLocked(now); kept > 0 {
		return min(kept, idle) // others may become idle meanwhile, and then there is one too many
	}
	l.endLocked(reasonIdle)
	return idle
}

// retire lets the connection end with its last channel.
func (l *link) retire() {
	l.set.mu.Lock()
	defer l.set.mu.Unlock()
	l.retireLocked(reasonMaxAge)
}

func (l *link) retireLocked(reason string) {
	if l.ending || l.retired {
		return
	}
	if l.channels == 0 {
		l.endLocked(reason)
		return
	}
	l.retired, l.reason = true, reason
	l.b.counts.retired.Inc()
	l.pool.detachLocked(l)
	l.pool.retired[l] = struct{}{}
	l.pool.group.serveLocked(l.pool)
}

// releaseLocked gives a slot back.
func (l *link) releaseLocked() {
	l.channels--
	l.pool.channels--
	l.idleSince = time.Now()
	l.pool.warmth.used = l.idleSince
	l.countLocked()
	if l.channels == 0 && l.retired {
		l.endLocked(l.reason)
	}
	l.pool.group.serveLocked(l.pool)
	l.pool.forgetLocked()
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
