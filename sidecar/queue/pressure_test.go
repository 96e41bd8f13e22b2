package queue_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/link"
	"fairlead/shared/testbed"
	"fairlead/sidecar/queue"
)

func pressed(size, percent int, wait time.Duration) (*queue.Queue, *metrics.Set, *testbed.LogBuffer) {
	set, log := metrics.NewSet(), &testbed.LogBuffer{}
	return queue.New(queue.Config{Size: size, Wait: wait, Pressure: percent, Metrics: set, Logger: slog.New(slog.NewTextHandler(log, nil))}), set, log
}

// Pressure begins at 80 % and ends at 60 %, is said once each time, and is to be seen in between.
//
// Verifies: R5.3
func TestPressureBeginsAndEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, set, log := pressed(10, 80, time.Hour)
		g, w := &gate{}, &waiters{}
		begins := func() int { return strings.Count(log.String(), "the queue fills up") }
		ends := func() int { return strings.Count(log.String(), "the queue has room again") }
		for i := range 7 {
			w.enter(q, g, link.Normal, fmt.Sprint(i))
			require.False(t, q.Pressure())
		}
		for i := range 3 {
			w.enter(q, g, link.Normal, fmt.Sprint(7+i))
			require.True(t, q.Pressure())
			require.True(t, q.Status().Pressure)
		}
		assert.Contains(t, text(set), "fairlead_sidecar_queue_pressure 1\n")
		assert.Contains(t, text(set), "fairlead_sidecar_queue_pressure_total 1\n")
		assert.Equal(t, []int{1, 0}, []int{begins(), ends()})
		assert.Contains(t, log.String(), "length=8 size=10")

		g.set(true, 3)
		q.Release()
		synctest.Wait()
		assert.Equal(t, 7, q.Len())
		assert.True(t, q.Pressure(), "below 80 %, but not below 60 %")
		w.enter(q, g, link.Normal, "again") // above 80 % for the second time, without an end in between
		assert.Equal(t, []int{1, 0}, []int{begins(), ends()})

		time.Sleep(time.Second)
		g.set(true, 2)
		q.Release()
		synctest.Wait()
		assert.Equal(t, 6, q.Len())
		assert.False(t, q.Pressure())
		assert.Equal(t, []int{1, 1}, []int{begins(), ends()})
		assert.Contains(t, log.String(), "length=6 size=10 duration_ms=1000")
		assert.Contains(t, text(set), "fairlead_sidecar_queue_pressure 0\n")
		require.NoError(t, q.Close(t.Context()))
		w.wg.Wait()
	})
}

// Low priority rests from the beginning, for longer and longer; normal from 90 %; high never.
//
// Verifies: R5.3
func TestPausesGrowWithTheFill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, _, _ := pressed(100, 80, time.Hour)
		g, w := &gate{}, &waiters{}
		var last [3]time.Duration
		for n := 1; n <= 100; n++ {
			w.enter(q, g, link.High, fmt.Sprint(n))
			for prio := link.High; prio <= link.Low; prio++ {
				from := []int{101, 90, 80}[prio]
				pause, over := q.Pause(prio)
				assert.Equal(t, n >= 80, over != nil, "%v at %d", prio, n)
				if n < from {
					assert.Zero(t, pause, "%v at %d", prio, n)
				} else {
					assert.Greater(t, pause, last[prio], "%v at %d", prio, n)
				}
				last[prio] = pause
			}
		}
		assert.Equal(t, [3]time.Duration{0, 250 * time.Millisecond, time.Second}, last)
		_, over := q.Pause(link.Low)
		g.set(true, -1)
		q.Release()
		w.wg.Wait()
		<-over // else the test deadlocks
		pause, over := q.Pause(link.Low)
		assert.Zero(t, pause)
		assert.Nil(t, over)
	})
}

func TestPressureAtItsBounds(t *testing.T) {
	for percent, begins := range map[int]int{0: 0, 1: 1, 34: 2, 100: 3} {
		synctest.Test(t, func(t *testing.T) {
			q, _, _ := pressed(3, percent, time.Hour)
			ctx, cancel := context.WithCancel(t.Context())
			g := &gate{}
			for n := 1; n <= 3; n++ {
				go func() { _ = q.Do(ctx, link.Low, g.open(fmt.Sprint(n))) }()
				synctest.Wait()
				assert.Equal(t, begins > 0 && n >= begins, q.Pressure(), "%d %% at %d", percent, n)
				if q.Pressure() {
					pause, _ := q.Pause(link.Low)
					assert.Positive(t, pause)
				}
			}
			cancel()
			synctest.Wait()
			assert.False(t, q.Pressure(), "nobody waits")
		})
	}
}
