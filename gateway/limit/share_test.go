package limit

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

// Without what they share, replicas grant the sum of their shares and no more: whether they know that it is gone, find out
// at each call, or wait for it in vain.
//
// Verifies: R4.8, R4.3
func TestReplicasAloneGrantTheirShares(t *testing.T) {
	for name, lose := range map[string]func(*replica){
		"known":     func(r *replica) { r.cut.Store(true); r.SetDegraded(true) },
		"unknown":   func(r *replica) { r.cut.Store(true) },
		"no answer": func(r *replica) { r.deaf.Store(true) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, all := newReplicas(t, 3, Config{Tiers: tiers(Tier{OpensPerMinute: 600, Burst: 100, Streams: 32, Tunnels: 2})})
				var flood sync.WaitGroup
				opened, connected := make([][]func(), 3), make([][]func(), 3)
				for i, r := range all {
					lose(r)
					flood.Go(func() {
						opened[i], _ = takeAll(r.Open, "a")
						connected[i], _ = takeAll(r.Tunnel, "a")
					})
				}
				flood.Wait()
				for i, r := range all {
					require.Len(t, opened[i], 10, "of 32")
					require.Len(t, connected[i], 1, "of 2, but at least 1")
					_, err := r.Open("a", "")
					require.Contains(t, err.Error(), "10 streams, of 10 that its tier allows at one replica")
					require.EqualValues(t, 10, errs.From(err).Quota.Limit)
					releaseAll(opened[i])
				}
				var left [3]int
				for i, r := range all {
					for left[i] < 1000 {
						release, err := r.Open("a", "")
						if err != nil {
							require.ErrorIs(t, err, errs.OpenRate)
							require.EqualValues(t, 33, errs.From(err).Quota.Limit)
							break
						}
						left[i]++
						release()
					}
				}
				for _, n := range left { // of the 33, and what 200 a minute gave meanwhile
					require.GreaterOrEqual(t, n, 23)
					require.LessOrEqual(t, n, 23+40)
					if name != "no answer" {
						require.Equal(t, 23, n)
					}
				}
			})
		})
	}
}

func TestDegradedCostsNoRoundTripAndEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, all := newReplicas(t, 3, Config{Tiers: tiers(Tier{Streams: 9, Tunnels: 3})})
		r := all[0]
		opened, _ := takeAll(r.Open, "a")
		require.Len(t, opened, 9)
		require.Contains(t, text(r), "fairlead_gateway_limit_degraded 0")
		for _, r := range all {
			r.cut.Store(true)
			r.SetDegraded(true)
		}
		require.Contains(t, text(r), "fairlead_gateway_limit_degraded 1")
		asked := r.sent.takes.Load()
		_, err := r.Open("a", "")
		require.ErrorIs(t, err, errs.StreamLimit, "what was granted before counts")
		releaseAll(opened[:7])
		opened = opened[7:]
		more, _ := takeAll(r.Open, "a")
		require.Len(t, more, 1)
		<-time.After(10 * time.Minute)
		require.Equal(t, asked, r.sent.takes.Load())
		require.Equal(t, [kinds]int{}, c.held(""))

		for _, r := range all {
			r.cut.Store(false)
			r.SetDegraded(false)
			r.SetDegraded(false)
		}
		_, err = r.Open("a", "")
		require.ErrorIs(t, err, errs.StreamLimit, "still the share, until everybody is back")
		<-time.After(2 * time.Second)
		require.Equal(t, 3, c.held("a")[streams], "what is held is told first")
		<-time.After(10 * time.Second)
		require.Contains(t, text(r), "fairlead_gateway_limit_degraded 0")
		others, _ := takeAll(all[1].Open, "a")
		require.Len(t, others, 6)
		releaseAll(opened)
		releaseAll(more)
		releaseAll(others)
		synctest.Wait()
		require.Equal(t, [kinds]int{}, c.held(""))
	})
}

func TestShareFollowsReplicasAndTiers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, all := newReplicas(t, 1, Config{Tiers: tiers(Tier{OpensPerMinute: 60, Burst: 12, Streams: 12})})
		r := all[0]
		r.SetDegraded(true)
		take := func(n int, code errs.Code) {
			t.Helper()
			releases, err := takeAll(r.Open, "a")
			require.ErrorIs(t, err, code)
			require.Len(t, releases, n)
		}
		r.SetShare(4)
		take(3, errs.StreamLimit)
		r.SetShare(3)
		take(1, errs.StreamLimit)
		require.NoError(t, r.SetTiers(tiers(Tier{OpensPerMinute: 60, Burst: 15})))
		take(1, errs.OpenRate) // 5, of which 4 are used
		r.SetShare(0)
		take(10, errs.OpenRate) // what was used of a share was used of the whole
		r.SetShare(100)
		<-time.After(59 * time.Second)
		take(0, errs.OpenRate) // 1 in a minute at least
		<-time.After(time.Second)
		take(1, errs.OpenRate)
	})
}

// A call without an answer is the share's, and what it grants is told soon; what it refuses is given back, because it may
// have been granted all the same.
func TestASingleCallWithoutAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, all := newReplicas(t, 3, Config{Tiers: tiers(Tier{Streams: 9})})
		r := all[0]
		opened, _ := takeAll(r.Open, "a")
		releaseAll(opened[4:])
		opened = opened[:4]
		synctest.Wait()
		r.deaf.Store(true)
		start := time.Now()
		_, err := r.Open("a", "")
		require.ErrorIs(t, err, errs.StreamLimit, "4 of 3")
		require.Equal(t, defaultTimeout, time.Since(start))
		r.deaf.Store(false)
		<-time.After(2 * sendTimeout) // also if that is not answered either
		require.Equal(t, 4, c.held("a")[streams], "it was granted there, and given back")

		releaseAll(opened[2:])
		synctest.Wait()
		r.cut.Store(true)
		_, err = r.Open("a", "")
		require.NoError(t, err)
		require.Equal(t, 2, c.held("a")[streams])
		r.cut.Store(false)
		<-time.After(2 * owedFor)
		require.Equal(t, 3, c.held("a")[streams])
		require.EqualValues(t, 1, r.sent.renewed.Load(), "only what was not known")
		require.Contains(t, text(r), `fairlead_gateway_limit_shared_total{result="failed"} 2`)
		require.Contains(t, text(r), `fairlead_gateway_limit_shared_total{result="granted"} 9`)
		require.Contains(t, text(r), `fairlead_gateway_limit_shared_total{result="refused"} 0`)
	})
}
