package limit

import (
	"fmt"

	"github.com/VictoriaMetrics/metrics"
)

// counts are refusals, by the limit that was reached.
type counts struct {
	opens, streams, tunnels, handshakes, tenants *metrics.Counter
}

func newCounts(set *metrics.Set) counts {
	if set == nil {
		set = metrics.NewSet()
	}
	refusals := func(limit string) *metrics.Counter {
		return set.GetOrCreateCounter(fmt.Sprintf("fairlead_gateway_limit_refusals_total{limit=%q}", limit))
	}
	return counts{
		opens:      refusals("opens"),
		streams:    refusals("streams"),
		tunnels:    refusals("tunnels"),
		handshakes: refusals("handshakes"),
		tenants:    refusals("tenants"),
	}
}
