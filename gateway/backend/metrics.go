package backend

import (
	"time"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/shared/errs"
	"fairlead/shared/telemetry"
)

// counts are one backend's metrics, of all tenants together.
type counts struct {
	set   *metrics.Set
	name  string
	dials map[bool]*metrics.Counter // by success
	took  *metrics.PrometheusHistogram
	slow  *metrics.Counter
	conns *metrics.Gauge
	open  *metrics.Gauge // channels
	reuse *metrics.Counter
	dead  *metrics.Counter
}

func newCounts(set *metrics.Set, backend string) *counts {
	name := func(metric string, more ...string) string {
		return telemetry.Name("fairlead_gateway_backend_"+metric, append([]string{"backend", backend}, more...)...)
	}
	return &counts{
		set:  set,
		name: backend,
		dials: map[bool]*metrics.Counter{
			true:  set.GetOrCreateCounter(name("dials_total", "outcome", "ok")),
			false: set.GetOrCreateCounter(name("dials_total", "outcome", "failed")),
		},
		took: set.GetOrCreatePrometheusHistogramExt(name("dial_seconds"),
			[]float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}),
		slow:  set.GetOrCreateCounter(name("slow_dials_total")),
		conns: set.GetOrCreateGauge(name("ssh_connections"), nil),
		open:  set.GetOrCreateGauge(name("channels"), nil),
		reuse: set.GetOrCreateCounter(name("reused_total")),
		dead:  set.GetOrCreateCounter(name("ssh_connections_dead_total")),
	}
}

func (c *counts) dialed(took time.Duration, err error) {
	c.dials[err == nil].Inc()
	c.took.Update(took.Seconds())
}

// failed counts what Dial returns. Codes are few, so the series are too.
func (c *counts) failed(err error) {
	c.set.GetOrCreateCounter(telemetry.Name("fairlead_gateway_backend_errors_total", "backend", c.name, "code", errs.CodeOf(err).String())).Inc()
}
