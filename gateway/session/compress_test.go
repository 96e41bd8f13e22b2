package session_test

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/gateway/session"
	"fairlead/shared/link"
	"fairlead/shared/relay"
)

// described leads every route to an echo, and describes it.
type described session.Destination

func (d described) Dial(context.Context, session.Identity, string) (relay.Conn, error) {
	return newEcho(), nil
}

func (d described) Describe(string) (session.Destination, bool) { return session.Destination(d), true }

// Whoever says no is obeyed, then who says yes; auto is yes, but not for bytes that are encrypted.
//
// Verifies: R7.8
func TestTheGatewayDecidesWhatIsCompressed(t *testing.T) {
	const off, auto, on = link.CompressOff, link.CompressAuto, link.CompressOn
	for _, c := range []struct {
		mode        string
		route, wish link.Compression
		want        bool
	}{
		{"forward", auto, auto, true},
		{"forward", auto, on, true},
		{"forward", auto, off, false},
		{"forward", on, auto, true},
		{"forward", on, off, false},
		{"forward", off, on, false},
		{"passthrough", auto, auto, false},
		{"passthrough", auto, on, true},
		{"passthrough", on, auto, true},
		{"passthrough", off, on, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			compressor, err := link.NewCompressor()
			require.NoError(t, err)
			w := newWorld(t, func(cfg *session.Config, o *session.OpenerConfig) {
				cfg.Link.Compressor = compressor
				o.Backends = described{Mode: c.mode, Compression: c.route}
			})
			for _, capable := range []bool{true, false} {
				s := &sidecar{conn: w.dial(alice())}
				cfg := link.Config{}
				if capable {
					cfg.Compressor = compressor
				}
				tunnel, lane, err := link.Connect(t.Context(), s.conn, cfg)
				require.NoError(t, err)
				s.Tunnel = tunnel
				s.run(lane)
				synctest.Wait()
				st, err := s.Open(link.OpenRequest{Route: "logs", Compression: c.wish})
				require.NoError(t, err)
				require.NoError(t, st.WaitOpened(t.Context()))
				assert.Equal(t, c.want && capable, st.Compressed(), "%+v, capable %v", c, capable)
				s.leave()
			}
			assert.True(t, w.metric(`fairlead_gateway_compression_plain_bytes_total{direction="sent"} 0`))
			w.close()
		})
	}
}
