package session_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A sidecar uses a tunnel until it has moved. One without a stream just now is not to be closed under the next.
//
// Verifies: R8.4
func TestDrainWaitsUntilSidecarsHaveMoved(t *testing.T) {
	const drain, spread = 30 * time.Second, 10 * time.Second
	for name, c := range map[string]struct {
		leave bool
		took  time.Duration
	}{
		"all move":    {true, 5 * time.Second},
		"nobody does": {false, spread + 2*time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, nil)
				all := w.many(2)
				ctx, cancel := context.WithTimeout(t.Context(), drain)
				defer cancel()
				began, drained := time.Now(), make(chan time.Duration, 1)
				go func() {
					w.Drain(ctx, drain, spread)
					drained <- time.Since(began)
				}()
				time.Sleep(5*time.Second - 10*time.Millisecond) // the bubble's clock
				require.Empty(t, drained, "nobody has moved yet")
				st := all[0].open(t)
				st.Reset(nil)
				if c.leave {
					all[0].leave()
					all[1].leave()
				}
				assert.Equal(t, c.took, (<-drained).Truncate(50*time.Millisecond))
				w.close()
				w.serves.Wait()
			})
		})
	}
}
