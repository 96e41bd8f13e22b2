package limit

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

// A tenant with all slots in use that closes one and opens another at the same replica gets it, wherever the old one is on
// its way.
func TestWhoReleasesMayOpenAtOnce(t *testing.T) {
	for name, rate := range map[string]int{"without a rate": 0, "with a rate": 60_000} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, all := newReplicas(t, 1, Config{Tiers: tiers(Tier{OpensPerMinute: rate, Streams: 3})})
				r := all[0]
				r.returns = make(chan struct{})
				releases, _ := takeAll(r.Open, "a")
				require.Len(t, releases, 3)
				synctest.Wait()

				releases[0]()
				synctest.Wait() // it is on its way
				opened := make(chan error, 1)
				go func() {
					_, err := r.Open("a", "")
					opened <- err
				}()
				synctest.Wait()
				require.Empty(t, opened, "it is waited for")
				releases[1]() // idle while the other is on its way
				release, err := r.Open("a", "")
				require.NoError(t, err)
				require.Equal(t, 3, c.held("a")[streams])
				r.returns <- struct{}{}
				require.NoError(t, <-opened)

				releases[1]() // the one that was taken over is not given back by who had it before
				release()
				release, err = r.Open("a", "")
				require.NoError(t, err)
				_, err = r.Open("a", "")
				require.ErrorIs(t, err, errs.StreamLimit)
				require.Equal(t, 3, c.held("a")[streams])
				_, open := r.Usage("a")
				require.Equal(t, 3, open)
				close(r.returns)
				release()
				synctest.Wait()
				require.Equal(t, 2, c.held("a")[streams])
			})
		})
	}
}

// A refusal that was made before a slot came back, and arrives after it, is none.
func TestARefusalThatIsOldIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, all := newReplicas(t, 1, Config{Tiers: tiers(Tier{Streams: 2})})
		r := all[0]
		releases, _ := takeAll(r.Open, "a")
		r.returns, r.latency = make(chan struct{}), 10*time.Millisecond
		releases[0]()
		synctest.Wait()
		opened := make(chan error, 1)
		go func() {
			_, err := r.Open("a", "")
			opened <- err
		}()
		<-time.After(15 * time.Millisecond) // it was refused at 10, which it learns at 20
		r.returns <- struct{}{}
		require.NoError(t, <-opened)
		close(r.returns)
	})
}

// Taken over, no slot needs a round trip, nor does one that was refused for its rate give away what it took over.
func TestTakingOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, all := newReplicas(t, 2, Config{Tiers: map[string]Tier{DefaultTier: {Tunnels: 1}, "paced": {OpensPerMinute: 60, Burst: 2, Streams: 1}}})
		for range 100 {
			release, err := all[0].Tunnel("a", "")
			require.NoError(t, err)
			release()
		}
		synctest.Wait()
		require.Less(t, all[0].sent.takes.Load(), int64(101))
		require.Zero(t, c.held("")[tunnels])

		for range 2 {
			release, err := all[0].Open("a", "paced")
			require.NoError(t, err)
			release()
		}
		_, err := all[0].Open("a", "paced")
		require.ErrorIs(t, err, errs.OpenRate)
		synctest.Wait()
		require.Zero(t, c.held("")[streams])
	})
}

// Callers that release and open in a tight loop, as many as there are slots, are never refused.
func TestChurnAtTheLimitIsNeverRefused(t *testing.T) {
	c := newCounter()
	r := newReplica(t, c, Config{Timeout: time.Minute, Tiers: tiers(Tier{OpensPerMinute: 1 << 30, Streams: 8})}, "gw")
	defer r.stop()
	var refused, most atomic.Int64
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			for range 500 {
				release, err := r.Open("a", "")
				if err != nil {
					refused.Add(1)
					continue
				}
				if n := int64(c.held("a")[streams]); n > most.Load() {
					most.Store(n)
				}
				release()
			}
		})
	}
	callers.Wait()
	require.Zero(t, refused.Load())
	require.LessOrEqual(t, most.Load(), int64(8))
	require.Eventually(t, func() bool { return c.held("") == [kinds]int{} }, time.Minute, time.Millisecond, "nothing is lost")
}

func TestReturnsGoInBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, all := newReplicas(t, 1, Config{Tiers: tiers(Tier{Streams: 1000})})
		r := all[0]
		var releases []func()
		for i := range 1000 {
			release, err := r.Open(fmt.Sprint("t", i%7), "")
			require.NoError(t, err)
			releases = append(releases, release)
		}
		synctest.Wait()
		r.latency = time.Millisecond
		releaseAll(releases)
		<-time.After(time.Second)
		require.Equal(t, [kinds]int{}, c.held(""))
		require.LessOrEqual(t, r.sent.returns.Load(), int64(1000/batchSlots+2))
	})
}

func TestReturnsAreTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, all := newReplicas(t, 1, Config{Tiers: tiers(Tier{Streams: 10})})
		r := all[0]
		releases, _ := takeAll(r.Open, "a")
		r.cut.Store(true)
		releaseAll(releases)
		<-time.After(3 * time.Second)
		require.Equal(t, 10, c.held("")[streams])
		require.Less(t, r.sent.returns.Load(), int64(12), "at growing intervals")
		r.cut.Store(false)
		<-time.After(2 * mostRetry)
		require.Zero(t, c.held("")[streams])

		// Those whose leases are over are not sent any more.
		releases, _ = takeAll(r.Open, "a")
		r.cut.Store(true)
		releaseAll(releases)
		<-time.After(2 * defaultLease)
		r.cut.Store(false)
		<-time.After(2 * mostRetry)
		sent := r.sent.returns.Load()
		<-time.After(defaultLease)
		require.Equal(t, sent, r.sent.returns.Load())
		require.Zero(t, r.shared.returns.waiting.Load())
	})
}

func TestReturnsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, all := newReplicas(t, 1, Config{Tiers: tiers(Tier{Streams: 2000})})
		const most = 500
		r := all[0]
		r.shared.returns.most = most
		var releases []func()
		for i := range most + 1000 {
			release, err := r.Open(fmt.Sprint("t", i%100), "")
			require.NoError(t, err)
			releases = append(releases, release)
		}
		r.SetDegraded(true)
		releaseAll(releases)
		require.EqualValues(t, most, r.shared.returns.waiting.Load())
		require.Contains(t, text(r), "fairlead_gateway_limit_returns_dropped_total 1000")
		require.Contains(t, text(r), "fairlead_gateway_limit_slots 0")
		r.SetDegraded(false)
		<-time.After(time.Second)
		require.Equal(t, 1000, c.held("")[streams])
		<-time.After(defaultLease)
		require.Equal(t, 0, c.held("")[streams], "the lease gives back the others")
	})
}

func TestTheLastReturnsAreSentBeforeRunEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, all := newReplicas(t, 1, Config{Tiers: tiers(Tier{Streams: 10})})
		releases, _ := takeAll(all[0].Open, "a")
		all[0].returns = make(chan struct{}, 10)
		releases[0]()
		synctest.Wait()
		releaseAll(releases)
		for range 10 {
			all[0].returns <- struct{}{}
		}
		all[0].stop()
		require.Zero(t, c.held("")[streams])
	})
}
