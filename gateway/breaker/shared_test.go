package breaker

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

const (
	minute = time.Minute
	due    = minute + 100*time.Millisecond // hystrix takes simulated time to notice that it is to open
)

var down = errs.New(errs.BackendUnreachable, "down")

// call calls the backend and reports whether it was reached.
func (m *member) call(result error) (reached bool, err error) {
	err = m.Do(context.Background(), "db", func(context.Context) error { reached = true; return result })
	return reached, err
}

// Verifies: R5.7, R5.8
func TestACircuitOpensAndClosesAtAllReplicas(t *testing.T) {
	bubble(t, 3, Config{RetryAfter: minute}, func(t *testing.T, store *commonStore, all []*member) {
		a, b, c := all[0], all[1], all[2]
		_, err := b.call(nil)
		require.NoError(t, err)
		a.fail(5)
		syncAll(t, b, c)
		for _, m := range []*member{b, c} {
			require.Equal(t, Open, m.State("db"))
			i := m.Info("db")
			require.Equal(t, "replica r0", i.LastChange.By)
			require.Equal(t, ReasonFailures, i.LastChange.Reason)
			require.Equal(t, "r0", i.OpenedBy)
			require.Equal(t, errs.BackendUnreachable, i.LastFailure.Code)
			require.Contains(t, m.log.String(), "opened by replica r0")
			require.Zero(t, i.Counts.Opened)
			reached, err := m.call(nil)
			require.False(t, reached)
			require.ErrorIs(t, err, errs.CircuitOpen)
			require.ErrorContains(t, err, "at replica r0")
			require.Greater(t, errs.From(err).RetryAfter, 50*time.Second)
		}
		time.Sleep(due)

		// One probes; the others are told so and leave it alone.
		started, release, done := make(chan struct{}), make(chan error), make(chan error, 1)
		go func() {
			done <- b.Do(context.Background(), "db", func(context.Context) error { close(started); return <-release })
		}()
		<-started
		for _, m := range []*member{a, c} {
			reached, err := m.call(nil)
			require.False(t, reached)
			require.ErrorIs(t, err, errs.CircuitOpen)
			require.ErrorContains(t, err, "another replica")
			require.Equal(t, time.Second, errs.From(err).RetryAfter)
		}
		release <- down
		require.Error(t, <-done)
		synctest.Wait()
		syncAll(t, a, c)
		for _, m := range []*member{a, c} {
			require.Equal(t, Open, m.State("db"))
			require.Equal(t, "replica r1", m.Info("db").LastChange.By)
			require.Equal(t, ReasonProbeFailed, m.Info("db").LastChange.Reason)
		}
		time.Sleep(minute - 5*time.Second)
		for _, m := range all {
			reached, _ := m.call(nil)
			require.False(t, reached, "since the last probe it is not a minute")
		}
		time.Sleep(6 * time.Second)
		reached, err := c.call(nil)
		require.NoError(t, err)
		require.True(t, reached)
		synctest.Wait()
		syncAll(t, a, b)
		for _, m := range all {
			require.Equal(t, Closed, m.State("db"))
			reached, err := m.call(nil)
			require.NoError(t, err)
			require.True(t, reached)
		}
		synctest.Wait()
		assert.Equal(t, "failures by breaker, probe_failed by replica r1, probe_succeeded by replica r2", a.changes())
		assert.Equal(t, "failures by replica r0, probe by breaker, probe_failed by breaker, probe_succeeded by replica r2", b.changes())
	})
}

// A replica that hears of an opening late neither probes early nor waits for another whole time.
func TestTimesOfOtherReplicasAreDistances(t *testing.T) {
	now := time.Now()
	told := func(changed, retry time.Duration) Circuit {
		return Circuit{Changed: now.Add(changed), Retry: now.Add(changed + retry)}
	}
	for name, c := range map[string]struct {
		told Circuit
		want time.Duration
	}{
		"just put":                        {told(0, minute), minute},
		"by a clock that is ahead":        {told(time.Hour, minute), minute},
		"by a clock that is behind a bit": {told(-8*time.Second, minute), minute},
		"heard late":                      {told(-40*time.Second, minute), 30 * time.Second},
		"heard far too late":              {told(-time.Hour, minute), 0},
		"half over when it was put":       {told(0, 30*time.Second), 30 * time.Second},
		"nonsense":                        {told(0, -time.Hour), 0},
		"longer than we wait":             {told(0, time.Hour), minute},
	} {
		assert.Equal(t, c.want, c.told.dueIn(now, minute), name)
	}
}

func TestAnOperatorDecidesForAllReplicas(t *testing.T) {
	bubble(t, 4, Config{RetryAfter: minute}, func(t *testing.T, store *commonStore, all []*member) {
		a, b, late := all[0], all[1], all[3]
		// What b finds out by itself meanwhile does not overrule the operator, however much it is.
		b.store.down.Store(true)
		for range 3 {
			b.fail(5)
			time.Sleep(due)
			_, err := b.call(nil)
			require.NoError(t, err)
		}
		require.NoError(t, a.SetMode("db", ForceOpen, "ann"))
		b.store.down.Store(false)
		synctest.Wait()
		syncAll(t, b, late)
		for _, m := range []*member{b, late} {
			require.Equal(t, ForceOpen, m.Mode("db"))
			reached, err := m.call(nil)
			require.False(t, reached)
			require.ErrorContains(t, err, "operator")
			require.Equal(t, "ann", m.Info("db").LastChange.By)
			require.Equal(t, ReasonOperator, m.Info("db").LastChange.Reason)
		}
		require.NoError(t, b.SetMode("db", ForceClosed, "bob"))
		synctest.Wait()
		syncAll(t, a)
		a.fail(20)
		require.Equal(t, Closed, a.State("db"))
		require.Equal(t, "bob", a.Info("db").LastChange.By)
		require.NoError(t, a.SetMode("db", Auto, "cid"))
		synctest.Wait()
		syncAll(t, b, late)
		b.fail(5)
		syncAll(t, a, late)
		require.Equal(t, Open, a.State("db"))
		require.Equal(t, Auto, late.Mode("db"))

		// What is in force is known to the store again after it was lost, and does not end there while anybody knows it.
		require.NoError(t, a.SetMode("db", ForceOpen, "dan"))
		synctest.Wait()
		store.flush()
		require.NoError(t, a.Sync(t.Context()))
		syncAll(t, all[2])
		require.Equal(t, ForceOpen, all[2].Mode("db"))
		time.Sleep(keepMode + time.Hour)
		syncAll(t, a, b)
		require.Equal(t, ForceOpen, b.Mode("db"))
		require.Len(t, store.circuits, 1)
		puts := store.count()
		for range 5 {
			syncAll(t, a, b)
		}
		require.Equal(t, puts, store.count(), "what is known is not put again")
	})
}

func TestWithoutTheStoreEachReplicaIsOnItsOwn(t *testing.T) {
	bubble(t, 2, Config{RetryAfter: minute}, func(t *testing.T, store *commonStore, all []*member) {
		a, b := all[0], all[1]
		a.store.down.Store(true)
		a.fail(5)
		require.ErrorIs(t, a.Sync(t.Context()), errs.StoreUnavailable)
		require.Contains(t, a.log.String(), "not told of circuits for now")
		syncAll(t, b)
		require.Equal(t, Closed, b.State("db"))
		time.Sleep(due)
		reached, err := a.call(down)
		require.True(t, reached)
		require.ErrorIs(t, err, errs.BackendUnreachable)
		a.store.down.Store(false)
		a.store.slow.Store(true)
		time.Sleep(due)
		begin := time.Now()
		reached, _ = a.call(down)
		require.True(t, reached, "a store that is slow is not waited for")
		require.Equal(t, claimWithin, time.Since(begin))
		a.store.slow.Store(false)
		require.NoError(t, a.Sync(t.Context()))
		syncAll(t, b)
		require.Equal(t, Open, b.State("db"), "what it could not tell is told now")
		time.Sleep(due)
		reached, err = b.call(nil)
		require.NoError(t, err)
		require.True(t, reached, "the claim whose answer was lost was given back")
	})
}

func TestAProbeThatProvesNothingIsAnyReplicasAgain(t *testing.T) {
	bubble(t, 2, Config{RetryAfter: minute, ProbeFor: 20 * time.Second}, func(t *testing.T, store *commonStore, all []*member) {
		a, b := all[0], all[1]
		a.fail(5)
		syncAll(t, b)
		time.Sleep(due)
		reached, _ := a.call(errs.New(errs.Canceled, "left"))
		require.True(t, reached)
		synctest.Wait()
		reached, _ = b.call(errs.New(errs.Canceled, "left"))
		require.True(t, reached)
		synctest.Wait()

		// One that hangs is ended with its claim.
		var took time.Duration
		begin := time.Now()
		err := a.Do(context.Background(), "db", func(ctx context.Context) error {
			<-ctx.Done()
			took = time.Since(begin)
			return errs.New(errs.BackendTimeout, "no answer")
		})
		require.ErrorIs(t, err, errs.BackendTimeout)
		require.Equal(t, 20*time.Second, took)
		synctest.Wait()
		require.False(t, time.Now().Before(store.claims["db"].until))

		// One whose replica is gone is everybody's after its time.
		time.Sleep(2 * minute)
		claimed, err := a.store.ClaimProbe(t.Context(), "db", "gone", 20*time.Second)
		require.NoError(t, err)
		require.True(t, claimed)
		reached, _ = b.call(nil)
		require.False(t, reached)
		reached, err = b.call(nil)
		require.False(t, reached)
		require.ErrorIs(t, err, errs.CircuitOpen)
		time.Sleep(20 * time.Second)
		reached, err = b.call(nil)
		require.True(t, reached)
		require.NoError(t, err)
	})
}

// A replica that claims right after another's probe has failed sees that before it probes.
func TestAFreeClaimIsNoReasonToProbeAgain(t *testing.T) {
	bubble(t, 2, Config{RetryAfter: minute}, func(t *testing.T, store *commonStore, all []*member) {
		a, b := all[0], all[1]
		a.fail(5)
		syncAll(t, b)
		time.Sleep(due)
		_, _ = a.call(down)
		synctest.Wait()
		reached, err := b.call(nil)
		require.False(t, reached)
		require.ErrorIs(t, err, errs.CircuitOpen)
		require.Equal(t, minute, errs.From(err).RetryAfter)
		time.Sleep(due)
		_, err = a.call(nil)
		require.NoError(t, err)
		synctest.Wait()
		done, err := b.Try(t.Context(), "db", func(context.Context) error { t.Error("called without a turn"); return nil })
		require.False(t, done, "closed meanwhile: it is to wait for its turn")
		require.NoError(t, err)
		require.Equal(t, Closed, b.State("db"))
	})
}

func TestWhatTheStoreHoldsIsNotTrusted(t *testing.T) {
	store := newCommonStore()
	m := newMember(t, 0, store, Config{RetryAfter: minute})
	defer m.Close()
	put := func(c Circuit) {
		require.NoError(t, m.store.PutCircuit(t.Context(), c, time.Hour))
		require.NoError(t, m.Sync(t.Context()))
	}
	for _, bad := range []Circuit{
		{Backend: "db", Open: true},
		{Backend: "db", Open: true, Version: maxVersion + 1},
		{Backend: "db", Open: true, Version: 1, Mode: "ajar"},
		{Backend: "db", Open: true, Version: 1, Failures: -1},
		{Backend: "db", Open: true, Version: 1, By: string(make([]byte, maxNames+1))},
	} {
		put(bad)
		require.Equal(t, Closed, m.State("db"), "%+v", bad)
	}
	put(Circuit{Backend: "unconfigured", Open: true, Version: 1})
	require.Empty(t, m.circuits, "no circuit for what nobody asks for")
	put(Circuit{Backend: "db", Open: true, Version: maxVersion, By: "r9", Failures: 5})
	require.Equal(t, HalfOpen, m.State("db"))
	require.NoError(t, m.SetMode("db", ForceOpen, "ann"))
	require.LessOrEqual(t, m.circuits["db"].common.version, uint64(maxVersion))
	_, err := New(Config{Shared: m.store})
	require.ErrorIs(t, err, errs.ConfigInvalid)
	_, err = New(Config{Shared: m.store, Replica: "r", ProbeFor: time.Millisecond})
	require.ErrorIs(t, err, errs.ConfigInvalid)
}

func TestAForgottenBackendComesBackAsOthersKnowIt(t *testing.T) {
	store := newCommonStore()
	a, b := newMember(t, 0, store, Config{RetryAfter: minute}), newMember(t, 1, store, Config{RetryAfter: minute})
	defer a.Close()
	defer b.Close()
	fail(a.Breaker, 5)
	syncAll(t, a, b)
	require.Equal(t, Open, b.State("db"))
	b.Forget("db")
	syncAll(t, b)
	require.Empty(t, b.circuits)
	reached, err := b.call(nil)
	require.False(t, reached)
	require.ErrorIs(t, err, errs.CircuitOpen)
}
