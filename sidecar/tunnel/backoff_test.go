package tunnel

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"pgregory.net/rapid"
)

func always(f float64) func() float64 { return func() float64 { return f } }

// Verifies: R1.1
func TestBackoffDoublesUpToItsCap(t *testing.T) {
	r := &retry{b: Backoff{Base: 200 * time.Millisecond, Cap: 30 * time.Second}, float: always(1)}
	for i, want := range []time.Duration{200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000} {
		wait, giveUp := r.next(false, 0)
		assert.Equal(t, want*time.Millisecond, wait, "attempt %d", i+1)
		assert.False(t, giveUp)
	}
	r.reset()
	wait, _ := r.next(false, 0)
	assert.Equal(t, 200*time.Millisecond, wait)
}

// Verifies: R1.1
func TestJitterIsFull(t *testing.T) {
	for f, want := range map[float64]time.Duration{0: 0, 0.25: 50 * time.Millisecond, 0.5: 100 * time.Millisecond} {
		r := &retry{b: Backoff{Base: 200 * time.Millisecond, Cap: time.Minute}, float: always(f)}
		wait, _ := r.next(false, 0)
		assert.Equal(t, want, wait)
	}
	low, high := 0, 0
	for range 1000 {
		wait, _ := newRetry(Backoff{Base: time.Second, Cap: time.Minute}).next(false, 0)
		if wait < 100*time.Millisecond {
			low++
		}
		if wait > 900*time.Millisecond {
			high++
		}
	}
	assert.Greater(t, low, 20, "waits near zero occur")
	assert.Greater(t, high, 20, "and near the bound")
}

// Verifies: R1.1
func TestAServersDelayWins(t *testing.T) {
	r := &retry{b: Backoff{Base: time.Second, Cap: time.Minute}, float: always(1)}
	for _, eager := range []bool{false, true} {
		wait, giveUp := r.next(eager, 17*time.Second)
		assert.Equal(t, 17*time.Second, wait)
		assert.False(t, giveUp)
	}
}

func TestGivesUpAfterItsAttempts(t *testing.T) {
	r := &retry{b: Backoff{Base: time.Second, Cap: time.Minute, MaxAttempts: 10}, float: always(0.5)}
	for range 9 {
		_, giveUp := r.next(false, 0)
		assert.False(t, giveUp)
	}
	_, giveUp := r.next(false, 0)
	assert.True(t, giveUp, "the tenth")
}

// Somebody waits: no wait is longer than eagerCap, and the parts of a step count as one attempt.
func TestEagerWaitsAreShortAndUseUpNoAttempts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		limit := rapid.IntRange(1, 12).Draw(t, "attempts")
		r := &retry{b: Backoff{Base: 200 * time.Millisecond, Cap: 30 * time.Second, MaxAttempts: limit}, float: rng.Float64}
		var total, bound time.Duration
		for i := range limit - 1 {
			bound += min(200*time.Millisecond<<i, 30*time.Second)
		}
		for range 10000 {
			wait, giveUp := r.next(true, 0)
			if giveUp {
				break
			}
			if wait < 0 || wait > eagerCap {
				t.Fatalf("waited %v", wait)
			}
			total += wait
		}
		if r.failures != limit || total > bound {
			t.Fatalf("%d steps in %v; allowed are %d in %v", r.failures, total, limit, bound)
		}
	})
}
