package lifecycle_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"fairlead/shared/errs"
	"fairlead/shared/lifecycle"
	"fairlead/shared/logging"
)

func TestMain(m *testing.M) {
	if childMain() {
		return
	}
	goleak.VerifyTestMain(m)
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func newStack(t *testing.T, w io.Writer) *lifecycle.Stack {
	t.Helper()
	s, err := lifecycle.NewStack(lifecycle.StackConfig{Log: slog.New(slog.NewTextHandler(w, nil))})
	require.NoError(t, err)
	return s
}

func TestStackStopsInReverse(t *testing.T) {
	var log bytes.Buffer
	s := newStack(t, &log)
	var order []string
	boom := errors.New("boom")
	for _, name := range []string{"listener", "store", "pool"} {
		s.Push(name, func(context.Context) error {
			order = append(order, name)
			if name == "store" {
				return boom
			}
			return nil
		})
	}
	err := s.Stop(t.Context())
	assert.Equal(t, []string{"pool", "store", "listener"}, order)
	require.ErrorIs(t, err, boom)
	assert.Equal(t, "stopping store: boom", err.Error())
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	require.Len(t, lines, 3)
	assert.Contains(t, lines[0], "step=pool reason=stopped")
	assert.Contains(t, lines[1], "step=store reason=failed")
	assert.Contains(t, lines[2], "step=listener reason=stopped")

	assert.Equal(t, err, s.Stop(t.Context()), "a second stop returns the first one's result")
	assert.Len(t, order, 3, "each step runs once")
}

func TestStackBoundsEachStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		s := newStack(t, &log)
		release := make(chan struct{})
		closed := false
		s.Push("socket", func(context.Context) error { closed = true; return nil })
		s.Push("stuck", func(context.Context) error { <-release; return nil })
		s.Push("polite", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		begin := time.Now()
		err := s.Stop(ctx)
		assert.Equal(t, 4*time.Second, time.Since(begin), "the context's time and one grace")
		assert.True(t, closed, "steps after the end of the context run all the same")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		assert.Contains(t, err.Error(), "stopping stuck: FL-U900: did not stop in time")
		assert.Contains(t, err.Error(), "stopping polite: context deadline exceeded")
		assert.Contains(t, log.String(), "step=stuck reason=timeout")
		close(release)
		synctest.Wait()
	})
}

func TestStackSurvivesAPanic(t *testing.T) {
	var log bytes.Buffer
	s := newStack(t, &log)
	ran := false
	s.Push("first", func(context.Context) error { ran = true; return nil })
	s.Push("second", func(context.Context) error { panic("oops") })
	err := s.Stop(t.Context())
	require.ErrorIs(t, err, errs.Panicked)
	assert.True(t, ran)
	assert.Contains(t, log.String(), "reason=panicked")
	assert.Contains(t, log.String(), "lifecycle_test.go")
}

func TestStackUnwindsFailedConstruction(t *testing.T) {
	stopped := false
	build := func(fail bool) (err error) {
		s := newStack(t, io.Discard)
		defer func() { s.Unwind(&err) }()
		s.Push("listener", func(context.Context) error { stopped = true; return errors.New("stuck") })
		if fail {
			return errs.New(errs.ListenFailed, "port is taken")
		}
		return nil
	}
	require.NoError(t, build(false))
	assert.False(t, stopped)
	err := build(true)
	assert.True(t, stopped)
	require.ErrorIs(t, err, errs.ListenFailed)
	assert.Contains(t, err.Error(), "stopping listener: stuck")
}

func TestStackStopsLateComersAtOnce(t *testing.T) {
	s := newStack(t, io.Discard)
	require.NoError(t, s.Stop(t.Context()))
	stopped := false
	s.Push("late", func(context.Context) error { stopped = true; return nil })
	assert.True(t, stopped)
}

func TestConstructorsWantALogger(t *testing.T) {
	_, err := lifecycle.NewStack(lifecycle.StackConfig{})
	require.ErrorIs(t, err, errs.Internal)
	_, _, err = lifecycle.HandleSignals(t.Context(), lifecycle.SignalConfig{})
	require.ErrorIs(t, err, errs.Internal)
}

func TestGroupEndsTogether(t *testing.T) {
	boom := errors.New("boom")
	g, ctx := lifecycle.NewGroup(t.Context(), quiet())
	g.Go("done", func(context.Context) error { return nil })
	g.Go("waiter", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
	g.Go("waiter for the cause", func(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) })
	g.Go("failing", func(context.Context) error { return boom })
	err := g.Wait()
	require.ErrorIs(t, err, boom)
	assert.Equal(t, "failing: boom", err.Error())
	assert.Equal(t, err, context.Cause(ctx))
}

func TestGroupEndsQuietlyWithItsParent(t *testing.T) {
	parent, cancel := context.WithCancelCause(t.Context())
	g, ctx := lifecycle.NewGroup(parent, quiet())
	g.Go("waiter", func(ctx context.Context) error { <-ctx.Done(); return errs.Wrap(errs.Canceled, ctx.Err(), "waiting") })
	cancel(lifecycle.Signal{Number: 15})
	require.NoError(t, g.Wait())
	sig, ok := lifecycle.SignalOf(ctx)
	assert.True(t, ok)
	assert.Equal(t, "signal_term", sig.Reason())
}

func TestGroupReportsFailureDuringStop(t *testing.T) {
	parent, cancel := context.WithCancel(t.Context())
	g, _ := lifecycle.NewGroup(parent, quiet())
	boom := errors.New("flush failed")
	g.Go("writer", func(ctx context.Context) error { <-ctx.Done(); return boom })
	cancel()
	require.ErrorIs(t, g.Wait(), boom)
}

func TestGroupRecoversPanics(t *testing.T) {
	var out bytes.Buffer
	log, _, err := logging.New(logging.Config{Format: logging.FormatJSON, Writer: &out})
	require.NoError(t, err)
	g, ctx := lifecycle.NewGroup(t.Context(), log)
	g.Go("reader", func(context.Context) error {
		var list []int
		return errors.New(string(rune(list[len(list)])))
	})
	err = g.Wait()
	require.ErrorIs(t, err, errs.Panicked)
	require.ErrorIs(t, context.Cause(ctx), errs.Panicked)
	assert.Equal(t, 1, strings.Count(out.String(), "\n"))
	for _, want := range []string{"FL-U901", "index out of range", "lifecycle_test.go", `"step":"reader"`} {
		assert.Contains(t, out.String(), want)
	}
}
