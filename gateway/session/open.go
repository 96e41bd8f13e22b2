package session

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
	"fairlead/shared/relay"
	"fairlead/shared/telemetry"
)

// Identity is who a verified token speaks for.
type Identity struct {
	Tenant  string
	Subject string
	Issuer  string
	TokenID string
	Tier    string
	Expires time.Time
}

// Policy says which routes a tenant may open.
type Policy interface {
	Allow(tenant, route string) error
}

// Limits hands out what a tenant may have at once. The function it returns gives it back and may be called repeatedly.
type Limits interface {
	Open(tenant, tier string) (release func(), err error)
	Tunnel(tenant, tier string) (release func(), err error)
}

// Backends connects routes.
type Backends interface {
	Dial(ctx context.Context, tenant, route string) (relay.Conn, error)
}

// OpenerConfig is what an Opener needs.
type OpenerConfig struct {
	Policy   Policy
	Limits   Limits
	Backends Backends
	Timeout  time.Duration // for an open to be served; R5.6
	Slow     time.Duration // opens that take longer are counted and logged
	Metrics  *metrics.Set
	Now      func() time.Time
}

// Opener serves opens, of streams in tunnels and of plain ones alike: token, policy, limits, backend, in this order.
type Opener struct {
	cfg     OpenerConfig
	opened  *metrics.Counter
	slow    *metrics.Counter
	latency *metrics.PrometheusHistogram
}

// NewOpener makes an Opener.
func NewOpener(cfg OpenerConfig) *Opener {
	return &Opener{cfg: cfg,
		opened:  cfg.Metrics.NewCounter("fairlead_gateway_streams_opened_total"),
		slow:    cfg.Metrics.NewCounter("fairlead_gateway_opens_slow_total"),
		latency: cfg.Metrics.NewPrometheusHistogramExt("fairlead_gateway_open_seconds", telemetry.LatencyBuckets()),
	}
}

// Opened is a backend connection with the slot that its stream holds.
type Opened struct {
	Conn    relay.Conn
	Release func() // gives the slot back; to be called once the stream is over
	Latency time.Duration
}

// Open connects route for who, or says why not. peer and log's attributes are for the log only; one line tells how the
// open ended.
func (o *Opener) Open(ctx context.Context, who Identity, route string, log *slog.Logger) (*Opened, error) {
	start := time.Now()
	opened, err := o.open(ctx, who, route)
	took := time.Since(start)
	o.latency.Update(took.Seconds())
	if took > o.cfg.Slow {
		o.slow.Inc()
		log.Warn("slow open", logging.FieldRoute, route, "took_ms", took.Milliseconds())
	}
	if err != nil {
		o.refused(err).Inc()
		log.Warn("stream refused", append(logging.Error(err), logging.FieldRoute, route)...)
		return nil, err
	}
	o.opened.Inc()
	opened.Latency = took
	log.Info("stream opened", logging.FieldRoute, route, "open_us", took.Microseconds())
	return opened, nil
}

func (o *Opener) refused(err error) *metrics.Counter {
	return o.cfg.Metrics.GetOrCreateCounter(`fairlead_gateway_streams_refused_total{code="` + errs.CodeOf(err).String() + `"}`)
}

func (o *Opener) open(ctx context.Context, who Identity, route string) (*Opened, error) {
	if !o.cfg.Now().Before(who.Expires) {
		return nil, errs.New(errs.TokenExpired, "the token of %s expired at %s", who.Subject, who.Expires.UTC().Format(time.RFC3339))
	}
	if err := o.cfg.Policy.Allow(who.Tenant, route); err != nil {
		return nil, err
	}
	release, err := o.cfg.Limits.Open(who.Tenant, who.Tier)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, o.cfg.Timeout)
	defer cancel()
	var conn relay.Conn
	defer func() {
		if conn == nil { // also when the dial panics
			release()
		}
	}()
	conn, err = o.cfg.Backends.Dial(ctx, who.Tenant, route)
	if err != nil {
		conn = nil
		if errors.Is(err, context.DeadlineExceeded) && errs.CodeOf(err) == errs.Internal {
			err = errs.Wrap(errs.OpenTimeout, err, "route %s was not connected within %v", route, o.cfg.Timeout)
		}
		return nil, err
	}
	return &Opened{Conn: conn, Release: release}, nil
}
