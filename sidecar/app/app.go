// Package app builds a sidecar from its configuration and stops it in order; it has no other business.
package app

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	sharedconfig "fairlead/shared/config"
	"fairlead/shared/errs"
	"fairlead/shared/lifecycle"
	"fairlead/shared/link"
	"fairlead/shared/telemetry"
	"fairlead/sidecar/admin"
	"fairlead/sidecar/config"
	"fairlead/sidecar/learned"
	"fairlead/sidecar/listener"
	"fairlead/sidecar/queue"
	"fairlead/sidecar/spool"
	"fairlead/sidecar/tunnel"
)

// Options is what a sidecar gets beside its configuration.
type Options struct {
	Logger   *slog.Logger
	SetLevel func(string) error // changes the log level; nil: it cannot be changed
	Instance string
	Version  string
	// InPod says that a Kubernetes pod's grace period bounds the stop, so that shutdown.pod_drain counts.
	InPod bool
	// Load reads the configuration anew, for POST /api/reload; nil: that is not offered.
	Load func() (*sharedconfig.Loaded[config.Config], error)
	// Loaded is where the configuration came from, for GET /api/config; nil: that is not offered.
	Loaded *sharedconfig.Loaded[config.Config]
}

// App is a sidecar.
type App struct {
	opts       Options
	started    time.Time
	log        *slog.Logger
	stack      *lifecycle.Stack
	metrics    *telemetry.Telemetry
	compressor *link.Compressor
	token      *tokenSource
	learned    *learned.File
	pool       *tunnel.Pool
	queue      *queue.Queue
	spool      *spool.Spool // nil when no listener spools
	admin      *admin.Server
	ask        context.CancelCauseFunc
	asked      context.Context // ends when the API asks to stop, or reconnecting was given up; its cause says which
	quitting   chan struct{}   // closed when the API was asked to quit, be it after another wish to stop
	quitOnce   sync.Once
	stopping   stopping
	wasReady   atomic.Bool

	loading   sync.Mutex // one reload of the file at a time; apart from reloading, for a file that is slow to read must delay no stop
	reloading sync.Mutex // one reload at a time, and no stop begins meanwhile

	mu        sync.Mutex // guards what follows
	cfg       config.Config
	loaded    *sharedconfig.Loaded[config.Config]
	listeners []bound
	retired   []*listener.Listener // that accept no more, while they have connections
	group     *lifecycle.Group     // nil before Run
}

// bound is a listener with the configuration that it has.
type bound struct {
	*listener.Listener
	cfg config.Listener
}

// New builds a sidecar. Everything it listens on is bound when New returns.
func New(cfg config.Config, opts Options) (_ *App, err error) {
	a := &App{cfg: cfg, loaded: opts.Loaded, log: opts.Logger, opts: opts, started: time.Now().UTC(), quitting: make(chan struct{})}
	a.asked, a.ask = context.WithCancelCause(context.Background())
	if a.stack, err = lifecycle.NewStack(lifecycle.StackConfig{Log: opts.Logger}); err != nil {
		return nil, err
	}
	defer a.stack.Unwind(&err)
	if a.metrics, err = telemetry.New(telemetry.Config{Prefix: "fairlead_sidecar", Instance: opts.Instance, Version: opts.Version}); err != nil {
		return nil, err
	}
	if a.compressor, err = link.NewCompressor(); err != nil {
		return nil, err
	}
	a.metrics.Set().RegisterMetricsWriter(func(w io.Writer) { a.compressor.WriteMetrics(w, "fairlead_sidecar") })
	if a.token, err = newTokenSource(cfg.Gateway); err != nil {
		return nil, err
	}
	if a.learned, err = learned.Open(learned.Config{Path: cfg.StateFile, Logger: a.log}); err != nil {
		return nil, err
	}
	a.queue = queue.New(queueConfig(cfg.Queue, a))
	a.stack.Push("queue", a.queue.Close)
	if a.pool, err = a.newPool(); err != nil {
		return nil, err
	}
	if err = a.newSpool(); err != nil {
		return nil, err
	}
	if cfg.Admin.Listen != "" {
		if err = a.newAdmin(); err != nil {
			return nil, err
		}
	}
	a.stack.Push("listeners", a.closeListeners)
	for _, l := range cfg.Listeners {
		ln, err := listener.New(a.listenerConfig(cfg, l))
		if err != nil {
			return nil, err
		}
		a.listeners = append(a.listeners, bound{ln, l})
	}
	return a, nil
}

func (a *App) newAdmin() (err error) {
	setLevel := a.opts.SetLevel
	if setLevel == nil {
		setLevel = func(string) error {
			return errs.New(errs.BadRequest, "the log level of this process cannot be changed")
		}
	}
	c := admin.Config{Listen: a.cfg.Admin.Listen, Ready: a.ready, Status: a.Status, Reconnect: a.pool.Reconnect,
		Drain: func() { a.ask(errDrain) }, Quit: a.quit, SetLevel: setLevel, Logger: a.log,
		Metrics: func(w io.Writer) error { _, err := a.metrics.WriteTo(w); return err }}
	if a.spool != nil {
		c.Routes = func(mux *http.ServeMux) { a.spool.Routes(mux) }
	}
	if a.loaded != nil {
		c.Configuration = a.effective
	}
	if a.opts.Load != nil {
		c.Reload = a.ReloadFile
	}
	if a.admin, err = admin.New(c); err == nil {
		a.stack.Push("admin", a.admin.Shutdown)
	}
	return err
}

// open begins a stream, which waits in the queue if there is no tunnel.
func (a *App) open(ctx context.Context, req link.OpenRequest) (s *link.Stream, err error) {
	err = a.queue.Do(ctx, req.Priority, func() (err error) {
		s, err = a.pool.Open(req)
		return err
	})
	return s, err
}

// ready says whether a connection would be carried.
func (a *App) ready() error {
	if a.stopping.begun() {
		return errs.New(errs.ShuttingDown, "the sidecar is stopping")
	}
	return a.pool.Usable()
}

// Addr is the address of a listener; nil if there is none of that name.
func (a *App) Addr(name string) net.Addr {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, l := range a.listeners {
		if l.cfg.Name == name {
			return l.Addr()
		}
	}
	return nil
}

// AdminAddr is the address of the admin API; nil when it is off.
func (a *App) AdminAddr() net.Addr {
	if a.admin == nil {
		return nil
	}
	return a.admin.Addr()
}

// Ready says whether connections would be carried now.
func (a *App) Ready() bool { return a.ready() == nil }

// WasReady says whether a connection would have been carried at any time.
func (a *App) WasReady() bool { return a.wasReady.Load() }

// Changed returns a channel that is closed when the state of a tunnel changes next.
func (a *App) Changed() <-chan struct{} { return a.pool.Changed() }

func (a *App) config() config.Config {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.cfg
}

// Run serves until ctx ends or the API asks to stop, then stops in order, as docs/pod-life.md says.
func (a *App) Run(ctx context.Context) error {
	poolCtx, stopPool := context.WithCancel(context.WithoutCancel(ctx))
	defer stopPool()
	group, running := lifecycle.NewGroup(poolCtx, a.log)
	group.Go("tunnels", a.pool.Run)
	group.Go("learned", a.learned.Run)
	group.Go("token", func(ctx context.Context) error { return a.token.watch(ctx, a.pool.Renew) })
	if a.spool != nil {
		group.Go("spool", a.spool.Run)
	}
	if a.admin != nil {
		group.Go("admin", func(context.Context) error { return a.admin.Serve() })
	}
	a.serve(group)
	select {
	case <-ctx.Done():
	case <-a.asked.Done():
	case <-running.Done():
	}
	a.stop(ctx, stopPool)
	err := group.Wait()
	a.learned.Flush() // the pool learns to its end
	if err != nil {
		return err
	}
	a.log.Info("stopped")
	if cause := context.Cause(a.asked); errors.Is(cause, errs.GaveUp) {
		return cause
	}
	return nil
}

// serve lets the listeners accept, also those that a reload binds from now on.
func (a *App) serve(group *lifecycle.Group) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.group = group
	for _, l := range a.listeners {
		group.Go("listener", func(context.Context) error { return l.Serve() })
	}
}
