package backend

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

func pool1(s *Set) PoolStats {
	stats := s.Stats()
	if len(stats) == 0 {
		return PoolStats{}
	}
	return stats[0]
}

// Verifies: R7.6, R7.7
func TestTenChannelsShareAConnectionThenAnother(t *testing.T) {
	d := startSSHD(t)
	set := metrics.NewSet()
	s, _ := newSet(t, d.backend(t), echo(t), func(c *Config) { c.Metrics = set })
	var conns []Conn
	for range 10 {
		conns = append(conns, dial(t, s, "a"))
	}
	d.requireLogins(t, 1, "ten channels fit one connection")
	conns = append(conns, dial(t, s, "a"))
	d.requireLogins(t, 2, "the eleventh opens another")
	p := pool1(s)
	require.Len(t, p.Connections, 2)
	assert.Equal(t, []int{10, 1}, []int{p.Connections[0].Channels, p.Connections[1].Channels})
	assert.EqualValues(t, 9, p.Reused)
	for _, c := range conns {
		pingPong(t, c)
	}
	var text strings.Builder
	set.WritePrometheus(&text)
	assert.Contains(t, text.String(), `fairlead_gateway_backend_channels{backend="bastion"} 11`)
	assert.Contains(t, text.String(), `fairlead_gateway_backend_ssh_connections{backend="bastion"} 2`)
	assert.Contains(t, text.String(), `fairlead_gateway_backend_reused_total{backend="bastion"} 9`)
	assert.Contains(t, text.String(), `fairlead_gateway_backend_dials_total{backend="bastion",outcome="ok"} 2`)
	for _, c := range conns {
		require.NoError(t, c.Close())
	}
	require.Eventually(t, func() bool { return pool1(s).Channels == 0 }, patience, time.Millisecond)
}

// Verifies: R7.6
func TestFirstUsersShareOneDial(t *testing.T) {
	d := startSSHD(t)
	s, _ := newSet(t, d.backend(t), echo(t))
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			c, err := s.Dial(context.Background(), Caller{Tenant: "a"}, "db")
			if assert.NoError(t, err) {
				pingPong(t, c)
				assert.NoError(t, c.Close())
			}
		})
	}
	wg.Wait()
	d.requireLogins(t, 1)
}

func TestCanceledFirstUserLeavesTheDialToTheOthers(t *testing.T) {
	d := startSSHD(t)
	entered, release := make(chan struct{}), make(chan struct{})
	var dials atomic.Int32
	s, _ := newSet(t, d.backend(t), echo(t), func(c *Config) {
		c.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if dials.Add(1) == 1 {
				close(entered)
			}
			<-release
			return new(net.Dialer).DialContext(ctx, network, addr)
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { _, err := s.Dial(ctx, Caller{Tenant: "a"}, "db"); first <- err }()
	<-entered
	go func() { _, err := s.Dial(context.Background(), Caller{Tenant: "a"}, "db"); second <- err }()
	require.Eventually(t, func() bool { return pool1(s).Waiting == 2 }, patience, time.Millisecond)
	cancel()
	require.ErrorIs(t, <-first, errs.Canceled)
	close(release)
	require.NoError(t, <-second)
	require.EqualValues(t, 1, dials.Load())
}

// Verifies: R4.6
func TestTenantsNeverShareAConnection(t *testing.T) {
	d := startSSHD(t)
	s, _ := newSet(t, d.backend(t), echo(t))
	var wg sync.WaitGroup
	var mu sync.Mutex
	byTenant := map[string]map[string]bool{"payments/orders": {}, "payments": {}, "payments/orders/x": {}, "": {}}
	for tenant := range byTenant {
		for range 12 {
			wg.Go(func() {
				c, err := s.Dial(context.Background(), Caller{Tenant: tenant}, "db")
				if !assert.NoError(t, err) {
					return
				}
				pingPong(t, c)
				mu.Lock()
				byTenant[tenant][c.LocalAddr().String()] = true
				mu.Unlock()
			})
		}
	}
	wg.Wait()
	owner := make(map[string]string)
	for tenant, addrs := range byTenant {
		assert.Len(t, addrs, 2, "12 channels need two connections")
		for a := range addrs {
			assert.NotContains(t, owner, a, "connection %s carries %q and %q", a, owner[a], tenant)
			owner[a] = tenant
		}
	}
	d.requireLogins(t, 8)
	for _, a := range d.logins() { // sshd saw the same connections
		assert.Contains(t, owner, a)
	}
}

// Verifies: R7.7
func TestFullPoolWaitsInOrderAndThenSaysSo(t *testing.T) {
	d := startSSHD(t)
	s, _ := newSet(t, d.backend(t), echo(t), func(c *Config) { c.Pool = PoolConfig{ChannelsPerConnection: 2, Connections: 2} })
	var conns []Conn
	for range 4 {
		conns = append(conns, dial(t, s, "a"))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := s.Dial(ctx, Caller{Tenant: "a"}, "db")
	require.ErrorIs(t, err, errs.PoolExhausted)
	require.ErrorContains(t, err, "ssh_pool.connections is 2 with ssh_pool.channels_per_connection 2")
	require.ErrorContains(t, err, "bastion")
	other := dial(t, s, "b") // not a's limit
	require.NoError(t, other.Close())

	order := make(chan int, 2)
	for i := range 2 {
		go func() {
			c, err := s.Dial(context.Background(), Caller{Tenant: "a"}, "db")
			assert.NoError(t, err)
			order <- i
			if i == 0 {
				assert.NoError(t, c.Close())
			}
		}()
		require.Eventually(t, func() bool { return pool1(s).Waiting == i+1 }, patience, time.Millisecond)
	}
	require.NoError(t, conns[0].Close())
	require.Equal(t, 0, <-order)
	require.Equal(t, 1, <-order)
	require.Len(t, pool1(s).Connections, 2)
}

func TestCanceledWaiterIsForgotten(t *testing.T) {
	d := startSSHD(t)
	s, _ := newSet(t, d.backend(t), echo(t), func(c *Config) { c.Pool = PoolConfig{ChannelsPerConnection: 1, Connections: 1} })
	c := dial(t, s, "a")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { _, err := s.Dial(ctx, Caller{Tenant: "a"}, "db"); done <- err }()
	require.Eventually(t, func() bool { return pool1(s).Waiting == 1 }, patience, time.Millisecond)
	cancel()
	require.ErrorIs(t, <-done, errs.Canceled)
	require.Zero(t, pool1(s).Waiting)
	require.NoError(t, c.Close())
	pingPong(t, dial(t, s, "a"))
}

// stalling is a connection that goes silent in both directions, as behind a firewall that forgot it.
type stalling struct {
	net.Conn
	stalled *atomic.Bool
	closed  chan struct{}
	once    sync.Once
}

func (c *stalling) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err == nil && c.stalled.Load() {
		<-c.closed
		return 0, net.ErrClosed
	}
	return n, err
}

func (c *stalling) Write(p []byte) (int, error) {
	if c.stalled.Load() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func (c *stalling) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// Verifies: R7.4
func TestKeepaliveReplacesADeadConnection(t *testing.T) {
	d := startSSHD(t)
	stalled := new(atomic.Bool)
	first := true
	set := metrics.NewSet()
	s, log := newSet(t, d.backend(t), echo(t), func(c *Config) {
		c.Metrics = set
		c.Pool = PoolConfig{Keepalive: 50 * time.Millisecond, KeepaliveTimeout: 100 * time.Millisecond}
		c.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, addr)
			if err == nil && first { // pools dial one after the other here
				first = false
				conn = &stalling{Conn: conn, stalled: stalled, closed: make(chan struct{})}
			}
			return conn, err
		}
	})
	c := dial(t, s, "a")
	pingPong(t, c)
	stalled.Store(true)
	_, err := c.Read(make([]byte, 1))
	require.ErrorIs(t, err, errs.BackendBroken, "a dead connection is not an end of the stream")
	_, err = c.Write([]byte("x"))
	require.ErrorIs(t, err, errs.BackendBroken)
	require.Eventually(t, func() bool { return len(s.Stats()) == 0 }, patience, time.Millisecond)
	pingPong(t, dial(t, s, "a"))
	d.requireLogins(t, 2)
	require.Contains(t, log.String(), "keepalive_unanswered")
	require.EqualValues(t, 1, set.GetOrCreateCounter(`fairlead_gateway_backend_ssh_connections_dead_total{backend="bastion"}`).Get())
}

// Verifies: R7.4
func TestKeepalivesAreAnsweredBySSHD(t *testing.T) {
	d := startSSHD(t)
	s, _ := newSet(t, d.backend(t), echo(t), func(c *Config) {
		c.Pool = PoolConfig{Keepalive: 10 * time.Millisecond, KeepaliveTimeout: 5 * time.Second}
	})
	c := dial(t, s, "a")
	require.Eventually(t, func() bool { return strings.Count(d.log.String(), "keepalive@openssh.com") >= 5 }, patience, 5*time.Millisecond)
	pingPong(t, c)
	d.requireLogins(t, 1)
}

func TestKilledServerIsReplacedAtOnce(t *testing.T) {
	d := startSSHD(t)
	var raw []net.Conn
	s, _ := newSet(t, d.backend(t), echo(t), func(c *Config) {
		c.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, addr)
			raw = append(raw, conn)
			return conn, err
		}
	})
	c := dial(t, s, "a")
	pingPong(t, c)
	require.NoError(t, raw[0].Close())
	pingPong(t, dial(t, s, "a"))
	_, err := io.ReadAll(c)
	require.ErrorIs(t, err, errs.BackendBroken)
}

func TestIdleConnectionIsClosed(t *testing.T) {
	d := startSSHD(t)
	s, log := newSet(t, d.backend(t), echo(t), func(c *Config) { c.Pool = PoolConfig{Idle: 50 * time.Millisecond} })
	c := dial(t, s, "a")
	pingPong(t, c)
	require.NoError(t, c.Close())
	require.Eventually(t, func() bool { return len(s.Stats()) == 0 }, patience, time.Millisecond)
	require.Eventually(t, func() bool { return strings.Contains(log.String(), "reason=idle") }, patience, time.Millisecond)
	pingPong(t, dial(t, s, "a"))
	d.requireLogins(t, 2)
}

func TestOldConnectionGivesNoNewChannelsAndEndsWithItsLast(t *testing.T) {
	d := startSSHD(t)
	s, log := newSet(t, d.backend(t), echo(t), func(c *Config) { c.Pool = PoolConfig{MaxAge: 300 * time.Millisecond} })
	old := dial(t, s, "a")
	require.Eventually(t, func() bool {
		p := pool1(s)
		return len(p.Connections) == 1 && p.Connections[0].Retired
	}, patience, time.Millisecond)
	fresh := dial(t, s, "a")
	require.NotEqual(t, old.LocalAddr().String(), fresh.LocalAddr().String())
	pingPong(t, old)
	pingPong(t, fresh)
	require.NoError(t, old.Close())
	require.Eventually(t, func() bool { return strings.Contains(log.String(), "reason=max_age") }, patience, time.Millisecond)
	pingPong(t, fresh)
}

func TestCloseEndsConnectionsAndRefusesDials(t *testing.T) {
	d := startSSHD(t)
	s, log := newSet(t, d.backend(t), echo(t))
	c := dial(t, s, "a")
	pingPong(t, c)
	require.NoError(t, s.Close(t.Context()))
	_, err := c.Read(make([]byte, 1))
	require.ErrorIs(t, err, errs.BackendBroken)
	for _, route := range []string{"db", "direct"} {
		_, err = s.Dial(t.Context(), Caller{Tenant: "a"}, route)
		require.ErrorIs(t, err, errs.ShuttingDown)
	}
	require.Contains(t, log.String(), "reason=shutdown")
	require.Empty(t, s.Stats())
	// The server saw the channel closed and an orderly end, not a reset.
	require.Eventually(t, func() bool {
		return strings.Contains(d.log.String(), "channel 0: free") && strings.Contains(d.log.String(), "Received disconnect from")
	}, patience, 5*time.Millisecond)
}

func TestCloseCutsWhatDoesNotEndInTime(t *testing.T) {
	release := make(chan struct{})
	d := startSSHD(t)
	s, _ := newSet(t, d.backend(t), echo(t), func(c *Config) {
		c.Dial = func(context.Context, string, string) (net.Conn, error) { <-release; return nil, net.ErrClosed }
	})
	done := make(chan error, 1)
	go func() { _, err := s.Dial(context.Background(), Caller{Tenant: "a"}, "db"); done <- err }()
	require.Eventually(t, func() bool { return pool1(s).Dialing == 1 }, patience, time.Millisecond)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	closed := make(chan error, 1)
	go func() { closed <- s.Close(ctx) }()
	require.ErrorIs(t, <-done, errs.ShuttingDown)
	close(release)
	require.ErrorIs(t, <-closed, errs.ShuttingDown)
}
