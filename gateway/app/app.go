// Package app builds a gateway from its configuration and stops it in order; it has no other business.
package app

import (
	"context"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"fairlead/gateway/auth"
	"fairlead/gateway/backend"
	"fairlead/gateway/breaker"
	"fairlead/gateway/config"
	"fairlead/gateway/limit"
	"fairlead/gateway/policy"
	"fairlead/gateway/server"
	"fairlead/gateway/session"
	"fairlead/shared/adminapi"
	"fairlead/shared/errs"
	"fairlead/shared/lifecycle"
	"fairlead/shared/logging"
	"fairlead/shared/telemetry"
)

// Options is what a gateway gets beside its configuration.
type Options struct {
	Logger    *slog.Logger
	SetLevel  func(string) error // changes the log level; nil: it cannot be changed
	Instance  string             // the replica's name
	Version   string
	Effective any // the configuration as GET /api/tunnel/config shows it: masked, with sources
}

// App is a gateway.
type App struct {
	cfg      config.Config
	opts     Options
	log      *slog.Logger
	stack    *lifecycle.Stack
	metrics  *telemetry.Telemetry
	auth     *auth.Verifier
	policy   atomic.Pointer[policy.Policy]
	limits   *limit.Limiter
	breaker  *breaker.Breaker
	backends *backend.Set
	sessions *session.Registry
	server   *server.Server
	admin    *adminapi.Server
	certs    *certificate
	started  time.Time
	stopping atomic.Bool
	asked    context.Context // ends when the API asks to drain
	ask      context.CancelFunc
}

const (
	openTimeout      = 30 * time.Second
	slowOpen         = 5 * time.Second
	handshakeTimeout = 10 * time.Second

	// drainSpread is the part of the drain in which sidecars move, each at a moment of its own.
	drainSpread = 3
)

// New builds a gateway. Everything it listens on is bound when New returns.
func New(cfg config.Config, opts Options) (_ *App, err error) {
	a := &App{cfg: cfg, opts: opts, log: opts.Logger, started: time.Now()}
	a.asked, a.ask = context.WithCancel(context.Background())
	if a.stack, err = lifecycle.NewStack(lifecycle.StackConfig{Log: opts.Logger}); err != nil {
		return nil, err
	}
	defer a.stack.Unwind(&err)
	if a.metrics, err = telemetry.New(telemetry.Config{Prefix: "fairlead_gateway", Instance: opts.Instance, Version: opts.Version}); err != nil {
		return nil, err
	}
	for _, build := range []func() error{a.newAuth, a.newPolicy, a.newLimits, a.newBackends, a.newSessions, a.newServer, a.newAdmin} {
		if err = build(); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// Addr is the address of the public listener.
func (a *App) Addr() net.Addr { return a.server.Addr() }

// AdminAddr is the address of the admin API; nil when it is off.
func (a *App) AdminAddr() net.Addr {
	if a.admin == nil {
		return nil
	}
	return a.admin.Addr()
}

// Run serves until ctx ends or the API asks to drain, then lets streams finish for as long as shutdown.drain and stops.
func (a *App) Run(ctx context.Context) error {
	group, running := lifecycle.NewGroup(context.WithoutCancel(ctx), a.log)
	group.Go("server", func(context.Context) error { return a.server.Serve() })
	if a.admin != nil {
		group.Go("admin", func(context.Context) error { return a.admin.Serve() })
	}
	if a.certs != nil {
		group.Go("certificates", func(ctx context.Context) error { return a.certs.watch(ctx, a.log) })
	}
	select {
	case <-ctx.Done():
	case <-a.asked.Done():
	case <-running.Done():
	}
	a.stopping.Store(true)
	a.log.Info("stopping", logging.FieldReason, a.reason(ctx), "drain", a.cfg.Shutdown.Drain.String())
	a.drain()
	stopErr := a.stop()
	if a.certs != nil {
		a.certs.close()
	}
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
	if sig, ok := lifecycle.SignalOf(ctx); ok {
		return sig.Reason()
	}
	if ctx.Err() != nil {
		return "canceled"
	}
	if a.asked.Err() != nil {
		return "api"
	}
	return "failure"
}

// drain waits for streams, those of tunnels and plain ones.
func (a *App) drain() {
	ctx, cancel := context.WithTimeout(context.Background(), a.cfg.Shutdown.Drain)
	defer cancel()
	var plain sync.WaitGroup
	plain.Go(func() { a.server.Drain(ctx) })
	a.sessions.Drain(ctx, a.cfg.Shutdown.Drain, a.cfg.Shutdown.Drain/drainSpread)
	plain.Wait()
}

// stopTime bounds what follows the drain: closing, not waiting.
const stopTime = 5 * time.Second

func (a *App) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTime)
	defer cancel()
	return a.stack.Stop(ctx)
}

// ready says whether a connection would work.
func (a *App) ready() error {
	if a.stopping.Load() {
		return errs.New(errs.Draining, "this gateway is going away")
	}
	return nil
}

func (a *App) writeMetrics(w io.Writer) error {
	_, err := a.metrics.WriteTo(w)
	return err
}
