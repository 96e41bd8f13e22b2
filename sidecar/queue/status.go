package queue

import (
	"errors"
	"fmt"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/shared/errs"
	"fairlead/shared/link"
)

// Reason is why the queue refused a connection, as in the label of fairlead_sidecar_queue_refused_total.
type Reason string

// The reasons.
const (
	Full      Reason = "full"      // nobody of a lower priority waited
	Displaced Reason = "displaced" // one of a higher priority took the place
	GaveUp    Reason = "gave_up"   // no tunnel will come up by itself
	Closing   Reason = "closing"   // the sidecar is stopping
)

func reasons() []Reason { return []Reason{Full, Displaced, GaveUp, Closing} }

func reasonOf(err error) Reason {
	if errors.Is(err, errs.GaveUp) {
		return GaveUp
	}
	return Closing
}

// refusal is an error of the queue with its reason. Its code and text are those of err.
type refusal struct {
	err    error
	reason Reason
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// ReasonOf is why the queue refused the connection; empty when it did not.
func ReasonOf(err error) Reason {
	var r *refusal
	if errors.As(err, &r) {
		return r.reason
	}
	return ""
}

// refuse counts a refusal and gives it its reason.
func (q *Queue) refuse(prio link.Priority, reason Reason, err error) error {
	q.count.refused[reason][index(prio)].Inc()
	return &refusal{err, reason}
}

// byPriority is a counter for each priority.
type byPriority [link.Low + 1]*metrics.Counter

func index(prio link.Priority) link.Priority { return min(prio, link.Low) }

func (b *byPriority) sum() (n uint64) {
	for _, c := range b {
		n += c.Get()
	}
	return n
}

type counters struct {
	refused                 map[Reason]*byPriority
	expired, left, released byPriority
	pressures               *metrics.Counter
	waited                  *metrics.PrometheusHistogram
}

func (c *counters) register(set *metrics.Set, q *Queue) {
	each := func(b *byPriority, name, labels string) {
		for prio := link.High; prio <= link.Low; prio++ {
			b[prio] = set.NewCounter(fmt.Sprintf(`fairlead_sidecar_queue_%s_total{priority="%v"%s}`, name, prio, labels))
		}
	}
	c.refused = map[Reason]*byPriority{}
	for _, r := range reasons() {
		c.refused[r] = &byPriority{}
		each(c.refused[r], "refused", `,reason="`+string(r)+`"`)
	}
	each(&c.expired, "expired", "")
	each(&c.left, "left", "")
	each(&c.released, "released", "")
	c.pressures = set.NewCounter("fairlead_sidecar_queue_pressure_total")
	c.waited = set.NewPrometheusHistogramExt("fairlead_sidecar_queue_wait_seconds", []float64{0.01, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 300})
	set.NewGauge("fairlead_sidecar_queue_length", func() float64 { return float64(q.Len()) })
	set.NewGauge("fairlead_sidecar_queue_size", func() float64 { return float64(q.Size()) })
	set.NewGauge("fairlead_sidecar_queue_pressure", func() float64 {
		if q.Pressure() {
			return 1
		}
		return 0
	})
	for prio := link.High; prio <= link.Low; prio++ {
		set.NewGauge(fmt.Sprintf(`fairlead_sidecar_queue_waiting{priority="%v"}`, prio), func() float64 { return float64(q.of(prio)) })
	}
}

func (q *Queue) of(prio link.Priority) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.waiting.of(prio)
}

// Status describes the queue.
type Status struct {
	Length   int     `json:"length"`
	Size     int     `json:"size"`
	Pressure bool    `json:"pressure"` // accepting is slowed
	Waiting  Waiting `json:"waiting"`
	Refused  uint64  `json:"refused"` // connections, since the start
	Expired  uint64  `json:"expired"` // connections that waited too long, since the start
}

// Waiting is how many wait of each priority.
type Waiting struct {
	High   int `json:"high"`
	Normal int `json:"normal"`
	Low    int `json:"low"`
}

// Status returns a snapshot.
func (q *Queue) Status() Status {
	q.mu.Lock()
	defer q.mu.Unlock()
	st := Status{Length: len(q.waiting), Size: q.cfg.Size, Pressure: q.pressure.over != nil, Expired: q.count.expired.sum(),
		Waiting: Waiting{q.waiting.of(link.High), q.waiting.of(link.Normal), q.waiting.of(link.Low)}}
	for _, b := range q.count.refused {
		st.Refused += b.sum()
	}
	return st
}
