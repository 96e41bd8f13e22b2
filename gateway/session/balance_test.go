package session_test

import (
	"context"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/gateway/session"
	"fairlead/gateway/store"
	"fairlead/shared/errs"
)

// balanced runs Balance for a while, and returns how many sidecars were asked to move in each minute.
func balanced(t *testing.T, w *world, sidecars []*sidecar, b session.Balance, minutes int) (asked []int) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = w.Balance(ctx, b)
	}()
	for range minutes {
		pass(time.Minute)
		synctest.Wait()
		n := 0
		for _, s := range sidecars {
			for len(s.goAways) > 0 {
				g := <-s.goAways
				assert.Equal(t, errs.Rebalanced, g.Reason.Code)
				assert.Zero(t, g.Deadline, "nothing is cut")
				n++
			}
		}
		asked = append(asked, n)
	}
	cancel()
	<-done
	return asked
}

func (w *world) many(n int) (all []*sidecar) {
	for range n {
		all = append(all, w.mustConnect(alice()))
	}
	return all
}

func leaveAll(all []*sidecar) {
	for _, s := range all {
		s.leave()
	}
}

func total(asked []int) (n int) {
	for _, a := range asked {
		n += a
	}
	return n
}

func TestOldTunnelsAreAskedToMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		all := w.many(30)
		st := all[0].open(t)
		asked := balanced(t, w, all, session.Balance{MaxAge: 10 * time.Minute, PerMinute: 6}, 7)
		assert.Zero(t, total(asked), "they are young")
		asked = balanced(t, w, all, session.Balance{MaxAge: 10 * time.Minute, PerMinute: 6}, 20)
		assert.Equal(t, 30, total(asked), "each once")
		for _, n := range asked {
			assert.LessOrEqual(t, n, 7, "gently: %v", asked)
		}
		_, err := st.Write([]byte("still there"))
		require.NoError(t, err)
		require.NoError(t, st.CloseWrite())
		got, err := io.ReadAll(st)
		require.NoError(t, err)
		assert.Equal(t, "still there", string(got))
		assert.True(t, w.metric(`fairlead_gateway_tunnels_moved_total{reason="age"} 30`))
		leaveAll(all)
		w.close()
	})
}

func TestTunnelsAreSpreadAnew(t *testing.T) {
	for name, tc := range map[string]struct {
		mine, others []int
		asked        int
	}{
		"a replica was added":                   {[]int{30}, []int{30, 0}, 3},
		"within the tolerance":                  {[]int{24}, []int{20, 20}, 0},
		"few tunnels say little":                {[]int{3}, []int{0, 0}, 0},
		"the only replica":                      {[]int{30}, nil, 0},
		"one that drains takes none":            {[]int{30}, []int{-1}, 0},
		"others have more":                      {[]int{5}, []int{40, 40}, 0},
		"it is alone with what all should have": {[]int{40}, []int{0, 0, 0}, 25},
	} {
		t.Run(name, func(t *testing.T) {
			inReplicas(t, 1, func(t *testing.T, c *replicas) {
				r := c.all[0]
				all := r.many(tc.mine[0])
				list := []store.Replica{r.self}
				for i, n := range tc.others {
					list = append(list, store.Replica{ID: fmt.Sprint(i), Name: fmt.Sprint(i), Tunnels: max(n, 0), Draining: n < 0})
				}
				r.Know(list)
				asked := balanced(t, r.world, all, session.Balance{Tolerance: 25, PerMinute: 12}, 10)
				assert.Equal(t, tc.asked, total(asked))
				for _, n := range asked {
					assert.LessOrEqual(t, n, 14, "gently: %v", asked)
				}
				leaveAll(all)
			})
		})
	}
}

// Verifies: R8.10
func TestADrainSaysHowFarItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		assert.Equal(t, session.Progress{}, w.Progress())
		all := w.many(3)
		st := all[0].open(t)
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			w.Drain(ctx, 30*time.Second, 0)
		}()
		synctest.Wait()
		p := w.Progress()
		assert.Equal(t, session.Progress{Since: began, Deadline: began.Add(30 * time.Second), Before: 3, Tunnels: 3, Streams: 1}, p)
		assert.True(t, w.metric("fairlead_gateway_draining 1"))
		all[1].leave()
		all[2].leave()
		synctest.Wait()
		p = w.Progress()
		assert.Equal(t, []int{2, 1, 1}, []int{p.Moved, p.Tunnels, p.Streams})

		all[0].cut()
		require.NoError(t, w.resume(all[0], alice()), "until the deadline tunnels work")
		second := all[0].open(t)
		<-drained
		assert.Equal(t, 2, w.Progress().Ended)
		assert.True(t, w.metric("fairlead_gateway_drain_ended_streams_total 2"))
		assert.ErrorIs(t, st.Wait(), errs.DrainEnded)
		assert.ErrorIs(t, second.Wait(), errs.DrainEnded)
		<-all[0].lane
		assert.Contains(t, w.log.String(), "FL-S438")
		w.close()
	})
}
