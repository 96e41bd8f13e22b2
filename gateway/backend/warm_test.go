package backend

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

func warmGauge(set *metrics.Set) float64 {
	return set.GetOrCreateGauge(`fairlead_gateway_backend_ssh_connections_idle{backend="bastion"}`, nil).Get()
}

func TestConnectionsAreKeptReadyForTenantsThatUseThem(t *testing.T) {
	d := startSSHD(t)
	b := d.backend(t)
	b.Warm = 2
	set := metrics.NewSet()
	var mu sync.Mutex
	var raw []net.Conn
	s, log := newSet(t, b, echo(t), func(c *Config) {
		c.Metrics = set
		c.Pool = PoolConfig{ChannelsPerConnection: 1, Connections: 3, Idle: 10 * time.Millisecond, WarmFor: time.Hour}
		c.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, addr)
			mu.Lock()
			defer mu.Unlock()
			raw = append(raw, conn)
			return conn, err
		}
	})
	require.Empty(t, s.Stats(), "nobody has used it")
	require.Empty(t, d.logins())

	c := dial(t, s, "a")
	require.Eventually(t, func() bool { return warmGauge(set) == 2 }, patience, time.Millisecond, "two besides the one that is full")
	d.requireLogins(t, 3)
	pingPong(t, c)
	second := dial(t, s, "a")
	require.Len(t, pool1(s).Connections, 3, "connections bound warmth too")
	d.requireLogins(t, 3, "the second stream found one ready")
	require.NoError(t, c.Close())
	closed := time.Now()
	require.Eventually(t, func() bool { return time.Since(closed) > 100*time.Millisecond }, patience, time.Millisecond,
		"those who are idle have looked whether they are needed, and are")
	require.NoError(t, second.Close())

	require.Eventually(t, func() bool { return len(pool1(s).Connections) == 2 }, patience, time.Millisecond, "the third becomes idle")
	mu.Lock()
	for _, conn := range raw {
		_ = conn.Close()
	}
	mu.Unlock()
	require.Eventually(t, func() bool { return len(d.logins()) == 5 && warmGauge(set) == 2 }, patience, time.Millisecond, "dead ones are replaced")
	require.EqualValues(t, 4, set.GetOrCreateCounter(`fairlead_gateway_backend_warm_dials_total{backend="bastion"}`).Get())
	require.Contains(t, log.String(), "reason=idle")
	for _, p := range s.Stats() {
		require.Equal(t, "a", p.Tenant)
	}
}

func TestWarmthEndsWithUse(t *testing.T) {
	d := startSSHD(t)
	b := d.backend(t)
	b.Warm = 1
	s, _ := newSet(t, b, echo(t), func(c *Config) {
		c.Pool = PoolConfig{ChannelsPerConnection: 1, Idle: time.Millisecond, WarmFor: 300 * time.Millisecond}
	})
	c := dial(t, s, "a")
	require.Eventually(t, func() bool { return len(pool1(s).Connections) == 2 }, patience, time.Millisecond)
	require.NoError(t, c.Close())
	require.Eventually(t, func() bool { return len(s.Stats()) == 0 }, patience, time.Millisecond)
	d.requireLogins(t, 2)
}

func TestRetiredConnectionIsReplacedByAWarmOne(t *testing.T) {
	d := startSSHD(t)
	b := d.backend(t)
	b.Warm = 1
	s, _ := newSet(t, b, echo(t), func(c *Config) { c.Pool = PoolConfig{MaxAge: 400 * time.Millisecond, WarmFor: time.Hour} })
	c := dial(t, s, "a")
	require.Eventually(t, func() bool {
		p := pool1(s)
		return len(p.Connections) == 2 && p.Connections[0].Retired && p.Connections[0].Reason == "max_age"
	}, patience, time.Millisecond)
	pingPong(t, c)
}

func TestWarmthIsPatientWithABackendThatFails(t *testing.T) {
	d := startSSHD(t)
	b := d.backend(t)
	b.Warm, b.KeyFile = 1, filepath.Join(t.TempDir(), "key")
	good, err := os.ReadFile(d.clientKey)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(b.KeyFile, good, 0o600))
	set := metrics.NewSet()
	s, _ := newSet(t, b, echo(t), func(c *Config) { c.Metrics, c.Pool = set, PoolConfig{ChannelsPerConnection: 1, WarmFor: time.Hour} })
	writeKey(t, b.KeyFile, newKey(t))
	require.ErrorIs(t, errorOf(t, s, "a"), errs.BackendAuth)
	require.Empty(t, s.Stats(), "who never had a stream is not kept warm")

	require.NoError(t, os.WriteFile(b.KeyFile, good, 0o600))
	first := dial(t, s, "a")
	require.Eventually(t, func() bool { return warmGauge(set) == 1 }, patience, time.Millisecond)
	writeKey(t, b.KeyFile, newKey(t))
	second := dial(t, s, "a") // takes the warm one
	failures := set.GetOrCreateCounter(`fairlead_gateway_backend_login_failures_total{backend="bastion",phase="login"}`)
	require.Eventually(t, func() bool { return failures.Get() == 2 }, patience, time.Millisecond)
	for range 20 { // streams come and go, and with each the missing connection is noticed
		require.NoError(t, second.Close())
		require.Eventually(t, func() bool { return pool1(s).Channels == 1 }, patience, time.Millisecond)
		second = dial(t, s, "a")
	}
	assert.LessOrEqual(t, failures.Get(), uint64(5), "it waits between attempts")
	require.Positive(t, strings.Count(d.log.String(), "Accepted publickey"))
	pingPong(t, first)
}
