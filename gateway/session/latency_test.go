package session_test

import (
	"bytes"
	"regexp"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"context"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/gateway/session"
	"fairlead/shared/relay"
)

// buckets are the cumulative counts of a histogram by upper bound.
func (w *world) buckets(name string) map[string]int {
	var b bytes.Buffer
	w.set.WritePrometheus(&b)
	counts := map[string]int{}
	for _, m := range regexp.MustCompile(`(?m)^`+name+`_bucket\{le="([^"]+)"\} (\d+)$`).FindAllStringSubmatch(b.String(), -1) {
		counts[m[1]], _ = strconv.Atoi(m[2])
	}
	return counts
}

// Replicas' histograms have the same bounds, so that their counts add up, and a quantile of the sum is one of all opens. What
// the gateway adds to an open is told apart from what its backend takes.
//
// Verifies: R3.6
func TestLatenciesOfReplicasAddUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sum, added := map[string]int{}, map[string]int{}
		for _, takes := range []time.Duration{time.Millisecond, 150 * time.Millisecond} {
			w := newWorld(t, func(_ *session.Config, o *session.OpenerConfig) {
				o.Backends = backends(func(context.Context, string, string) (relay.Conn, error) {
					pass(takes)
					return newEcho(), nil
				})
			})
			s := w.mustConnect(alice())
			for range 10 {
				s.open(t)
			}
			for le, n := range w.buckets("fairlead_gateway_open_seconds") {
				sum[le] += n
			}
			for le, n := range w.buckets("fairlead_gateway_open_added_seconds") {
				added[le] += n
			}
			w.Sample(time.Second)
			require.NotEmpty(t, w.buckets("fairlead_gateway_tunnel_rtt_seconds"))
			s.leave()
			w.close()
		}
		assert.Equal(t, 20, sum["+Inf"])
		assert.Equal(t, 10, sum["0.001"], "the median of all is at a millisecond")
		assert.Equal(t, 10, sum["0.1"])
		assert.Equal(t, 20, sum["0.2"], "and their 95th and 99th percentiles between 100 and 200 ms")
		assert.Equal(t, 20, added["0.0005"], "of which the gateway adds nothing")
	})
}
