package telemetry_test

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"fairlead/shared/errs"
	"fairlead/shared/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newTelemetry(t *testing.T) *telemetry.Telemetry {
	t.Helper()
	tel, err := telemetry.New(telemetry.Config{Prefix: "fairlead_test", Instance: "gw-0", Version: "1.2.3"})
	require.NoError(t, err)
	return tel
}

func text(t *testing.T, tel *telemetry.Telemetry) string {
	t.Helper()
	var b bytes.Buffer
	n, err := tel.WriteTo(&b)
	require.NoError(t, err)
	require.EqualValues(t, b.Len(), n)
	return b.String()
}

func TestWritesOwnAndProcessMetrics(t *testing.T) {
	tel := newTelemetry(t)
	tel.Set().NewCounter(tel.Name("streams_total", "route", "git", "tenant", "a/b")).Add(3)
	out := text(t, tel)
	assert.Contains(t, out, `fairlead_test_streams_total{route="git",tenant="a/b"} 3`+"\n")
	assert.Regexp(t, `fairlead_test_build_info\{goversion="go[^"]+",instance="gw-0",version="1.2.3"\} 1`, out)
	assert.Contains(t, out, "process_resident_memory_bytes ")
	assert.Contains(t, out, "go_goroutines ")
}

func TestInstancesAreSeparate(t *testing.T) {
	a, b := newTelemetry(t), newTelemetry(t)
	a.Set().NewCounter(a.Name("x_total")).Inc()
	assert.NotContains(t, text(t, b), "fairlead_test_x_total")
}

func TestHistogramHasRealBuckets(t *testing.T) {
	tel := newTelemetry(t)
	h := tel.Histogram(nil, "open_seconds", "route", "git")
	assert.Same(t, h, tel.Histogram(nil, "open_seconds", "route", "git"))
	h.Update(0.0015)
	h.Update(100)
	out := text(t, tel)
	bucket := regexp.MustCompile(`(?m)^fairlead_test_open_seconds_bucket\{route="git",le="[^"]+"\} \d+$`)
	assert.Len(t, bucket.FindAllString(out, -1), len(telemetry.LatencyBuckets())+1)
	assert.Contains(t, out, `le="0.001"} 0`)
	assert.Contains(t, out, `le="0.002"} 1`)
	assert.Contains(t, out, `le="30"} 1`)
	assert.Contains(t, out, `le="+Inf"} 2`)
	assert.NotContains(t, out, "vmrange")
}

func TestChildrenAreDroppedWhole(t *testing.T) {
	tel := newTelemetry(t)
	child := tel.Child()
	child.NewCounter(tel.Name("dials_total", "backend", "git")).Inc()
	tel.Histogram(child, "dial_seconds", "backend", "git").Update(1)
	assert.Contains(t, text(t, tel), `fairlead_test_dials_total{backend="git"} 1`)
	tel.Drop(child)
	assert.NotContains(t, text(t, tel), `backend="git"`)
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

func TestReportsFailedWritesAndBadPrefixes(t *testing.T) {
	_, err := newTelemetry(t).WriteTo(failing{})
	require.Error(t, err)
	for _, prefix := range []string{"", "9x", "a b", "a\n"} {
		_, err := telemetry.New(telemetry.Config{Prefix: prefix})
		require.ErrorIs(t, err, errs.Internal, "%q", prefix)
	}
}

// Any label value gives a name that the metrics library takes and one line of output.
func TestNameSurvivesAnyLabelValue(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		value := rapid.OneOf(rapid.String(), rapid.StringMatching(`[a-z"\\\n]{0,200}`),
			rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) })).Draw(rt, "value")
		name := telemetry.Name("x_total", "tenant", value)
		if err := metrics.ValidateMetric(name); err != nil {
			rt.Fatalf("%q: %v", name, err)
		}
		clean := telemetry.LabelValue(value)
		if !utf8.ValidString(clean) || len(clean) > 128 || strings.ContainsAny(clean, "\"\\\n") {
			rt.Fatalf("%q became %q", value, clean)
		}
		if err := telemetry.ValidLabelValue(clean); err != nil {
			rt.Fatal(err)
		}
	})
	assert.Equal(t, `x{a="b",c=""}`, telemetry.Name("x", "a", "b", "c"))
	assert.Equal(t, "x", telemetry.Name("x"))
}

func TestValidLabelValue(t *testing.T) {
	require.NoError(t, telemetry.ValidLabelValue("payments/orders"))
	for _, bad := range []string{"a\nb", `a"b`, `a\b`, "\xff", strings.Repeat("x", 129), "a\x00"} {
		require.ErrorIs(t, telemetry.ValidLabelValue(bad), errs.BadRequest, "%q", bad)
	}
}

func TestTenantsAreBounded(t *testing.T) {
	tenants, err := telemetry.NewTenants(3)
	require.NoError(t, err)
	assert.Equal(t, "a", tenants.Label("a"))
	assert.Equal(t, "b_c", tenants.Label("b\nc"))
	var wg sync.WaitGroup
	labels := make([]string, 50)
	for i := range labels {
		wg.Go(func() { labels[i] = tenants.Label(fmt.Sprint("t", i)) })
	}
	wg.Wait()
	named := 0
	for _, l := range labels {
		if l != telemetry.OtherTenant {
			named++
		}
	}
	assert.Equal(t, 1, named)
	assert.Equal(t, "a", tenants.Label("a"), "the first ones keep their names")
	_, err = telemetry.NewTenants(0)
	require.ErrorIs(t, err, errs.Internal)
}
