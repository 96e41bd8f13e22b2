package queue_test

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/sidecar/queue"
)

// clock notes when connections were opened, from the first one on.
type clock struct {
	gate
	at []time.Duration
}

func (c *clock) open(name string) func() error {
	open := c.gate.open(name)
	start := time.Now()
	return func() error {
		err := open()
		if err == nil {
			c.at = append(c.at, time.Since(start)) // under the queue's lock
		}
		return err
	}
}

func paced(rate, burst int, wait time.Duration) (*queue.Queue, *metrics.Set) {
	set := metrics.NewSet()
	return queue.New(queue.Config{Size: 100, Wait: wait, Rate: rate, Burst: burst, Metrics: set}), set
}

// enterAll lets n connections enter at the same time of the bubble.
func enterAll(q *queue.Queue, c *clock, w *waiters, prio link.Priority, n int) {
	for i := range n {
		w.do(q, prio, fmt.Sprint(prio, " ", i), c.open(fmt.Sprint(prio, " ", i)))
	}
}

// Those who wait do not fall upon the gateway all at once: a burst, then one after the other, and Release waits for none.
//
// Verifies: R1.4
func TestReleaseIsPaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, _ := paced(10, 3, time.Hour)
		c, w := &clock{}, &waiters{}
		enterAll(q, c, w, link.Normal, 8)
		c.set(true, -1)
		before := time.Now()
		q.Release()
		q.Release() // a second tunnel came up: that is no reason to go faster
		assert.Equal(t, before, time.Now(), "the caller does not wait")
		w.wg.Wait()
		ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
		assert.Equal(t, []time.Duration{0, 0, 0, ms(100), ms(200), ms(300), ms(400), ms(500)}, c.at)
		assert.Equal(t, []string{"normal 0", "normal 1", "normal 2", "normal 3", "normal 4", "normal 5", "normal 6", "normal 7"}, c.list())

		enterAll(q, c, w, link.Normal, 1) // nobody waits any more
		w.wg.Wait()
		assert.Len(t, c.at, 9)
	})
}

// Who comes during a release takes the place of their priority, and nobody is overtaken.
//
// Verifies: R1.4, R5.2
func TestNobodyOvertakesDuringARelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, _ := paced(1, 1, time.Hour)
		c, w := &clock{}, &waiters{}
		enterAll(q, c, w, link.Normal, 3)
		c.set(true, -1)
		q.Release()
		synctest.Wait()
		for _, prio := range []link.Priority{link.Low, link.Normal, link.High} {
			w.enter(q, &c.gate, prio, fmt.Sprint(prio, " late"))
		}
		assert.Equal(t, []string{"normal 0"}, c.list(), "there is a tunnel, and yet they wait for their turn")
		w.wg.Wait()
		assert.Equal(t, []string{"normal 0", "high late", "normal 1", "normal 2", "normal late", "low late"}, c.list())
	})
}

// A tunnel that goes away during a release leaves the rest waiting, until the time that they were promised.
//
// Verifies: R1.3, R5.1
func TestATunnelThatIsLostDuringARelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, set := paced(1, 1, 10*time.Second)
		c, w := &clock{}, &waiters{}
		start := time.Now()
		enterAll(q, c, w, link.Normal, 4)
		time.Sleep(5 * time.Second)
		c.set(true, -1)
		q.Release()
		time.Sleep(1500 * time.Millisecond)
		c.set(false, 0)
		w.wg.Wait()
		assert.Equal(t, 10*time.Second, time.Since(start))
		assert.Equal(t, []string{"normal 0", "normal 1"}, c.list())
		assert.ErrorIs(t, w.results["normal 2"], errs.NoTunnel)
		assert.ErrorIs(t, w.results["normal 3"], errs.NoTunnel)
		assert.Contains(t, text(set), "fairlead_sidecar_queue_expired_total{priority=\"normal\"} 2\n")
	})
}

// Whose wait ends while others are released before them is told that it was not for want of a tunnel.
//
// Verifies: R5.1
func TestATurnThatDoesNotCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, _ := paced(1, 1, 2500*time.Millisecond)
		c, w := &clock{}, &waiters{}
		enterAll(q, c, w, link.Normal, 4)
		c.set(true, -1)
		q.Release()
		w.wg.Wait()
		assert.Equal(t, []string{"normal 0", "normal 1", "normal 2"}, c.list())
		assert.ErrorIs(t, w.results["normal 3"], errs.OpenTimeout)
		assert.ErrorContains(t, w.results["normal 3"], "2.5s")
		assert.Zero(t, q.Len())
	})
}

// A gateway that refuses a stream for its rate is believed: the others come no faster than it asks for, until all have.
func TestTheGatewaysLimitIsLearned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, _ := paced(10, 2, time.Hour)
		c, w := &clock{}, &waiters{}
		enterAll(q, c, w, link.Normal, 5)
		c.set(true, -1)
		q.Release()
		synctest.Wait()
		q.Refused(errs.New(errs.BackendUnreachable, "not about rates").After(time.Hour))
		q.Refused(errs.New(errs.OpenRate, "too fast").After(3*time.Second).Within(100, 0, 200*time.Second))
		w.wg.Wait()
		assert.Equal(t, []time.Duration{0, 0, 3 * time.Second, 5 * time.Second, 7 * time.Second}, c.at, "200 s for 100 are 2 s for each")

		time.Sleep(time.Second) // the release has ended, and the burst is gained anew
		q.Refused(errs.New(errs.OpenRate, "too fast").After(time.Hour))
		c.set(false, 0)
		c.at = nil
		enterAll(q, c, w, link.Normal, 4)
		c.set(true, -1)
		q.Release()
		synctest.Wait()
		require.Len(t, c.at, 2, "what was learned is forgotten")
		q.Refused(errs.New(errs.Overloaded, "busy").After(time.Hour))
		w.wg.Wait()
		assert.Equal(t, []time.Duration{0, 0, time.Minute, time.Minute}, c.at, "a gateway holds the queue for a minute at most, and may ask again")
	})
}

// Releasing ends with whoever is last, be that because they leave: a long pause does not keep it.
func TestAReleaseEndsWhenNobodyIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, _ := paced(1, 1, 500*time.Millisecond)
		c, w := &clock{}, &waiters{}
		enterAll(q, c, w, link.Normal, 2)
		c.set(true, -1)
		q.Release()
		synctest.Wait()
		q.Refused(errs.New(errs.OpenRate, "too fast").After(time.Minute))
		w.wg.Wait()
		synctest.Wait()
		start := time.Now()
		require.NoError(t, q.Close(t.Context()))
		assert.Equal(t, start, time.Now())
	})
}

// A tunnel that comes up between an attempt and the wait is not missed.
func TestNoReleaseIsLost(t *testing.T) {
	for range 200 {
		q, _ := paced(0, 0, time.Minute)
		g := &gate{}
		var both sync.WaitGroup
		result := make(chan error, 1)
		both.Go(func() { result <- q.Do(t.Context(), link.High, g.open("a")) })
		both.Go(func() {
			g.set(true, -1)
			q.Release()
		})
		both.Wait()
		require.NoError(t, <-result)
		require.Equal(t, []string{"a"}, g.list())
		require.NoError(t, q.Close(t.Context()))
	}
}
