package breaker

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

// probes counts calls that are under way while the circuit is not closed, by what their replica could know.
type probes struct {
	mu      sync.Mutex
	elected int // now
	total   int
	alone   int // ever, of replicas that could not ask the store
}

// world is some replicas, whose calls last as long as the test likes.
type world struct {
	t      *testing.T
	random *rand.Rand
	store  *commonStore
	all    []*member
	probes probes
	open   []chan error // calls under way
	work   sync.WaitGroup
	log    []string
}

func (w *world) note(format string, args ...any) { w.log = append(w.log, fmt.Sprintf(format, args...)) }

// begin makes a call that ends when the test says so.
func (w *world) begin(m *member) {
	end := make(chan error, 1)
	entered := make(chan struct{}, 1)
	w.work.Go(func() {
		_ = m.Do(context.Background(), "db", func(context.Context) error {
			done := w.entered(m)
			entered <- struct{}{}
			defer done()
			return <-end
		})
	})
	synctest.Wait()
	if m.store.slow.Load() { // it waits for the store
		time.Sleep(2 * claimWithin)
		synctest.Wait()
	}
	select {
	case <-entered:
		w.open = append(w.open, end)
	default:
	}
}

// entered checks, when a call begins that is a probe, that no other one is under way.
func (w *world) entered(m *member) (done func()) {
	if !m.Info("db").Probing {
		return func() {}
	}
	w.probes.mu.Lock()
	defer w.probes.mu.Unlock()
	w.probes.total++
	if m.store.down.Load() || m.store.slow.Load() {
		w.probes.alone++
		return func() {}
	}
	w.probes.elected++
	if w.probes.elected > 1 {
		w.t.Errorf("%d replicas probe at once: %v", w.probes.elected, w.log)
	}
	return func() {
		w.probes.mu.Lock()
		defer w.probes.mu.Unlock()
		w.probes.elected--
	}
}

func (w *world) finish() {
	if len(w.open) == 0 {
		return
	}
	i := w.random.IntN(len(w.open))
	w.open[i] <- w.result()
	w.open = append(w.open[:i], w.open[i+1:]...)
	synctest.Wait()
	time.Sleep(tripWithin + time.Millisecond) // a circuit that opens waits for hystrix with its lock held, which stops simulated time for others
	synctest.Wait()
}

func (w *world) result() error {
	switch w.random.IntN(8) {
	case 0, 1:
		return nil
	case 2:
		return errs.New(errs.Canceled, "left")
	}
	return down
}

func (w *world) step() {
	m := w.all[w.random.IntN(len(w.all))]
	switch w.random.IntN(20) {
	case 0, 1, 2:
		w.note("%s begins", m.share.replica)
		w.begin(m)
	case 3, 4, 5:
		w.note("one ends")
		w.finish()
	case 6, 7, 8:
		w.note("%s fails", m.share.replica)
		m.fail(1 + w.random.IntN(5))
	case 9, 10, 11:
		d := time.Duration(w.random.IntN(int(2 * minute)))
		w.note("%s pass", d)
		time.Sleep(d)
	case 12:
		m.store.down.Store(w.random.IntN(3) == 0)
		w.note("%s down %t", m.share.replica, m.store.down.Load())
	case 13:
		m.store.slow.Store(w.random.IntN(3) == 0)
		w.note("%s slow %t", m.share.replica, m.store.slow.Load())
	case 14:
		mode := []Mode{Auto, Auto, ForceOpen, ForceClosed}[w.random.IntN(4)]
		w.note("%s is set to %s", m.share.replica, mode)
		require.NoError(w.t, m.SetMode("db", mode, "ann"))
	case 15:
		if w.random.IntN(4) == 0 { // what is claimed is lost with it, so that only calls that have ended can be told apart
			for len(w.open) > 0 {
				w.finish()
			}
			w.note("flush")
			w.store.flush()
		}
	default:
		w.note("%s syncs", m.share.replica)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_ = m.Sync(ctx)
		cancel()
	}
	synctest.Wait()
}

// settle ends what is under way, lets everybody reach the store, and has each look once.
func (w *world) settle() {
	for len(w.open) > 0 {
		w.finish()
	}
	w.work.Wait()
	for _, m := range w.all {
		m.store.down.Store(false)
		m.store.slow.Store(false)
	}
	time.Sleep(2 * tellWithin) // who waits for a slow store gives up
	synctest.Wait()
	// What could not be told is told now; that is the last change.
	syncAll(w.t, w.all...)
	syncAll(w.t, w.all...)
	type state struct {
		Mode    Mode
		Open    bool
		Version uint64
		By      string
	}
	var states []state
	for _, m := range w.all {
		c := m.circuit("db")
		c.mu.Lock()
		states = append(states, state{c.mode, c.open, c.common.version, c.common.by})
		c.mu.Unlock()
	}
	for _, s := range states[1:] {
		require.Equal(w.t, states[0], s, "%v", w.log)
	}
}

// However calls, outages, partitions, slow answers, operators and flushes follow each other: no two replicas that reach the
// store probe at once, and all come to the same state.
//
// Verifies: R5.7, R5.8
func TestReplicasAgreeAndProbeOneAtATime(t *testing.T) {
	total, alone := 0, 0
	rounds := 60
	if testing.Short() {
		rounds = 10
	}
	for range rounds {
		seed := rand.Uint64()
		bubble(t, 3, Config{RetryAfter: minute, ProbeFor: 24 * time.Hour}, func(t *testing.T, store *commonStore, all []*member) {
			w := &world{t: t, random: rand.New(rand.NewPCG(seed, 0)), store: store, all: all}
			defer func() {
				if t.Failed() {
					t.Logf("seed %d", seed)
				}
			}()
			for range 4 {
				for range 60 {
					w.step()
				}
				w.settle()
			}
			total += w.probes.total
			alone += w.probes.alone
		})
	}
	t.Logf("%d probes, %d of them by replicas that could not ask", total, alone)
	require.Positive(t, total-alone)
	require.Positive(t, alone)
}
