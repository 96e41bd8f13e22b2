package ws_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/ws"
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

// resumable is a gateway that holds tunnels, and a sidecar's end of one of them that is resumed whenever its connection
// breaks.
type resumable struct {
	tun   *link.Tunnel
	mu    sync.Mutex
	known map[link.ID]*link.Tunnel
	lanes sync.WaitGroup
}

func (r *resumable) serve(gw link.Config) func(*ws.Conn) {
	return func(c *ws.Conn) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		hs, err := link.Greet(ctx, c)
		if err == nil {
			var lane *link.Lane
			if lane, err = r.lane(hs, gw); err == nil {
				_ = lane.Run()
				return
			}
		}
		c.Close(errs.CloseFrame(err))
		c.Drain()
		c.Abort()
		c.Wait()
	}
}

func (r *resumable) lane(hs *link.Handshake, gw link.Config) (*link.Lane, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	id, resume := hs.Tunnel()
	if !resume {
		tun, lane, err := hs.Accept(gw)
		if err == nil {
			r.known[tun.ID()] = tun
		}
		return lane, err
	}
	if tun, ok := r.known[id]; ok {
		return hs.Resume(tun)
	}
	return nil, errs.New(errs.TunnelUnknown, "no tunnel %s", id)
}

// connect makes the tunnel; budgets are the bytes after which each of its connections is cut, 0 for never. What wrap makes of its
// connections is used instead of them.
func connect(t *testing.T, secure bool, cfg link.Config, accept func(*link.Stream), budget func(n int) int64, wrap ...func(net.Conn) net.Conn) *resumable {
	r := &resumable{known: map[link.ID]*link.Tunnel{}}
	gw := cfg
	gw.Accept = accept
	u := serve(t, secure, r.serve(gw))
	dials := 0
	d := ws.Dialer{TLS: u.tls, MaxMessage: maxMessage, Timeout: 5 * time.Second, DialTCP: func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		dials++
		if n := budget(dials); err == nil && n > 0 {
			cut := &cutConn{TCPConn: c.(*net.TCPConn)}
			cut.left.Store(n)
			c = cut
		}
		for _, w := range wrap {
			if err == nil {
				c = w(c)
			}
		}
		return c, err
	}}
	dial := func() *ws.Conn {
		for {
			c, err := d.Dial(context.Background(), u.url, nil, link.Subprotocol)
			if err == nil {
				return c
			}
		}
	}
	var lane *link.Lane
	for lane == nil {
		c := dial()
		var err error
		if r.tun, lane, err = link.Connect(context.Background(), c, cfg); err != nil {
			c.Abort()
		}
	}
	r.lanes.Go(func() {
		for {
			if lane != nil {
				_ = lane.Run()
			}
			if r.tun.Err() != nil {
				return
			}
			c := dial()
			var err error
			if lane, err = r.tun.Resume(context.Background(), c); err != nil {
				c.Abort()
				if errors.Is(err, errs.TunnelUnknown) {
					r.tun.Close(err)
				}
			}
		}
	})
	t.Cleanup(func() {
		r.tun.Close(nil)
		r.lanes.Wait()
		r.tun.Wait()
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, tun := range r.known {
			tun.Close(nil)
			tun.Wait()
		}
	})
	return r
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

func consume(r io.Reader) (hash.Hash, int64, error) {
	sum := sha256.New()
	n, err := io.Copy(sum, r)
	return sum, n, err
}

// Transfers far above the window, both ways at once, over real TCP and TLS whose connections are reset again and again,
// in handshakes, messages and resumes: every byte arrives once and in order.
//
// Verifies: R1.7, R10.4, R10.5, R10.6
func TestTransfersSurviveRepeatedCuts(t *testing.T) {
	const size = 24 << 20 // 96 windows
	for _, secure := range []bool{false, true} {
		t.Run(map[bool]string{false: "tcp", true: "tls"}[secure], func(t *testing.T) {
			const cuts = 40
			type result struct {
				sent, got []byte
				n         int64
				err       error
			}
			far := make(chan result, 4)
			rng := rand.New(rand.NewPCG(1, 2))
			r := connect(t, secure, link.Config{MaxWindow: 1 << 20}, func(s *link.Stream) {
				s.Accept()
				var res result
				var wg sync.WaitGroup
				wg.Go(func() {
					var err error
					res.sent, err = produce(s, uint64(s.ID())+100, size)
					res.err = errors.Join(res.err, err, s.CloseWrite())
				})
				sum, n, err := consume(s)
				wg.Wait()
				res.got, res.n, res.err = sum.Sum(nil), n, errors.Join(res.err, err, s.Wait())
				far <- res
			}, func(n int) int64 {
				switch {
				case n > cuts:
					return 0
				case n%5 == 0:
					return 1 + rng.Int64N(6000) // in a handshake or a resume
				}
				return 10_000 + rng.Int64N(4<<20)
			})
			for range 2 {
				s, err := r.tun.Open(link.OpenRequest{Route: "both"})
				require.NoError(t, err)
				sent := make(chan []byte, 1)
				go func() {
					sum, _ := produce(s, uint64(s.ID()), size)
					_ = s.CloseWrite()
					sent <- sum
				}()
				sum, n, err := consume(s)
				require.NoError(t, err)
				res := <-far
				require.NoError(t, res.err)
				require.Equal(t, int64(size), n)
				require.Equal(t, int64(size), res.n)
				require.Equal(t, res.sent, sum.Sum(nil), "down")
				require.Equal(t, <-sent, res.got, "up")
				require.NoError(t, s.Wait())
			}
			require.Greater(t, r.tun.Stats().Resumes, uint64(15))
			require.NotZero(t, r.tun.Stats().BytesReplayed)
		})
	}
}

// lines writes n bytes of text, which shrinks to a quarter, and returns their hash.
func lines(w io.Writer, seed uint64, n int) ([]byte, error) {
	sum, left, rng := sha256.New(), n, rand.New(rand.NewPCG(seed, 0))
	for i := 0; left > 0; i++ {
		var b bytes.Buffer
		for b.Len() < 64<<10 {
			fmt.Fprintf(&b, `{"batch":%d,"at":%d,"level":"info","msg":"a line of a log","trace":"%016x"}`+"\n", i, b.Len(), rng.Uint64())
		}
		p := b.Bytes()[:min(left, b.Len())]
		sum.Write(p)
		if _, err := w.Write(p); err != nil {
			return nil, err
		}
		left -= len(p)
	}
	return sum.Sum(nil), nil
}

// Compressed transfers over slow TLS connections that are reset again and again arrive as they were, and take less than they are.
//
// Verifies: R1.7, R7.8
func TestCompressedTransfersSurviveRepeatedCuts(t *testing.T) {
	const size, cuts, rate = 2 << 20, 20, 512 << 10
	compressor, err := link.NewCompressor()
	require.NoError(t, err)
	rng := rand.New(rand.NewPCG(3, 4))
	far := make(chan []byte, 1)
	r := connect(t, true, link.Config{MaxWindow: 1 << 20, Compressor: compressor}, func(s *link.Stream) {
		s.AcceptCompressed()
		sum, n, err := consume(s)
		if err == nil && n == size {
			far <- sum.Sum(nil)
		} else {
			far <- nil
		}
		_ = s.CloseWrite()
		_ = s.Wait()
	}, func(n int) int64 {
		if n > cuts {
			return 0
		}
		return 10_000 + rng.Int64N(50_000)
	}, func(c net.Conn) net.Conn { return &slowTCP{Conn: c, rate: rate} })
	s, err := r.tun.Open(link.OpenRequest{Route: "logs", Compression: link.CompressAuto})
	require.NoError(t, err)
	require.NoError(t, s.WaitOpened(context.Background()))
	sum, err := lines(s, 1, size)
	require.NoError(t, err)
	require.NoError(t, s.CloseWrite())
	require.Equal(t, sum, <-far)
	_, _, err = consume(s)
	require.NoError(t, err)
	require.NoError(t, s.Wait())
	stats := r.tun.Stats()
	require.GreaterOrEqual(t, stats.Resumes, uint64(5))
	require.NotZero(t, stats.BytesReplayed)
	require.NotZero(t, stats.Compression.SentPlain) // how much depends on how fast the machine compresses now
	require.Less(t, stats.Compression.SentPacked, stats.Compression.SentPlain/2)
}

// Heartbeats are answered while both directions are full of bulk.
//
// Verifies: R6.3
func TestPingIsAnsweredUnderFullLoad(t *testing.T) {
	r := connect(t, true, link.Config{Heartbeat: 2 * time.Second}, func(s *link.Stream) {
		s.Accept()
		go func() {
			b := make([]byte, link.MaxPayload)
			for {
				if _, err := s.Write(b); err != nil {
					return
				}
			}
		}()
		_, _ = io.Copy(io.Discard, s)
		_ = s.Wait()
	}, func(int) int64 { return 0 })
	var streams []*link.Stream
	var wg sync.WaitGroup
	for range 4 {
		s, err := r.tun.Open(link.OpenRequest{Route: "both", Priority: link.Low})
		require.NoError(t, err)
		streams = append(streams, s)
		wg.Go(func() { _, _ = io.Copy(io.Discard, s) })
		wg.Go(func() {
			b := make([]byte, link.MaxPayload)
			for {
				if _, err := s.Write(b); err != nil {
					return
				}
			}
		})
	}
	start := time.Now()
	require.Eventually(t, func() bool {
		st := r.tun.Stats()
		return time.Since(start) > 3*time.Second && st.BytesSent > 32<<20 && st.BytesReceived > 32<<20
	}, 60*time.Second, 10*time.Millisecond)
	require.Zero(t, r.tun.Stats().Resumes, "a ping that is not answered within a second would have cost the lane")
	require.Less(t, r.tun.Stats().RTT, 5*time.Second)
	for _, s := range streams {
		s.Reset(nil)
	}
	wg.Wait()
}
