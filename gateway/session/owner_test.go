package session_test

import (
	"context"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/gateway/store"
	"fairlead/shared/errs"
	"fairlead/shared/link"
)

// silent does not answer until ctx ends.
func silent(ctx context.Context) error {
	<-ctx.Done()
	return errs.Wrap(errs.OwnerUnreachable, ctx.Err(), "no answer in time")
}

// Verifies: R8.5
func TestAnOwnerThatIsSlowKeepsItsTunnels(t *testing.T) {
	inReplicas(t, 2, func(t *testing.T, c *replicas) {
		owner, other := c.all[0], c.all[1]
		late, prompt := owner.mustConnect(alice()), owner.mustConnect(alice())
		st := late.open(t)
		late.cut()
		prompt.cut()
		synctest.Wait()
		other.slow = func(ctx context.Context, id link.ID) error {
			if id.String() == late.Name() {
				return silent(ctx)
			}
			return nil
		}
		told := make(chan error, 1)
		go func() { told <- other.resume(late, alice()) }()
		synctest.Wait()
		require.NoError(t, other.resume(prompt, alice()))
		require.ErrorIs(t, <-told, errs.OwnerUnknown, "the owner answers others: it is there")
		other.slow = nil
		require.NoError(t, other.resume(late, alice()), "and so is the tunnel")
		_, err := io.WriteString(st, "still here")
		require.NoError(t, err)
		require.NoError(t, st.CloseWrite())
		got, err := io.ReadAll(st)
		require.NoError(t, err)
		assert.Equal(t, "still here", string(got))
		late.over()
		prompt.over()
	})
}

func TestFewCallAnOwnerAtOnce(t *testing.T) {
	inReplicas(t, 2, func(t *testing.T, c *replicas) {
		const tunnels, most = 100, 32
		owner, other := c.all[0], c.all[1]
		var all []*sidecar
		for range tunnels {
			all = append(all, owner.mustConnect(alice()))
			all[len(all)-1].cut()
		}
		synctest.Wait()
		resume := func() (errors map[errs.Code]int, took time.Duration) {
			began, told := time.Now(), make(chan error, tunnels)
			for _, s := range all {
				go func() { told <- other.resume(s, alice()) }()
			}
			errors = map[errs.Code]int{}
			for range all {
				errors[errs.CodeOf(<-told)]++
			}
			return errors, time.Since(began)
		}
		var now, peak atomic.Int64
		other.slow = func(context.Context, link.ID) error {
			peak.Store(max(peak.Load(), now.Add(1)))
			defer now.Add(-1)
			time.Sleep(100 * time.Millisecond) // the bubble's clock
			return nil
		}
		errors, _ := resume()
		assert.Equal(t, map[errs.Code]int{0: tunnels}, errors)
		assert.EqualValues(t, most, peak.Load())

		for _, s := range all {
			s.cut()
		}
		synctest.Wait()
		other.slow = func(ctx context.Context, _ link.ID) error { return silent(ctx) }
		errors, took := resume()
		assert.Equal(t, map[errs.Code]int{errs.OwnerUnreachable: tunnels}, errors)
		assert.Equal(t, 2*time.Second, took, "what some have tried in vain is not tried by everybody who waited")
		for _, s := range all {
			s.over()
		}
	})
}

// A tunnel that the store forgets while it is about to be given up is not: its owner could not be told.
//
// Verifies: R8.5
func TestAStoreThatIsEmptiedWhileATunnelIsGivenUp(t *testing.T) {
	inReplicas(t, 2, func(t *testing.T, c *replicas) {
		owner, other := c.all[0], c.all[1]
		s := owner.mustConnect(alice())
		s.cut()
		synctest.Wait()
		fresh := store.NewMemory(store.MemoryConfig{})
		other.slow = func(context.Context, link.ID) error {
			for _, r := range c.all {
				r.store.Store = fresh
			}
			return errs.New(errs.OwnerUnreachable, "nobody answers")
		}
		require.ErrorIs(t, other.resume(s, alice()), errs.OwnerUnknown)
		other.slow = nil
		require.NoError(t, other.resume(s, alice()))
		s.over()
		require.NoError(t, c.shared.Close())
		c.shared = fresh
	})
}
