package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"fairlead/shared/errs"
	"fairlead/shared/testbed"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = time.Minute

func target(t *testing.T) *Target {
	t.Helper()
	target, err := NewTarget()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, target.Close()) })
	return target
}

// liar is a target that changes what it gets.
func liar(t *testing.T, change func([]byte) []byte) string {
	t.Helper()
	honest := target(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		near, err := l.Accept()
		if err != nil {
			return
		}
		defer near.Close()
		far, err := net.Dial("tcp", honest.Addr())
		if err != nil {
			return
		}
		defer far.Close()
		all, _ := io.ReadAll(near) // what is missing shows
		_, _ = far.Write(all)
		_ = far.(*net.TCPConn).CloseWrite()
		back, _ := io.ReadAll(far)
		_, _ = near.Write(change(back))
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return l.Addr().String()
}

// fixed connects to one address.
func fixed(addr string) func(context.Context, exchange, *rand.Rand) (time.Duration, error) {
	return func(ctx context.Context, e exchange, _ *rand.Rand) (time.Duration, error) { return e.dial(ctx, addr) }
}

func TestExchangesAreVerified(t *testing.T) {
	to := target(t)
	var moved atomic.Int64
	for _, size := range []int64{1, 100, pieceSize, 300_001} {
		opened, err := exchange{size: size, seed: uint64(size), moved: &moved}.dial(t.Context(), to.Addr())
		require.NoError(t, err)
		assert.Positive(t, opened)
	}
	assert.Equal(t, int64(1+100+pieceSize+300_001), moved.Load())
	assert.Equal(t, int64(4), to.Total())
	require.Eventually(t, func() bool { return to.Open() == 0 }, patience, time.Millisecond)

	for name, change := range map[string]func([]byte) []byte{
		"a bit of the content": func(b []byte) []byte { b[50] ^= 1; return b },
		"a bit of the hash":    func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"a byte too many":      func(b []byte) []byte { return append(b, 0) },
		"a byte too few":       func(b []byte) []byte { return b[:len(b)-1] },
		"twice":                func(b []byte) []byte { return append(b, b...) },
	} {
		_, err := exchange{size: 1000, seed: 1}.dial(t.Context(), liar(t, change))
		require.ErrorIs(t, err, ErrHash, name)
	}
	_, err := exchange{size: 1000}.dial(t.Context(), liar(t, func(b []byte) []byte { return b[:500] }))
	require.ErrorContains(t, err, "500 bytes of 1000")
}

func TestExchangesEndWithTheirContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var moved atomic.Int64
	ended := make(chan error, 1)
	to := target(t)
	go func() {
		_, err := exchange{size: 1 << 40, piece: 64, pause: time.Millisecond, moved: &moved}.dial(ctx, to.Addr())
		ended <- err
	}()
	require.Eventually(t, func() bool { return moved.Load() > 0 }, patience, time.Millisecond)
	cancel()
	require.Error(t, <-ended)
}

func TestTrafficCountsWhatBreaks(t *testing.T) {
	r := &Result{Scenario: "test"}
	tr := newTraffic(t.Context(), r, 1)
	to := target(t)
	tr.worker(0, sized(1<<16), fixed(to.Addr()), 0)
	require.NoError(t, tr.moves(t.Context(), 1<<18))
	tr.finish()
	assert.Positive(t, tr.done.Load())
	assert.Zero(t, tr.lost.Load())
	require.NoError(t, r.Err())
	assert.NotEmpty(t, tr.delaysBetween(time.Time{}, time.Now()))

	tr = newTraffic(t.Context(), r, 1)
	tr.worker(0, small, fixed(liar(t, func(b []byte) []byte { b[0]++; return b })), 0)
	tr.tasks.Wait() // a wrong hash ends everything
	assert.Equal(t, int64(1), tr.lost.Load())
	require.ErrorContains(t, r.Err(), "hash")
}

func TestMetricsAreAdded(t *testing.T) {
	m := Metrics("# HELP a b\na{kind=\"x\",b=\"1\"} 2\na{kind=\"y\"} 3.5\na_total 7\nb 1e3\n")
	for _, c := range []struct {
		name   string
		labels []string
		sum    float64
		known  bool
	}{{"a", nil, 5.5, true}, {"a", []string{`kind="x"`}, 2, true}, {"a", []string{`kind="z"`}, 0, false}, {"b", nil, 1000, true}, {"c", nil, 0, false}} {
		sum, known := m.Sum(c.name, c.labels...)
		assert.InDelta(t, c.sum, sum, 0, c.name)
		assert.Equal(t, c.known, known, c.name)
	}
}

func TestResultsSayWhatWasMissed(t *testing.T) {
	r := &Result{Scenario: "test", Figures: []Figure{}, Failures: []string{}}
	r.figure("a", 1.25, "ms")
	r.most("b", 2, 2, "")
	r.least("c", 2, 2, "")
	require.NoError(t, r.Err())
	r.most("d", 3, 2, "s")
	r.least("e", 1, 2, "")
	require.ErrorContains(t, r.Err(), "2 failures; the first: d: 3 s, at most 2 are allowed")
	var text, raw bytes.Buffer
	require.NoError(t, r.WriteText(&text))
	for _, part := range []string{"1.25 ms", "at most 2", "FAILED: e: 1 , at least 2 are wanted"} {
		assert.Contains(t, text.String(), part)
	}
	require.NoError(t, writeJSON(&raw, []*Result{r}))
	var back []Result
	require.NoError(t, json.Unmarshal(raw.Bytes(), &back))
	assert.Equal(t, r.Figures, back[0].Figures)
	assert.Equal(t, r.Failures, back[0].Failures)
	assert.Zero(t, quantile(nil, .5))
	assert.Equal(t, time.Duration(3), quantile([]time.Duration{3, 1, 2}, .99))
}

func TestRedisIsAsked(t *testing.T) {
	r := testbed.NewRedis(t)
	ctx := t.Context()
	require.NoError(t, RedisDo(ctx, r.Addr(), "SET", "a", "b"))
	answer, err := redisAsk(ctx, r.Addr(), "GET", "a")
	require.NoError(t, err)
	assert.Equal(t, "b", answer)
	require.ErrorContains(t, RedisDo(ctx, r.Addr(), "INCR", "a"), "not an integer")
	answer, err = redisAsk(ctx, r.Addr(), "GET", "none")
	require.NoError(t, err)
	assert.Empty(t, answer)
	r.Kill()
	require.Error(t, RedisDo(ctx, r.Addr(), "PING"))
}

func TestUntilGivesUp(t *testing.T) {
	never := func() bool { return false }
	require.ErrorContains(t, Until(t.Context(), time.Millisecond, "the end", never), "the end")
	why := errors.New("it has ended")
	require.ErrorIs(t, Until(t.Context(), patience, "the end", never, func() error { return why }), why)
}

func TestTheCommandRefusesWhatItDoesNotKnow(t *testing.T) {
	for _, args := range [][]string{{}, {"unknown"}, {"roll", "cuts"}} {
		cmd := Command()
		cmd.SetArgs(args)
		cmd.SetOut(io.Discard)
		cmd.SetErr(io.Discard)
		require.Error(t, cmd.ExecuteContext(t.Context()), args)
	}
	for _, s := range Scenarios() {
		assert.Contains(t, Command().Long, s.What)
	}
	f := &flags{dir: t.TempDir() + "/kept"}
	dir, remove, err := f.directory(io.Discard)
	require.NoError(t, err)
	require.NoError(t, remove(true))
	require.DirExists(t, dir)
	var said strings.Builder
	dir, remove, err = (&flags{}).directory(&said)
	require.NoError(t, err)
	require.NoError(t, remove(false))
	require.DirExists(t, dir, "after a failure it is kept")
	assert.Contains(t, said.String(), dir)
	require.NoError(t, remove(true))
	require.NoDirExists(t, dir)
}

func TestTheEnvironmentIsForgotten(t *testing.T) {
	t.Setenv("FAIRLEAD_TEST_OF_CLUSTER", "x")
	require.NoError(t, ForgetEnvironment())
	_, ok := os.LookupEnv("FAIRLEAD_TEST_OF_CLUSTER")
	assert.False(t, ok)
}

func TestWhichRefusalsEndATunnel(t *testing.T) {
	for _, code := range []errs.Code{errs.TunnelUnknown, errs.OwnerGone, errs.OwnerUnreachable, errs.LeaseLost} {
		assert.True(t, gone(errs.New(code, "x")))
	}
	assert.False(t, gone(errs.New(errs.OwnerUnknown, "x")))
	assert.False(t, gone(nil))
}
