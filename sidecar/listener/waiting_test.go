package listener_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/testbed"
	"fairlead/sidecar/listener"
	"fairlead/sidecar/queue"
)

// site is a sidecar's queue and listeners in front of a tunnel that is there or not.
type site struct {
	t     *testing.T
	up    atomic.Bool
	begin opener
	queue *queue.Queue
	set   *metrics.Set
	log   *testbed.LogBuffer
}

func newSite(t *testing.T, begin opener, cfg queue.Config) *site {
	s := &site{t: t, begin: begin, set: metrics.NewSet(), log: &testbed.LogBuffer{}}
	cfg.Metrics, cfg.Logger = s.set, slog.New(slog.NewTextHandler(s.log, nil))
	if cfg.Wait == 0 {
		cfg.Wait = time.Minute
	}
	s.queue = queue.New(cfg)
	t.Cleanup(func() { _ = s.queue.Close(context.Background()) })
	return s
}

func (s *site) open(ctx context.Context, req link.OpenRequest) (*link.Stream, error) {
	if !s.up.Load() {
		return nil, errs.New(errs.NoTunnel, "there is no tunnel")
	}
	return s.begin(ctx, req)
}

// comeUp lets there be a tunnel.
func (s *site) comeUp() {
	s.up.Store(true)
	s.queue.Release()
}

func (s *site) config(prio link.Priority, listen string) listener.Config {
	return listener.Config{Name: prio.String(), Listen: listen, Route: "git", Priority: prio, Open: s.open, Queue: s.queue, EarlyBytes: 64 << 10,
		Logger: slog.New(slog.NewTextHandler(s.log, nil)), Metrics: s.set}
}

func (s *site) listen(prio link.Priority, listen string) *served {
	s.t.Helper()
	l, err := listener.New(s.config(prio, listen))
	require.NoError(s.t, err)
	return s.serve(l)
}

func (s *site) serve(l *listener.Listener) *served {
	k := &served{l, s.log, make(chan error, 1)}
	go func() { k.done <- l.Serve() }()
	s.t.Cleanup(func() {
		over, cancel := context.WithCancel(context.Background())
		cancel()
		_ = l.Close(over)
		assert.NoError(s.t, <-k.done)
	})
	return k
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	require.Eventually(t, f, 20*time.Second, time.Millisecond, what)
}

func (s *site) waits(n int) {
	s.t.Helper()
	eventually(s.t, fmt.Sprint(n, " wait"), func() bool { return s.queue.Len() == n })
}

func (s *site) metrics() string {
	var b strings.Builder
	s.set.WritePrometheus(&b)
	return b.String()
}

// Connections that come before there is a tunnel bring their bytes, and some their end; all of that arrives, and the answer
// comes back.
//
// Verifies: R1.3, R1.4
func TestEarlyBytesOfWaitingConnections(t *testing.T) {
	s := newSite(t, echo(t), queue.Config{Size: 100, Rate: 200, Burst: 2})
	var apps sync.WaitGroup
	n := 0
	sizes := []int{0, 1, 1000, 64 << 10, 64<<10 + 1, 1 << 20}
	for _, listen := range addresses(t) {
		l := s.listen(link.Normal, listen)
		sum := 0
		for _, size := range sizes {
			n++
			sum += size
			c := dial(t, l)
			apps.Go(func() {
				b := make([]byte, size)
				_, _ = rand.NewChaCha8([32]byte{byte(size)}).Read(b)
				wrote := make(chan error, 1)
				go func() {
					_, err := c.Write(b)
					if err == nil {
						err = c.(interface{ CloseWrite() error }).CloseWrite() // for the small ones long before there is a tunnel
					}
					wrote <- err
				}()
				got, err := io.ReadAll(c)
				assert.NoError(t, err, "%s, %d bytes", listen, size)
				assert.NoError(t, <-wrote)
				assert.Equal(t, sha256.Sum256(b), sha256.Sum256(got), "%s, %d bytes", listen, size)
			})
		}
		s.waits(n)
		eventually(t, "all of them are known to wait", func() bool { return l.Status().Waiting == len(sizes) })
		assert.Equal(t, len(sizes), l.Active())
		defer func() {
			eventually(t, "all are over", func() bool { return l.Active() == 0 })
			st := l.Status()
			assert.Equal(t, []uint64{uint64(sum), uint64(sum)}, []uint64{st.Sent, st.Received})
			assert.Zero(t, st.Failed)
		}()
	}
	s.comeUp()
	apps.Wait()
}

// An application that goes away leaves the queue at once, and is no failure; one that only ended its direction stays.
//
// Verifies: R1.3
func TestApplicationsThatGoAwayLeaveTheQueue(t *testing.T) {
	s := newSite(t, echo(t), queue.Config{Size: 10})
	for i, listen := range addresses(t) {
		l := s.listen(link.High, listen)
		stays, closes, resets := dial(t, l), dial(t, l), dial(t, l)
		s.waits(3)
		require.NoError(t, stays.(interface{ CloseWrite() error }).CloseWrite())
		require.NoError(t, closes.Close())
		s.waits(2)
		if tcp, ok := resets.(*net.TCPConn); ok {
			_, err := tcp.Write([]byte("half a command"))
			require.NoError(t, err)
			require.NoError(t, tcp.SetLinger(0))
		}
		require.NoError(t, resets.Close())
		s.waits(1)
		s.comeUp()
		got, err := io.ReadAll(stays)
		require.NoError(t, err)
		assert.Empty(t, got)
		eventually(t, "over", func() bool { return l.Active() == 0 })
		s.up.Store(false)
		assert.Zero(t, l.Status().Failed)
		assert.Equal(t, 2*(i+1), strings.Count(s.log.String(), "reason=application_gone"))
		assert.Contains(t, s.metrics(), fmt.Sprintf(`fairlead_sidecar_queue_left_total{priority="high"} %d`, 2*(i+1)))
	}
}

// An application that goes away at the moment when it is its turn is served or not, but leaves nothing behind, and the
// gateway is not told of an orderly end that there was not.
func TestGoingAwayWhileBeingReleased(t *testing.T) {
	begin := echo(t)
	for range 30 {
		s := newSite(t, begin, queue.Config{Size: 10})
		l := s.listen(link.High, "127.0.0.1:0")
		c := dial(t, l).(*net.TCPConn)
		_, err := c.Write([]byte("half a command"))
		require.NoError(t, err)
		s.waits(1)
		require.NoError(t, c.SetLinger(0))
		var both sync.WaitGroup
		both.Go(func() { c.Close() })
		both.Go(s.comeUp)
		both.Wait()
		eventually(t, "over", func() bool { return l.Active() == 0 })
		assert.Zero(t, s.queue.Len())
		assert.NotContains(t, s.log.String(), "level=INFO msg=\"connection ended\"")
	}
}

// A full queue resets the newest of the lowest priority, and says why in the log, in metrics and in the status.
//
// Verifies: R5.2, R5.4
func TestAFullQueueSaysWhomItRefuses(t *testing.T) {
	s := newSite(t, refuse, queue.Config{Size: 2})
	low, high := s.listen(link.Low, "127.0.0.1:0"), s.listen(link.High, "127.0.0.1:0")
	first := dial(t, low)
	s.waits(1)
	second := dial(t, low)
	s.waits(2)
	assert.ErrorIs(t, outcome(low), syscall.ECONNRESET)
	eventually(t, "logged", func() bool { return strings.Contains(s.log.String(), "reason=full") })
	dial(t, high)
	_, err := second.Read(make([]byte, 1))
	assert.ErrorIs(t, err, syscall.ECONNRESET)
	eventually(t, "logged", func() bool { return strings.Contains(s.log.String(), "reason=displaced") })
	eventually(t, "one of each waits", func() bool { return low.Status().Waiting == 1 && high.Status().Waiting == 1 })
	assert.EqualValues(t, 2, low.Status().Failed)
	assert.Zero(t, high.Status().Failed)
	for _, reason := range []string{"full", "displaced"} {
		assert.Contains(t, s.metrics(), `fairlead_sidecar_queue_refused_total{priority="low",reason="`+reason+`"} 1`)
	}
	require.NoError(t, first.SetReadDeadline(time.Now().Add(-time.Second)))
	_, err = first.Read(make([]byte, 1))
	assert.ErrorContains(t, err, "timeout", "it still waits")
}

// Who has waited long enough is reset, with the reason.
//
// Verifies: R5.1
func TestAWaitThatEnds(t *testing.T) {
	s := newSite(t, refuse, queue.Config{Size: 2, Wait: 50 * time.Millisecond})
	l := s.listen(link.Low, "127.0.0.1:0")
	assert.ErrorIs(t, outcome(l), syscall.ECONNRESET)
	eventually(t, "logged", func() bool { return strings.Contains(s.log.String(), "code=FL-N108") })
	assert.Contains(t, s.log.String(), "reason=expired")
	assert.EqualValues(t, 1, l.Status().Failed)
}

// Under pressure low priority is accepted slowly, normal not yet, and high never; what is not accepted waits in the kernel
// and is served in the end.
//
// Verifies: R5.3
func TestPressureSlowsAccepting(t *testing.T) {
	s := newSite(t, echo(t), queue.Config{Size: 100, Pressure: 80})
	low, normal, high := s.listen(link.Low, "127.0.0.1:0"), s.listen(link.Normal, "127.0.0.1:0"), s.listen(link.High, "127.0.0.1:0")
	var conns []net.Conn
	connect := func(l *served, n int) {
		for range n {
			c := dial(t, l)
			_, err := c.Write([]byte("hello"))
			require.NoError(t, err)
			conns = append(conns, c)
		}
	}
	connect(high, 80)
	s.waits(80)
	connect(low, 5)
	connect(normal, 2)
	connect(high, 2)
	eventually(t, "all of higher priority wait", func() bool { return high.Active() == 82 && normal.Active() == 2 })
	eventually(t, "low priority is slowed", func() bool {
		return strings.Contains(s.metrics(), `fairlead_sidecar_accept_pauses_total{listener="low"} `) &&
			!strings.Contains(s.metrics(), `fairlead_sidecar_accept_pauses_total{listener="low"} 0`)
	})
	for _, name := range []string{"normal", "high"} {
		assert.Contains(t, s.metrics(), `fairlead_sidecar_accept_pauses_total{listener="`+name+`"} 0`)
	}
	s.comeUp()
	for _, c := range conns {
		got := make([]byte, 5)
		_, err := io.ReadFull(c, got)
		require.NoError(t, err)
		require.Equal(t, "hello", string(got))
	}
	assert.Equal(t, 1, strings.Count(s.log.String(), "the queue fills up"))
	assert.Equal(t, 1, strings.Count(s.log.String(), "the queue has room again"))
	assert.EqualValues(t, 5, low.Status().Total)
}

// A pause ends with the pressure, and with the listener, however long it is.
//
// Verifies: R5.3
func TestAPauseEndsAtOnce(t *testing.T) {
	l, err := listener.New(config("127.0.0.1:0", refuse, io.Discard))
	require.NoError(t, err)
	over := make(chan struct{})
	close(over)
	l.Rest(24*time.Hour, over)
	rested := make(chan struct{})
	go func() {
		defer close(rested)
		l.Rest(24*time.Hour, nil)
	}()
	require.NoError(t, l.Close(t.Context()))
	<-rested
}

// The gateway's refusal of one that was released holds the others back.
func TestARefusalForTheRateSlowsTheRelease(t *testing.T) {
	far := newFarEnd(t, func(st *link.Stream) { st.Reset(errs.New(errs.OpenRate, "too fast").After(time.Minute)) })
	s := newSite(t, far.open, queue.Config{Size: 100, Rate: 20, Burst: 1})
	l := s.listen(link.Low, "127.0.0.1:0")
	for range 50 {
		dial(t, l)
	}
	s.waits(50)
	s.comeUp()
	eventually(t, "refused", func() bool { return strings.Contains(s.log.String(), "code=FL-S411") })
	released := s.queue.Len()
	assert.Never(t, func() bool { return s.queue.Len() != released }, 300*time.Millisecond, 10*time.Millisecond)
}
