package session

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

func TestTurnsAreTakenByTenantsInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(2)
		came := make(chan string, 10)
		ends := make(chan func(), 10)
		wait := func(tenant string) {
			go func() {
				give, err := turns.take(t.Context(), tenant)
				if err == nil {
					came <- tenant
					ends <- give
				}
			}()
			synctest.Wait()
		}
		for range 6 {
			wait("flood")
		}
		wait("quiet")
		require.Len(t, came, 2, "so many at once")
		give := <-ends
		give()
		give() // once is enough
		synctest.Wait()
		require.Len(t, came, 3)
		for _, want := range []string{"flood", "flood", "quiet"} {
			assert.Equal(t, want, <-came)
		}
		for range 6 {
			(<-ends)()
			synctest.Wait()
		}
		assert.Len(t, came, 4, "everybody gets a turn")
		assert.Empty(t, turns.held)
		assert.Empty(t, turns.queued)
		assert.Zero(t, turns.taken)
	})
}

func TestATurnThatDoesNotComeIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(1)
		give, err := turns.take(t.Context(), "a")
		require.NoError(t, err)
		began := time.Now()
		_, err = turns.take(t.Context(), "b")
		require.ErrorIs(t, err, errs.OwnerUnknown)
		assert.Equal(t, turnWait, time.Since(began))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = turns.take(ctx, "b")
		require.ErrorIs(t, err, errs.OwnerUnknown)
		assert.Empty(t, turns.waiting)
		assert.Empty(t, turns.queued)
		give()
		give, err = turns.take(t.Context(), "b")
		require.NoError(t, err)
		give()
	})
}

func TestWhoWaitsForATurnIsBounded(t *testing.T) {
	turns := newTurns(0)
	for n := range mostWaiting / mostQueued {
		tenant := fmt.Sprint("tenant ", n)
		for range mostQueued {
			_, err := turns.enter(tenant)
			require.NoError(t, err)
		}
		_, err := turns.enter(tenant)
		require.ErrorIs(t, err, errs.OwnerUnknown, "a tenant has its part")
	}
	_, err := turns.enter("another")
	require.ErrorIs(t, err, errs.OwnerUnknown)
	assert.Len(t, turns.waiting, mostWaiting)
}
