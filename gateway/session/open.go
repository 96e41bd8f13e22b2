package session

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"fairlead/gateway/audit"
	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/logging"
	"fairlead/shared/relay"
	"fairlead/shared/telemetry"

	"github.com/VictoriaMetrics/metrics"
)

// Policy says which routes a tenant may open.
type Policy interface {
	Allow(tenant, route string) error
}

// Limits hands out what a tenant may have. The functions it returns give it back and may be called repeatedly.
type Limits interface {
	Open(tenant, tier string) (release func(), err error)
	Tunnel(tenant, tier string) (release func(), err error)
	// Pace keeps a connection's bytes within the tenant's bandwidth; c itself when that has no limit.
	Pace(tenant, tier string, c relay.Conn) relay.Conn
	// Budget bounds what the tunnels of the tenant together retain.
	Budget(tenant, tier string) (budget *link.Budget, release func())
	// Shed and ShedTunnel refuse what is new while the process is short of memory or CPU.
	Shed(tenant string, p link.Priority) error
	ShedTunnel(tenant string) error
}

// modePassthrough is Destination.Mode of routes that carry the client's own SSH.
const modePassthrough = "passthrough"

// Destination is where a route leads.
type Destination struct {
	Backend string
	Address string // of the backend
	Mode    string
	Target  string // behind the backend; empty in mode passthrough
	// Compression is what the route allows its streams; auto: what the opener wishes, and if that is auto too, compression unless the
	// mode is passthrough, whose bytes are encrypted.
	Compression link.Compression
}

// compresses decides what an opener that can compress gets. Whoever says no is obeyed first, then who says yes.
func (d Destination) compresses(wish link.Compression) bool {
	switch {
	case wish == link.CompressOff || d.Compression == link.CompressOff:
		return false
	case wish == link.CompressOn || d.Compression == link.CompressOn:
		return true
	}
	return d.Mode != modePassthrough
}

// Backends connects routes.
type Backends interface {
	Dial(ctx context.Context, who Identity, route string) (relay.Conn, error)
	// Describe says where a route leads; ok is false when there is no such route.
	Describe(route string) (d Destination, ok bool)
}

// Ask is what somebody wants to open.
type Ask struct {
	Who      *Bearer
	Route    string
	Priority link.Priority
	Client   string // network address of who asks
	App      string // the application's address at the sidecar; empty for plain streams
	Tunnel   string // id; empty for plain streams
	Stream   string // id inside its tunnel
	Trace    string // trace id; may be empty
}

// OpenerConfig is what an Opener needs.
type OpenerConfig struct {
	Policy   Policy
	Revoked  func(Identity) error // what has become of a verified identity since; nil: nothing
	Limits   Limits
	Backends Backends
	Audit    audit.Recorder      // nil: nothing is recorded
	Timeout  time.Duration       // for an open to be served; R5.6
	Slow     time.Duration       // opens that take longer are counted and logged
	Observe  func(time.Duration) // told how long each open took; nil: nobody is
	// Waits makes a context for a dial, and tells after it what it waited for, as attributes of a log line; nil: not told.
	Waits   func(context.Context) (context.Context, func() []any)
	Tenants int // tenants with metrics of their own; the others share one; 0: 200
	Metrics *metrics.Set
	Now     func() time.Time
}

// Opener serves opens, of streams in tunnels and of plain ones alike: token, policy, load, limits, backend, in this order.
// It knows the streams that are open.
type Opener struct {
	cfg     OpenerConfig
	streams streamTable
	log     *logging.Tamed // refusals
	tenants *tenantMetrics
	opened  *metrics.Counter
	slow    *metrics.Counter
	latency *metrics.PrometheusHistogram
	added   *metrics.PrometheusHistogram
	probes  probeMetrics
}

// NewOpener makes an Opener.
func NewOpener(cfg OpenerConfig) *Opener {
	if cfg.Audit == nil {
		cfg.Audit = audit.Discard
	}
	if cfg.Revoked == nil {
		cfg.Revoked = func(Identity) error { return nil }
	}
	return &Opener{cfg: cfg,
		streams: newStreamTable(cfg.Metrics),
		log:     logging.NewTamed(),
		tenants: newTenantMetrics(cfg.Metrics, cfg.Tenants),
		opened:  cfg.Metrics.NewCounter("fairlead_gateway_streams_opened_total"),
		slow:    cfg.Metrics.NewCounter("fairlead_gateway_opens_slow_total"),
		latency: cfg.Metrics.NewPrometheusHistogramExt("fairlead_gateway_open_seconds", telemetry.LatencyBuckets()),
		added:   cfg.Metrics.NewPrometheusHistogramExt("fairlead_gateway_open_added_seconds", telemetry.LatencyBuckets()),
		probes:  newProbeMetrics(cfg.Metrics),
	}
}

// Open connects what is asked for, or says why not, in words that are fit for who asks. One line in the log, and one in the audit log, tells how it ended
// before Open returns. log's attributes name who asks. Whoever gets an Opened calls its Over when the stream has ended.
func (o *Opener) Open(ctx context.Context, ask Ask, log *slog.Logger) (*Opened, error) {
	start := time.Now()
	s := &Opened{Ask: ask, o: o, log: log, since: start}
	s.to, _ = o.cfg.Backends.Describe(ask.Route) // an unknown route leads nowhere; it is refused below
	err := o.open(ctx, s)
	took := time.Since(start)
	s.mu.Lock() // it is in the table already
	s.Latency = took
	s.mu.Unlock()
	if ask.probing() {
		if o.probed(s, err); err != nil {
			return nil, errs.Outward(err)
		}
		return s, nil
	}
	o.latency.Update(took.Seconds())
	if o.cfg.Observe != nil {
		o.cfg.Observe(took)
	}
	o.added.Update((took - s.dial).Seconds())
	if took > o.cfg.Slow {
		o.slow.Inc()
		attrs := []any{logging.FieldRoute, ask.Route, logging.FieldBackend, s.to.Backend, "took_ms", took.Milliseconds(), "dial_ms", s.dial.Milliseconds()}
		if s.waits != nil {
			attrs = append(attrs, s.waits()...)
		}
		log.Warn("slow open", attrs...)
	}
	o.tenants.opened(ask.Who.Identity().Tenant, took, err)
	if err != nil {
		o.refused(err).Inc()
		o.log.Say(log, slog.LevelWarn, errs.CodeOf(err).String()+ask.Who.Identity().Tenant, "stream refused", append(logging.Error(err), logging.FieldRoute, ask.Route)...)
		return nil, errs.Outward(err)
	}
	o.opened.Inc()
	log.Info("stream opened", logging.FieldRoute, ask.Route, logging.FieldBackend, s.to.Backend, "open_us", took.Microseconds())
	return s, nil
}

func (o *Opener) refused(err error) *metrics.Counter {
	return o.cfg.Metrics.GetOrCreateCounter(`fairlead_gateway_streams_refused_total{code="` + errs.CodeOf(err).String() + `"}`)
}

// open decides and connects, and has both recorded.
func (o *Opener) open(ctx context.Context, s *Opened) error {
	err := o.connect(ctx, s)
	if err == nil {
		// Who changes the policy, or revokes, ends the streams that are no longer allowed. From here on this one is found;
		// before, it was not.
		o.streams.add(s)
		err = o.permitted(s)
	}
	event := s.event(audit.Open, resultOf(err))
	event.Code, event.Detail, event.Duration = errs.CodeOf(err), detail(err), time.Since(s.since)
	if unrecorded := o.cfg.Audit.Record(event); err == nil {
		err = unrecorded
	}
	if err != nil && s.Conn != nil {
		o.streams.remove(s)
		s.Conn.Close()
		s.release()
	}
	return err
}

func (o *Opener) permitted(s *Opened) error {
	who := s.Who.Identity()
	if !o.cfg.Now().Before(who.Expires) {
		return errs.New(errs.TokenExpired, "the token of %s expired at %s", who.Subject, who.Expires.UTC().Format(time.RFC3339))
	}
	if err := o.cfg.Revoked(who); err != nil {
		return err
	}
	if s.probing() { // everybody may
		return nil
	}
	return o.cfg.Policy.Allow(who.Tenant, s.Route)
}

// connect asks everybody who has a say and dials. With an error nothing is held.
func (o *Opener) connect(ctx context.Context, s *Opened) error {
	if err := o.permitted(s); err != nil {
		return err
	}
	who := s.Who.Identity()
	if err := o.cfg.Limits.Shed(who.Tenant, s.Priority); err != nil {
		return err
	}
	release, err := o.cfg.Limits.Open(who.Tenant, who.Tier)
	if err != nil {
		return err
	}
	if s.probing() {
		s.Conn, s.release = o.cfg.Limits.Pace(who.Tenant, who.Tier, s.dialProbe()), release
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, o.cfg.Timeout)
	defer cancel()
	defer func() {
		if s.Conn == nil { // also when the dial panics
			release()
		}
	}()
	if o.cfg.Waits != nil {
		ctx, s.waits = o.cfg.Waits(ctx)
	}
	start := time.Now()
	conn, err := o.cfg.Backends.Dial(ctx, who, s.Route)
	s.dial = time.Since(start)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) && errs.CodeOf(err) == errs.Internal {
			err = errs.Wrap(errs.OpenTimeout, err, "route %s was not connected within %v", s.Route, o.cfg.Timeout)
		}
		return err
	}
	s.Conn, s.release = o.cfg.Limits.Pace(who.Tenant, who.Tier, conn), release
	return nil
}
