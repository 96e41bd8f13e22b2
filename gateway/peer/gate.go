package peer

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/shared/logging"
	"fairlead/shared/ws"
)

// gate is the listener of other replicas: what it accepts has proven to know the secret. Before, a connection has one of few
// places, and little time. When all are taken, the one that came first loses its own, unless it came a moment ago: a replica is
// through after two round trips.
type gate struct {
	net.Listener // TCP, corked
	cfg          gateConfig
	known        chan net.Conn
	closed       chan struct{}
	close        func()
	left         chan struct{} // a stranger has gone; one may be in the channel
	running      sync.WaitGroup

	mu        sync.Mutex
	strangers *list.List // of *stranger, first come first
	started   bool
}

type gateConfig struct {
	tls     *tls.Config
	to      *slog.Logger
	log     *logging.Tamed
	refused *metrics.Counter
}

type stranger struct {
	conn  net.Conn // TCP
	since time.Time
	place *list.Element
}

const (
	places      = 64
	patience    = 250 * time.Millisecond // for a stranger, while others queue
	gatePoll    = 10 * time.Millisecond  // between looks for a stranger to drop, while none has gone
	handshake   = 5 * time.Second
	refusalTime = time.Second // for a stranger to read why
	refusalRead = 64 << 10    // and to be read until then, in bytes
)

func newGate(l net.Listener, cfg gateConfig) *gate {
	closed := make(chan struct{})
	return &gate{Listener: l, cfg: cfg, known: make(chan net.Conn), closed: closed, close: sync.OnceFunc(func() { close(closed) }), left: make(chan struct{}, 1),
		strangers: list.New()}
}

// start begins to accept.
func (g *gate) start() {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.closed:
	default:
		if !g.started {
			g.started = true
			g.running.Go(g.run)
		}
	}
}

// Accept waits for a replica.
func (g *gate) Accept() (net.Conn, error) {
	select {
	case c := <-g.known:
		return c, nil
	case <-g.closed:
		return nil, net.ErrClosed
	}
}

// Close stops accepting, and drops strangers.
func (g *gate) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.close()
	for e := g.strangers.Front(); e != nil; e = e.Next() {
		_ = e.Value.(*stranger).conn.Close()
	}
	return g.Listener.Close()
}

func (g *gate) wait() { g.running.Wait() }

func (g *gate) run() {
	for {
		c, err := g.Listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // of one connection, or files have run out
			g.cfg.log.Say(g.cfg.to, slog.LevelError, "accept", "cannot accept a replica's connection", logging.FieldError, err.Error())
			if !g.pause() {
				return
			}
			continue
		}
		s := g.enter(c)
		if s == nil {
			_ = c.Close()
			return
		}
		g.running.Go(func() { g.meet(s) })
	}
}

// pause waits until a stranger has gone, or a moment; false: the gate was closed.
func (g *gate) pause() bool {
	t := time.NewTimer(gatePoll)
	defer t.Stop()
	select {
	case <-g.left:
	case <-t.C:
	case <-g.closed:
		return false
	}
	return true
}

// enter waits for a place; nil: the gate was closed.
func (g *gate) enter(c net.Conn) *stranger {
	for {
		if s := g.place(c); s != nil {
			return s
		}
		if !g.pause() {
			return nil
		}
	}
}

// place takes a place if there is one, else sees to it that there will be.
func (g *gate) place(c net.Conn) *stranger {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.closed:
		return nil
	default:
	}
	if g.strangers.Len() < places {
		s := &stranger{conn: c, since: time.Now()}
		s.place = g.strangers.PushBack(s)
		return s
	}
	if first := g.strangers.Front().Value.(*stranger); time.Since(first.since) >= patience {
		_ = first.conn.Close()
	}
	return nil
}

func (g *gate) leave(s *stranger) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.strangers.Remove(s.place)
	select {
	case g.left <- struct{}{}:
	default:
	}
}

// meet does the handshake with a stranger, and passes it on.
func (g *gate) meet(s *stranger) {
	defer g.leave(s)
	ctx, cancel := context.WithTimeout(context.Background(), handshake)
	defer cancel()
	c := tls.Server(s.conn, g.cfg.tls)
	if err := c.HandshakeContext(ctx); err != nil {
		g.refuse(s, err)
		return
	}
	select {
	case g.known <- c:
	case <-g.closed:
		_ = s.conn.Close()
	}
}

// refuse lets a stranger read the alert that TLS has sent it, if it likes: were its bytes left unread, it might see a broken
// connection in place of that.
func (g *gate) refuse(s *stranger, err error) {
	defer s.conn.Close()
	peer := s.conn.RemoteAddr().String()
	if network(err) {
		g.cfg.log.Say(g.cfg.to, slog.LevelDebug, "gone", "a connection to the peer port came to nothing", logging.FieldPeer, peer, logging.FieldError, err.Error())
		return
	}
	g.cfg.refused.Inc()
	g.cfg.log.Say(g.cfg.to, slog.LevelWarn, "refused", "peer refused", append(logging.Error(refusal(err, "the connection from %s", peer)), logging.FieldPeer, peer)...)
	_ = s.conn.SetDeadline(time.Now().Add(refusalTime))
	if cork, ok := s.conn.(*ws.Cork); ok {
		_ = cork.CloseWrite()
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(s.conn, refusalRead))
}
