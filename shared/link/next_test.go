package link

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

// A lane that went silent may have been too slow for its frames, so the next one begins with smaller ones.
func TestTheLaneAfterASilentOneBeginsWithSmallerFrames(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playGateway(t, Config{})
		isCode(t, errs.LaneDead, <-p.ran) // the played gateway answers no ping
		p.tun.mu.Lock()
		require.Equal(t, MaxPayload/8, p.tun.newLane(newMemPair().client, 2, false).maxFrame)
		p.tun.mu.Unlock()
		p.tun.Close(nil)
		p.tun.Wait()
	})
}

// The gateway's time begins when it notices the loss, which is a heartbeat and a half later at most.
func TestHeldForCountsTheGatewaysHeartbeat(t *testing.T) {
	tun := &Tunnel{}
	require.Zero(t, tun.HeldFor())
	tun.hello = welcome{resumeTTL: time.Minute, heartbeat: 30 * time.Second}
	require.Equal(t, 105*time.Second, tun.HeldFor())
}
