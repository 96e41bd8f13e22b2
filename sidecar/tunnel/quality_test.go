package tunnel

import (
	"bytes"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/assert"

	"fairlead/shared/link"
	"fairlead/shared/testbed/fault"
)

// Verifies: R3.5
func TestGradesFollowTheWorseOfRoundTripAndLoss(t *testing.T) {
	ms := time.Millisecond
	for _, c := range []struct {
		rtt  time.Duration
		loss float64
		want Grade
	}{
		{10 * ms, 0, Excellent}, {49 * ms, 0.009, Excellent}, {50 * ms, 0, Good}, {10 * ms, 0.01, Good}, {149 * ms, 0.02, Good}, {150 * ms, 0, Fair},
		{10 * ms, 0.03, Fair}, {399 * ms, 0.09, Fair}, {400 * ms, 0, Poor}, {10 * ms, 0.1, Poor}, {10 * ms, 1, Poor},
	} {
		assert.Equal(t, c.want, GradeOf(c.rtt, c.loss), "%v and %v", c.rtt, c.loss)
	}
}

// metered is a meter with a clock of its own.
type metered struct {
	*meter
	set *metrics.Set
	now time.Time
}

func newMetered() *metered {
	m := &metered{set: metrics.NewSet(), now: time.Now()}
	m.meter = newMeter(m.set)
	return m
}

func (m *metered) looks(n int, rtt time.Duration) (grades []Grade) {
	for range n {
		m.now = m.now.Add(time.Second)
		m.look(m.now, time.Second, rtt)
		grades = append(grades, m.read().Quality)
	}
	return grades
}

// Verifies: R3.5
func TestAGradeDoesNotFlap(t *testing.T) {
	m := newMetered()
	assert.Equal(t, None, m.read().Quality)
	assert.Equal(t, []Grade{Excellent}, m.looks(1, 10*time.Millisecond), "the first is told at once")
	for range 20 { // spikes
		m.looks(4, 500*time.Millisecond)
		assert.Equal(t, []Grade{Excellent}, m.looks(1, 10*time.Millisecond))
	}
	assert.Equal(t, []Grade{Excellent, Excellent, Excellent, Excellent, Poor, Poor}, m.looks(6, 500*time.Millisecond), "what holds is told")
	assert.Equal(t, Poor, m.looks(20, 390*time.Millisecond)[19], "not better by enough")
	assert.Equal(t, Fair, m.looks(6, 300*time.Millisecond)[5])
	assert.Equal(t, Fair, m.looks(20, 390*time.Millisecond)[19], "and not worse either")
	assert.Equal(t, []Grade{None}, m.looks(1, 0), "no tunnel is up")
}

// Loss is of the last ten minutes.
//
// Verifies: R2.8
func TestLossIsOfAWindow(t *testing.T) {
	m := newMetered()
	m.looks(1, time.Millisecond)
	m.count(19, 1, 0, 0)
	m.looks(30, time.Millisecond)
	assert.InDelta(t, 0.05, m.read().Loss, 1e-9)
	assert.Equal(t, Fair, m.read().Quality)
	m.count(20, 0, 0, 0)
	assert.InDelta(t, 0.025, m.read().Loss, 1e-9)
	m.looks(595, time.Millisecond)
	assert.Zero(t, m.read().Loss)
	assert.Equal(t, Excellent, m.read().Quality)
	m.count(1, 1, 0, 0)
	m.now = m.now.Add(24 * time.Hour) // the machine slept
	m.looks(1, time.Millisecond)
	m.looks(700, time.Millisecond)
	assert.Zero(t, m.read().Loss)
}

// Verifies: R2.8
func TestRatesAreMeasured(t *testing.T) {
	m := newMetered()
	for range 20 {
		m.count(0, 0, 1000, 3000)
		m.looks(1, time.Millisecond)
	}
	r := m.read().Rates
	assert.InDelta(t, 1000, r.Sent, 1)
	assert.InDelta(t, 3000, r.Received, 1)
	m.looks(20, time.Millisecond)
	assert.Less(t, m.read().Rates.Sent, 1.0)
	var b bytes.Buffer
	m.rtts.Update(0.02)
	m.set.WritePrometheus(&b)
	for _, line := range []string{"fairlead_sidecar_quality 4", "fairlead_sidecar_loss_ratio 0", `fairlead_sidecar_rtt_seconds_bucket{le="0.01"} 0`, `fairlead_sidecar_rtt_seconds_bucket{le="0.025"} 1`} {
		assert.Contains(t, b.String(), line+"\n")
	}
}

// The figures of a real link: a path that becomes slow is graded so.
//
// Verifies: R2.8, R3.5
func TestALinkThatBecomesSlowIsGraded(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	proxy, e := behind(t, g)
	r := startPool(t, func(c *Config) { c.Endpoints, c.Link.Heartbeat = []Endpoint{e}, 2*time.Second })
	eventually(t, "ready", r.Ready)
	eventually(t, "graded, by how busy this machine is", func() bool { st := r.Status(); return st.Quality != None && st.Tunnels[0].Quality != None })
	proxy.Shape(fault.Up, fault.Shape{Latency: 250 * time.Millisecond})
	proxy.Shape(fault.Down, fault.Shape{Latency: 250 * time.Millisecond})
	eventually(t, "poor", func() bool { st := r.Status(); return st.Quality == Poor && st.Link.RTT > 400 })
	open(t, r, link.Normal)
	assert.Zero(t, r.Status().Tunnels[0].Resumes)
}
