package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
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
	"fairlead/shared/testbed"
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

func TestRedisThatIsAbsentAtFirst(t *testing.T) {
	node := testbed.NewRedis(t)
	before := runtime.NumGoroutine() + 1 // which is waiting, below
	node.Kill()
	p := newPatient(t, store.RedisConfig{Addresses: []string{node.Addr()}})
	require.False(t, p.Health().Up)
	require.Contains(t, p.Health().Error, "connection refused")
	p.falls(t, "connection refused", "unreachable")
	for range 3 {
		p.crowd(t)
		require.Eventually(t, func() bool { return runtime.NumGoroutine() <= before+8 }, patience, often, "calls leave nothing behind")
	}
	require.NoError(t, node.Start(t.Context()))
	p.rises(t, false, true)
	p.crowd(t)
	info, err := node.Do("INFO", "clients")
	require.NoError(t, err)
	_, after, _ := strings.Cut(info, "connected_clients:")
	connected, err := strconv.Atoi(strings.Fields(after)[0])
	require.NoError(t, err)
	require.LessOrEqual(t, connected, 8+1, "however many come at once")
	require.NoError(t, p.Close())
	require.Eventually(t, func() bool { return runtime.NumGoroutine() <= before }, patience, often)
}

func TestRedisThatIsPaused(t *testing.T) {
	node := testbed.NewRedis(t)
	p := newPatient(t, store.RedisConfig{Addresses: []string{node.Addr()}, Timeout: 100 * time.Millisecond, CallTimeout: 2 * time.Second})
	p.rises(t, true)
	seen := watch(t, p)
	watching(t, p, seen)
	require.NoError(t, node.Pause())
	p.falls(t, "does not answer in time", "timeout")
	require.ErrorIs(t, errorOf(p.Find(t.Context(), "00ff")), errs.StoreUnavailable, "is tried")
	require.Positive(t, p.metric(t, `fairlead_gateway_store_errors_total{op="find",kind="timeout"}`))
	require.NoError(t, node.Continue())
	p.rises(t, true, false, true)
	require.Eventually(t, func() bool { return contains(seen(), store.Missed) }, patience, often)
	watching(t, p, seen)
}

func errorOf(_ store.Tunnel, _ bool, err error) error { return err }

func contains(events []store.Event, kind store.Kind) bool {
	for _, e := range events {
		if e.Kind == kind {
			return true
		}
	}
	return false
}

func TestRedisThatLosesEverything(t *testing.T) {
	node := testbed.NewRedis(t)
	p := newPatient(t, store.RedisConfig{Addresses: []string{node.Addr()}})
	p.rises(t, true)
	seen := watch(t, p)
	watching(t, p, seen)
	first, err := p.Incarnation(t.Context())
	require.NoError(t, err)
	_, version, err := p.Revocations(t.Context(), "")
	require.NoError(t, err)
	require.NoError(t, p.PutRevocations(t.Context(), store.Revocation{ID: "1", Until: now().Add(time.Hour)}))
	_, version, err = p.Revocations(t.Context(), version)
	require.NoError(t, err)
	hold(t, t.Context(), p, tunnelOf("a", 1))

	node.Kill()
	p.falls(t, "connection refused", "unreachable")
	require.NoError(t, node.Start(t.Context()))
	p.rises(t, true, false, true)
	second, err := p.Incarnation(t.Context())
	require.NoError(t, err)
	require.NotEqual(t, first, second)
	_, ok := find(t, t.Context(), p, "00ff")
	require.False(t, ok)
	list, _, err := p.Revocations(t.Context(), version)
	require.NoError(t, err)
	require.NotNil(t, list, "another version: whoever has more puts it there")
	require.Eventually(t, func() bool { return contains(seen(), store.Missed) }, patience, often)

	_, err = node.Do("FLUSHALL")
	require.NoError(t, err)
	third, err := p.Incarnation(t.Context())
	require.NoError(t, err)
	require.NotEqual(t, second, third, "flushed")
	require.True(t, p.Health().Up)
	_, err = node.Do("SCRIPT", "FLUSH")
	require.NoError(t, err)
	require.NoError(t, p.take(t), "scripts are sent again")
}

func TestRedisThatIsFull(t *testing.T) {
	node := testbed.NewRedis(t)
	p := newPatient(t, store.RedisConfig{Addresses: []string{node.Addr()}})
	p.rises(t, true)
	hold(t, t.Context(), p, tunnelOf("a", 1))
	require.NoError(t, node.ConfigSet("maxmemory", "1"))
	p.falls(t, "OOM", "full")
	_, ok := find(t, t.Context(), p, "00ff")
	require.True(t, ok, "it can be read")
	require.NoError(t, node.ConfigSet("maxmemory", "0"))
	p.rises(t, true, false, true)
}

func TestRedisThatIsReadOnly(t *testing.T) {
	node, other := testbed.NewRedis(t), testbed.NewRedis(t)
	p := newPatient(t, store.RedisConfig{Addresses: []string{node.Addr()}})
	p.rises(t, true)
	require.NoError(t, node.ReplicaOf(t.Context(), other))
	p.falls(t, "READONLY", "readonly")
	_, err := p.Replicas(t.Context())
	require.NoError(t, err, "it can be read")
	require.NoError(t, node.ReplicaOf(t.Context(), nil))
	p.rises(t, true, false, true)
}

func TestRedisWithAnotherPassword(t *testing.T) {
	node := testbed.NewRedisWith(t, testbed.RedisConfig{Password: "s3cret"})
	p := newPatient(t, store.RedisConfig{Addresses: []string{node.Addr()}})
	p.falls(t, "NOAUTH", "refused")
	file := secretFile(t, "wrong-s3cret")
	p = newPatient(t, store.RedisConfig{Addresses: []string{node.Addr()}, PasswordFile: file})
	p.falls(t, "WRONGPASS", "refused")
	require.NoError(t, os.WriteFile(file, []byte("s3cret\n"), 0o600))
	p.rises(t, false, true)
	require.NoError(t, os.Remove(file))
	node.Kill()
	require.NoError(t, node.Start(t.Context()))
	p.falls(t, "no such file", "refused")
}

func TestRedisWithTooFewRights(t *testing.T) {
	rights := strings.Replace(acl("fairlead", "s3cret", "test"), "+zadd", "", 1)
	node := testbed.NewRedisWith(t, testbed.RedisConfig{Users: []string{rights}})
	p := newPatient(t, store.RedisConfig{Addresses: []string{node.Addr()}, Username: "fairlead", PasswordFile: secretFile(t, "s3cret")})
	p.falls(t, "NOPERM", "refused")
}

// A server that repeats what it was told gives nothing away.
func TestRedisThatRepeatsThePassword(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var group sync.WaitGroup
	group.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			group.Go(func() {
				defer conn.Close()
				heard := make([]byte, 4096)
				for {
					n, err := conn.Read(heard)
					if err != nil {
						return
					}
					fmt.Fprintf(conn, "-ERR unknown command, with args %q\r\n", heard[:n])
				}
			})
		}
	})
	p := newPatient(t, store.RedisConfig{Addresses: []string{l.Addr().String()}, Username: "fairlead", PasswordFile: secretFile(t, "s3cret")})
	require.False(t, p.Health().Up)
	require.Equal(t, "it answers with an error", p.Health().Error)
	p.fails(t)
	require.NotContains(t, p.lines(), "s3cret")
	require.NoError(t, p.Close())
	require.NoError(t, l.Close())
	group.Wait()
}

func TestRedisThatFailsOver(t *testing.T) {
	master, replica := testbed.NewRedis(t), testbed.NewRedis(t)
	require.NoError(t, replica.ReplicaOf(t.Context(), master))
	sentinel := testbed.NewSentinel(t, testbed.SentinelConfig{Name: "it", Master: master}, 1)
	p := newPatient(t, store.RedisConfig{Mode: store.Sentinel, Addresses: []string{sentinel.Addr()}, Master: "it"})
	p.rises(t, true)
	seen := watch(t, p)
	watching(t, p, seen)
	hold(t, t.Context(), p, tunnelOf("a", 1))
	first, err := p.Incarnation(t.Context())
	require.NoError(t, err)
	_, err = master.Do("WAIT", "1", "400")
	require.NoError(t, err)
	master.Kill()
	p.falls(t, "connection refused", "unreachable")
	p.rises(t, true, false, true)
	second, err := p.Incarnation(t.Context())
	require.NoError(t, err)
	require.Equal(t, first, second, "nothing is lost")
	_, ok := find(t, t.Context(), p, "00ff")
	require.True(t, ok)
	require.Eventually(t, func() bool { return contains(seen(), store.Missed) }, patience, often)
	watching(t, p, seen)
}

// A master that the Sentinels have replaced is given up although it answers.
func TestRedisThatWasReplaced(t *testing.T) {
	master, replica := testbed.NewRedis(t), testbed.NewRedis(t)
	require.NoError(t, replica.ReplicaOf(t.Context(), master))
	sentinel := testbed.NewSentinel(t, testbed.SentinelConfig{Name: "it", Master: master}, 1)
	p := newPatient(t, store.RedisConfig{Mode: store.Sentinel, Addresses: []string{sentinel.Addr()}, Master: "it"})
	p.rises(t, true)
	require.Eventually(t, func() bool { // as soon as it knows enough of the replica
		_, err := sentinel.Do("SENTINEL", "FAILOVER", "it")
		return err == nil
	}, patience, often)
	require.Eventually(t, func() bool { return len(p.told()) >= 3 && p.Health().Up }, patience, often)
	answer, err := sentinel.Do("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "it")
	require.NoError(t, err)
	host, port, _ := strings.Cut(answer, "\n")
	require.Equal(t, replica.Addr(), net.JoinHostPort(host, port))
	require.NoError(t, p.take(t))
}

func TestRedisClusterThatLosesAMaster(t *testing.T) {
	nodes := testbed.NewRedisCluster(t, 3)
	p := newPatient(t, store.RedisConfig{Mode: store.Cluster, Addresses: []string{nodes[0].Addr(), nodes[1].Addr()}})
	p.rises(t, true)
	first, err := p.Incarnation(t.Context())
	require.NoError(t, err)
	nodes[1].Kill()
	require.Eventually(t, func() bool { _, _ = p.Incarnation(t.Context()); return !p.Health().Up }, patience, often)
	p.fails(t)
	require.NoError(t, nodes[1].Start(t.Context()))
	require.Eventually(t, func() bool {
		second, err := p.Incarnation(t.Context())
		return err == nil && second != first
	}, patience, often, "a part is lost")
}

func TestWatchEndsWithItsContextAndItsStore(t *testing.T) {
	node := testbed.NewRedis(t)
	for _, absent := range []bool{false, true} {
		if absent {
			node.Kill()
		}
		p := newPatient(t, store.RedisConfig{Addresses: []string{node.Addr()}})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 2)
		go func() { done <- p.Watch(ctx, func(store.Event) {}) }()
		go func() { done <- p.Watch(t.Context(), func(store.Event) {}) }()
		cancel()
		require.NoError(t, <-done)
		require.NoError(t, p.Close())
		require.NoError(t, <-done)
	}
}

func TestWhatFailuresMean(t *testing.T) {
	for _, test := range []struct {
		err    error
		kind   string
		weight int
	}{
		{context.DeadlineExceeded, "timeout", 1},
		{fmt.Errorf("read: %w", os.ErrDeadlineExceeded), "timeout", 1},
		{net.ErrClosed, "unreachable", 1},
		{errors.New("something\nelse"), "other", 1},
	} {
		kind, text, weight := store.Classify(test.err)
		assert.Equal(t, test.kind, kind, "%v", test.err)
		assert.Equal(t, test.weight, weight, "%v", test.err)
		assert.NotContains(t, text, "\n")
	}
}

func TestRedisConfig(t *testing.T) {
	one := []string{"127.0.0.1:1"}
	for what, cfg := range map[string]store.RedisConfig{
		"mode":      {Mode: "other", Addresses: one},
		"address":   {},
		"addresses": {Addresses: []string{"a:1", "b:1"}},
		"master":    {Mode: store.Sentinel, Addresses: one},
		"database":  {Mode: store.Cluster, Addresses: one, Database: 1},
		"timeout":   {Addresses: one, Timeout: -1},
		"prefix":    {Addresses: one, Prefix: "a{b}"},
		"long":      {Addresses: one, Prefix: strings.Repeat("a", 65)},
		"key":       {Addresses: one, TLS: &store.RedisTLS{CertFile: "a"}},
	} {
		_, err := store.NewRedis(cfg)
		require.ErrorIs(t, err, errs.ConfigInvalid, what)
	}
	for what, cfg := range map[string]store.RedisConfig{
		"password": {Addresses: one, PasswordFile: "/nowhere"},
		"sentinel": {Addresses: one, SentinelPasswordFile: "/nowhere"},
		"long":     {Addresses: one, PasswordFile: secretFile(t, strings.Repeat("x", 5000))},
		"ca":       {Addresses: one, TLS: &store.RedisTLS{CAFile: "/nowhere"}},
		"no ca":    {Addresses: one, TLS: &store.RedisTLS{CAFile: secretFile(t, "x")}},
		"cert":     {Addresses: one, TLS: &store.RedisTLS{CertFile: "/nowhere", KeyFile: "/nowhere"}},
	} {
		_, err := store.NewRedis(cfg)
		require.ErrorIs(t, err, errs.KeyUnreadable, what)
	}
}
