package link

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

// Room waits as long as it was told to and no longer; Acked is what the peer said, also after the stream's end.
func TestRoomAndAcked(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playGateway(t, Config{})
		s, err := p.tun.Open(OpenRequest{Route: "git"})
		require.NoError(t, err)
		n, err := s.Room(time.Minute)
		require.NoError(t, err)
		require.Equal(t, int(defaultWindow), n)
		sent := make([]byte, n)
		go func() { // what goes out is taken from the lane
			for {
				h, _, err := p.recv()
				if err != nil {
					return
				}
				if h.kind == typePing {
					_ = p.try(header{kind: typePong, offset: h.offset}, nil)
				}
			}
		}()
		_, err = s.Write(sent)
		require.NoError(t, err)
		n, err = s.Room(0)
		require.NoError(t, err)
		require.Zero(t, n)
		start := time.Now()
		n, err = s.Room(10 * time.Second)
		require.NoError(t, err)
		require.Zero(t, n)
		require.Equal(t, 10*time.Second, time.Since(start))
		require.Zero(t, s.Acked())

		p.send(header{kind: typeCredit, stream: 1, offset: defaultWindow + 100}, u64(100))
		n, err = s.Room(10 * time.Second)
		require.NoError(t, err)
		require.Equal(t, 100, n)
		require.Equal(t, uint64(100), s.Acked())
		_, err = s.Write(sent[:100])
		require.NoError(t, err)
		done := make(chan error, 1)
		go func() {
			_, err := s.Room(time.Hour)
			done <- err
		}()
		synctest.Wait()
		s.Reset(errs.New(errs.Canceled, "test"))
		require.ErrorIs(t, <-done, errs.Canceled)
		require.Equal(t, uint64(100), s.Acked(), "not what was dropped")
		p.stop()
	})
}
