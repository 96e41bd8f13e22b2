package backend

import (
	"time"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/shared/errs"
	"fairlead/shared/telemetry"
)

// MetricSets makes a set for one backend's metrics, and takes it back when the backend is gone. *telemetry.Telemetry is one.
type MetricSets interface {
	Child() *metrics.Set
	Drop(*metrics.Set)
}

// counts are one backend's metrics, of all tenants together. They go on when the backend is configured anew.
type counts struct {
	set  *metrics.Set
	own  bool // the set is this backend's alone, to be dropped with it
	name string

	dials        map[bool]*metrics.Counter // by success
	took         *metrics.PrometheusHistogram
	slow         *metrics.Counter
	conns        *metrics.Gauge
	retired      *metrics.Gauge // connections that give no new channels
	idle         *metrics.Gauge // connections without channels that give some: they are warm
	open         *metrics.Gauge // channels
	opened       *metrics.Counter
	reuse        *metrics.Counter // of opened
	dead         *metrics.Counter
	logins       *metrics.Counter
	warmLogins   *metrics.Counter // dials that nobody waited for
	certificates *metrics.Counter
}

func (s *Set) newCounts(backend string) *counts {
	set, own := s.metrics, false
	if s.metricSets != nil {
		set, own = s.metricSets.Child(), true
	}
	c := &counts{set: set, own: own, name: backend}
	c.dials = map[bool]*metrics.Counter{
		true:  set.GetOrCreateCounter(c.metric("dials_total", "outcome", "ok")),
		false: set.GetOrCreateCounter(c.metric("dials_total", "outcome", "failed")),
	}
	c.took = set.GetOrCreatePrometheusHistogramExt(c.metric("dial_seconds"), []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30})
	c.slow = set.GetOrCreateCounter(c.metric("slow_dials_total"))
	c.conns = set.GetOrCreateGauge(c.metric("ssh_connections"), nil)
	c.retired = set.GetOrCreateGauge(c.metric("ssh_connections_retired"), nil)
	c.idle = set.GetOrCreateGauge(c.metric("ssh_connections_idle"), nil)
	c.open = set.GetOrCreateGauge(c.metric("channels"), nil)
	c.opened = set.GetOrCreateCounter(c.metric("channels_opened_total"))
	c.reuse = set.GetOrCreateCounter(c.metric("reused_total"))
	c.dead = set.GetOrCreateCounter(c.metric("ssh_connections_dead_total"))
	c.logins = set.GetOrCreateCounter(c.metric("logins_total"))
	c.warmLogins = set.GetOrCreateCounter(c.metric("warm_dials_total"))
	c.certificates = set.GetOrCreateCounter(c.metric("certificates_total"))
	return c
}

// metric names a metric of the backend. What is put into labels besides are words of this package.
func (c *counts) metric(name string, more ...string) string {
	return telemetry.Name("fairlead_gateway_backend_"+name, append([]string{"backend", c.name}, more...)...)
}

func (c *counts) dialed(took time.Duration, err error) {
	c.dials[err == nil].Inc()
	c.took.Update(took.Seconds())
}

// failed counts what Dial returns. Codes are few, so the series are too.
func (c *counts) failed(err error) {
	c.set.GetOrCreateCounter(c.metric("errors_total", "code", errs.CodeOf(err).String())).Inc()
}

// loginFailed counts how far an SSH connection came, and returns err.
func (c *counts) loginFailed(phase string, err error) error {
	c.set.GetOrCreateCounter(c.metric("login_failures_total", "phase", phase)).Inc()
	return err
}

// ended counts why an SSH connection ended.
func (c *counts) ended(reason string) {
	c.set.GetOrCreateCounter(c.metric("ssh_connections_ended_total", "reason", reason)).Inc()
}

// probed counts a health check.
func (c *counts) probed(up bool, took time.Duration) {
	outcome, value := "failed", 0.0
	if up {
		outcome, value = "ok", 1
		c.set.GetOrCreatePrometheusHistogramExt(c.metric("probe_seconds"), telemetry.LatencyBuckets()).Update(took.Seconds())
	}
	c.set.GetOrCreateCounter(c.metric("probes_total", "outcome", outcome)).Inc()
	c.set.GetOrCreateGauge(c.metric("up"), nil).Set(value)
}

// unprobed removes what health checks found, since nobody looks any more.
func (c *counts) unprobed() { c.set.UnregisterMetric(c.metric("up")) }
