package load

import (
	"slices"
	"time"
)

// Quantiles sums up a set of durations.
type Quantiles struct {
	P50 time.Duration `json:"p50"`
	P95 time.Duration `json:"p95"`
	P99 time.Duration `json:"p99"`
	Max time.Duration `json:"max"`
}

// quantiles sorts samples in place. A quantile is the smallest sample that at least its share of samples does not
// exceed (nearest rank).
func quantiles(samples []time.Duration) Quantiles {
	if len(samples) == 0 {
		return Quantiles{}
	}
	slices.Sort(samples)
	at := func(percent int) time.Duration {
		rank := (len(samples)*percent + 99) / 100
		return samples[max(rank, 1)-1]
	}
	return Quantiles{at(50), at(95), at(99), samples[len(samples)-1]}
}

// Median is the middle of values, or the mean of the two in the middle; 0 of none. It does not change values.
func Median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}
