package history

import (
	"sort"
	"sync/atomic"
	"time"
)

// Latency counts durations in buckets, for Sample.Opened. It takes no lock: opens are on the hot path.
type Latency struct {
	bounds []float64 // seconds, ascending
	counts []atomic.Uint64
}

// NewLatency makes a Latency with these upper bounds in seconds, ascending; the slice is kept.
func NewLatency(bounds []float64) *Latency {
	return &Latency{bounds: bounds, counts: make([]atomic.Uint64, len(bounds)+1)}
}

// Observe counts one duration.
func (l *Latency) Observe(d time.Duration) {
	l.counts[sort.SearchFloat64s(l.bounds, d.Seconds())].Add(1)
}

// Counts is how many durations fell into each bucket so far, as Sample.Opened wants them.
func (l *Latency) Counts() []uint64 {
	counts := make([]uint64, len(l.counts))
	for i := range l.counts {
		counts[i] = l.counts[i].Load()
	}
	return counts
}

// quantile estimates the q-quantile of counts in milliseconds, evenly spread within its bucket as Prometheus'
// histogram_quantile does it; above the last bound: that bound. It is nil when nothing was counted.
func quantile(q float64, bounds []float64, counts []uint64) *float64 {
	var total uint64
	for _, n := range counts {
		total += n
	}
	if total == 0 || len(bounds) == 0 {
		return nil
	}
	rank, below := q*float64(total), uint64(0)
	value := bounds[len(bounds)-1]
	for i, upper := range bounds {
		if n := counts[i]; n > 0 && float64(below+n) >= rank {
			lower := 0.0
			if i > 0 {
				lower = bounds[i-1]
			}
			value = lower + (upper-lower)*(rank-float64(below))/float64(n)
			break
		}
		below += counts[i]
	}
	ms := value * 1000
	return &ms
}
