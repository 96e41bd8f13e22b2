package limit

import (
	"fmt"
	"sync/atomic"

	"github.com/VictoriaMetrics/metrics"
)

// counts are refusals, by the limit that was reached, and waits.
type counts struct {
	opens, streams, tunnels, handshakes, strangers, tenants *metrics.Counter
	bandwidth                                               *[directions]pacerCounts
}

// pacerCounts are of one direction, of all tenants together.
type pacerCounts struct {
	waits   *metrics.Counter // pieces that had to wait
	waiting atomic.Int64     // those that wait now
}

func newCounts(set *metrics.Set, l *Limiter) counts {
	if set == nil {
		set = metrics.NewSet()
	}
	c := counts{
		opens:      refusals(set, Opens),
		streams:    refusals(set, Streams),
		tunnels:    refusals(set, Tunnels),
		handshakes: refusals(set, Handshakes),
		strangers:  refusals(set, Unauthenticated),
		tenants:    refusals(set, "tenants"),
		bandwidth:  new([directions]pacerCounts),
	}
	for d, name := range []string{toBackend: "to_backend", fromBackend: "from_backend"} {
		b := &c.bandwidth[d]
		b.waits = set.NewCounter(fmt.Sprintf("fairlead_gateway_bandwidth_waits_total{direction=%q}", name))
		set.NewGauge(fmt.Sprintf("fairlead_gateway_bandwidth_waiting{direction=%q}", name), func() float64 { return float64(b.waiting.Load()) })
	}
	set.NewGauge("fairlead_gateway_limit_tenants", func() float64 { return float64(l.Tracked()) })
	set.NewGauge("fairlead_gateway_unauthenticated_connections", func() float64 { return float64(l.Strangers()) })
	if l.shared != nil {
		l.shared.count(set)
	}
	return c
}

// sharedCounts are what Shared has answered, and what it was told.
type sharedCounts struct {
	granted, refused, failed *metrics.Counter
	renewed, dropped         *metrics.Counter
	slots                    atomic.Int64 // held here
}

func (sh *shared) count(set *metrics.Set) {
	c := &sh.counts
	for result, counter := range map[string]**metrics.Counter{"granted": &c.granted, "refused": &c.refused, "failed": &c.failed} {
		*counter = set.GetOrCreateCounter(fmt.Sprintf("fairlead_gateway_limit_shared_total{result=%q}", result))
	}
	c.renewed = set.GetOrCreateCounter("fairlead_gateway_limit_renewed_total")
	c.dropped = set.GetOrCreateCounter("fairlead_gateway_limit_returns_dropped_total")
	set.NewGauge("fairlead_gateway_limit_slots", func() float64 { return float64(c.slots.Load()) })
	set.NewGauge("fairlead_gateway_limit_degraded", func() float64 {
		if sh.mode.load() == together {
			return 0
		}
		return 1
	})
}

func refusals(set *metrics.Set, limit string) *metrics.Counter {
	return set.GetOrCreateCounter(fmt.Sprintf("fairlead_gateway_limit_refusals_total{limit=%q}", limit))
}
