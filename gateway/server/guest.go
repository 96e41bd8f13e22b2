package server

import (
	"container/list"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// guest is a connection that the door has let in. Until it has shown a token it has a place there, and everything that is
// done for it, the TLS handshake above all, is done in turns: a turn begins when bytes of the client arrive and ends when
// the next ones are waited for. Up to the upgrade, one goroutine uses a guest.
type guest struct {
	net.Conn
	door    *door
	release func()        // of the limit on its address
	gone    chan struct{} // closed when the guest is dropped
	out     sync.Once     // of the door

	place   *list.Element // guarded by the door's lock, as the next
	dropped bool

	turn    bool         // it has one; only for the goroutine that serves the guest
	known   atomic.Bool  // upgraded: no turns any more
	free    atomic.Bool  // it has left the door: bytes just pass
	waiting atomic.Int64 // since when we wait for the peer, in nanoseconds of Unix time; 0: we do not
	waited  atomic.Int64 // how long we did before, in nanoseconds
	heard   bool         // the first bytes have come
}

var errDropped = errors.New("the connection was dropped to make room")

// Read waits for bytes of the client, and for a turn to do something about them.
func (g *guest) Read(p []byte) (int, error) {
	if g.free.Load() {
		return g.Conn.Read(p)
	}
	g.yield()
	since := g.wait()
	n, err := g.Conn.Read(p)
	g.done(since)
	if err != nil {
		return n, err
	}
	if !g.heard {
		g.heard = true
		if g.door.cfg.secure && plain(p[:n]) {
			_, _ = g.Conn.Write([]byte(needsTLS))
			return 0, errPlain
		}
	}
	if !g.take() {
		return 0, errDropped
	}
	return n, nil
}

// Write sends bytes; that may wait for the client too.
func (g *guest) Write(p []byte) (int, error) {
	if g.known.Load() { // from now on two goroutines may write
		return g.Conn.Write(p)
	}
	g.yield()
	since := g.wait()
	n, err := g.Conn.Write(p)
	g.done(since)
	if err == nil && !g.take() {
		err = errDropped
	}
	return n, err
}

// Close ends the connection, and gives up what it still has at the door.
func (g *guest) Close() error {
	err := g.Conn.Close()
	g.yield()
	g.leave()
	return err
}

// NetConn is the connection below.
func (g *guest) NetConn() net.Conn { return g.Conn }

func (g *guest) wait() (since time.Time) {
	since = time.Now()
	g.waiting.Store(since.UnixNano())
	return since
}

func (g *guest) done(since time.Time) {
	g.waiting.Store(0)
	g.waited.Add(int64(time.Since(since)))
}

// waits says whether the guest has kept us waiting for at least that long, and does so now.
func (g *guest) waits(now time.Time, least time.Duration) bool {
	since := g.waiting.Load()
	return since != 0 && now.UnixNano()-since+g.waited.Load() >= int64(least)
}

// take waits for a turn; false: the guest was dropped meanwhile.
func (g *guest) take() bool {
	if g == nil || g.turn || g.known.Load() {
		return true
	}
	select {
	case g.door.turns <- struct{}{}:
		g.turn = true
		return true
	case <-g.gone:
		return false
	}
}

// yield ends the turn.
func (g *guest) yield() {
	if g != nil && g.turn {
		g.turn = false
		<-g.door.turns
	}
}

// upgraded ends turns for good: who comes so far has shown a token. The place remains.
func (g *guest) upgraded() {
	if g != nil {
		g.yield()
		g.known.Store(true)
	}
}

// leave gives the place up: somebody answers for the connection now, or it is closed. Without a turn only, which would be
// kept for ever.
func (g *guest) leave() {
	if g == nil {
		return
	}
	g.out.Do(func() {
		g.known.Store(true)
		g.free.Store(true)
		g.door.mu.Lock()
		if g.place != nil {
			g.door.guests.Remove(g.place)
			g.place = nil
		}
		if g.dropped {
			g.door.leaving--
		}
		g.door.mu.Unlock()
		g.release()
		select {
		case g.door.left <- struct{}{}:
		default:
		}
	})
}

// guestOf finds the guest under TLS; nil: there is none, in tests that have no door.
func guestOf(c net.Conn) *guest {
	if layer, ok := c.(interface{ NetConn() net.Conn }); ok {
		if g, ok := c.(*guest); ok {
			return g
		}
		g, _ := layer.NetConn().(*guest)
		return g
	}
	return nil
}

// needsTLS is the answer to a request without TLS where TLS is spoken: a person may be at the other end.
const needsTLS = "HTTP/1.1 400 Bad Request\r\nServer: fairlead\r\nContent-Type: text/plain\r\nContent-Length: 47\r\nConnection: close\r\n\r\n" +
	"This port speaks TLS: use https:// or wss://.\r\n"

var errPlain = errors.New("a request without TLS")

// plain says whether the first bytes are a request's: those of TLS are a record's type, which is no letter.
func plain(b []byte) bool { return len(b) > 0 && b[0] >= 'A' && b[0] <= 'Z' }
