package load

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// lockedBuffer is a log that may be read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestProxiesCarryContentBothWays(t *testing.T) {
	addr := newServer(t)
	for name, open := range map[string]func() (*Proxy, error){
		"delay": func() (*Proxy, error) { return NewDelay(addr, 5*time.Millisecond) },
		"shape": func() (*Proxy, error) { return NewShape(addr, 64<<20) },
	} {
		t.Run(name, func(t *testing.T) {
			p, err := open()
			require.NoError(t, err)
			defer p.Close()
			for _, up := range []bool{true, false} {
				perform(t, Job{Kind: Transfer, Addr: p.Addr(), Streams: 3, Bytes: 6 << 20, Up: up})
			}
		})
	}
}

func TestDelayDelaysEveryRoundTripAndNothingElse(t *testing.T) {
	const oneWay = 40 * time.Millisecond
	p, err := NewDelay(newServer(t), oneWay)
	require.NoError(t, err)
	defer p.Close()
	out := perform(t, Job{Kind: Echo, Addr: p.Addr(), Duration: 300 * time.Millisecond})
	require.GreaterOrEqual(t, out.Latency.P50, 2*oneWay)
	require.Less(t, out.Latency.P50, 20*oneWay, "and not much more, but for a busy machine")
	// 16 MiB in one go need one delay, not one for each 64 KiB, which would be 20 s.
	out = perform(t, Job{Kind: Transfer, Addr: p.Addr(), Streams: 1, Bytes: 16 << 20})
	require.Less(t, out.Seconds, 10.0)
}

func TestProxyKeepsHalfClose(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	var answering sync.WaitGroup
	defer answering.Wait()
	answering.Go(func() { // answers only when the other direction has ended
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		all, _ := io.ReadAll(conn)
		_, _ = conn.Write(append([]byte("got "), all...))
	})
	p, err := NewDelay(l.Addr().String(), time.Millisecond)
	require.NoError(t, err)
	defer p.Close()
	conn, release, err := connect(t.Context(), p.Addr())
	require.NoError(t, err)
	defer release()
	_, err = io.WriteString(conn, "ping")
	require.NoError(t, err)
	require.NoError(t, conn.CloseWrite())
	answer, err := io.ReadAll(conn)
	require.NoError(t, err)
	require.Equal(t, "got ping", string(answer))
}

func TestProxyEndsConnectionsOnClose(t *testing.T) {
	addr := newServer(t)
	p, err := NewShape(addr, 1<<20)
	require.NoError(t, err)
	conn, release, err := openEcho(t.Context(), p.Addr(), 1)
	require.NoError(t, err)
	defer release()
	p.Close()
	require.Error(t, roundTrip(conn, make([]byte, headerSize)))
}

func TestShapeLimitsAllConnectionsTogether(t *testing.T) {
	p, err := NewShape(newServer(t), 4<<20)
	require.NoError(t, err)
	defer p.Close()
	out := perform(t, Job{Kind: Transfer, Addr: p.Addr(), Streams: 4, Bytes: 2 << 20, Up: true})
	require.Greater(t, out.Seconds, 0.3, "half a second but for the burst; each for itself they would need an eighth")
	require.Less(t, out.Seconds, 10.0, "far more than a busy machine adds")
}

func TestBucket(t *testing.T) {
	start := time.Unix(1000, 0)
	b := newBucket(1000) // a byte a millisecond
	require.Equal(t, 90*time.Millisecond, b.take(100, start), "an idle link has saved up its burst")
	require.Equal(t, 190*time.Millisecond, b.take(100, start), "who comes second waits for the first")
	require.Equal(t, 140*time.Millisecond, b.take(0, start.Add(50*time.Millisecond)))
	require.Equal(t, -shapeBurst, b.take(0, start.Add(time.Hour)))
}
