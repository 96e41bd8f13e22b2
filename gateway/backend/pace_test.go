package backend

import (
	"context"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

func TestDialsArePaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var begun []time.Duration
		start := time.Now()
		s := queueSet(t, Dialing{Concurrent: 100, PerSecond: 10, Burst: 5}, func(context.Context, string, string) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			begun = append(begun, time.Since(start))
			return nowhere{}, nil
		})
		flood := func(n int) (last *Waits) {
			var wg sync.WaitGroup
			for range n {
				ctx, waits := WithWaits(t.Context())
				last = waits
				wg.Go(func() { _, err := s.Dial(ctx, Caller{Tenant: "a"}, "direct"); assert.NoError(t, err) })
				synctest.Wait()
			}
			wg.Wait()
			return last
		}
		last := flood(20)
		require.Len(t, begun, 20)
		for i := range begun {
			require.Equal(t, time.Duration(i)*100*time.Millisecond, begun[i], "dial %d", i)
		}
		require.Equal(t, 100*time.Millisecond, last.Pace, "its own")
		require.Equal(t, 1800*time.Millisecond, last.Queue, "that of those before it")
		<-time.After(time.Minute)
		begun, start = nil, time.Now()
		flood(8)
		require.Equal(t, []time.Duration{0, 0, 0, 0, 0, 0, 100 * time.Millisecond, 200 * time.Millisecond}, begun, "after a pause a burst")
		require.NoError(t, s.Close(t.Context()))
	})
}

func TestThePaceHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := queueSet(t, Dialing{PerSecond: 1}, slowly(0))
		_, err := s.Dial(t.Context(), Caller{Tenant: "a"}, "direct")
		require.NoError(t, err)
		start := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		left, shut := make(chan error, 1), make(chan error, 1)
		go func() { _, err := s.Dial(ctx, Caller{Tenant: "a"}, "direct"); left <- err }()
		synctest.Wait()
		cancel()
		require.ErrorIs(t, <-left, errs.Canceled)
		require.Equal(t, start, time.Now())
		go func() { _, err := s.Dial(t.Context(), Caller{Tenant: "a"}, "direct"); shut <- err }()
		synctest.Wait()
		require.NoError(t, s.Close(t.Context()))
		require.ErrorIs(t, <-shut, errs.ShuttingDown)
		require.Equal(t, start, time.Now())
	})
}

// A permit that came too late for who had asked is not lost, and goes to the next without a wait.
func TestAPermitIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := queueSet(t, Dialing{PerSecond: 1}, slowly(0))
		_, err := s.Dial(t.Context(), Caller{Tenant: "a"}, "direct")
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		_, err = s.Dial(ctx, Caller{Tenant: "a"}, "direct")
		require.ErrorIs(t, err, errs.OpenTimeout)
		<-time.After(500 * time.Millisecond)
		start := time.Now()
		_, err = s.Dial(t.Context(), Caller{Tenant: "a"}, "direct")
		require.NoError(t, err)
		require.Equal(t, start, time.Now())
		require.NoError(t, s.Close(t.Context()))
	})
}
