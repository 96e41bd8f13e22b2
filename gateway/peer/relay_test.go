package peer_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/gateway/peer"
	"fairlead/shared/errs"
	"fairlead/shared/link"
)

// cutConn is a TCP connection that is reset once so many bytes have gone through it, in the middle of whatever they are.
type cutConn struct {
	*net.TCPConn
	left atomic.Int64
}

func (c *cutConn) spend(n int) {
	if c.left.Add(-int64(n)) <= 0 {
		_ = c.SetLinger(0)
		_ = c.Close()
	}
}

func (c *cutConn) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	c.spend(n)
	return n, err
}

func (c *cutConn) Write(p []byte) (int, error) {
	n, err := c.TCPConn.Write(p[:min(len(p), int(max(1, c.left.Load())))])
	c.spend(n)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return n, err
}

// produce writes n bytes of a generator, and returns their hash.
func produce(w io.Writer, seed uint64, n int) ([]byte, error) {
	rng, sum, b := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}), sha256.New(), make([]byte, 100_000)
	for n > 0 {
		p := b[:min(n, len(b))]
		_, _ = rng.Read(p)
		sum.Write(p)
		if _, err := w.Write(p); err != nil {
			return nil, err
		}
		n -= len(p)
	}
	return sum.Sum(nil), nil
}

func consume(r io.Reader) ([]byte, int64, error) {
	sum := sha256.New()
	n, err := io.Copy(sum, r)
	return sum.Sum(nil), n, err
}

// transferred is what one end of a stream has seen.
type transferred struct {
	sent, got []byte
	n         int64
	err       error
}

// both sends size bytes each way at once, and waits for both ends of the stream.
func both(s *link.Stream, seed uint64, size int, seen ...io.Writer) (res transferred) {
	var wg sync.WaitGroup
	var sendErr error
	wg.Go(func() {
		var err error
		res.sent, err = produce(s, seed, size)
		sendErr = errors.Join(err, s.CloseWrite())
	})
	got, n, err := consume(io.TeeReader(s, io.MultiWriter(seen...)))
	wg.Wait()
	res.got, res.n, res.err = got, n, errors.Join(sendErr, err, s.Wait())
	return res
}

// every calls f once in so many bytes.
type every struct {
	bytes, left int
	f           func()
}

func (e *every) Write(p []byte) (int, error) {
	if e.left -= len(p); e.left <= 0 {
		e.left = e.bytes
		e.f()
	}
	return len(p), nil
}

// echo sends back what it gets, and ends after its peer.
func echo(s *link.Stream) {
	s.Accept()
	_, _ = io.Copy(s, s)
	_ = s.CloseWrite()
	_ = s.Wait()
}

// A tunnel that is resumed in turn through its owner and through another replica, over connections that are reset in the middle of
// anything, by the network and by the replica between, loses, repeats and reorders nothing, in either direction, and ends of directions are kept.
//
// Verifies: R1.7, R10.6
func TestResumeThroughEitherReplica(t *testing.T) {
	const cuts, size = 200, 4 << 20
	far := make(chan transferred, 8)
	var rounds atomic.Uint64
	a, b := pair(t, func(s *link.Stream) {
		s.Accept()
		far <- both(s, uint64(s.ID())+100, size)
	})
	rng := rand.New(rand.NewPCG(3, 4))
	over := make(chan struct{})
	s := &sidecar{next: func(n int) *replica {
		if n%2 == 1 { // the tunnel is a's
			return a
		}
		return b
	}}
	s.wrap = func(n int, c net.Conn) net.Conn {
		budget := 20_000 + rng.Int64N(200_000)
		switch {
		case n > cuts:
			if n == cuts+1 {
				close(over)
			}
			return c
		case n%7 == 0:
			budget = 1 + rng.Int64N(6000) // in a handshake or a resume
		}
		cut := &cutConn{TCPConn: c.(*net.TCPConn)}
		cut.left.Store(budget)
		return cut
	}
	s.connect(t, link.Config{MaxWindow: 1 << 20})
	cutter := &every{bytes: 300_000, left: 300_000, f: b.CutAll}
	for done := false; !done; {
		select {
		case <-over: // one more, through what is whole now
			done = true
		default:
		}
		st, err := s.tun.Open(link.OpenRequest{Route: "both"})
		require.NoError(t, err)
		here := both(st, uint64(st.ID()), size, cutter)
		require.NoError(t, here.err)
		there := <-far
		require.NoError(t, there.err)
		require.EqualValues(t, size, here.n)
		require.EqualValues(t, size, there.n)
		require.Equal(t, there.sent, here.got, "down")
		require.Equal(t, here.sent, there.got, "up")
		rounds.Add(1)
	}
	t.Logf("%d attempts, %d lanes through the owner, %d through the other one, %d transfers, %d bytes sent again", s.attempts, s.came("a"), s.came("b"), rounds.Load(), s.tun.Stats().BytesReplayed)
	require.Greater(t, s.came("b"), 50)
	require.Greater(t, s.came("a"), 50)
	require.NotZero(t, s.tun.Stats().BytesReplayed)
	s.stop()
	require.Eventually(t, func() bool { return b.metric("fairlead_gateway_relays 0") }, 20*time.Second, time.Millisecond)
	a.mu.Lock()
	defer a.mu.Unlock()
	require.Greater(t, len(a.calls), 50)
	require.Equal(t, "b", a.calls[0].Via)
	require.Empty(t, a.carried)
}

// A replica may cut what it carries in the middle of a transfer, as often as it likes.
//
// Verifies: R1.7
func TestRelaysThatAreCutInATransfer(t *testing.T) {
	const size = 3 << 20
	far := make(chan transferred, 1)
	a, b := pair(t, func(s *link.Stream) {
		s.Accept()
		far <- both(s, 2, size)
	})
	s := &sidecar{next: func(n int) *replica {
		if n == 1 {
			return a
		}
		return b
	}}
	s.connect(t, link.Config{MaxWindow: 1 << 20})
	s.cut()
	require.Eventually(t, func() bool { return len(b.Relays()) == 1 && s.came("b") == 1 }, 20*time.Second, time.Millisecond)
	st, err := s.tun.Open(link.OpenRequest{Route: "both"})
	require.NoError(t, err)
	here := both(st, 1, size, &every{bytes: 300_000, left: 300_000, f: b.CutAll})
	require.NoError(t, here.err)
	there := <-far
	require.NoError(t, there.err)
	require.Equal(t, there.sent, here.got, "down")
	require.Equal(t, here.sent, there.got, "up")
	require.Greater(t, s.came("b"), 1)
	s.stop()
	require.Eventually(t, func() bool { return b.metric("fairlead_gateway_relays 0") }, 20*time.Second, time.Millisecond)
	require.False(t, b.metric(`fairlead_gateway_relays_total{result="cut"} 0`))
}

// What one side has ended stays so while the tunnel comes and goes through another replica, and the other direction goes on.
//
// Verifies: R1.7
func TestHalfClosedStreamsThroughAnotherReplica(t *testing.T) {
	ended, waiting := make(chan string, 1), make(chan struct{})
	goOn := sync.OnceFunc(func() { close(waiting) })
	defer goOn()
	a, b := pair(t, func(s *link.Stream) {
		s.Accept()
		got, _ := io.ReadAll(s)
		ended <- string(got)
		<-waiting
		_, _ = s.Write([]byte("still here"))
		_ = s.CloseWrite()
		_ = s.Wait()
	})
	s := &sidecar{}
	s.next = func(n int) *replica {
		if n == 1 {
			return a
		}
		return b
	}
	s.connect(t, link.Config{})
	st, err := s.tun.Open(link.OpenRequest{Route: "half"})
	require.NoError(t, err)
	_, err = st.Write([]byte("hello"))
	require.NoError(t, err)
	require.NoError(t, st.CloseWrite())
	require.Equal(t, "hello", <-ended)
	for n := 1; n <= 3; n++ {
		s.cut()
		require.Eventually(t, func() bool { return s.came("b") == n && s.tun.Attached() }, 20*time.Second, time.Millisecond)
	}
	require.Eventually(t, func() bool { return len(b.Relays()) == 1 }, 20*time.Second, time.Millisecond, "the others have ended")
	require.Equal(t, peer.Relay{Tunnel: s.tun.ID().String(), Owner: "a/1", Client: "sidecar"}, b.Relays()[0].Relay)
	require.Eventually(t, func() bool { return b.Relays()[0].Sent > 0 }, 20*time.Second, time.Millisecond, "it is counted when it has been written")
	goOn()
	got, err := io.ReadAll(st)
	require.NoError(t, err)
	require.Equal(t, "still here", string(got))
	require.NoError(t, st.Wait())
	s.stop()
	require.Eventually(t, func() bool { return b.metric("fairlead_gateway_relays 0") }, 20*time.Second, time.Millisecond)
}

// When the replica between is drained its relays end, each at a moment of its own, and the sidecars come back by another way: nothing
// is lost.
//
// Verifies: R8.8
func TestADrainEndsRelays(t *testing.T) {
	a, b := pair(t, echo)
	const tunnels = 8
	var drained atomic.Bool
	all := make([]*sidecar, tunnels)
	for i := range all {
		s := &sidecar{}
		s.next = func(n int) *replica {
			if n == 1 || drained.Load() {
				return a
			}
			return b
		}
		all[i] = s
		s.connect(t, link.Config{})
		s.cut()
	}
	require.Eventually(t, func() bool { return len(b.Relays()) == tunnels }, 20*time.Second, time.Millisecond)
	streams := make([]*link.Stream, tunnels)
	for i, s := range all {
		st, err := s.tun.Open(link.OpenRequest{Route: "echo"})
		require.NoError(t, err)
		_, err = st.Write([]byte("before"))
		require.NoError(t, err)
		_, err = io.ReadFull(st, make([]byte, 6))
		require.NoError(t, err)
		streams[i] = st
	}
	drained.Store(true)
	begin := time.Now()
	b.End(t.Context(), 300*time.Millisecond)
	t.Logf("ended within %v", time.Since(begin))
	require.Empty(t, b.Relays())
	for i, st := range streams {
		_, err := st.Write([]byte(" and after"))
		require.NoError(t, err)
		require.NoError(t, st.CloseWrite())
		got, err := io.ReadAll(st)
		require.NoError(t, err)
		require.Equal(t, " and after", string(got))
		require.Equal(t, 2, all[i].came("a"))
		require.Equal(t, 1, all[i].came("b"))
		require.NoError(t, all[i].tun.Err())
	}
	require.True(t, b.metric(`fairlead_gateway_relays_total{result="cut"} 8`))
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, err := range b.carried {
		require.ErrorIs(t, err, errs.ShuttingDown)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b.End(ctx, time.Hour) // there is nothing to wait for
}
