package store

import (
	"time"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/shared/telemetry"
)

// meter counts calls, and times those that were made.
type meter struct {
	set *metrics.Set
}

func newMeter(set *metrics.Set, r *Redis) *meter {
	if set == nil {
		set = metrics.NewSet()
	}
	set.NewGauge("fairlead_gateway_store_up", func() float64 {
		if r.Health().Up {
			return 1
		}
		return 0
	})
	return &meter{set: set}
}

func (m *meter) took(op string, d time.Duration) {
	m.set.GetOrCreatePrometheusHistogramExt(telemetry.Name("fairlead_gateway_store_seconds", "op", op), telemetry.LatencyBuckets()).Update(d.Seconds())
}

func (m *meter) failed(op, kind string) {
	m.set.GetOrCreateCounter(telemetry.Name("fairlead_gateway_store_errors_total", "op", op, "kind", kind)).Inc()
}
