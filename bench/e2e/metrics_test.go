package e2e

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// sample is a line of the Prometheus text format (version 0.0.4), with its labels in their order.
var sample = regexp.MustCompile(`^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*",? ?)*)\})? (\S+)$`)

// metrics are the values of a page of metrics by name and labels.
type metrics map[string]float64

// parseMetrics reads a page of metrics. Every line must be of the format, and no series may come twice.
func parseMetrics(t *testing.T, text string) metrics {
	t.Helper()
	all := metrics{}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" || strings.HasPrefix(line, "# ") {
			continue
		}
		parts := sample.FindStringSubmatch(line)
		require.NotNil(t, parts, "%q is no sample", line)
		value, err := strconv.ParseFloat(parts[3], 64)
		require.NoError(t, err, line)
		series := parts[1]
		if parts[2] != "" {
			series += "{" + parts[2] + "}"
		}
		require.NotContains(t, all, series)
		all[series] = value
	}
	return all
}

// histograms checks that every histogram of the programs, other than those of the Go runtime, has cumulative le buckets up
// to +Inf, a sum and a count, and returns their names with labels other than le.
func (m metrics) histograms(t *testing.T, text string) []string {
	t.Helper()
	assert.NotContains(t, text, "vmrange", "buckets that only VictoriaMetrics reads")
	var found []string
	last, at := map[string]float64{}, map[string]float64{}
	for line := range strings.Lines(text) { // in the order of the page
		parts := sample.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if parts == nil || !strings.HasPrefix(parts[1], "fairlead_") || !strings.HasSuffix(parts[1], "_bucket") {
			continue
		}
		labels, le := splitLE(t, parts[2])
		name := strings.TrimSuffix(parts[1], "_bucket") + labels
		value, err := strconv.ParseFloat(parts[3], 64)
		require.NoError(t, err)
		if _, seen := last[name]; seen {
			assert.Greater(t, le, at[name], "bounds rise: %s", line)
			assert.GreaterOrEqual(t, value, last[name], "buckets are cumulative: %s", line)
		} else {
			found = append(found, name)
		}
		last[name], at[name] = value, le
	}
	for _, name := range found {
		base, labels, _ := strings.Cut(name, "{")
		if labels != "" {
			labels = "{" + labels
		}
		assert.Equal(t, m[base+"_count"+labels], last[name], "the last bucket of %s holds all", name)
		assert.Contains(t, m, base+"_sum"+labels)
		assert.Greater(t, at[name], 1e300, "the last bound of %s is +Inf", name)
	}
	return found
}

// splitLE takes the label le out of labels.
func splitLE(t *testing.T, labels string) (rest string, le float64) {
	t.Helper()
	var others []string
	for _, l := range strings.Split(labels, ",") {
		if value, ok := strings.CutPrefix(l, `le="`); ok {
			bound, err := strconv.ParseFloat(strings.TrimSuffix(value, `"`), 64)
			require.NoError(t, err)
			le = bound
			continue
		}
		others = append(others, l)
	}
	if len(others) == 0 {
		return "", le
	}
	return "{" + strings.Join(others, ",") + "}", le
}

func TestMetricsArePrometheusText(t *testing.T) {
	const opens = 7
	w := newWorld(t, withTarget("echo", newTarget(t, echoServer)), withForward("behind", newTarget(t, echoServer)), withTarget("dead", closedAddr(t)))
	for range opens - 1 {
		echoes(t, w.dial("echo"), "counted")
	}
	echoes(t, w.dial("behind"), "counted")
	w.refused("dead")
	await(t, "the refused stream is forgotten", func() bool {
		return strings.Contains(get(t, w.gateway.url("/metrics")), fmt.Sprintf("fairlead_gateway_streams %d\n", opens))
	})
	text := get(t, w.gateway.url("/metrics"))
	gateway := parseMetrics(t, text)
	assert.EqualValues(t, opens, gateway["fairlead_gateway_streams_opened_total"])
	assert.EqualValues(t, opens, gateway["fairlead_gateway_streams"])
	assert.EqualValues(t, 1, gateway["fairlead_gateway_tunnels"])
	assert.EqualValues(t, 1, gateway[`fairlead_gateway_streams_refused_total{code="FL-S402"}`])
	assert.EqualValues(t, 1, gateway[`fairlead_gateway_authentications_total{result="accepted",code=""}`])
	histograms := gateway.histograms(t, text)
	assert.Contains(t, histograms, "fairlead_gateway_open_seconds")
	assert.EqualValues(t, opens+1, gateway["fairlead_gateway_open_seconds_count"])
	same := parseMetrics(t, get(t, w.gateway.url("/api/tunnel/metrics")))
	for series := range gateway {
		assert.Contains(t, same, series, "the API has what /metrics has")
	}

	text = get(t, w.sidecar.url("/metrics"))
	sidecar := parseMetrics(t, text)
	sidecar.histograms(t, text)
	assert.EqualValues(t, 1, sidecar["fairlead_sidecar_tunnels"])
	assert.EqualValues(t, opens-1, sidecar[`fairlead_sidecar_connections_total{listener="echo"}`])
	assert.EqualValues(t, opens-1, sidecar[`fairlead_sidecar_connections{listener="echo"}`])
	await(t, "the failed connection is counted", func() bool {
		return parseMetrics(t, get(t, w.sidecar.url("/metrics")))[`fairlead_sidecar_connections_failed_total{listener="dead"}`] == 1
	})
	for name, m := range map[string]metrics{"gateway": gateway, "sidecar": sidecar} {
		assert.Contains(t, m, "process_resident_memory_bytes", name)
		assert.Contains(t, m, "go_goroutines", name)
	}
}
