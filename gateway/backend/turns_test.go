package backend

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

// nowhere is a connection that carries nothing.
type nowhere struct{ net.Conn }

func (nowhere) CloseWrite() error { return nil }
func (nowhere) Close() error      { return nil }

// slowly takes its time to dial.
func slowly(took time.Duration) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		timer := time.NewTimer(took)
		defer timer.Stop()
		select {
		case <-timer.C:
			return nowhere{}, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// queueSet makes a Set with a passthrough route "direct" only, that dials with dial.
func queueSet(t testing.TB, d Dialing, dial func(context.Context, string, string) (net.Conn, error), adjust ...func(*Config)) *Set {
	t.Helper()
	cfg := Config{Backends: []Backend{{Name: "b", Address: "192.0.2.1:22", Dialing: d}}, Routes: []Route{{Name: "direct", Backend: "b", Mode: Passthrough}}, Dial: dial}
	for _, f := range adjust {
		f(&cfg)
	}
	s, err := New(cfg)
	require.NoError(t, err)
	return s
}

func (s *Set) waitingFor(kind string) int {
	for _, q := range s.Queues() {
		if q.Kind == kind {
			return q.Waiting
		}
	}
	return 0
}

func textLogger(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

// quantile of took, which it sorts.
func quantile(took []time.Duration, q float64) time.Duration {
	slices.Sort(took)
	return took[min(int(q*float64(len(took))), len(took)-1)]
}

// openEvery has a tenant open n times, one every so often, whatever became of those before, and returns how long each took
// and how long of that it stood in the queue.
func openEvery(t testing.TB, s *Set, tenant string, n int, every time.Duration) (took, queue []time.Duration) {
	took, queue = make([]time.Duration, n), make([]time.Duration, n)
	var wg sync.WaitGroup
	tick := time.NewTicker(every)
	defer tick.Stop()
	for i := range n {
		<-tick.C
		wg.Go(func() {
			start := time.Now()
			ctx, waits := WithWaits(context.Background())
			_, err := s.Dial(ctx, Caller{Tenant: tenant}, "direct")
			assert.NoError(t, err)
			took[i], queue[i] = time.Since(start), waits.Queue
		})
	}
	wg.Wait()
	return took, queue
}

// Dials take 10 ms and eight may be under way: a flood of 10,000 opens takes 12.5 s, in which another tenant opens every
// 50 ms. The clock is virtual, so the figures are exact.
//
// Verifies: R5.5
func TestAFloodDelaysAnotherTenantByOneDial(t *testing.T) {
	measure := func(flood int, jitter bool) (own []time.Duration, served int64) {
		synctest.Test(t, func(t *testing.T) {
			dial := slowly(10 * time.Millisecond)
			if jitter {
				random := rand.New(rand.NewPCG(1, 2))
				var mu sync.Mutex
				dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
					mu.Lock()
					took := 5*time.Millisecond + time.Duration(random.Int64N(int64(10*time.Millisecond)))
					mu.Unlock()
					return slowly(took)(ctx, network, addr)
				}
			}
			s := queueSet(t, Dialing{Concurrent: 8, Queue: 20000, QueuePerTenant: 20000}, dial)
			var wg sync.WaitGroup
			var count atomic.Int64
			for range flood {
				wg.Go(func() {
					_, err := s.Dial(t.Context(), Caller{Tenant: "flood"}, "direct")
					assert.NoError(t, err)
					count.Add(1)
				})
			}
			synctest.Wait()
			<-time.After(3 * time.Millisecond) // virtual: not in step with the flood's dials
			own, _ = openEvery(t, s, "other", 200, 50*time.Millisecond)
			wg.Wait()
			served = count.Load()
			require.NoError(t, s.Close(t.Context()))
		})
		return own, served
	}
	for _, jitter := range []bool{false, true} {
		alone, _ := measure(0, jitter)
		beside, served := measure(10000, jitter)
		a, b := quantile(alone, .99), quantile(beside, .99)
		t.Logf("jitter %v: alone p50 %v p99 %v, beside a flood p50 %v p99 %v", jitter, quantile(alone, .5), a, quantile(beside, .5), b)
		require.LessOrEqual(t, b, 2*a)
		require.EqualValues(t, 10000, served, "and the flood is served too")
	}
}

// Verifies: R5.5
func TestTenantsAreServedInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		s := queueSet(t, Dialing{Concurrent: 1}, func(context.Context, string, string) (net.Conn, error) { <-release; return nowhere{}, nil })
		order := make(chan string, 100)
		open := func(tenant string) {
			go func() {
				_, err := s.Dial(t.Context(), Caller{Tenant: tenant}, "direct")
				assert.NoError(t, err)
				order <- tenant
			}()
			synctest.Wait()
		}
		for _, tenant := range []string{"a", "a", "a", "a", "a", "b", "b", "c"} { // the first has its turn at once
			open(tenant)
		}
		var got []string
		for range 3 {
			release <- struct{}{}
			got = append(got, <-order)
			synctest.Wait()
		}
		open("d") // behind those that wait, not behind all that they ask for
		for range 6 {
			release <- struct{}{}
			got = append(got, <-order)
			synctest.Wait()
		}
		require.Equal(t, "a a b c a b d a a", strings.Join(got, " "))
		require.Empty(t, s.Queues())
		require.NoError(t, s.Close(t.Context()))
	})
}

func TestAFullQueueRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := metrics.NewSet()
		s := queueSet(t, Dialing{Concurrent: 1, Queue: 5, QueuePerTenant: 3}, slowly(time.Minute), func(c *Config) { c.Metrics = set })
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		open := func(tenant string, n int) {
			for range n {
				wg.Go(func() { _, err := s.Dial(ctx, Caller{Tenant: tenant}, "direct"); assert.ErrorIs(t, err, errs.Canceled) })
				synctest.Wait()
			}
		}
		open("a", 4) // one is under way
		<-time.After(7 * time.Second)
		_, err := s.Dial(ctx, Caller{Tenant: "a"}, "direct")
		require.ErrorIs(t, err, errs.DialQueueFull)
		require.ErrorContains(t, err, `3 opens of tenant "a" wait for backend "b" already: backends.b.dialing.queue_per_tenant is 3`)
		require.Equal(t, &errs.Quota{Limit: 3}, errs.From(err).Quota)
		require.Equal(t, 7*time.Second, errs.From(err).RetryAfter, "as long as the oldest has waited")
		open("b", 2)
		_, err = s.Dial(ctx, Caller{Tenant: "c"}, "direct")
		require.ErrorIs(t, err, errs.DialQueueFull)
		require.ErrorContains(t, err, "backends.b.dialing.queue is 5")
		require.Equal(t, time.Second, errs.From(err).RetryAfter)

		var text strings.Builder
		set.WritePrometheus(&text)
		require.Contains(t, text.String(), `fairlead_gateway_backend_dial_queue_length{backend="b",kind="dial"} 5`)
		require.Contains(t, text.String(), `fairlead_gateway_backend_dials_in_flight{backend="b",kind="dial"} 1`)
		require.Contains(t, text.String(), `fairlead_gateway_backend_dial_queue_refused_total{backend="b",kind="dial"} 2`)
		require.Equal(t, []QueueStats{{Backend: "b", Kind: "dial", Limit: 1, Running: 1, Waiting: 5, Tenants: 2, Oldest: 7 * time.Second}}, s.Queues())
		start := time.Now()
		cancel()
		wg.Wait()
		require.Equal(t, start, time.Now(), "who is canceled leaves at once")
		require.Empty(t, s.Queues())
		text.Reset()
		set.WritePrometheus(&text)
		require.Contains(t, text.String(), `fairlead_gateway_backend_dial_queue_length{backend="b",kind="dial"} 0`)
		require.Contains(t, text.String(), `fairlead_gateway_backend_dial_queue_seconds_count{backend="b",kind="dial"} 5`)
		require.NoError(t, s.Close(t.Context()))
	})
}

// Verifies: R5.6, R3.8
func TestAnOpenThatIsNotServedInTimeSaysWhereItStood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := new(strings.Builder)
		s := queueSet(t, Dialing{Concurrent: 1}, slowly(9*time.Second), func(c *Config) { c.Logger = textLogger(log) })
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() { _, _ = s.Dial(t.Context(), Caller{Tenant: "a"}, "direct") })
			synctest.Wait()
		}
		for range 5 {
			wg.Go(func() { _, _ = s.Dial(t.Context(), Caller{Tenant: "b"}, "direct") })
			synctest.Wait()
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		ctx, waits := WithWaits(ctx)
		start := time.Now()
		_, err := s.Dial(ctx, Caller{Tenant: "b"}, "direct")
		require.Equal(t, 30*time.Second, time.Since(start))
		require.ErrorIs(t, err, errs.OpenTimeout)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		// Three turns were over: a's, a's, b's, in this order, after the first a.
		require.ErrorContains(t, err, `after 30s in the queue for backend "b" the open was at place 5 of 5 of its tenant (backends.b.dialing.concurrent is 1)`)
		require.Equal(t, Waits{Queue: 30 * time.Second}, *waits)
		require.Equal(t, []any{"waited_for", "queue", "queue_ms", int64(30000)}, waits.Fields())
		wg.Wait()
		require.NoError(t, s.Close(t.Context()))
		require.Contains(t, log.String(), `msg="a dial was slow"`)
	})
}

// Verifies: R3.8
func TestASlowOpenKnowsWhatItWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := queueSet(t, Dialing{Concurrent: 1, PerSecond: 1}, slowly(3*time.Second))
		go func() { _, _ = s.Dial(t.Context(), Caller{Tenant: "a"}, "direct") }()
		synctest.Wait()
		ctx, waits := WithWaits(t.Context())
		_, err := s.Dial(ctx, Caller{Tenant: "a"}, "direct")
		require.NoError(t, err)
		require.Equal(t, Waits{Queue: 3 * time.Second, TCP: 3 * time.Second}, *waits, "the pace had nothing more to say")
		name, took := waits.Longest()
		require.Equal(t, "queue", name)
		require.Equal(t, 3*time.Second, took)
		require.NoError(t, s.Close(t.Context()))
	})
}

// Verifies: R5.5
func TestHandshakesAreBoundedAndFair(t *testing.T) {
	host := signerOf(t, newKey(t))
	var now, most atomic.Int32
	inside := fakeServer(t, host, nil, nil)
	release := make(chan struct{})
	let := sync.OnceFunc(func() { close(release) })
	addr := listen(t, func(c net.Conn) {
		if n := now.Add(1); n > most.Load() {
			most.Store(n)
		}
		<-release
		now.Add(-1)
		up, err := net.Dial("tcp", inside)
		if err != nil {
			return
		}
		defer func() { _ = up.Close() }()
		go func() { _, _ = io.Copy(up, c); _ = up.Close() }()
		_, _ = io.Copy(c, up)
	})
	t.Cleanup(let) // also when the test fails: listen waits for those whom it holds
	b := fakeBackend(t, addr, host.PublicKey())
	b.Dialing = Dialing{Handshakes: 2, HandshakesPerSecond: 1000}
	s, _ := newSet(t, b, "target:1")
	var wg sync.WaitGroup
	var up atomic.Int32
	for i := range 20 {
		wg.Go(func() {
			ctx, waits := WithWaits(context.Background())
			c, err := s.Dial(ctx, Caller{Tenant: fmt.Sprint(i)}, "db")
			if assert.NoError(t, err) {
				pingPong(t, c)
				up.Add(1)
				assert.Positive(t, waits.Handshake)
				assert.Positive(t, waits.TCP)
				assert.Positive(t, waits.Channel)
			}
		})
	}
	require.Eventually(t, func() bool { return s.waitingFor("handshake") == 18 && now.Load() == 2 }, patience, time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := s.Dial(ctx, Caller{Tenant: "late"}, "db")
	require.ErrorIs(t, err, errs.OpenTimeout)
	require.ErrorContains(t, err, "1 of its tenant are in the queue, and backends.bastion.dialing.handshakes is 2")
	let()
	wg.Wait()
	require.EqualValues(t, 20, up.Load())
	require.LessOrEqual(t, most.Load(), int32(2))
}

func TestThePoolsQueueIsBounded(t *testing.T) {
	release := make(chan struct{})
	host := signerOf(t, newKey(t)).PublicKey()
	b := fakeBackend(t, listen(t, func(net.Conn) { <-release }), host)
	b.Dialing = Dialing{QueuePerTenant: 3}
	s, _ := newSet(t, b, "target:1")
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	for range 3 {
		wg.Go(func() { _, err := s.Dial(ctx, Caller{Tenant: "a"}, "db"); assert.ErrorIs(t, err, errs.Canceled) })
	}
	require.Eventually(t, func() bool { return pool1(s).Waiting == 3 }, patience, time.Millisecond)
	_, err := s.Dial(ctx, Caller{Tenant: "a"}, "db")
	require.ErrorIs(t, err, errs.DialQueueFull)
	require.Equal(t, &errs.Quota{Limit: 3}, errs.From(err).Quota)
	cancel()
	wg.Wait()
	close(release)
}

func TestDialingIsChecked(t *testing.T) {
	for _, d := range []Dialing{{Concurrent: -1}, {PerSecond: -1}, {Handshakes: -1}, {HandshakesPerSecond: 2_000_000}, {Burst: -1}, {Queue: -1}, {QueuePerTenant: -1}} {
		_, err := New(Config{Backends: []Backend{{Name: "b", Address: "x:1", Dialing: d}}})
		require.ErrorIs(t, err, errs.ConfigInvalid)
		require.ErrorContains(t, err, "backends.b.dialing.")
	}
}

func TestAFreeTurnCostsNoAllocation(t *testing.T) {
	s := queueSet(t, Dialing{}, slowly(0))
	defer func() { require.NoError(t, s.Close(t.Context())) }()
	q := s.table.Load().backends["b"].dials
	ctx := t.Context()
	require.Zero(t, testing.AllocsPerRun(1000, func() {
		if ok, err := q.enter(ctx, "a"); !ok || err != nil {
			t.Error(ok, err)
		}
		q.leave("a")
	}))
}

func BenchmarkFreeTurn(b *testing.B) {
	s := queueSet(b, Dialing{}, slowly(0))
	q := s.table.Load().backends["b"].dials
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		_, _ = q.enter(ctx, "a")
		q.leave("a")
	}
}
