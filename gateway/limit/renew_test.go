package limit

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

func TestWhatIsHeldIsRenewedForAsLongAsItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, all := newReplicas(t, 2, Config{Tiers: tiers(Tier{Streams: 700, Tunnels: 3})})
		streamsHeld, _ := takeAll(all[0].Open, "a")
		tunnelsHeld, _ := takeAll(all[0].Tunnel, "a")
		for range 100 {
			<-time.After(defaultLease / 10)
			require.Equal(t, [kinds]int{700, 3}, c.held("a"))
		}
		require.LessOrEqual(t, all[0].sent.renewals.Load(), int64(3*35), "in batches")
		require.Contains(t, text(all[0]), fmt.Sprint("fairlead_gateway_limit_renewed_total ", all[0].sent.renewed.Load()))
		require.Contains(t, text(all[0]), "fairlead_gateway_limit_slots 703")
		releaseAll(streamsHeld)
		releaseAll(tunnelsHeld)
		synctest.Wait()
		require.Equal(t, [kinds]int{}, c.held(""))
		<-time.After(defaultLease)
		sent := all[0].sent.renewals.Load()
		<-time.After(2 * defaultLease)
		require.Equal(t, sent, all[0].sent.renewals.Load(), "nothing is renewed that is not held")
	})
}

// A replica that crashes renews nothing, and what it held is granted again within a minute.
//
// Verifies: R4.8
func TestTheShareOfACrashedReplicaComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, all := newReplicas(t, 3, Config{Tiers: tiers(Tier{Streams: 9, Tunnels: 3})})
		opened, _ := takeAll(all[0].Open, "a")
		require.Len(t, opened, 9)
		connected, _ := takeAll(all[0].Tunnel, "a")
		require.Len(t, connected, 3)
		<-time.After(10 * time.Minute)
		all[0].cut.Store(true)
		all[0].stop()
		_, err := all[1].Open("a", "")
		require.ErrorIs(t, err, errs.StreamLimit)
		<-time.After(time.Minute)
		opened, _ = takeAll(all[1].Open, "a")
		require.Len(t, opened, 9)
		connected, _ = takeAll(all[2].Tunnel, "a")
		require.Len(t, connected, 3)
	})
}

func TestRenewalsAreTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, all := newReplicas(t, 1, Config{Tiers: tiers(Tier{Streams: 10})})
		r := all[0]
		_, _ = takeAll(r.Open, "a")
		r.cut.Store(true)
		<-time.After(10 * time.Minute)
		require.Zero(t, c.held("a")[streams])
		require.Less(t, r.sent.renewals.Load(), int64(10*60/2), "not too often")
		r.cut.Store(false)
		<-time.After(2 * mostRetry)
		require.Equal(t, 10, c.held("a")[streams], "and what was forgotten is taken again")
	})
}

// What lost its memory is told what is held, and grants no more than the shares do until then.
func TestRestore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, all := newReplicas(t, 3, Config{Tiers: tiers(Tier{Streams: 9})})
		opened, _ := takeAll(all[0].Open, "a")
		require.Len(t, opened, 9)
		c.flush()
		for _, r := range all {
			r.Restore()
		}
		for _, r := range all[1:] {
			opened, err := takeAll(r.Open, "a")
			require.Len(t, opened, 3)
			require.ErrorIs(t, err, errs.StreamLimit)
			releaseAll(opened)
		}
		<-time.After(2 * time.Second)
		require.Equal(t, 9, c.held("a")[streams])
		_, err := all[1].Open("a", "")
		require.ErrorIs(t, err, errs.StreamLimit)
		<-time.After(defaultLease / 3)
		require.Equal(t, together, all[1].shared.mode.load())
		releaseAll(opened)
		synctest.Wait()
		opened, _ = takeAll(all[1].Open, "a")
		require.Len(t, opened, 9, "all of it is granted again")
	})
}

// Many slots are told one after the other, so that nobody else has to wait for long.
func TestRenewingIsPaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, all := newReplicas(t, 1, Config{Tiers: tiers(Tier{Streams: 100_000})})
		r := all[0]
		const held = 20 * batchSlots
		for range held {
			_, err := r.Open("a", "")
			require.NoError(t, err)
		}
		r.SetDegraded(true)
		c.flush()
		r.SetDegraded(false)
		<-time.After(defaultLease/90 + 10*renewPause)
		require.LessOrEqual(t, r.sent.renewed.Load(), int64(held))
		before := r.sent.renewed.Load()
		<-time.After(5 * renewPause)
		require.LessOrEqual(t, r.sent.renewed.Load()-before, int64(6*batchSlots))
		<-time.After(time.Second)
		require.Equal(t, held, c.held("a")[streams])
	})
}
