package store_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/gateway/store"
	"fairlead/shared/errs"
)

// patient is a store with what it tells.
type patient struct {
	*store.Redis
	set *metrics.Set
	mu  sync.Mutex
	log bytes.Buffer
	was []store.Health
}

func (p *patient) Write(line []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(line)
}

func (p *patient) told() []store.Health {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]store.Health(nil), p.was...)
}

func (p *patient) lines() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

func newPatient(t *testing.T, cfg store.RedisConfig) *patient {
	t.Helper()
	p := &patient{set: metrics.NewSet()}
	cfg.Prefix, cfg.Metrics, cfg.Logger, cfg.PoolSize = "test", p.set, slog.New(slog.NewTextHandler(p, nil)), 8
	if cfg.Timeout == 0 {
		cfg.Timeout, cfg.CallTimeout = time.Second, 2*time.Second
	}
	cfg.OnHealth = func(h store.Health) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.was = append(p.was, h)
	}
	p.Redis = newRedis(t, cfg)
	return p
}

// metric is the value of one line of the metrics.
func (p *patient) metric(t *testing.T, line string) int {
	t.Helper()
	var out bytes.Buffer
	p.set.WritePrometheus(&out)
	for text := range strings.Lines(out.String()) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(text), line+" "); ok {
			n, err := strconv.ParseFloat(value, 64)
			require.NoError(t, err)
			return int(n)
		}
	}
	return 0
}

func (p *patient) take(t *testing.T) error {
	_, err := p.Take(t.Context(), store.Ask{Slot: slot("t", store.StreamSlots, "1"), Lease: time.Minute})
	return err
}

// falls waits until calls have found out that Redis is down, and checks that it is said with why.
func (p *patient) falls(t *testing.T, why, kind string) {
	t.Helper()
	require.Eventually(t, func() bool { _ = p.take(t); return !p.Health().Up }, patience, often)
	h := p.Health()
	require.Contains(t, h.Error, why)
	require.NotContains(t, h.Error, "s3cret")
	require.Zero(t, p.metric(t, "fairlead_gateway_store_up"))
	require.Positive(t, p.metric(t, fmt.Sprintf("fairlead_gateway_store_errors_total{op=%q,kind=%q}", "take", kind))+
		p.metric(t, fmt.Sprintf("fairlead_gateway_store_errors_total{op=%q,kind=%q}", "probe", kind)))
	p.fails(t)
}

// fails checks that calls fail without being made.
func (p *patient) fails(t *testing.T) {
	t.Helper()
	before := p.metric(t, `fairlead_gateway_store_seconds_count{op="take"}`)
	for range 100 {
		err := p.take(t)
		require.ErrorIs(t, err, errs.StoreUnavailable)
		require.NotContains(t, err.Error(), "s3cret")
	}
	require.Equal(t, before, p.metric(t, `fairlead_gateway_store_seconds_count{op="take"}`))
}

// rises waits until Redis can be used, and checks that it has been told and logged like this: up or not, one after the other.
func (p *patient) rises(t *testing.T, told ...bool) {
	t.Helper()
	require.Eventually(t, func() bool { return p.Health().Up && len(p.told()) == len(told) }, patience, often, "%+v, told %+v", p.Health(), p.told())
	require.NoError(t, p.take(t))
	var ups []bool
	for _, h := range p.told() {
		ups = append(ups, h.Up)
		require.Equal(t, h.Up, h.Error == "")
	}
	require.Equal(t, told, ups)
	require.Equal(t, len(told), strings.Count(p.lines(), "\n"), p.lines())
	require.NotContains(t, p.lines(), "s3cret")
	require.Equal(t, 1, p.metric(t, "fairlead_gateway_store_up"))
}

// crowd calls everything at once, many times, and returns when all have an answer.
func (p *patient) crowd(t *testing.T) {
	var group sync.WaitGroup
	for range 40 {
		group.Go(func() {
			for range 5 {
				for op, call := range everything(p) {
					if err := call(t.Context()); err != nil {
						assert.ErrorIs(t, err, errs.StoreUnavailable, op)
					}
				}
			}
		})
	}
	group.Wait()
}
