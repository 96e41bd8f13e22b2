package fault_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"fairlead/shared/testbed/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	patience = 10 * time.Second
	moment   = 5 * time.Millisecond
)

// server accepts connections and hands each to serve; it is closed and waited for at the end of the test.
func server(t *testing.T, serve func(*net.TCPConn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var tasks sync.WaitGroup
	tasks.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			tasks.Go(func() {
				defer conn.Close()
				serve(conn.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		assert.NoError(t, l.Close())
		tasks.Wait()
	})
	return l.Addr().String()
}

func echo(conn *net.TCPConn) {
	_, _ = io.Copy(conn, conn)
	_ = conn.CloseWrite()
}

// start puts a proxy in front of a server. The proxy is closed first, which ends the server's connections.
func start(t *testing.T, serve func(*net.TCPConn), cfg fault.Config) *fault.Proxy {
	t.Helper()
	cfg.Target = server(t, serve)
	p, err := fault.New(cfg)
	require.NoError(t, err)
	t.Cleanup(p.Close)
	return p
}

func dial(t *testing.T, p *fault.Proxy) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", p.Addr())
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	return conn.(*net.TCPConn)
}

func random(n int) []byte {
	data := make([]byte, n)
	_, _ = rand.NewChaCha8(sha256.Sum256([]byte("fault"))).Read(data)
	return data
}

// roundTrip sends data, closes that direction, and returns all that comes back.
func roundTrip(t *testing.T, conn *net.TCPConn, data []byte) []byte {
	t.Helper()
	var tasks sync.WaitGroup
	tasks.Go(func() {
		_, err := conn.Write(data)
		assert.NoError(t, err)
		assert.NoError(t, conn.CloseWrite())
	})
	back, err := io.ReadAll(conn)
	tasks.Wait()
	require.NoError(t, err)
	return back
}

func exchange(t *testing.T, conn *net.TCPConn, word string) {
	t.Helper()
	_, err := conn.Write([]byte(word))
	require.NoError(t, err)
	answer := make([]byte, len(word))
	_, err = io.ReadFull(conn, answer)
	require.NoError(t, err)
	require.Equal(t, word, string(answer))
}

func requireReset(t *testing.T, err error) {
	t.Helper()
	require.True(t, errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE), "want a reset, got %v", err)
}

func TestForwardsEveryByteAndHalfCloses(t *testing.T) {
	data := random(8 << 20)
	for name, shape := range map[string]fault.Shape{
		"faithful": {}, "late": {Latency: 20 * time.Millisecond}, "narrow": {Bandwidth: 64 << 20},
		"late and narrow": {Latency: 5 * time.Millisecond, Bandwidth: 64 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t, echo, fault.Config{Up: shape, Down: shape})
			back := roundTrip(t, dial(t, p), data)
			require.Equal(t, sha256.Sum256(data), sha256.Sum256(back))
			require.Eventually(t, func() bool { return p.Stats().Active == 0 }, patience, moment)
			assert.Equal(t, fault.Stats{Accepted: 1, Up: int64(len(data)), Down: int64(len(data))}, p.Stats())
		})
	}
}

func TestLatencyDelaysEachByteButDoesNotNarrow(t *testing.T) {
	const latency = 60 * time.Millisecond
	p := start(t, echo, fault.Config{Up: fault.Shape{Latency: latency}, Down: fault.Shape{Latency: latency}})
	conn := dial(t, p)
	began := time.Now()
	exchange(t, conn, "ping")
	require.GreaterOrEqual(t, time.Since(began), 2*latency)

	// 32 MiB through a line that held only one chunk at a time would take 256 latencies, 15 s.
	began = time.Now()
	require.Len(t, roundTrip(t, conn, random(32<<20)), 32<<20)
	assert.Less(t, time.Since(began), 100*latency)
}

func TestBandwidthIsSharedByAllConnections(t *testing.T) {
	const bandwidth, each, conns = 8 << 20, 1 << 20, 4
	p := start(t, func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) }, fault.Config{Up: fault.Shape{Bandwidth: bandwidth}})
	began := time.Now()
	var tasks sync.WaitGroup
	for range conns {
		conn := dial(t, p)
		tasks.Go(func() { roundTrip(t, conn, random(each)) })
	}
	tasks.Wait()
	assert.GreaterOrEqual(t, time.Since(began), 450*time.Millisecond, "4 MiB at 8 MiB/s take half a second")
}

func TestNarrowPathKeepsTheQueueAtTheSender(t *testing.T) {
	p := start(t, func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) }, fault.Config{Up: fault.Shape{Bandwidth: 64 << 10}})
	conn := dial(t, p)
	require.NoError(t, conn.SetWriteBuffer(32<<10))
	require.NoError(t, conn.SetWriteDeadline(time.Now().Add(300*time.Millisecond)))
	taken, err := conn.Write(make([]byte, 16<<20))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded, "a path of 64 KiB/s does not take 16 MiB")
	assert.Less(t, taken, 1<<20)
}

func TestShapeChangesOpenConnections(t *testing.T) {
	p := start(t, echo, fault.Config{})
	conn := dial(t, p)
	exchange(t, conn, "fast")
	p.Shape(fault.Down, fault.Shape{Latency: 50 * time.Millisecond})
	began := time.Now()
	exchange(t, conn, "slow")
	require.GreaterOrEqual(t, time.Since(began), 50*time.Millisecond)
	p.Shape(fault.Down, fault.Shape{})
	exchange(t, conn, "fast again")
}

func TestCutResetsBothSides(t *testing.T) {
	ended := make(chan error, 1)
	p := start(t, func(c *net.TCPConn) {
		_, err := io.Copy(c, c)
		ended <- err
	}, fault.Config{})
	conn := dial(t, p)
	exchange(t, conn, "hello")
	require.Equal(t, 1, p.Cut())
	_, err := conn.Read(make([]byte, 1))
	requireReset(t, err)
	requireReset(t, <-ended)
	exchange(t, dial(t, p), "next")
	assert.Equal(t, int64(2), p.Stats().Accepted)
}

func TestCutAfterCountsBytesOfADirection(t *testing.T) {
	const limit = 100_001
	p := start(t, echo, fault.Config{})
	happened := p.CutAfter(fault.Down, limit)
	conn := dial(t, p)
	var tasks sync.WaitGroup
	tasks.Go(func() { _, _ = conn.Write(random(1 << 20)) })
	got, err := io.ReadAll(conn)
	tasks.Wait()
	requireReset(t, err)
	<-happened
	assert.LessOrEqual(t, len(got), limit)
	assert.Equal(t, int64(limit), p.Stats().Down)
	assert.True(t, bytes.HasPrefix(random(1<<20), got))
	exchange(t, dial(t, p), "only once")
}

func TestStallHoldsBackAndResumeLosesNothing(t *testing.T) {
	p := start(t, echo, fault.Config{})
	before := dial(t, p)
	exchange(t, before, "before")
	p.Stall()
	_, err := before.Write([]byte("held"))
	require.NoError(t, err)
	after := dial(t, p) // is accepted
	_, err = after.Write([]byte("held"))
	require.NoError(t, err)
	require.Eventually(t, func() bool { return p.Stats().Accepted == 2 }, patience, moment)
	for _, conn := range []*net.TCPConn{before, after} {
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
		_, err := conn.Read(make([]byte, 1))
		var timeout net.Error
		require.ErrorAs(t, err, &timeout)
		require.True(t, timeout.Timeout())
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(patience)))
	}
	p.Resume()
	for _, conn := range []*net.TCPConn{before, after} {
		answer := make([]byte, 4)
		_, err := io.ReadFull(conn, answer)
		require.NoError(t, err)
		require.Equal(t, "held", string(answer))
	}
}

func TestStallHidesAnEnd(t *testing.T) {
	ended := make(chan struct{})
	p := start(t, func(c *net.TCPConn) {
		_, _ = io.Copy(io.Discard, c)
		close(ended)
	}, fault.Config{})
	conn := dial(t, p)
	require.Eventually(t, func() bool { return p.Stats().Active == 1 }, patience, moment)
	p.Stall()
	require.NoError(t, conn.Close())
	select {
	case <-ended:
		t.Fatal("the end passed a stalled proxy")
	case <-time.After(50 * time.Millisecond):
	}
	p.Resume()
	<-ended
}

func TestBlackholeSwallowsAndResumeResetsWhatLostBytes(t *testing.T) {
	p := start(t, echo, fault.Config{})
	talker, quiet := dial(t, p), dial(t, p)
	exchange(t, talker, "before")
	exchange(t, quiet, "before")
	p.Blackhole()
	_, err := talker.Write(make([]byte, 4<<20)) // far above all buffers: it is really taken
	require.NoError(t, err)
	p.Resume()
	_, err = io.ReadAll(talker)
	requireReset(t, err)
	exchange(t, quiet, "after")
}

func TestRefuseAndAcceptOnTheSamePort(t *testing.T) {
	p := start(t, echo, fault.Config{})
	addr, kept := p.Addr(), dial(t, p)
	exchange(t, kept, "before")
	require.NoError(t, p.Refuse())
	require.NoError(t, p.Refuse(), "twice is once")
	_, err := net.Dial("tcp", addr)
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	exchange(t, kept, "open connections go on")
	require.NoError(t, p.Accept())
	require.Equal(t, addr, p.Addr())
	exchange(t, dial(t, p), "again")
}

func TestTargetThatRefusesResetsTheClient(t *testing.T) {
	p := start(t, echo, fault.Config{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p.SetTarget(l.Addr().String())
	require.NoError(t, l.Close())
	p.Stall() // or the reset can come before the client has noticed that it is connected
	conn := dial(t, p)
	p.Resume()
	_, err = io.ReadAll(conn)
	requireReset(t, err)
}

func TestCloseEndsEverything(t *testing.T) {
	p := start(t, echo, fault.Config{Up: fault.Shape{Latency: time.Hour}})
	for range 3 {
		_, err := dial(t, p).Write(random(1 << 20))
		require.NoError(t, err)
	}
	p.Stall()
	p.Close()
	p.Close()
	assert.Zero(t, p.Stats().Active)
	require.ErrorIs(t, p.Accept(), net.ErrClosed)
}

func TestConfigIsChecked(t *testing.T) {
	_, err := fault.New(fault.Config{Memory: 1})
	require.ErrorContains(t, err, "below the smallest")
	_, err = fault.New(fault.Config{Listen: "nowhere"})
	require.Error(t, err)
}

func BenchmarkForward(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	defer l.Close()
	var tasks sync.WaitGroup
	defer tasks.Wait()
	p, err := fault.New(fault.Config{Target: l.Addr().String()})
	require.NoError(b, err)
	tasks.Go(func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.Copy(io.Discard, conn)
	})
	defer p.Close()
	conn, err := net.Dial("tcp", p.Addr())
	require.NoError(b, err)
	defer conn.Close()
	chunk := random(1 << 20)
	b.SetBytes(int64(len(chunk)))
	for b.Loop() {
		if _, err := conn.Write(chunk); err != nil {
			b.Fatal(err)
		}
	}
}
