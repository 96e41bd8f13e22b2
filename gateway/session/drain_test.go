package session_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	"fairlead/gateway/store"
)

// Tunnels without streams are not cut before their sidecars were to move, if there is a replica that they can move to.
//
// Verifies: R8.8
func TestADrainLetsIdleTunnelsMoveFirst(t *testing.T) {
	const deadline, spread, move = 30 * time.Second, 10 * time.Second, 2 * time.Second
	for name, tc := range map[string]struct {
		other store.Replica // that the one which drains knows beside itself; without an ID none
		leave time.Duration // when the sidecar does; 0: it stays
		cut   bool          // it has no connection
		takes time.Duration
	}{
		"the sidecar stays":         {other: store.Replica{ID: "b"}, takes: spread + move},
		"the sidecar moves":         {other: store.Replica{ID: "b"}, leave: 3 * time.Second, takes: 3 * time.Second},
		"the others drain too":      {other: store.Replica{ID: "b", Draining: true}},
		"it cannot be told":         {other: store.Replica{ID: "b"}, cut: true},
		"there is no other replica": {},
	} {
		t.Run(name, func(t *testing.T) {
			inReplicas(t, 1, func(t *testing.T, c *replicas) {
				r := c.all[0]
				list := []store.Replica{r.self}
				if tc.other.ID != "" {
					list = append(list, tc.other)
				}
				r.Know(list)
				s := r.mustConnect(alice())
				if tc.cut {
					s.cut()
					synctest.Wait()
				}
				began := time.Now()
				drained := make(chan time.Duration, 1)
				ctx, cancel := context.WithTimeout(t.Context(), deadline)
				defer cancel()
				go func() {
					r.Drain(ctx, deadline, spread)
					drained <- time.Since(began)
				}()
				if tc.leave > 0 {
					pass(tc.leave)
					s.leave()
				}
				assert.InDelta(t, tc.takes.Seconds(), (<-drained).Seconds(), 0.1)
				if tc.leave == 0 {
					s.over()
				}
			})
		})
	}
}

// A drain that has no time for that is over at its deadline, and says nothing of streams that there are not.
func TestADrainDoesNotWaitForIdleTunnelsBeyondItsDeadline(t *testing.T) {
	inReplicas(t, 1, func(t *testing.T, c *replicas) {
		r := c.all[0]
		r.Know([]store.Replica{{ID: "b"}})
		s := r.mustConnect(alice())
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		r.Drain(ctx, time.Second, 0)
		assert.Equal(t, time.Second, time.Since(began))
		assert.NotContains(t, r.log.String(), "drain deadline passed")
		s.over()
	})
}
