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

	"fairlead/gateway/admin/history"
	"fairlead/gateway/audit"
	"fairlead/gateway/auth"
	"fairlead/gateway/backend"
	"fairlead/gateway/breaker"
	"fairlead/gateway/config"
	"fairlead/gateway/limit"
	"fairlead/gateway/peer"
	"fairlead/gateway/policy"
	"fairlead/gateway/server"
	"fairlead/gateway/session"
	"fairlead/gateway/store"
	"fairlead/shared/adminapi"
	sharedconfig "fairlead/shared/config"
	"fairlead/shared/errs"
	"fairlead/shared/lifecycle"
	"fairlead/shared/link"
	"fairlead/shared/logging"
	"fairlead/shared/telemetry"
)

// Options is what a gateway gets beside its configuration.
type Options struct {
	Logger   *slog.Logger
	SetLevel func(string) error // changes the log level; nil: it cannot be changed
	Level    func() string      // the log level; nil: it is not told
	Instance string             // the replica's name
	Version  string

	// Load reads the configuration anew from where it came from: file, environment and flags. Nil: there is only the one
	// that New was given, and reloading takes the files that it names.
	Load func() (*sharedconfig.Loaded[config.Config], error)
	// Loaded is what Load returned for New's configuration; nil: there are no sources to show.
	Loaded *sharedconfig.Loaded[config.Config]
}

// App is a gateway.
type App struct {
	cfg         atomic.Pointer[config.Config]                      // in force
	effective   atomic.Pointer[sharedconfig.Loaded[config.Config]] // with sources; nil: they are not known
	reloading   sync.Mutex                                         // one reload at a time
	watched     watched                                            // its sums are guarded by reloading
	opts        Options
	log         *slog.Logger
	stack       *lifecycle.Stack
	metrics     *telemetry.Telemetry
	auth        *auth.Verifier
	policy      atomic.Pointer[policy.Policy]
	limits      *limit.Limiter
	pressure    *limit.Pressure  // nil: nothing is shed
	memory      *link.Budget     // of all tunnels
	compressor  *link.Compressor // of all tunnels
	audit       audit.Recorder   // told of every act
	trail       *audit.Log       // where acts are recorded; nil: nowhere
	paced       *audit.Paced     // before it; nil like it
	history     *history.History // what the page shows of the last minutes
	latency     *history.Latency // of opens, for that
	revocations *auth.Revocations
	breaker     *breaker.Breaker
	backends    *backend.Set
	self        store.Replica // but for what changes
	store       store.Store
	peer        *peer.Peer                      // nil: other replicas cannot reach this one, nor it them
	health      chan struct{}                   // the store's has changed, or this replica's
	unpinned    chan struct{}                   // it may not have the host keys that were trusted here
	known       atomic.Pointer[[]store.Replica] // the directory, as seen last; nil: never
	sessions    *session.Registry
	server      *server.Server
	admin       *adminapi.Server
	certs       *certificate
	started     time.Time
	stopping    atomic.Bool
	drained     atomic.Bool
	why         atomic.Value    // a string: why it stops; set before stopping
	asked       context.Context // ends when the API asks to drain
	ask         context.CancelFunc
	aside       context.Context // of what runs beside the servers
	endAside    context.CancelFunc
	asides      sync.WaitGroup
}

const (
	handshakeTimeout = 10 * time.Second

	// drainSpread is the part of the drain in which sidecars move, each at a moment of its own.
	drainSpread = 3
)

// New builds a gateway. Everything it listens on is bound when New returns.
func New(cfg config.Config, opts Options) (_ *App, err error) {
	a := &App{opts: opts, log: opts.Logger, started: time.Now(), health: make(chan struct{}, 1), unpinned: make(chan struct{}, 1)}
	a.cfg.Store(&cfg)
	a.effective.Store(opts.Loaded)
	if opts.Loaded != nil {
		a.watched.file = opts.Loaded.File
	}
	a.watched.sums = a.watched.read(cfg)
	a.asked, a.ask = context.WithCancel(context.Background())
	a.aside, a.endAside = context.WithCancel(context.Background())
	if a.stack, err = lifecycle.NewStack(lifecycle.StackConfig{Log: opts.Logger}); err != nil {
		return nil, err
	}
	defer a.stack.Unwind(&err)
	if a.metrics, err = telemetry.New(telemetry.Config{Prefix: "fairlead_gateway", Instance: opts.Instance, Version: opts.Version}); err != nil {
		return nil, err
	}
	for _, build := range []func() error{a.newAudit, a.newStore, a.newPeer, a.newAuth, a.newPolicy, a.newLimits, a.newBackends, a.newSessions, a.newServer, a.newAdmin} {
		if err = build(); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// config is the configuration that is in force.
func (a *App) config() config.Config { return *a.cfg.Load() }

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
	if a.shared() {
		a.pull(ctx) // nobody is let in whom other replicas have locked out
	}
	group, running := lifecycle.NewGroup(context.WithoutCancel(ctx), a.log)
	group.Go("server", func(context.Context) error { return a.server.Serve() })
	if a.peer != nil {
		group.Go("peer port", func(context.Context) error { return a.peer.Serve() })
	}
	if a.admin != nil {
		group.Go("admin", func(context.Context) error { return a.admin.Serve() })
	}
	for name, f := range a.beside() {
		a.asides.Add(1)
		group.Go(name, func(context.Context) error {
			defer a.asides.Done()
			return f(a.aside)
		})
	}
	select {
	case <-ctx.Done():
	case <-a.asked.Done():
	case <-running.Done():
	}
	a.why.Store(a.reason(ctx))
	a.stopping.Store(true)
	a.lifecycle(drains+": %s, for up to %s", a.reason(ctx), a.config().Shutdown.Drain)
	a.log.Info("stopping", logging.FieldReason, a.reason(ctx), "drain", a.config().Shutdown.Drain.String())
	a.drain()
	a.drained.Store(true)
	stopErr := a.stop()
	if err := group.Wait(); err != nil {
		return err
	}
	if stopErr != nil {
		a.log.Warn("stopped with open ends", logging.FieldError, stopErr.Error())
	}
	a.log.Info("stopped")
	return nil
}

// beside is what runs beside the servers.
func (a *App) beside() map[string]func(context.Context) error {
	all := map[string]func(context.Context) error{"watch": a.watch, "review": a.review, "sample": a.sample, "leases": a.sessions.Share, "replicas": a.share, "balance": a.balance,
		"limits": a.limits.Run, "circuits": a.breaker.Run, "host keys": a.pin}
	if a.pressure != nil {
		all["pressure"] = a.pressure.Run
	}
	return all
}

// stopBeside ends what runs beside the servers. It comes after these and what they had to give back, and before the store, which
// is told of that, and that this replica is gone.
func (a *App) stopBeside(ctx context.Context) error {
	a.endAside()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		a.asides.Wait()
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
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
	ctx, cancel := context.WithTimeout(context.Background(), a.config().Shutdown.Drain)
	defer cancel()
	a.tellHealth() // others need not send anything here any more
	var plain sync.WaitGroup
	plain.Go(func() { a.server.Drain(ctx) })
	if a.peer != nil {
		plain.Go(func() { a.peer.End(ctx, a.config().Shutdown.Drain/drainSpread) })
	}
	a.sessions.Drain(ctx, a.config().Shutdown.Drain, a.config().Shutdown.Drain/drainSpread)
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
	if a.trail != nil && a.config().Audit.OnFailure == config.AuditRefuse {
		if s := a.trail.Status(); !s.FailingSince.IsZero() {
			return errs.New(errs.AuditFailed, "the audit log cannot be written, and audit.on_failure is %s", config.AuditRefuse)
		}
	}
	return a.auth.Ready()
}

func (a *App) writeMetrics(w io.Writer) error {
	_, err := a.metrics.WriteTo(w)
	return err
}
