package queue_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/sidecar/queue"
)

// person is a connection in the model.
type person struct {
	n      int
	prio   link.Priority
	since  time.Time
	cancel context.CancelFunc
	result string // "" while waiting
}

// findings collects what is wrong inside a bubble of synctest: rapid wants to hear of it outside.
type findings struct{ text string }

func (f *findings) Errorf(format string, args ...any) {
	if f.text == "" {
		f.text = fmt.Sprintf(format, args...)
	}
}

// world is what a queue should do, said in the simplest way, and the queue.
type world struct {
	t       *findings
	q       *queue.Queue
	set     *metrics.Set
	size    int
	wait    time.Duration
	g       *gate
	up      bool
	waiting []*person // in order
	all     []*person
	opened  []string // in order
	pressed bool

	mu      sync.Mutex
	results map[int]string
	wg      sync.WaitGroup
}

func (w *world) enter(prio link.Priority) {
	p := &person{n: len(w.all), prio: prio, since: time.Now()}
	w.all = append(w.all, p)
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	w.wg.Go(func() {
		err := w.q.Do(ctx, prio, w.g.open(fmt.Sprint(p.n)))
		w.mu.Lock()
		defer w.mu.Unlock()
		w.results[p.n] = outcome(err)
	})
	switch last := len(w.waiting) - 1; {
	case w.up: // nobody waits then
		w.open(p)
		return
	case len(w.waiting) < w.size:
	case w.waiting[last].prio > prio:
		w.waiting[last].result = "displaced"
		w.waiting = w.waiting[:last]
	default:
		p.result = "full"
		return
	}
	at := slices.IndexFunc(w.waiting, func(o *person) bool { return o.prio > prio })
	if at < 0 {
		at = len(w.waiting)
	}
	w.waiting = slices.Insert(w.waiting, at, p)
}

func outcome(err error) string {
	switch {
	case err == nil:
		return "opened"
	case queue.ReasonOf(err) != "":
		return string(queue.ReasonOf(err))
	}
	return errs.CodeOf(err).String()
}

func (w *world) open(p *person) {
	p.result = "opened"
	w.opened = append(w.opened, fmt.Sprint(p.n))
}

// comeUp is a tunnel that carries so many opens and is lost again; negative: it stays.
func (w *world) comeUp(opens int) {
	w.g.set(true, opens)
	w.q.Release()
	for opens != 0 && len(w.waiting) > 0 {
		w.open(w.waiting[0])
		w.waiting = w.waiting[1:]
		opens--
	}
	w.up = opens < 0
	if !w.up {
		synctest.Wait()
		w.g.set(false, 0)
	}
}

func (w *world) leave(i int) {
	w.waiting[i].result = errs.Canceled.String()
	w.waiting[i].cancel()
	w.waiting = slices.Delete(w.waiting, i, i+1)
}

func (w *world) advance(d time.Duration) {
	time.Sleep(d)
	w.waiting = slices.DeleteFunc(w.waiting, func(p *person) bool {
		late := time.Since(p.since) >= w.wait
		if late {
			p.result = errs.NoTunnel.String()
		}
		return late
	})
}

func (w *world) check() {
	synctest.Wait()
	assert.Equal(w.t, w.opened, w.g.list())
	assert.Equal(w.t, len(w.waiting), w.q.Len())
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.all {
		assert.Equal(w.t, p.result, w.results[p.n], "person %d of priority %v", p.n, p.prio)
	}
	begin := (w.size*80 + 99) / 100
	if n := len(w.waiting); n >= begin {
		w.pressed = true
	} else if n <= begin*3/4 {
		w.pressed = false
	}
	st := w.q.Status()
	assert.Equal(w.t, w.pressed, st.Pressure)
	assert.Equal(w.t, len(w.waiting), st.Waiting.High+st.Waiting.Normal+st.Waiting.Low)
	counted := map[string]uint64{}
	for _, p := range w.all {
		counted[p.result]++
	}
	assert.Equal(w.t, counted["full"]+counted["displaced"]+counted["gave_up"], st.Refused)
	assert.Equal(w.t, counted[errs.NoTunnel.String()], st.Expired)
}

// Whatever happens, in whatever order: the queue is as the model says, who waits and who was opened and in which order.
//
// Verifies: R1.3, R1.4, R5.2, R5.3, R5.4
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		size := rapid.IntRange(1, 6).Draw(rt, "size")
		steps := rapid.SliceOfN(rapid.IntRange(0, 99), 1, 60).Draw(rt, "steps")
		var found findings
		synctest.Test(t, func(t *testing.T) {
			set := metrics.NewSet()
			w := &world{t: &found, size: size, wait: 10 * time.Second, g: &gate{}, results: map[int]string{}, set: set, opened: nil,
				q: queue.New(queue.Config{Size: size, Wait: 10 * time.Second, Pressure: 80, Metrics: set})}
			for _, s := range steps {
				w.step(s)
				w.check()
			}
			_ = w.q.Close(context.Background())
			w.wg.Wait()
			for _, p := range w.all {
				p.cancel()
			}
		})
		require.Empty(rt, found.text)
	})
}

// step does one thing, chosen by a number below 100.
func (w *world) step(s int) {
	switch {
	case s < 50:
		w.enter(link.Priority(s % 3))
	case s < 60:
		w.comeUp(s % 4)
	case s < 65:
		w.comeUp(-1)
	case s < 75:
		w.g.set(false, 0)
		w.up = false
	case s < 85 && len(w.waiting) > 0:
		w.leave(s % len(w.waiting))
	case s < 97:
		w.advance(time.Duration(s%5) * time.Second)
	default:
		w.q.Fail(errs.New(errs.GaveUp, "no more attempts"))
		for _, p := range w.waiting {
			p.result = "gave_up"
		}
		w.waiting = nil
	}
}

// A paced release never goes faster than it may, at any time, and serves by priority and arrival whoever waits at that time.
//
// Verifies: R1.4, R5.2
func TestPaceHoldsForAnyArrival(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		rate, burst := rapid.IntRange(1, 20).Draw(rt, "rate"), rapid.IntRange(1, 5).Draw(rt, "burst")
		arrivals := rapid.SliceOfN(rapid.IntRange(0, 11), 1, 30).Draw(rt, "arrivals")
		var found findings
		synctest.Test(t, func(t *testing.T) {
			q := queue.New(queue.Config{Size: 100, Wait: time.Hour, Rate: rate, Burst: burst, Metrics: metrics.NewSet()})
			s := &served{down: true}
			for i, a := range arrivals {
				s.enter(q, link.Priority(a%3), i)
				if i == len(arrivals)/2 {
					s.set(false)
					q.Release()
					synctest.Wait()
				}
				time.Sleep(time.Duration(a)*20*time.Millisecond + 13) // never at the instant of a release: who is first then is open
			}
			s.wg.Wait()
			assert.Len(&found, s.at, len(arrivals))
			assert.Zero(&found, s.overtaken)
			for i := range s.at { // any window that begins with an opening, of those who had to wait
				for j := i; j < len(s.at); j++ {
					const rounding = time.Millisecond
					most := burst + int((s.at[j].Sub(s.at[i])+rounding)*time.Duration(rate)/time.Second)
					assert.LessOrEqual(&found, s.released(i, j), most, "%d to %d", i, j)
				}
			}
		})
		require.Empty(rt, found.text)
	})
}

// served notes who is opened when, and whether somebody waited who should have been served before.
type served struct {
	mu        sync.Mutex
	down      bool
	waiting   []*person
	at        []time.Time
	waited    []bool
	overtaken int
	wg        sync.WaitGroup
}

func (s *served) set(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
}

func (s *served) enter(q *queue.Queue, prio link.Priority, n int) {
	p := &person{n: n, prio: prio}
	s.mu.Lock()
	s.waiting = append(s.waiting, p)
	s.mu.Unlock()
	var tried atomic.Bool
	s.wg.Go(func() {
		_ = q.Do(context.Background(), prio, func() error { return s.open(p, tried.Swap(true) || q.Len() > 0) })
	})
	synctest.Wait()
}

func (s *served) open(p *person, waited bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return errs.New(errs.NoTunnel, "down")
	}
	for _, o := range s.waiting {
		if o.prio < p.prio || o.prio == p.prio && o.n < p.n {
			s.overtaken++
		}
	}
	s.waiting = slices.DeleteFunc(s.waiting, func(o *person) bool { return o == p })
	s.at, s.waited = append(s.at, time.Now()), append(s.waited, waited)
	return nil
}

func (s *served) released(i, j int) (n int) {
	for _, w := range s.waited[i : j+1] {
		if w {
			n++
		}
	}
	return n
}
