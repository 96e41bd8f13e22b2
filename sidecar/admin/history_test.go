package admin

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/sidecar/status"
)

// Verifies: R2.8
func TestHistoryTellsRatesOfTheLastMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h history
		var sent uint64
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() {
			h.run(ctx, func() status.Status {
				sent += 1000
				return status.Status{State: "connected", RTT: 3, Queue: status.Queue{Length: 2}, Spool: &status.Spool{Bytes: 7},
					Listeners: []status.Listener{{Active: 1, Sent: sent}, {Active: 2, Received: 2 * sent}}}
			})
		})
		assert.Empty(t, h.list())
		time.Sleep(2500 * time.Millisecond) // of the bubble's clock
		list := h.list()
		require.Len(t, list, 2)
		want := status.Sample{Time: list[1].Time, State: "connected", Sent: 1000, Received: 2000, RTT: 3, Connections: 3, Queue: 2, SpoolBytes: 7}
		assert.Equal(t, want, list[1])
		assert.Equal(t, status.Rates{Sent: 1000, Received: 2000}, h.rates())
		time.Sleep(time.Hour)
		assert.Len(t, h.list(), samplesKept, "and no more are kept")
		stop()
		running.Wait()
	})
}

func TestRatesAreNeverNegative(t *testing.T) {
	var h history
	now := time.Now()
	for i, sent := range []uint64{5000, 9000, 100} { // a listener was taken out
		h.add(status.Status{Listeners: []status.Listener{{Sent: sent}}}, now.Add(time.Duration(i)*time.Second))
	}
	list := h.list()
	require.Len(t, list, 2)
	assert.Equal(t, 4000.0, list[0].Sent)
	assert.Zero(t, list[1].Sent)
}
