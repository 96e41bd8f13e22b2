package session

import (
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/shared/telemetry"
)

// defaultTenants is how many tenants have metrics of their own: each has some twenty series.
const defaultTenants = 200

// tenantMetrics counts per tenant. The tenants are bounded: those that come too late share one label.
type tenantMetrics struct {
	set     *metrics.Set
	labels  *telemetry.Tenants
	byLabel sync.Map // label to *tenantCounts
}

type tenantCounts struct {
	opened, refused, failed *metrics.Counter
	sent, received          *metrics.Counter
	latency                 *metrics.PrometheusHistogram
}

func newTenantMetrics(set *metrics.Set, most int) *tenantMetrics {
	if most <= 0 {
		most = defaultTenants
	}
	labels, _ := telemetry.NewTenants(most) // fails only for less than one
	return &tenantMetrics{set: set, labels: labels}
}

func (t *tenantMetrics) of(tenant string) *tenantCounts {
	label := t.labels.Label(tenant)
	if c, ok := t.byLabel.Load(label); ok {
		return c.(*tenantCounts)
	}
	name := func(metric string, more ...string) string {
		return telemetry.Name("fairlead_gateway_tenant_"+metric, append([]string{"tenant", label}, more...)...)
	}
	c, _ := t.byLabel.LoadOrStore(label, &tenantCounts{
		opened:   t.set.GetOrCreateCounter(name("opens_total", "result", "opened")),
		refused:  t.set.GetOrCreateCounter(name("opens_total", "result", "refused")),
		failed:   t.set.GetOrCreateCounter(name("opens_total", "result", "failed")),
		sent:     t.set.GetOrCreateCounter(name("bytes_total", "direction", "sent")),
		received: t.set.GetOrCreateCounter(name("bytes_total", "direction", "received")),
		latency:  t.set.GetOrCreatePrometheusHistogramExt(name("open_seconds"), telemetry.LatencyBuckets()),
	})
	return c.(*tenantCounts)
}

// opened counts an open by how it ended.
func (t *tenantMetrics) opened(tenant string, took time.Duration, err error) {
	c := t.of(tenant)
	c.latency.Update(took.Seconds())
	switch {
	case err == nil:
		c.opened.Inc()
	case failure(err):
		c.failed.Inc()
	default:
		c.refused.Inc()
	}
}

func (t *tenantMetrics) carried(tenant string, sent, received uint64) {
	if sent+received == 0 {
		return
	}
	c := t.of(tenant)
	c.sent.AddInt64(int64(sent))
	c.received.AddInt64(int64(received))
}

// TenantTotals is what the opens and bytes of a tenant have come to; tenants that share a label share its totals.
type TenantTotals struct {
	Opened, Refused, Failed uint64
	Sent, Received          uint64
}

// TenantTotals returns the totals by tenant label.
func (o *Opener) TenantTotals() map[string]TenantTotals {
	all := map[string]TenantTotals{}
	o.tenants.byLabel.Range(func(label, counts any) bool {
		c := counts.(*tenantCounts)
		all[label.(string)] = TenantTotals{Opened: c.opened.Get(), Refused: c.refused.Get(), Failed: c.failed.Get(), Sent: c.sent.Get(), Received: c.received.Get()}
		return true
	})
	return all
}
