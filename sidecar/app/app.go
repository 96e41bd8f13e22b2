// Package app builds a sidecar from its configuration and stops it in order; it has no other business.
package app

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"time"

	sharedconfig "fairlead/shared/config"
	"fairlead/shared/errs"
	"fairlead/shared/lifecycle"
	"fairlead/shared/link"
	"fairlead/shared/logging"
	"fairlead/shared/telemetry"
	"fairlead/sidecar/admin"
	"fairlead/sidecar/config"
	"fairlead/sidecar/listener"
	"fairlead/sidecar/queue"
	"fairlead/sidecar/tunnel"
)

// Options is what a sidecar gets beside its configuration.
type Options struct {
	Logger   *slog.Logger
	SetLevel func(string) error // changes the log level; nil: it cannot be changed
	Instance string
	Version  string
}

// App is a sidecar.
type App struct {
	cfg       config.Config
	log       *slog.Logger
	stack     *lifecycle.Stack
	metrics   *telemetry.Telemetry
	token     *tokenSource
	pool      *tunnel.Pool
	queue     *queue.Queue
	listeners []*listener.Listener
	admin     *admin.Server
	opts      Options
	started   time.Time
	quit      context.CancelCauseFunc
	asked     context.Context // ends when the API asks to stop
	draining  chan struct{}
	setLevel  func(string) error
	wasReady  atomic.Bool
}

// New builds a sidecar. Everything it listens on is bound when New returns.
func New(cfg config.Config, opts Options) (_ *App, err error) {
	a := &App{cfg: cfg, log: opts.Logger, opts: opts, started: time.Now().UTC(), setLevel: opts.SetLevel, draining: make(chan struct{})}
	a.asked, a.quit = context.WithCancelCause(context.Background())
	if a.stack, err = lifecycle.NewStack(lifecycle.StackConfig{Log: opts.Logger}); err != nil {
		return nil, err
	}
	defer a.stack.Unwind(&err)
	if a.metrics, err = telemetry.New(telemetry.Config{Prefix: "fairlead_sidecar", Instance: opts.Instance, Version: opts.Version}); err != nil {
		return nil, err
	}
	if a.token, err = newTokenSource(cfg.Gateway); err != nil {
		return nil, err
	}
	a.queue = queue.New(queue.Config{Size: cfg.Queue.Size, Wait: cfg.Queue.Wait, Metrics: a.metrics.Set()})
	if a.pool, err = a.newPool(); err != nil {
		return nil, err
	}
	if cfg.Admin.Listen != "" {
		if err = a.newAdmin(opts); err != nil {
			return nil, err
		}
	}
	return a, a.newListeners()
}

func (a *App) newListeners() error {
	for _, l := range a.cfg.Listeners {
		prio, err := link.ParsePriority(l.Priority)
		if err != nil {
			return errs.Wrap(errs.ConfigInvalid, err, "listener %s", l.Name)
		}
		ln, err := listener.New(listener.Config{Name: l.Name, Listen: l.Listen, Route: l.Route, Priority: prio, Open: a.open,
			Logger: a.log, Metrics: a.metrics.Set()})
		if err != nil {
			return err
		}
		a.listeners = append(a.listeners, ln)
		a.stack.Push("listener "+l.Name, ln.Close)
	}
	return nil
}

func (a *App) newAdmin(opts Options) (err error) {
	setLevel := opts.SetLevel
	if setLevel == nil {
		setLevel = func(string) error {
			return errs.New(errs.BadRequest, "the log level of this process cannot be changed")
		}
	}
	a.admin, err = admin.New(admin.Config{Listen: a.cfg.Admin.Listen, Ready: a.ready, Status: a.Status,
		Reconnect: a.pool.Reconnect, Drain: a.drain, Quit: func() { a.quit(errQuit) }, SetLevel: setLevel, Logger: a.log,
		Metrics: func(w io.Writer) error { _, err := a.metrics.WriteTo(w); return err }})
	if err == nil {
		a.stack.Push("admin", a.admin.Shutdown)
	}
	return err
}

var errQuit = errors.New("asked to stop")

// open begins a stream for a connection, which waits in the queue if there is no tunnel.
func (a *App) open(ctx context.Context, req link.OpenRequest) (s *link.Stream, err error) {
	err = a.queue.Do(ctx, req.Priority, func() (err error) {
		s, err = a.pool.Open(req)
		return err
	})
	return s, err
}

// ready says whether a connection would be carried.
func (a *App) ready() error {
	select {
	case <-a.draining:
		return errs.New(errs.ShuttingDown, "the sidecar is draining")
	default:
	}
	if !a.pool.Ready() {
		return errs.New(errs.NoTunnel, "there is no tunnel to a gateway")
	}
	return nil
}

// drain stops the sidecar once its connections have ended.
func (a *App) drain() { a.quit(errQuit) }

// Addr is the address of a listener; nil if there is none of that name.
func (a *App) Addr(name string) net.Addr {
	for i, l := range a.cfg.Listeners {
		if l.Name == name {
			return a.listeners[i].Addr()
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

// Reload takes a changed configuration. The log's level takes effect at once, tokens are read anew anyway; it says what
// needs a restart. No connection is dropped for it.
func (a *App) Reload(cfg config.Config) error {
	changed := sharedconfig.Diff(a.cfg, cfg)
	if a.setLevel != nil {
		if err := a.setLevel(cfg.Log.Level); err != nil {
			return err
		}
	}
	applied, restart := sharedconfig.Split(changed, []string{"log.level"})
	a.cfg.Log.Level = cfg.Log.Level
	a.log.Info("configuration reloaded", "applied", strings.Join(applied, ", "), "needs_restart", strings.Join(restart, ", "))
	return nil
}

// Run serves until ctx ends or the API asks to stop, then stops in order: connections first, for as long as
// shutdown.drain, then the tunnels, then the API.
func (a *App) Run(ctx context.Context) error {
	poolCtx, stopPool := context.WithCancel(context.WithoutCancel(ctx))
	defer stopPool()
	group, running := lifecycle.NewGroup(poolCtx, a.log)
	group.Go("tunnels", a.pool.Run)
	group.Go("token", func(ctx context.Context) error { return a.token.watch(ctx, a.pool.Renew) })
	for _, l := range a.listeners {
		group.Go("listener", func(context.Context) error { return l.Serve() })
	}
	if a.admin != nil {
		group.Go("admin", func(context.Context) error { return a.admin.Serve() })
	}
	select {
	case <-ctx.Done():
	case <-a.asked.Done():
	case <-running.Done():
	}
	close(a.draining)
	a.log.Info("stopping", logging.FieldReason, a.reason(ctx), "drain", a.cfg.Shutdown.Drain.String())
	stopErr := a.stop(stopPool)
	if err := group.Wait(); err != nil {
		return err
	}
	if stopErr != nil {
		a.log.Warn("stopped with open ends", logging.FieldError, stopErr.Error())
	}
	a.log.Info("stopped")
	return nil
}

func (a *App) reason(ctx context.Context) string {
	sig, signaled := lifecycle.SignalOf(ctx)
	switch {
	case signaled:
		return sig.Reason()
	case ctx.Err() != nil:
		return "canceled"
	case a.asked.Err() != nil:
		return "api"
	}
	return "failure"
}

// stop ends the listeners with their connections, then the tunnels: they are below the listeners on the stack.
func (a *App) stop(stopPool context.CancelFunc) error {
	ctx, cancel := context.WithTimeout(context.Background(), a.cfg.Shutdown.Drain)
	defer cancel()
	defer stopPool()
	return a.stack.Stop(ctx)
}
