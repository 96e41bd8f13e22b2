package tunnel

import (
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// Grade says how good a link is.
type Grade string

// The grades. A link is as good as the worse of its round trip and its loss.
//
//	           round trip   loss
//	excellent  < 50 ms      < 1 %
//	good       < 150 ms     < 3 %
//	fair       < 400 ms     < 10 %
//	poor       the rest
const (
	None      Grade = "none" // no tunnel is up
	Excellent Grade = "excellent"
	Good      Grade = "good"
	Fair      Grade = "fair"
	Poor      Grade = "poor"
)

// grades from the best, with what they allow.
var grades = [...]struct {
	grade Grade
	rtt   time.Duration
	loss  float64
}{
	{Excellent, 50 * time.Millisecond, 0.01},
	{Good, 150 * time.Millisecond, 0.03},
	{Fair, 400 * time.Millisecond, 0.10},
}

// GradeOf grades by round trip and loss (0 to 1).
func GradeOf(rtt time.Duration, loss float64) Grade { return grade(rtt, loss, 1) }

// grade demands slack times the limits.
func grade(rtt time.Duration, loss, slack float64) Grade {
	for _, g := range grades {
		if float64(rtt) < slack*float64(g.rtt) && loss < slack*g.loss {
			return g.grade
		}
	}
	return Poor
}

// value of a grade in metrics.
func (g Grade) value() float64 {
	return map[Grade]float64{None: 0, Poor: 1, Fair: 2, Good: 3, Excellent: 4}[g]
}

const (
	lossBucket  = 10 * time.Second
	lossBuckets = 60 // ten minutes
	// steady is for how many looks, of about a second, another grade must hold before it is told.
	steady = 5
	// better is the part of a grade's limits that a link must stay within to be told as that grade, if it was worse before.
	better = 0.85
)

// meter measures the link of a pool, over all its tunnels.
type meter struct {
	rtts *metrics.PrometheusHistogram

	mu       sync.Mutex
	window   [lossBuckets]struct{ answered, lost uint64 }
	at       int       // bucket that is filled
	turned   time.Time // when that began
	rtt      time.Duration
	sent     float64 // bytes per second, smoothed
	received float64
	carried  struct{ sent, received uint64 } // since the last look
	grade    Grade
	next     Grade // another one, that has been found
	times    int   // so often in a row
}

func newMeter(set *metrics.Set) *meter {
	m := &meter{grade: None, rtts: set.NewPrometheusHistogramExt("fairlead_sidecar_rtt_seconds",
		[]float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .15, .25, .4, .75, 1, 2.5, 5, 10})}
	set.NewGauge("fairlead_sidecar_loss_ratio", func() float64 { return m.read().Loss })
	set.NewGauge("fairlead_sidecar_quality", func() float64 { return m.read().Quality.value() })
	return m
}

// count adds what a tunnel's heartbeats and bytes came to since the last time.
func (m *meter) count(answered, lost, sent, received uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.window[m.at].answered += answered
	m.window[m.at].lost += lost
	m.carried.sent += sent
	m.carried.received += received
}

// look turns the window, and grades: rtt is that of the best tunnel, 0 when none is up.
func (m *meter) look(now time.Time, elapsed, rtt time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.turned.IsZero() {
		m.turned = now
	}
	for n := 0; now.Sub(m.turned) >= lossBucket; n++ {
		if n == lossBuckets { // asleep for longer than the window
			m.turned = now
			break
		}
		m.turned = m.turned.Add(lossBucket)
		m.at = (m.at + 1) % lossBuckets
		m.window[m.at].answered, m.window[m.at].lost = 0, 0
	}
	if elapsed > 0 {
		m.sent += (float64(m.carried.sent)/elapsed.Seconds() - m.sent) / 2
		m.received += (float64(m.carried.received)/elapsed.Seconds() - m.received) / 2
		m.carried.sent, m.carried.received = 0, 0
	}
	m.rtt = rtt
	m.judge()
}

// judge changes the grade once another one has held for a while; for a better one the limits are stricter. Called with mu
// held.
func (m *meter) judge() {
	if m.rtt == 0 {
		m.grade, m.next, m.times = None, None, 0
		return
	}
	loss := m.loss()
	found := grade(m.rtt, loss, 1)
	if m.grade == None {
		m.grade, m.next, m.times = found, found, 0
		return
	}
	if found.value() > m.grade.value() {
		found = grade(m.rtt, loss, better)
		if found.value() < m.grade.value() { // better than what was told, but not by enough
			found = m.grade
		}
	}
	switch {
	case found == m.grade:
		m.times = 0
	case found != m.next:
		m.times = 1
	default:
		m.times++
	}
	m.next = found
	if m.times >= steady {
		m.grade, m.times = found, 0
	}
}

// loss is the part of the heartbeats that were not answered in time, in the window. Called with mu held.
func (m *meter) loss() float64 {
	var answered, lost uint64
	for _, b := range m.window {
		answered, lost = answered+b.answered, lost+b.lost
	}
	if lost == 0 {
		return 0
	}
	return float64(lost) / float64(answered+lost)
}

// Rates are the bytes per second that the pool carries.
type Rates struct {
	Sent     float64 `json:"sent"`
	Received float64 `json:"received"`
}

// Link is what is measured about the way to the gateway.
type Link struct {
	Quality Grade   `json:"quality"`
	RTT     float64 `json:"rtt_ms"` // of the best tunnel, milliseconds; 0: none is up
	Loss    float64 `json:"loss"`   // part of the heartbeats of the last ten minutes that were not answered in time, 0 to 1
	Rates   Rates   `json:"rates"`
}

func (m *meter) read() Link {
	m.mu.Lock()
	defer m.mu.Unlock()
	return Link{Quality: m.grade, RTT: float64(m.rtt.Microseconds()) / 1000, Loss: m.loss(), Rates: Rates{Sent: m.sent, Received: m.received}}
}
