package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/shared/logging"
	"fairlead/shared/ws"
)

// gate is the listener of other replicas: what it accepts has proven to know the secret. Before, a connection has one of few
// places, and little time. When all are taken, others wait, and who has been there for a while loses its own: a replica is through
// after two round trips. Places go to the address that has the fewest, so that whoever floods the port from one address is in
// its own way.
type gate struct {
	net.Listener // TCP, corked
	cfg          gateConfig
	known        chan net.Conn
	closed       chan struct{}
	close        func()
	crowded      chan struct{} // somebody waits; one may be in the channel
	running      sync.WaitGroup

	mu      sync.Mutex
	sources map[string]*source // by address
	taken   int                // places
	waiting int
	started bool
}

type gateConfig struct {
	tls     *tls.Config
	to      *slog.Logger
	log     *logging.Tamed
	refused *metrics.Counter
}

type stranger struct {
	conn  net.Conn // TCP
	from  string
	since time.Time // when it got its place
}

const (
	places      = 64
	placesEach  = 48 // of one address: more than a replica needs at once
	waitingAll  = 1024
	waitingEach = 256                    // of one address
	patience    = 250 * time.Millisecond // for a stranger, while others wait
	gatePoll    = 10 * time.Millisecond  // between looks for a stranger to drop
	handshake   = 5 * time.Second
	refusalTime = time.Second // for a stranger to read why
	refusalRead = 64 << 10    // and to be read until then, in bytes
)

func newGate(l net.Listener, cfg gateConfig) *gate {
	closed := make(chan struct{})
	return &gate{Listener: l, cfg: cfg, known: make(chan net.Conn), closed: closed, close: sync.OnceFunc(func() { close(closed) }), crowded: make(chan struct{}, 1),
		sources: map[string]*source{}}
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
			g.running.Go(g.sweep)
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
	for _, from := range g.sources {
		for _, s := range append(from.strangers, from.waiting...) {
			_ = s.conn.Close()
		}
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
		if !g.enter(c) {
			return
		}
	}
}

// pause waits a moment; false: the gate was closed.
func (g *gate) pause() bool {
	t := time.NewTimer(gatePoll)
	defer t.Stop()
	select {
	case <-t.C:
	case <-g.closed:
		return false
	}
	return true
}

// enter gives a connection a place, or lets it wait for one if not too many do; false: the gate was closed.
func (g *gate) enter(c net.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.closed:
		_ = c.Close()
		return false
	default:
	}
	s := &stranger{conn: c, from: host(c)}
	from := g.sources[s.from]
	if from == nil {
		from = &source{}
		g.sources[s.from] = from
	}
	if g.waiting >= waitingAll || len(from.waiting) >= waitingEach {
		_ = c.Close()
		g.forget(s.from)
		return true
	}
	from.waiting = append(from.waiting, s)
	g.waiting++
	g.next()
	return true
}

func (g *gate) leave(s *stranger) {
	g.mu.Lock()
	defer g.mu.Unlock()
	from := g.sources[s.from]
	from.strangers = slices.DeleteFunc(from.strangers, func(other *stranger) bool { return other == s })
	g.taken--
	g.forget(s.from)
	select {
	case <-g.closed:
	default:
		g.next()
	}
}

// forget drops an address that nobody comes from any more. Called with mu held.
func (g *gate) forget(address string) {
	if from := g.sources[address]; len(from.strangers)+len(from.waiting) == 0 {
		delete(g.sources, address)
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
