// Package telemetry holds the metrics of one instance of a program and writes them as Prometheus text.
package telemetry

import (
	"bytes"
	"io"
	"regexp"
	"runtime"
	"slices"
	"sync"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/shared/errs"
)

var prefixPattern = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)

// Config says whose metrics these are.
type Config struct {
	Prefix   string // begins every name, such as "fairlead_gateway"; required, [a-z][a-z0-9_]*
	Instance string // label of build_info that tells instances apart; may be empty
	Version  string // label of build_info; may be empty
}

// Telemetry is the metrics of one instance: a main set, and child sets that can be dropped whole. Safe for concurrent use.
type Telemetry struct {
	prefix string
	set    *metrics.Set

	mu       sync.Mutex
	children []*metrics.Set // guarded by mu
}

// New makes the metrics of an instance, with `<prefix>_build_info` already in them.
func New(c Config) (*Telemetry, error) {
	if !prefixPattern.MatchString(c.Prefix) {
		return nil, errs.New(errs.Internal, "telemetry: prefix %q: allowed is [a-z][a-z0-9_]*", c.Prefix)
	}
	t := &Telemetry{prefix: c.Prefix, set: metrics.NewSet()}
	name := t.Name("build_info", "goversion", runtime.Version(), "instance", c.Instance, "version", c.Version)
	t.set.NewGauge(name, func() float64 { return 1 })
	return t, nil
}

// Set is the main set, for metrics that live as long as the instance.
func (t *Telemetry) Set() *metrics.Set { return t.set }

// Child makes a set of its own for metrics that end before the instance does, such as those of one backend: removing
// single metrics is a linear scan, dropping a set is not.
func (t *Telemetry) Child() *metrics.Set {
	s := metrics.NewSet()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.children = append(t.children, s)
	return s
}

// Drop removes a set that Child made, with all its metrics.
func (t *Telemetry) Drop(s *metrics.Set) {
	t.mu.Lock()
	t.children = slices.DeleteFunc(t.children, func(c *metrics.Set) bool { return c == s })
	t.mu.Unlock()
	s.UnregisterAllMetrics()
}

// Name builds a metric's full name, `<prefix>_<name>{key="value",…}`, from pairs of label keys and values. Values pass
// through LabelValue, so that whatever a stranger chose cannot break the output. Names and keys are the program's own: a
// malformed one panics in the set, at start.
func (t *Telemetry) Name(name string, labels ...string) string {
	return Name(t.prefix+"_"+name, labels...)
}

// Histogram registers a histogram of seconds with the buckets of LatencyBuckets in set (nil: the main set). Name and
// labels are as for Name; the name ends in "_seconds" by convention.
func (t *Telemetry) Histogram(set *metrics.Set, name string, labels ...string) *metrics.PrometheusHistogram {
	if set == nil {
		set = t.set
	}
	return set.GetOrCreatePrometheusHistogramExt(t.Name(name, labels...), LatencyBuckets())
}

// LatencyBuckets are the upper bounds, in seconds, of all latency histograms. They are the same everywhere so that
// replicas can be added up; the range spans an open on one machine (below 1 ms) and the longest wait in a queue (30 s).
func LatencyBuckets() []float64 {
	return []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30}
}

// WriteTo writes all metrics of the instance and of its process (memory, CPU, goroutines, open files) as Prometheus text.
func (t *Telemetry) WriteTo(w io.Writer) (int64, error) {
	t.mu.Lock()
	children := slices.Clone(t.children)
	t.mu.Unlock()
	var b bytes.Buffer // the sets' writers report no errors: gather first, write once
	t.set.WritePrometheus(&b)
	for _, c := range children {
		c.WritePrometheus(&b)
	}
	metrics.WriteProcessMetrics(&b)
	return b.WriteTo(w)
}
