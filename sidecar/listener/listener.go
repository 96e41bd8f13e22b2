// Package listener accepts the application's connections and carries each over a stream.
package listener

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/logging"
	"fairlead/sidecar/queue"
)

// Config is what a Listener needs.
type Config struct {
	Name     string
	Listen   string // host:port, or unix:/path
	Route    string
	Priority link.Priority
	// Open begins a stream. With a Queue it must not block, and when it fails with NoTunnel the connection waits there;
	// without, it may wait itself.
	Open func(ctx context.Context, req link.OpenRequest) (*link.Stream, error)
	// Queue is where connections wait for a tunnel; its pressure slows accepting. Nil: see Open.
	Queue *queue.Queue
	// EarlyBytes is how much is kept of what a connection brings while it waits in Queue, in bytes; the kernel holds the rest.
	EarlyBytes int
	// Handle takes each connection instead of Open, as a spool does, and returns when it is done with it. It need not close
	// the connection, which is a *net.TCPConn or *net.UnixConn; after an error that is reset. took is to be told how many bytes
	// were taken from it. Its context ends when the connection is cut.
	Handle  func(ctx context.Context, c net.Conn, took func(n int)) error
	Logger  *slog.Logger
	Metrics *metrics.Set
}

// Listener serves one listening address.
type Listener struct {
	cfg    Config
	sock   *socket
	log    *slog.Logger
	ctx    context.Context // of connections
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup // connections
	count  counters

	mu       sync.Mutex
	conns    map[*conn]struct{}
	quiet    time.Time     // since when there are no connections; zero while there are some
	turned   chan struct{} // closed when that changes next
	stop     chan struct{} // closed when accepting is to end
	serving  chan struct{} // closed when Serve has returned; nil before it was called
	cutBy    error         // why what was left was cut; nil before
	sent     uint64        // bytes of connections that are over, from the application
	received uint64        // and to it
}

type counters struct {
	total, failed, cut, pauses *metrics.Counter
	active                     *metrics.Gauge
}

// New binds the address.
func New(cfg Config) (*Listener, error) {
	sock, err := bind(cfg.Listen)
	if err != nil {
		return nil, errs.Wrap(errs.ListenFailed, err, "listener %s cannot listen on %s", cfg.Name, cfg.Listen)
	}
	return newOn(sock, cfg), nil
}

// newOn makes a Listener of a socket. One of the same name may have been there before, and may still carry connections:
// they share the figures.
func newOn(sock *socket, cfg Config) *Listener {
	label := `{listener="` + cfg.Name + `"}`
	l := &Listener{cfg: cfg, sock: sock, conns: map[*conn]struct{}{}, quiet: time.Now(), turned: make(chan struct{}), stop: make(chan struct{}),
		log: cfg.Logger.With("listener", cfg.Name, logging.FieldRoute, cfg.Route),
		count: counters{
			total:  cfg.Metrics.GetOrCreateCounter("fairlead_sidecar_connections_total" + label),
			failed: cfg.Metrics.GetOrCreateCounter("fairlead_sidecar_connections_failed_total" + label),
			cut:    cfg.Metrics.GetOrCreateCounter("fairlead_sidecar_connections_cut_total" + label),
			pauses: cfg.Metrics.GetOrCreateCounter("fairlead_sidecar_accept_pauses_total" + label),
			active: cfg.Metrics.GetOrCreateGauge("fairlead_sidecar_connections"+label, nil),
		}}
	l.ctx, l.cancel = context.WithCancelCause(context.Background())
	return l
}

// Addr is the address it listens on.
func (l *Listener) Addr() net.Addr { return l.sock.Addr() }

// Active is the number of connections that are open, those that wait for a tunnel included.
func (l *Listener) Active() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.conns)
}

// Status describes a listener.
type Status struct {
	Name     string `json:"name"`
	Listen   string `json:"listen"`
	Route    string `json:"route"`
	Priority string `json:"priority"`
	Delivery string `json:"delivery"`       // stream or spool
	Active   int    `json:"active"`         // connections that are open, waiting ones included
	Waiting  int    `json:"waiting"`        // connections that wait for a tunnel
	Total    uint64 `json:"total"`          // connections since the start
	Failed   uint64 `json:"failed"`         // connections that were refused, broke or were cut, since the start
	Sent     uint64 `json:"bytes_sent"`     // from applications, of this listener
	Received uint64 `json:"bytes_received"` // to applications
}

// Status returns a snapshot.
func (l *Listener) Status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	st := Status{Name: l.cfg.Name, Listen: l.sock.name(), Route: l.cfg.Route, Priority: l.cfg.Priority.String(), Delivery: "stream",
		Active: len(l.conns), Total: l.count.total.Get(), Failed: l.count.failed.Get(), Sent: l.sent, Received: l.received}
	if l.cfg.Handle != nil {
		st.Delivery = "spool"
	}
	for c := range l.conns {
		if c.waiting {
			st.Waiting++
		}
		sent, received := c.totals()
		st.Sent += sent
		st.Received += received
	}
	return st
}
