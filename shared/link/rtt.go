package link

import "time"

// rttEstimate smooths round trips as TCP does (RFC 6298: one eighth of each new sample), and keeps the least one, which is
// the path without queues. The least is let go slowly, so that a changed path shows.
type rttEstimate struct {
	smoothed, least, last time.Duration
}

func (r *rttEstimate) add(sample time.Duration) {
	sample = max(sample, time.Microsecond)
	r.last = sample
	if r.smoothed == 0 {
		r.smoothed, r.least = sample, sample
		return
	}
	r.smoothed += (sample - r.smoothed) / 8
	r.least = min(r.least+r.least/32, sample)
}
