package admin

import (
	"context"
	"slices"
	"sync"
	"time"

	"fairlead/sidecar/status"
)

const (
	sampleEvery = time.Second
	samplesKept = 600 // ten minutes
	ratesOver   = 5   // samples
)

// history keeps the samples of the last minutes, for charts.
type history struct {
	mu             sync.Mutex
	samples        []status.Sample // oldest first
	at             time.Time       // of the totals; zero before the first
	sent, received uint64
}

// run takes samples until ctx ends.
func (h *history) run(ctx context.Context, of func() status.Status) {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	h.add(of(), time.Now()) // the totals that the first sample counts from
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			h.add(of(), now)
		}
	}
}

// add takes a sample, but for the first time, when there is nothing yet to tell a rate from.
func (h *history) add(st status.Status, now time.Time) {
	s := status.Sample{Time: now.UTC(), State: st.State, RTT: st.RTT, Loss: st.Loss, Queue: st.Queue.Length}
	var sent, received uint64
	for _, l := range st.Listeners {
		s.Connections += l.Active
		sent, received = sent+l.Sent, received+l.Received
	}
	if st.Spool != nil {
		s.SpoolBytes = st.Spool.Bytes
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	elapsed := now.Sub(h.at).Seconds()
	first := h.at.IsZero()
	s.Sent, s.Received = rate(h.sent, sent, elapsed), rate(h.received, received, elapsed)
	h.at, h.sent, h.received = now, sent, received
	if first {
		return
	}
	if len(h.samples) == samplesKept {
		h.samples = slices.Delete(h.samples, 0, 1)
	}
	h.samples = append(h.samples, s)
}

// rate is never negative: the bytes of a listener that was taken out are not in the later total.
func rate(before, now uint64, seconds float64) float64 {
	if now <= before || seconds <= 0 {
		return 0
	}
	return float64(now-before) / seconds
}

func (h *history) list() []status.Sample {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]status.Sample{}, h.samples...)
}

// rates is the mean of the last samples.
func (h *history) rates() (r status.Rates) {
	h.mu.Lock()
	defer h.mu.Unlock()
	last := h.samples[max(0, len(h.samples)-ratesOver):]
	for _, s := range last {
		r.Sent += s.Sent / float64(len(last))
		r.Received += s.Received / float64(len(last))
	}
	return r
}
