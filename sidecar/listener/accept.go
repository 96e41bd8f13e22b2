package listener

import (
	"net"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// acceptPause is how long accepting rests after a failure such as too many open files.
const acceptPause = 50 * time.Millisecond

// Serve accepts until StopAccepting, HandOver or Close. It is to be called once.
func (l *Listener) Serve() error {
	l.mu.Lock()
	served := make(chan struct{})
	l.serving = served
	l.mu.Unlock()
	defer close(served)
	for l.slow() {
		c, err := l.sock.Accept()
		if err == nil {
			go l.handle(l.add(c))
			continue
		}
		if l.stopped() {
			break
		}
		l.log.Warn("cannot accept", logging.Error(errs.Wrap(errs.ListenFailed, err, "accepting on %s", l.cfg.Listen))...)
		l.rest(acceptPause, nil) // too many open files: connections that end make room
	}
	return nil
}

// slow waits before the next connection while the queue is under pressure, and says whether there may be a next one. The
// kernel holds those who come meanwhile.
func (l *Listener) slow() bool {
	if l.cfg.Queue != nil && l.cfg.Handle == nil {
		if pause, over := l.cfg.Queue.Pause(l.cfg.Priority); pause > 0 {
			l.count.pauses.Inc()
			l.rest(pause, over)
		}
	}
	return !l.stopped()
}

// rest waits for so long, or until over is closed or accepting is to end.
func (l *Listener) rest(pause time.Duration, over <-chan struct{}) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-over:
	case <-l.stop:
	}
}

func (l *Listener) stopped() bool {
	select {
	case <-l.stop:
		return true
	default:
		return false
	}
}

func (l *Listener) add(c net.Conn) *conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.conns) == 0 {
		l.quiet = time.Time{}
		l.turn()
	}
	k := &conn{Conn: c, start: time.Now()}
	l.conns[k] = struct{}{}
	l.wg.Add(1)
	l.count.total.Inc()
	l.count.active.Inc()
	return k
}

// done takes a connection out that is over.
func (l *Listener) done(c *conn) {
	defer l.wg.Done()
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
	l.count.active.Dec()
	sent, received := c.totals()
	l.sent += sent
	l.received += received
	if len(l.conns) == 0 {
		l.quiet = time.Now()
		l.turn()
	}
}

// turn tells that the first connection came or the last one went. Called with mu held.
func (l *Listener) turn() {
	close(l.turned)
	l.turned = make(chan struct{})
}
