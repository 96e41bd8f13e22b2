// Package listener accepts the application's connections and carries each over a stream.
package listener

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/shared/errs"
	"fairlead/shared/lifecycle"
	"fairlead/shared/link"
	"fairlead/shared/logging"
	"fairlead/shared/relay"
)

// Config is what a Listener needs.
type Config struct {
	Name     string
	Listen   string // host:port, or unix:/path
	Route    string
	Priority link.Priority
	// Open begins a stream, waiting for a tunnel if need be.
	Open    func(ctx context.Context, req link.OpenRequest) (*link.Stream, error)
	Logger  *slog.Logger
	Metrics *metrics.Set
}

// Listener serves one listening address.
type Listener struct {
	cfg Config
	l   net.Listener
	log *slog.Logger
	ctx context.Context // of connections
	cut context.CancelFunc
	wg  sync.WaitGroup

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	closed bool
	idle   chan struct{} // closed once closed and no connection is left

	total, failed *metrics.Counter
}

// acceptPause is how long accepting rests after a failure such as too many open files.
const acceptPause = 50 * time.Millisecond

// New binds the address.
func New(cfg Config) (*Listener, error) {
	network, addr := "tcp", cfg.Listen
	if path, ok := strings.CutPrefix(cfg.Listen, "unix:"); ok {
		network, addr = "unix", path
		if err := removeStale(path); err != nil {
			return nil, errs.Wrap(errs.ListenFailed, err, "listener %s cannot use %s", cfg.Name, cfg.Listen)
		}
	}
	l, err := net.Listen(network, addr)
	if err != nil {
		return nil, errs.Wrap(errs.ListenFailed, err, "listener %s cannot listen on %s", cfg.Name, cfg.Listen)
	}
	ctx, cut := context.WithCancel(context.Background())
	label := `{listener="` + cfg.Name + `"}`
	ln := &Listener{cfg: cfg, l: l, ctx: ctx, cut: cut, conns: map[net.Conn]struct{}{}, idle: make(chan struct{}),
		log:    cfg.Logger.With("listener", cfg.Name, logging.FieldRoute, cfg.Route),
		total:  cfg.Metrics.NewCounter("fairlead_sidecar_connections_total" + label),
		failed: cfg.Metrics.NewCounter("fairlead_sidecar_connections_failed_total" + label),
	}
	cfg.Metrics.NewGauge("fairlead_sidecar_connections"+label, func() float64 { return float64(ln.active()) })
	return ln, nil
}

// removeStale removes a socket that nobody listens on any more. Anything else at the path stays.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errs.New(errs.ListenFailed, "%s exists and is no socket", path)
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
		return errs.New(errs.ListenFailed, "another process listens on %s", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}

// Addr is the address it listens on.
func (l *Listener) Addr() net.Addr { return l.l.Addr() }

// Serve accepts until Close or Stop.
func (l *Listener) Serve() error {
	for {
		c, err := l.l.Accept()
		if err == nil {
			if l.add(c) {
				go l.handle(c)
			} else {
				c.Close()
			}
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		l.log.Warn("cannot accept", logging.Error(errs.Wrap(errs.ListenFailed, err, "accepting on %s", l.cfg.Listen))...)
		select { // too many open files: connections that end make room
		case <-l.ctx.Done():
			return nil
		case <-time.After(acceptPause):
		}
	}
}

func (l *Listener) add(c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.conns[c] = struct{}{}
	l.wg.Add(1)
	l.total.Inc()
	return true
}

func (l *Listener) remove(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
	if l.closed && len(l.conns) == 0 {
		close(l.idle)
	}
}

func (l *Listener) active() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.conns)
}

// handle opens a stream for one connection and lets it be carried.
func (l *Listener) handle(c net.Conn) {
	start := time.Now()
	trace := link.NewTrace()
	var s *link.Stream
	err := lifecycle.Guard(l.log, "open", func() (err error) {
		s, err = l.cfg.Open(l.ctx, link.OpenRequest{Route: l.cfg.Route, Priority: l.cfg.Priority, Peer: c.RemoteAddr().String(), Trace: trace})
		return err
	})
	if err != nil {
		defer l.wg.Done()
		defer l.remove(c)
		l.failed.Inc()
		l.log.Warn("connection refused", append(logging.Error(err), logging.FieldPeer, c.RemoteAddr().String(), logging.FieldTrace, link.TraceID(trace), "waited_ms", time.Since(start).Milliseconds())...)
		reset(c)
		return
	}
	l.log.Info("connection opened", streamAttrs(s)...)
	relay.Start(s, c.(relay.Conn), func(err error) {
		defer l.wg.Done()
		defer l.remove(c)
		l.ended(s, start, err)
	})
}

func streamAttrs(s *link.Stream) []any {
	return []any{logging.FieldStream, strconv.FormatUint(uint64(s.ID()), 10), logging.FieldTunnel, s.Tunnel().Name(), logging.FieldPeer, s.Request().Peer,
		logging.FieldTrace, link.TraceID(s.Request().Trace)}
}

func (l *Listener) ended(s *link.Stream, start time.Time, err error) {
	sent, received := s.Totals()
	attrs := append(streamAttrs(s), "sent", sent, "received", received, "duration_ms", time.Since(start).Milliseconds(), "open_us", s.OpenLatency().Microseconds())
	if err != nil {
		l.failed.Inc()
		l.log.Warn("connection ended", append(attrs, logging.Error(err)...)...)
		return
	}
	l.log.Info("connection ended", attrs...)
}

// reset closes a connection so that its peer sees an error, not an end.
func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	c.Close()
}

// Close stops accepting and waits for connections until ctx ends; then it cuts what is left.
func (l *Listener) Close(ctx context.Context) error {
	l.l.Close()
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		if len(l.conns) == 0 {
			close(l.idle)
		}
	}
	l.mu.Unlock()
	var err error
	select {
	case <-l.idle:
	case <-ctx.Done():
		err = errs.Wrap(errs.Canceled, context.Cause(ctx), "%d connections of listener %s were cut", l.active(), l.cfg.Name)
		l.cutAll()
	}
	l.cut()
	l.wg.Wait()
	return err
}

func (l *Listener) cutAll() {
	l.cut()
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		reset(c)
	}
}

// Status describes a listener.
type Status struct {
	Name     string `json:"name"`
	Listen   string `json:"listen"`
	Route    string `json:"route"`
	Priority string `json:"priority"`
	Active   int    `json:"active"`
	Total    uint64 `json:"total"`
}

// Status returns a snapshot.
func (l *Listener) Status() Status {
	listen := l.l.Addr().String()
	if l.l.Addr().Network() == "unix" {
		listen = "unix:" + listen
	}
	return Status{Name: l.cfg.Name, Listen: listen, Route: l.cfg.Route, Priority: l.cfg.Priority.String(), Active: l.active(), Total: l.total.Get()}
}
