package queue_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/sidecar/queue"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// gate is a tunnel that is up or not. It notes the order of what it opened.
type gate struct {
	mu     sync.Mutex
	up     bool
	left   int // opens until it is down again; negative: never
	opened []string
}

func (g *gate) open(name string) func() error {
	return func() error {
		g.mu.Lock()
		defer g.mu.Unlock()
		if !g.up || g.left == 0 {
			return errs.New(errs.NoTunnel, "down")
		}
		g.left--
		g.opened = append(g.opened, name)
		return nil
	}
}

func (g *gate) set(up bool, left int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.up, g.left = up, left
}

func (g *gate) list() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.opened)
}

func newQueue(size int, wait time.Duration) (*queue.Queue, *metrics.Set) {
	set := metrics.NewSet()
	return queue.New(queue.Config{Size: size, Wait: wait, Metrics: set}), set
}

func text(set *metrics.Set) string {
	var b bytes.Buffer
	set.WritePrometheus(&b)
	return b.String()
}

// waiters enters connections one after the other and returns their results once all have ended.
type waiters struct {
	wg      sync.WaitGroup
	mu      sync.Mutex
	results map[string]error
}

func (w *waiters) enter(q *queue.Queue, g *gate, prio link.Priority, name string) {
	w.do(q, prio, name, g.open(name))
}

func (w *waiters) do(q *queue.Queue, prio link.Priority, name string, open func() error) {
	w.wg.Go(func() {
		err := q.Do(context.Background(), prio, open)
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.results == nil {
			w.results = map[string]error{}
		}
		w.results[name] = err
	})
	synctest.Wait()
}

func TestOpenTunnelsAreNotWaitedFor(t *testing.T) {
	q, _ := newQueue(1, time.Second)
	g := &gate{up: true, left: -1}
	require.NoError(t, q.Do(t.Context(), link.Low, g.open("a")))
	refused := errs.New(errs.OpenRate, "too fast")
	assert.ErrorIs(t, q.Do(t.Context(), link.Low, func() error { return refused }), errs.OpenRate, "another error than NoTunnel is the connection's")
	assert.Zero(t, q.Len())
	assert.Equal(t, 1, q.Size())
}

// Verifies: R1.3, R5.4
func TestBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, set := newQueue(100, time.Hour)
		g, w := &gate{}, &waiters{}
		for i := range 100 {
			w.enter(q, g, link.Normal, fmt.Sprint(i))
		}
		assert.Equal(t, 100, q.Len())
		for _, prio := range []link.Priority{link.Normal, link.Low} {
			err := q.Do(t.Context(), prio, g.open("one more"))
			assert.ErrorIs(t, err, errs.QueueFull)
			assert.ErrorContains(t, err, "100 connections wait")
			assert.Equal(t, queue.Full, queue.ReasonOf(err))
			assert.Contains(t, text(set), fmt.Sprintf("fairlead_sidecar_queue_refused_total{priority=\"%v\",reason=\"full\"} 1\n", prio))
		}
		assert.Contains(t, text(set), "fairlead_sidecar_queue_length 100\n")
		assert.Equal(t, queue.Status{Length: 100, Size: 100, Waiting: queue.Waiting{Normal: 100}, Refused: 2}, q.Status())
		g.set(true, -1)
		q.Release()
		w.wg.Wait()
		assert.Len(t, g.list(), 100)
		for name, err := range w.results {
			assert.NoError(t, err, name)
		}
		assert.Contains(t, text(set), "fairlead_sidecar_queue_released_total{priority=\"normal\"} 100\n")
		assert.Contains(t, text(set), "fairlead_sidecar_queue_wait_seconds_count 100\n")
	})
}

// A full queue refuses the newest of the lowest priority, be that the newcomer or somebody who waits.
//
// Verifies: R5.2, R5.4
func TestAFullQueueRefusesTheNewestOfTheLowestPriority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, set := newQueue(4, time.Hour)
		g, w := &gate{}, &waiters{}
		for i, prio := range []link.Priority{link.Low, link.Normal, link.Low, link.Normal} {
			w.enter(q, g, prio, fmt.Sprint(prio, " ", i))
		}
		refused := func() (names []string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			for name, err := range w.results {
				assert.ErrorIs(t, err, errs.QueueFull, name)
				names = append(names, name+" "+string(queue.ReasonOf(err)))
			}
			slices.Sort(names)
			return names
		}
		w.enter(q, g, link.High, "high 4")
		assert.Equal(t, []string{"low 2 displaced"}, refused())
		w.enter(q, g, link.Normal, "normal 5")
		assert.Equal(t, []string{"low 0 displaced", "low 2 displaced"}, refused())
		w.enter(q, g, link.Low, "low 6")
		w.enter(q, g, link.Normal, "normal 7")
		w.enter(q, g, link.High, "high 8")
		assert.Equal(t, []string{"low 0 displaced", "low 2 displaced", "low 6 full", "normal 5 displaced", "normal 7 full"}, refused())
		for line, n := range map[string]int{
			`{priority="low",reason="displaced"}`: 2, `{priority="normal",reason="displaced"}`: 1,
			`{priority="low",reason="full"}`: 1, `{priority="normal",reason="full"}`: 1, `{priority="high",reason="full"}`: 0,
		} {
			assert.Contains(t, text(set), fmt.Sprintf("fairlead_sidecar_queue_refused_total%s %d\n", line, n))
		}
		assert.EqualValues(t, 5, q.Status().Refused)
		g.set(true, -1)
		q.Release()
		w.wg.Wait()
		assert.Equal(t, []string{"high 4", "high 8", "normal 1", "normal 3"}, g.list())
	})
}

// Verifies: R1.4, R5.2
func TestPriorityThenArrival(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, _ := newQueue(10, time.Hour)
		g, w := &gate{}, &waiters{}
		for i, prio := range []link.Priority{link.Low, link.Normal, link.High, link.Low, link.High, link.Normal} {
			w.enter(q, g, prio, fmt.Sprint(prio, " ", i))
		}
		g.set(true, -1)
		q.Release()
		w.wg.Wait()
		assert.Equal(t, []string{"high 2", "high 4", "normal 1", "normal 5", "low 0", "low 3"}, g.list())
	})
}

func TestOrderHoldsForAnyArrival(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		prios := rapid.SliceOfN(rapid.SampledFrom([]link.Priority{link.High, link.Normal, link.Low}), 1, 20).Draw(rt, "prios")
		synctest.Test(t, func(t *testing.T) {
			q, _ := newQueue(len(prios), time.Hour)
			g, w := &gate{}, &waiters{}
			want := make([]int, len(prios))
			for i, p := range prios {
				want[i] = i
				w.enter(q, g, p, fmt.Sprint(i))
			}
			slices.SortStableFunc(want, func(a, b int) int { return int(prios[a]) - int(prios[b]) })
			g.set(true, -1)
			q.Release()
			w.wg.Wait()
			for i, name := range g.list() {
				assert.Equal(t, fmt.Sprint(want[i]), name)
			}
		})
	})
}

// Verifies: R5.1
func TestTheWaitEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, set := newQueue(1, 30*time.Second)
		start := time.Now()
		err := q.Do(t.Context(), link.High, (&gate{}).open("a"))
		assert.ErrorIs(t, err, errs.NoTunnel)
		assert.ErrorContains(t, err, "30s")
		assert.Equal(t, 30*time.Second, time.Since(start))
		assert.Zero(t, q.Len(), "its place is free again")
		assert.Contains(t, text(set), "fairlead_sidecar_queue_expired_total{priority=\"high\"} 1\n")
	})
}

func TestCallersMayLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, set := newQueue(1, time.Hour)
		ctx, cancel := context.WithCancelCause(t.Context())
		cause := errors.New("the application went away")
		time.AfterFunc(time.Second, func() { cancel(cause) })
		err := q.Do(ctx, link.High, (&gate{}).open("a"))
		assert.ErrorIs(t, err, errs.Canceled)
		assert.ErrorIs(t, err, cause)
		assert.Zero(t, q.Len())
		assert.Contains(t, text(set), "fairlead_sidecar_queue_left_total{priority=\"high\"} 1\n")
	})
}

// What is released and canceled at the same moment has either been opened and says so, or was never opened.
func TestReleasedWhileLeaving(t *testing.T) {
	for range 50 {
		q, _ := newQueue(1, time.Hour)
		g := &gate{}
		ctx, cancel := context.WithCancel(t.Context())
		result := make(chan error, 1)
		go func() { result <- q.Do(ctx, link.High, g.open("a")) }()
		require.Eventually(t, func() bool { return q.Len() == 1 }, 5*time.Second, time.Millisecond)
		g.set(true, -1)
		var both sync.WaitGroup
		both.Go(cancel)
		both.Go(q.Release)
		both.Wait()
		if err := <-result; err == nil {
			assert.Equal(t, []string{"a"}, g.list())
		} else {
			assert.ErrorIs(t, err, errs.Canceled)
			assert.Empty(t, g.list())
		}
		assert.Zero(t, q.Len())
	}
}

func TestReleaseStopsWhenTheTunnelIsLostAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, _ := newQueue(10, time.Hour)
		g, w := &gate{}, &waiters{}
		for i := range 4 {
			w.enter(q, g, link.Normal, fmt.Sprint(i))
		}
		g.set(true, 2)
		q.Release()
		synctest.Wait()
		assert.Equal(t, []string{"0", "1"}, g.list())
		assert.Equal(t, 2, q.Len(), "the others keep their places")
		w.enter(q, g, link.Normal, "late")
		g.set(true, -1)
		q.Release()
		w.wg.Wait()
		assert.Equal(t, []string{"0", "1", "2", "3", "late"}, g.list())
	})
}

func TestWhoComesLaterDoesNotOvertake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, _ := newQueue(10, time.Hour)
		g, w := &gate{}, &waiters{}
		w.enter(q, g, link.Normal, "first")
		g.set(true, -1)
		w.enter(q, g, link.Normal, "second")
		assert.Empty(t, g.list(), "somebody waits, so the second does too")
		q.Release()
		w.wg.Wait()
		assert.Equal(t, []string{"first", "second"}, g.list())
	})
}

func TestFailEndsEveryWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, set := newQueue(10, time.Hour)
		g, w := &gate{}, &waiters{}
		for i := range 3 {
			w.enter(q, g, link.Normal, fmt.Sprint(i))
		}
		q.Fail(errs.New(errs.GaveUp, "no more attempts"))
		w.wg.Wait()
		for name, err := range w.results {
			assert.ErrorIs(t, err, errs.GaveUp, name)
			assert.Equal(t, queue.GaveUp, queue.ReasonOf(err))
		}
		assert.Zero(t, q.Len())
		assert.Contains(t, text(set), "fairlead_sidecar_queue_refused_total{priority=\"normal\",reason=\"gave_up\"} 3\n")
	})
}

// Close ends what waits, also while it is being released, and leaves nothing running.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := metrics.NewSet()
		q := queue.New(queue.Config{Size: 10, Wait: time.Hour, Rate: 1, Metrics: set})
		g, w := &gate{}, &waiters{}
		for i := range 3 {
			w.enter(q, g, link.Low, fmt.Sprint(i))
		}
		g.set(true, -1)
		q.Release()
		synctest.Wait()
		require.NoError(t, q.Close(t.Context()))
		w.wg.Wait()
		assert.Equal(t, []string{"0"}, g.list())
		assert.NoError(t, w.results["0"])
		for _, name := range []string{"1", "2"} {
			assert.ErrorIs(t, w.results[name], errs.ShuttingDown)
			assert.Equal(t, queue.Closing, queue.ReasonOf(w.results[name]))
		}
		g.set(false, 0)
		assert.ErrorIs(t, q.Do(t.Context(), link.High, g.open("late")), errs.ShuttingDown)
		q.Release()
		assert.Contains(t, text(set), "fairlead_sidecar_queue_refused_total{priority=\"low\",reason=\"closing\"} 2\n")
		require.NoError(t, q.Close(t.Context()), "again")
	})
}

// A fault while somebody is opened is theirs alone.
func TestAPanicIsTheErrorOfOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, _ := newQueue(10, time.Hour)
		g, w := &gate{}, &waiters{}
		down, result := true, make(chan error, 1)
		go func() {
			result <- q.Do(t.Context(), link.High, func() error {
				if down {
					return errs.New(errs.NoTunnel, "down")
				}
				panic("boom")
			})
		}()
		synctest.Wait()
		w.enter(q, g, link.High, "second")
		down = false
		g.set(true, -1)
		q.Release()
		w.wg.Wait()
		assert.ErrorIs(t, <-result, errs.Panicked)
		assert.Equal(t, []string{"second"}, g.list())
	})
}

// Limits change while connections wait: nobody loses a place, and what they were promised holds.
func TestConfigure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, _ := newQueue(10, 30*time.Second)
		g, w := &gate{}, &waiters{}
		for i := range 4 {
			w.enter(q, g, link.Normal, fmt.Sprint(i))
		}
		q.Configure(queue.Config{Size: 2, Wait: time.Second, Pressure: 100})
		assert.Equal(t, 2, q.Size())
		assert.Equal(t, 4, q.Len())
		assert.True(t, q.Pressure(), "it is over full now")
		assert.ErrorIs(t, q.Do(t.Context(), link.Low, g.open("late")), errs.QueueFull)
		time.Sleep(2 * time.Second) // of the bubble's time
		synctest.Wait()
		assert.Equal(t, 4, q.Len())
		time.Sleep(28 * time.Second)
		w.wg.Wait()
		assert.Zero(t, q.Len())
		assert.False(t, q.Pressure())
	})
}
