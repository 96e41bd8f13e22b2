package breaker

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

// Verifies: R5.7, R5.8
func TestInfoAndChangesTellTheStory(t *testing.T) {
	var mu sync.Mutex
	var told []Change
	b := newBreaker(t, Config{RetryAfter: 200 * time.Millisecond, OnChange: func(c Change) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, c)
	}})
	require.Equal(t, Info{Backend: "db", State: Closed, Mode: Auto}, b.Info("db"))
	before := time.Now()
	fail(b, 5)
	i := b.Info("db")
	assert.Equal(t, Open, i.State)
	assert.Equal(t, 5, i.Consecutive)
	assert.Equal(t, Counts{Failed: 5, Opened: 1}, i.Counts)
	assert.Equal(t, errs.BackendUnreachable, i.LastFailure.Code)
	assert.Equal(t, "down", i.LastFailure.Text)
	assert.WithinRange(t, i.LastFailure.At, before, time.Now())
	assert.WithinRange(t, i.OpenedAt, before, time.Now())
	assert.Equal(t, i.OpenedAt.Add(200*time.Millisecond), i.RetryAt)

	untilHalfOpen(t, b)
	require.ErrorIs(t, b.Do(t.Context(), "db", func(context.Context) error {
		assert.True(t, b.Info("db").Probing)
		return errs.New(errs.BackendAuth, "who are you")
	}), errs.BackendAuth)
	again := b.Info("db")
	assert.Equal(t, i.OpenedAt, again.OpenedAt, "it has been open since")
	assert.True(t, again.RetryAt.After(i.RetryAt))
	assert.Equal(t, errs.BackendAuth, again.LastFailure.Code)
	untilHalfOpen(t, b)
	require.NoError(t, b.Do(t.Context(), "db", returning(nil)))
	i = b.Info("db")
	assert.Zero(t, i.OpenedAt)
	assert.Zero(t, i.RetryAt)
	assert.Zero(t, i.Consecutive)
	assert.Equal(t, errs.BackendAuth, i.LastFailure.Code, "remembered")
	require.NoError(t, b.SetMode("db", ForceOpen, "ann"))
	require.NoError(t, b.SetMode("db", ForceOpen, "bob")) // no change
	require.NoError(t, b.SetMode("db", Auto, "bob"))
	assert.Equal(t, "bob", b.Info("db").LastChange.By)
	b.Close()
	type step struct {
		from, to State
		mode     Mode
		reason   Reason
		by       string
		code     errs.Code
	}
	var steps []step
	for _, c := range told {
		assert.Equal(t, "db", c.Backend)
		steps = append(steps, step{c.From, c.To, c.Mode, c.Reason, c.By, c.Failure.Code})
	}
	assert.Equal(t, []step{
		{Closed, Open, Auto, ReasonFailures, "breaker", errs.BackendUnreachable},
		{Open, HalfOpen, Auto, ReasonProbe, "breaker", errs.BackendUnreachable},
		{HalfOpen, Open, Auto, ReasonProbeFailed, "breaker", errs.BackendAuth},
		{Open, HalfOpen, Auto, ReasonProbe, "breaker", errs.BackendAuth},
		{HalfOpen, Closed, Auto, ReasonProbeSucceeded, "breaker", errs.BackendAuth},
		{Closed, Open, ForceOpen, ReasonOperator, "ann", errs.BackendAuth},
		{Open, Closed, Auto, ReasonOperator, "bob", errs.BackendAuth},
	}, steps)
}

func TestASlowListenerHoldsNobodyUp(t *testing.T) {
	release := make(chan struct{})
	var told []Reason
	b := newBreaker(t, Config{RetryAfter: time.Minute, OnChange: func(c Change) {
		<-release
		told = append(told, c.Reason)
		if len(told) == 1 {
			panic("boom")
		}
	}})
	for range 2 * maxEvents {
		require.NoError(t, b.SetMode("db", ForceOpen, "ann"))
		require.NoError(t, b.SetMode("db", Auto, "ann"))
	}
	close(release)
	b.Close()
	require.LessOrEqual(t, len(told), maxEvents+1, "one was being told, the others wait")
	require.GreaterOrEqual(t, len(told), maxEvents)
	require.NoError(t, b.SetMode("db", ForceOpen, "ann"))
	require.LessOrEqual(t, len(told), maxEvents+1, "nothing after Close")
	require.ErrorIs(t, b.Do(t.Context(), "db", returning(nil)), errs.CircuitOpen, "the circuit works on")
}

func TestTryRunsOnlyWhatNeedNotWait(t *testing.T) {
	b := newBreaker(t, Config{RetryAfter: 300 * time.Millisecond})
	called := 0
	try := func() (bool, error) {
		return b.Try(t.Context(), "db", func(context.Context) error { called++; return nil })
	}
	done, err := try()
	require.False(t, done)
	require.NoError(t, err)
	fail(b, 5)
	done, err = try()
	require.True(t, done)
	require.ErrorIs(t, err, errs.CircuitOpen)
	require.Zero(t, called)
	untilHalfOpen(t, b)
	done, err = try()
	require.True(t, done)
	require.NoError(t, err)
	require.Equal(t, 1, called, "the probe")
	require.True(t, b.Closed("db"))
	require.NoError(t, b.SetMode("db", ForceClosed, "ann"))
	done, _ = try()
	require.False(t, done)
	require.NoError(t, b.SetMode("db", ForceOpen, "ann"))
	done, err = try()
	require.True(t, done)
	require.ErrorIs(t, err, errs.CircuitOpen)
}

func TestWatchersHearOfChangesAndMayAsk(t *testing.T) {
	b := newBreaker(t, Config{RetryAfter: time.Minute})
	var seen []State
	stop := b.Watch(func(backend string) { seen = append(seen, b.State(backend)) })
	fail(b, 5)
	require.Equal(t, []State{Open}, seen, "before the call that opened it returned")
	require.NoError(t, b.SetMode("db", ForceClosed, "ann"))
	require.Equal(t, []State{Open, Closed}, seen)
	stop()
	require.NoError(t, b.SetMode("db", ForceOpen, "ann"))
	require.Len(t, seen, 2)
}

func TestAForgottenBackendLeavesNothingAndMayComeBack(t *testing.T) {
	set := metrics.NewSet()
	b := newBreaker(t, Config{RetryAfter: time.Minute, Metrics: set})
	fail(b, 5)
	started, release, late := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	require.NoError(t, b.SetMode("db", ForceClosed, "ann"))
	require.NoError(t, b.SetMode("db", Auto, "ann"))
	go func() {
		late <- b.Do(context.Background(), "db", func(context.Context) error {
			close(started)
			<-release
			return errs.New(errs.BackendTimeout, "late")
		})
	}()
	<-started
	fail(b, 5)
	require.Equal(t, Open, b.State("db"))
	b.Forget("db")
	b.Forget("db")
	b.Forget("unknown")
	var text strings.Builder
	set.WritePrometheus(&text)
	require.NotContains(t, text.String(), `backend="db"`)
	require.Equal(t, Info{Backend: "db", State: Closed, Mode: Auto}, b.Info("db"))
	close(release)
	require.ErrorIs(t, <-late, errs.BackendTimeout)
	require.Zero(t, b.Info("db").Counts, "what was under way counts for nothing")

	require.NoError(t, b.Do(t.Context(), "db", returning(nil)))
	fail(b, 4)
	require.Equal(t, Closed, b.State("db"))
	fail(b, 1)
	require.Equal(t, Open, b.State("db"), "hystrix opens again under the same name")
	require.ErrorIs(t, b.Do(t.Context(), "db", returning(nil)), errs.CircuitOpen)
	text.Reset()
	set.WritePrometheus(&text)
	require.Contains(t, text.String(), `fairlead_gateway_breaker_open{backend="db"} 2`)
	require.Contains(t, text.String(), `fairlead_gateway_breaker_opened_total{backend="db"} 1`)
}

func TestAnOperatorIsFasterThanTheProbe(t *testing.T) {
	b := newBreaker(t, Config{RetryAfter: 50 * time.Millisecond})
	fail(b, 5)
	untilHalfOpen(t, b)
	require.NoError(t, b.Do(t.Context(), "db", func(context.Context) error {
		return b.SetMode("db", ForceOpen, "ann")
	}))
	require.Equal(t, Open, b.State("db"), "the probe's success does not overrule the operator")
	require.NoError(t, b.SetMode("db", Auto, "ann"))
	require.Equal(t, Closed, b.State("db"))
	fail(b, 5)
	untilHalfOpen(t, b)
	require.NoError(t, b.Do(t.Context(), "db", returning(nil)))
	require.Equal(t, Closed, b.State("db"))
}

func TestTextOfAFailureIsBounded(t *testing.T) {
	b := newBreaker(t, Config{})
	_ = b.Do(t.Context(), "db", returning(errs.New(errs.SSHHandshake, "it says %s", strings.Repeat("é", 1000))))
	text := b.Info("db").LastFailure.Text
	require.LessOrEqual(t, len(text), 512)
	require.True(t, strings.HasPrefix(text, "it says éé"))
}
