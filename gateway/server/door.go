package server

import (
	"container/list"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
	"fairlead/shared/ws"
)

// door is the listener of strangers. It bounds how many connections there are that have not shown a token yet, and how
// many of them may use the processor at once: whoever is inside already must not notice how many knock.
//
// When all places are taken, whoever keeps the door waiting longest loses its own: a client that works has sent its request
// after a few round trips, one that attacks mostly waits. While nobody has waited for as long as patience, newcomers wait in
// the kernel's queue.
type door struct {
	net.Listener // TCP, corked
	cfg          doorConfig
	turns        chan struct{} // taken by guests that use the processor

	mu      sync.Mutex
	guests  *list.List    // of *guest, first come first
	leaving int           // guests that were dropped and have a place yet
	left    chan struct{} // a guest has gone; one may be in the channel
	closed  chan struct{}
	close   func()

	dropped, full, files *metrics.Counter
}

type doorConfig struct {
	places  int
	secure  bool                                              // TLS comes on top
	admit   func(addr netip.Addr) (release func(), err error) // nil: everybody
	trusted func(netip.Addr) bool                             // proxies, for whose clients admit is asked later
	to      *slog.Logger
	log     *logging.Tamed
	metrics *metrics.Set
}

const (
	defaultStrangers = 2_000
	patience         = time.Second           // of waiting for a guest, in total, while others queue
	doorPoll         = 10 * time.Millisecond // between looks for a guest to drop, while none has gone
	filesShare       = 4                     // the part of the process's file descriptors that strangers may have
)

func newDoor(l net.Listener, cfg doorConfig) *door {
	if cfg.places <= 0 {
		cfg.places = defaultStrangers
	}
	if files := maxFiles(); files > 0 {
		cfg.places = max(1, min(cfg.places, files/filesShare))
	}
	closed := make(chan struct{})
	d := &door{Listener: l, cfg: cfg, turns: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)), guests: list.New(), left: make(chan struct{}, 1),
		closed: closed, close: sync.OnceFunc(func() { close(closed) })}
	refused := func(cause string) *metrics.Counter {
		return cfg.metrics.NewCounter(`fairlead_gateway_strangers_refused_total{cause="` + cause + `"}`)
	}
	d.dropped, d.full, d.files = refused("idle"), refused("address"), refused("files")
	cfg.metrics.NewGauge("fairlead_gateway_strangers", func() float64 {
		d.mu.Lock()
		defer d.mu.Unlock()
		return float64(d.guests.Len())
	})
	return d
}

// Accept waits for a connection and for a place for it.
func (d *door) Accept() (net.Conn, error) {
	for {
		c, err := d.Listener.Accept()
		if err != nil {
			if d.passing(err) {
				continue
			}
			select {
			case <-d.closed:
				err = net.ErrClosed
			default:
			}
			return nil, err
		}
		if g := d.enter(c); g != nil {
			return g, nil
		}
	}
}

// passing says whether an error of Accept is of one connection or of the moment: the server must not end by it. When file
// descriptors have run out, the guest who waits longest gives one back.
func (d *door) passing(err error) bool {
	switch {
	case errors.Is(err, syscall.ECONNABORTED):
		return true
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.ENOMEM):
		d.files.Inc()
		d.cfg.log.Say(d.cfg.to, slog.LevelError, "files", "cannot accept a connection", logging.FieldError, err.Error())
		d.drop(0)
		return d.pause()
	}
	return false
}

// pause waits until a guest has left, or a moment; false: the door was closed.
func (d *door) pause() bool {
	t := time.NewTimer(doorPoll)
	defer t.Stop()
	select {
	case <-d.left:
	case <-t.C:
	case <-d.closed:
		return false
	}
	return true
}

// enter gives a connection a place; nil: it was closed, because its address has too many or the door was closed.
func (d *door) enter(c net.Conn) *guest {
	addr := peerAddr(c.RemoteAddr())
	g := &guest{Conn: c, door: d, gone: make(chan struct{}), release: func() {}}
	for {
		err := d.place(g, addr)
		if err == nil {
			return g
		}
		if !errors.Is(err, errs.Overloaded) { // this address has too many
			d.full.Inc()
			d.cfg.log.Say(d.cfg.to, slog.LevelWarn, errs.CodeOf(err).String(), "connection refused", append(logging.Error(err), logging.FieldPeer, addr.String())...)
			break
		}
		if d.drop(patience); !d.pause() {
			break
		}
	}
	abort(c)
	return nil
}

// place takes a place if one is free, for the address too. errs.Overloaded: all are taken.
func (d *door) place(g *guest, addr netip.Addr) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.guests.Len() >= d.cfg.places {
		return errs.Overloaded
	}
	if d.cfg.admit != nil && !d.cfg.trusted(addr) {
		release, err := d.cfg.admit(addr)
		if err != nil {
			return err
		}
		g.release = release
	}
	g.place = d.guests.PushBack(g)
	return nil
}

// drop closes the connection of the guest who came first of those who keep us waiting for longer than least in total,
// unless one that was dropped is still about to leave. A guest whose request is being served is not waited for.
func (d *door) drop(least time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	for e := d.guests.Front(); e != nil && d.leaving == 0; e = e.Next() {
		if g := e.Value.(*guest); g.waits(now, least) {
			d.dropLocked(g)
			d.dropped.Inc()
			d.cfg.log.Say(d.cfg.to, slog.LevelWarn, "full", "connection dropped: there is no room for more without a token", logging.FieldPeer, g.RemoteAddr().String(), "places", d.cfg.places)
		}
	}
}

func (d *door) dropLocked(g *guest) {
	g.dropped = true
	d.leaving++
	close(g.gone)
	abort(g.Conn)
}

// dismiss drops all guests that are waited for: at the end nobody will serve them.
func (d *door) dismiss() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for e := d.guests.Front(); e != nil; e = e.Next() {
		if g := e.Value.(*guest); !g.dropped && g.waits(time.Now(), 0) {
			d.dropLocked(g)
		}
	}
}

// Close stops accepting.
func (d *door) Close() error {
	d.close()
	return d.Listener.Close()
}

// abort ends a connection without the kernel keeping anything of it.
func abort(c net.Conn) {
	if cork, ok := c.(*ws.Cork); ok {
		c = cork.Conn
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}
