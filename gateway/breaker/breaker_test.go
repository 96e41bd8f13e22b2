package breaker

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"fairlead/shared/errs"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, // hystrix never ends the goroutines of a circuit
		goleak.IgnoreTopFunction("github.com/afex/hystrix-go/hystrix.(*metricExchange).Monitor"),
		goleak.IgnoreTopFunction("github.com/afex/hystrix-go/hystrix.(*poolMetrics).Monitor"))
}

const retryAfter = 60 * time.Millisecond

func newBreaker(t *testing.T, cfg Config) *Breaker {
	t.Helper()
	if cfg.RetryAfter == 0 {
		cfg.RetryAfter = retryAfter
	}
	b, err := New(cfg)
	require.NoError(t, err)
	return b
}

func returning(err error) func(context.Context) error {
	return func(context.Context) error { return err }
}

func fail(b *Breaker, n int) {
	for range n {
		_ = b.Do(context.Background(), "db", returning(errs.New(errs.BackendUnreachable, "down")))
	}
}

func untilHalfOpen(t *testing.T, b *Breaker) {
	t.Helper()
	require.Eventually(t, func() bool { return b.State("db") == HalfOpen }, 5*time.Second, time.Millisecond)
}

// Verifies: R5.7
func TestOpensAfterConsecutiveFailures(t *testing.T) {
	b := newBreaker(t, Config{RetryAfter: time.Minute})
	fail(b, 4)
	require.NoError(t, b.Do(t.Context(), "db", returning(nil)))
	fail(b, 4)
	require.Equal(t, Closed, b.State("db"), "a success in between starts the count again")
	fail(b, 1)
	require.Equal(t, Open, b.State("db"))

	called := false
	err := b.Do(t.Context(), "db", func(context.Context) error { called = true; return nil })
	require.ErrorIs(t, err, errs.CircuitOpen)
	require.False(t, called)
	after := errs.From(err).RetryAfter
	assert.Greater(t, after, 50*time.Second)
	assert.LessOrEqual(t, after, time.Minute)
	require.NoError(t, b.Do(t.Context(), "other", returning(nil)), "each backend has a circuit of its own")
}

// Verifies: R5.7
func TestOpensDespiteManyEarlierSuccesses(t *testing.T) {
	b := newBreaker(t, Config{RetryAfter: time.Minute})
	for range 1500 { // five failures among them round to 0 % of hystrix's window
		require.NoError(t, b.Do(t.Context(), "db", returning(nil)))
	}
	fail(b, 5)
	require.Equal(t, Open, b.State("db"))
}

// Verifies: R5.8
func TestSingleProbeThenCloses(t *testing.T) {
	b := newBreaker(t, Config{})
	fail(b, 5)
	untilHalfOpen(t, b)

	release, started := make(chan struct{}), make(chan struct{})
	var calls atomic.Int32
	probe := make(chan error, 1)
	go func() {
		probe <- b.Do(context.Background(), "db", func(context.Context) error {
			calls.Add(1)
			close(started)
			<-release
			return nil
		})
	}()
	<-started
	var wg sync.WaitGroup
	var refused atomic.Int32
	for range 50 {
		wg.Go(func() {
			if errors.Is(b.Do(context.Background(), "db", func(context.Context) error { calls.Add(1); return nil }), errs.CircuitOpen) {
				refused.Add(1)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 1, calls.Load(), "only the probe may call while it is under way")
	require.EqualValues(t, 50, refused.Load())
	close(release)
	require.NoError(t, <-probe)
	require.Equal(t, Closed, b.State("db"))
	for range 20 { // closed at once, for everyone
		require.NoError(t, b.Do(t.Context(), "db", returning(nil)))
	}
}

// Verifies: R5.8
func TestFailedProbeKeepsItOpen(t *testing.T) {
	b := newBreaker(t, Config{RetryAfter: 300 * time.Millisecond})
	fail(b, 5)
	untilHalfOpen(t, b)
	err := b.Do(t.Context(), "db", returning(errs.New(errs.BackendTimeout, "still down")))
	require.ErrorIs(t, err, errs.BackendTimeout)
	require.Equal(t, Open, b.State("db"))
	require.ErrorIs(t, b.Do(t.Context(), "db", returning(nil)), errs.CircuitOpen)
	untilHalfOpen(t, b)
	require.NoError(t, b.Do(t.Context(), "db", returning(nil)))
	require.Equal(t, Closed, b.State("db"))
}

func TestProbeThatProvesNothingIsRepeatedAtOnce(t *testing.T) {
	b := newBreaker(t, Config{RetryAfter: 300 * time.Millisecond})
	fail(b, 5)
	untilHalfOpen(t, b)
	err := b.Do(t.Context(), "db", returning(errs.New(errs.Canceled, "the caller left")))
	require.ErrorIs(t, err, errs.Canceled)
	require.Equal(t, HalfOpen, b.State("db"))
	require.NoError(t, b.Do(t.Context(), "db", returning(nil)))
	require.Equal(t, Closed, b.State("db"))
}

func TestLateSuccessDoesNotClose(t *testing.T) {
	b := newBreaker(t, Config{RetryAfter: time.Minute})
	release, started, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		done <- b.Do(context.Background(), "db", func(context.Context) error { close(started); <-release; return nil })
	}()
	<-started
	fail(b, 5)
	close(release)
	require.NoError(t, <-done)
	require.Equal(t, Open, b.State("db"))
	require.ErrorIs(t, b.Do(t.Context(), "db", returning(nil)), errs.CircuitOpen)
}

func TestWhatCounts(t *testing.T) {
	counting := map[errs.Code]bool{errs.BackendUnreachable: true, errs.BackendTimeout: true, errs.HostKeyRefused: true, errs.BackendAuth: true, errs.SSHHandshake: true}
	for _, code := range errs.Codes() {
		b := newBreaker(t, Config{Failures: 2, RetryAfter: time.Minute})
		for range 4 {
			_ = b.Do(t.Context(), "db", returning(errs.New(code, "x")))
		}
		assert.Equal(t, counting[code], b.State("db") == Open, code.String())
	}
}

func TestManyCallsAtOnceAreNotFailures(t *testing.T) {
	b := newBreaker(t, Config{})
	var wg sync.WaitGroup
	var now atomic.Int32
	release := make(chan struct{})
	for range 1000 { // more than hystrix would let through
		wg.Go(func() {
			assert.NoError(t, b.Do(context.Background(), "db", func(context.Context) error { now.Add(1); <-release; return nil }))
		})
	}
	require.Eventually(t, func() bool { return now.Load() == 1000 }, 10*time.Second, time.Millisecond)
	close(release)
	wg.Wait()
	require.Equal(t, Closed, b.State("db"))
}

func TestPanicBecomesAnError(t *testing.T) {
	b := newBreaker(t, Config{})
	err := b.Do(t.Context(), "db", func(context.Context) error { panic("boom") })
	require.ErrorIs(t, err, errs.Panicked)
	require.ErrorContains(t, err, "boom")
	require.NoError(t, b.Do(t.Context(), "db", returning(nil)))
}

func TestModes(t *testing.T) {
	set := metrics.NewSet()
	b := newBreaker(t, Config{RetryAfter: time.Minute, Metrics: set})
	require.Equal(t, Auto, b.Mode("db"))
	require.Equal(t, Closed, b.State("db"))
	require.NoError(t, b.SetMode("db", ForceOpen, "ann"))
	require.Equal(t, Open, b.State("db"))
	require.ErrorIs(t, b.Do(t.Context(), "db", returning(nil)), errs.CircuitOpen)
	require.NoError(t, b.SetMode("db", ForceClosed, "ann"))
	fail(b, 20)
	require.Equal(t, Closed, b.State("db"))
	require.NoError(t, b.SetMode("db", Auto, "ann"))
	fail(b, 5)
	require.Equal(t, Open, b.State("db"))
	require.NoError(t, b.SetMode("db", ForceClosed, "ann"))
	require.NoError(t, b.Do(t.Context(), "db", returning(nil)))
	require.NoError(t, b.SetMode("db", Auto, "ann"))
	require.Equal(t, Closed, b.State("db"))
	require.NoError(t, b.Do(t.Context(), "db", returning(nil)))
	require.Equal(t, Auto, b.Mode("db"))
	require.ErrorIs(t, b.SetMode("db", "ajar", "ann"), errs.BadRequest)
	assert.EqualValues(t, 1, set.GetOrCreateCounter(`fairlead_gateway_breaker_opened_total{backend="db"}`).Get())
	assert.EqualValues(t, 1, set.GetOrCreateCounter(`fairlead_gateway_breaker_refused_total{backend="db"}`).Get())
	assert.EqualValues(t, 0, set.GetOrCreateGauge(`fairlead_gateway_breaker_open{backend="db"}`, nil).Get())
}

func TestTwoBreakersInOneProcessShareNothing(t *testing.T) {
	a, b := newBreaker(t, Config{Instance: "same"}), newBreaker(t, Config{Instance: "same"})
	fail(a, 5)
	require.NotEqual(t, Closed, a.State("db"))
	require.NoError(t, b.Do(t.Context(), "db", returning(nil)))
}

func TestConfigIsChecked(t *testing.T) {
	for _, cfg := range []Config{{Failures: -1}, {RetryAfter: -1}, {RetryAfter: time.Microsecond}} {
		_, err := New(cfg)
		assert.ErrorIs(t, err, errs.ConfigInvalid)
	}
	b, err := New(Config{})
	require.NoError(t, err)
	assert.Equal(t, 5, b.failures)
	assert.Equal(t, time.Minute, b.retryAfter)
}
