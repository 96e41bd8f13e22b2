package backend

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/telemetry"
)

// routesOf are those of newSet.
func routesOf(b Backend, target string) []Route {
	return []Route{{Name: "db", Backend: b.Name, Mode: Forward, Target: target}, {Name: "direct", Backend: b.Name, Mode: Passthrough}}
}

func metricsOf(t *testing.T, tel *telemetry.Telemetry) string {
	t.Helper()
	var text strings.Builder
	_, err := tel.WriteTo(&text)
	require.NoError(t, err)
	return text.String()
}

func newTelemetry(t *testing.T) *telemetry.Telemetry {
	t.Helper()
	tel, err := telemetry.New(telemetry.Config{Prefix: "fairlead_gateway"})
	require.NoError(t, err)
	return tel
}

func TestUnchangedBackendsKeepTheirConnections(t *testing.T) {
	d := startSSHD(t)
	b, target := d.backend(t), echo(t)
	s, _ := newSet(t, b, target)
	c := dial(t, s, "a")
	changes, err := s.Apply([]Backend{b}, routesOf(b, target), PoolConfig{})
	require.NoError(t, err)
	require.False(t, changes.Any(), "%+v", changes)
	pingPong(t, c)
	pingPong(t, dial(t, s, "a"))
	d.requireLogins(t, 1)

	b.DialTimeout, b.Dialing, b.Warm, b.Health = 7*time.Second, Dialing{Handshakes: 3}, 1, Health{Interval: time.Hour}
	changes, err = s.Apply([]Backend{b}, routesOf(b, target), PoolConfig{Connections: 5})
	require.NoError(t, err)
	require.Equal(t, Changes{BackendsAdjusted: []string{"bastion"}, Pool: true}, changes)
	pingPong(t, dial(t, s, "a"))
	d.requireLogins(t, 1, "these settings leave connections alone")
	require.Eventually(t, func() bool { h, ok := healthOf(s); return ok && h.Up }, patience, time.Millisecond)
}

func TestReplacedBackendFinishesItsStreamsOnOldConnections(t *testing.T) {
	first, second := startSSHD(t), startSSHD(t)
	b, target := first.backend(t), echo(t)
	tel := newTelemetry(t)
	s, log := newSet(t, b, target, func(c *Config) { c.BackendMetrics = tel })
	old := dial(t, s, "a")
	idle := dial(t, s, "b")
	require.NoError(t, idle.Close())
	require.Eventually(t, func() bool { return countChannels(s) == 1 }, patience, time.Millisecond)

	next := second.backend(t)
	changes, err := s.Apply([]Backend{next}, routesOf(next, target), PoolConfig{})
	require.NoError(t, err)
	require.Equal(t, Changes{BackendsReplaced: []string{"bastion"}, RoutesMoved: []string{"db", "direct"}}, changes)
	require.Eventually(t, func() bool { return strings.Contains(log.String(), "reason=reconfigured") }, patience, time.Millisecond, "the idle one ends at once")

	fresh := dial(t, s, "a")
	require.Equal(t, second.addr, fresh.RemoteAddr().String())
	require.Equal(t, first.addr, old.RemoteAddr().String())
	pingPong(t, old)
	pingPong(t, fresh)
	require.Contains(t, metricsOf(t, tel), `fairlead_gateway_backend_ssh_connections_retired{backend="bastion"} 1`)
	require.NoError(t, old.Close())
	require.Eventually(t, func() bool {
		p := pool1(s)
		return len(p.Connections) == 1 && !p.Connections[0].Retired
	}, patience, time.Millisecond)
	require.Eventually(t, func() bool {
		text := metricsOf(t, tel)
		return strings.Contains(text, `fairlead_gateway_backend_ssh_connections_ended_total{backend="bastion",reason="reconfigured"} 2`) &&
			strings.Contains(text, `fairlead_gateway_backend_ssh_connections_retired{backend="bastion"} 0`)
	}, patience, time.Millisecond, "metrics go on")
	pingPong(t, fresh)
}

func countChannels(s *Set) (n int) {
	for _, p := range s.Stats() {
		n += p.Channels
	}
	return n
}

func TestEachSettingOfALoginReplacesConnections(t *testing.T) {
	d := startSSHD(t)
	b, target := d.backend(t), echo(t)
	s, _ := newSet(t, b, target)
	copied := t.TempDir()
	for i, change := range []func(*Backend){
		func(b *Backend) { b.User = "nobody-else" },
		func(b *Backend) { b.KeyFile = copied + "/key"; writeKey(t, b.KeyFile, newKey(t)) },
		func(b *Backend) { b.HostKeyMode = FirstUse },
		func(b *Backend) { b.MoreKeyFiles = []string{b.KeyFile} },
	} {
		dial(t, s, "a")
		logins := len(d.logins())
		next := b
		change(&next)
		changes, err := s.Apply([]Backend{next}, routesOf(next, target), PoolConfig{})
		require.NoError(t, err)
		require.Equal(t, Changes{BackendsReplaced: []string{"bastion"}}, changes, i)
		changes, err = s.Apply([]Backend{b}, routesOf(b, target), PoolConfig{})
		require.NoError(t, err)
		require.Equal(t, Changes{BackendsReplaced: []string{"bastion"}}, changes, i)
		dial(t, s, "a")
		d.requireLogins(t, logins+1)
	}
}

func TestRemovedBackendDisappearsAndItsStreamsEndThemselves(t *testing.T) {
	d := startSSHD(t)
	b, target := d.backend(t), echo(t)
	b.Health = Health{Interval: 10 * time.Millisecond}
	other := Backend{Name: "other", Address: target}
	tel := newTelemetry(t)
	s, log := newSet(t, b, target, func(c *Config) { c.BackendMetrics = tel })
	c := dial(t, s, "a")
	require.Contains(t, metricsOf(t, tel), `backend="bastion"`)

	changes, err := s.Apply([]Backend{other}, []Route{{Name: "direct", Backend: "other", Mode: Passthrough}}, PoolConfig{})
	require.NoError(t, err)
	require.Equal(t, Changes{BackendsAdded: []string{"other"}, BackendsRemoved: []string{"bastion"}, RoutesRemoved: []string{"db"}, RoutesMoved: []string{"direct"}}, changes)
	require.NotContains(t, metricsOf(t, tel), `backend="bastion"`)
	require.Contains(t, metricsOf(t, tel), `backend="other"`)
	require.ErrorIs(t, dialError(t, s, "db"), errs.RouteUnknown)
	direct, err := s.Dial(t.Context(), Caller{Tenant: "a"}, "direct")
	require.NoError(t, err)
	require.Equal(t, target, direct.RemoteAddr().String())
	require.NoError(t, direct.Close())
	_, ok := s.Route("db")
	require.False(t, ok)
	pingPong(t, c)
	require.NoError(t, c.Close())
	require.Eventually(t, func() bool { return strings.Contains(log.String(), "reason=removed") && len(s.Stats()) == 0 }, patience, time.Millisecond)
	require.NotContains(t, metricsOf(t, tel), `backend="bastion"`)

	_, err = s.Apply([]Backend{b}, routesOf(b, target), PoolConfig{})
	require.NoError(t, err)
	pingPong(t, dial(t, s, "a"))
	require.Contains(t, metricsOf(t, tel), `fairlead_gateway_backend_logins_total{backend="bastion"} 1`)
}

func TestApplyIsWholeOrNotAtAll(t *testing.T) {
	d := startSSHD(t)
	b, target := d.backend(t), echo(t)
	s, _ := newSet(t, b, target)
	c := dial(t, s, "a")
	good := Backend{Name: "other", Address: "other:22"}
	bad := b
	bad.KeyFile = t.TempDir() + "/none"
	for _, list := range [][]Backend{{bad, good}, {good}, {b, {Name: "x", Address: "nowhere"}}, {b, b}} {
		_, err := s.Apply(list, routesOf(b, "elsewhere:1"), PoolConfig{Connections: 99})
		require.Error(t, err)
		require.Contains(t, []errs.Code{errs.ConfigInvalid, errs.KeyUnreadable}, errs.CodeOf(err))
	}
	identity := b
	identity.KeyFile, identity.Identity = "", &Identity{CAKeyFile: b.KeyFile, KeyID: "{nothing}"}
	_, err := s.Apply([]Backend{identity, good}, routesOf(b, target), PoolConfig{})
	require.ErrorIs(t, err, errs.ConfigInvalid)
	require.ErrorContains(t, err, "there is no placeholder {nothing}")

	require.Len(t, s.Backends(), 1)
	pingPong(t, c)
	pingPong(t, dial(t, s, "a"))
	d.requireLogins(t, 1)
	require.NoError(t, s.Close(t.Context()))
	_, err = s.Apply([]Backend{b}, routesOf(b, target), PoolConfig{})
	require.ErrorIs(t, err, errs.ShuttingDown)
}

func TestWhoWaitsDuringAReloadUsesTheNewSettings(t *testing.T) {
	first, second := startSSHD(t), startSSHD(t)
	b, target := first.backend(t), echo(t)
	entered, release := make(chan struct{}), make(chan struct{})
	s, _ := newSet(t, b, target, func(c *Config) {
		c.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr == first.addr {
				close(entered)
				<-release
			}
			return new(net.Dialer).DialContext(ctx, network, addr)
		}
	})
	result := make(chan Conn, 1)
	go func() {
		c, err := s.Dial(context.Background(), Caller{Tenant: "a"}, "db")
		assert.NoError(t, err)
		result <- c
	}()
	<-entered
	next := second.backend(t)
	_, err := s.Apply([]Backend{next}, routesOf(next, target), PoolConfig{})
	require.NoError(t, err)
	c := <-result
	require.Equal(t, second.addr, c.RemoteAddr().String())
	pingPong(t, c)
	close(release) // the late login is let go of
	require.Eventually(t, func() bool {
		return len(first.logins()) == 1 && len(pool1(s).Connections) == 1 && pool1(s).Dialing == 0
	}, patience, time.Millisecond)
	require.Equal(t, second.addr, c.RemoteAddr().String())
}

func TestCertificatesFollowAReload(t *testing.T) {
	a := startTrusting(t, "payments/orders")
	b, target := a.backend(t), echo(t)
	s, _ := newSet(t, b, target)
	old, err := as(t, s, orders)
	require.NoError(t, err)
	next := a.backend(t, func(id *Identity) { id.KeyID = "new/{tenant}" })
	changes, err := s.Apply([]Backend{next}, routesOf(next, target), PoolConfig{})
	require.NoError(t, err)
	require.Equal(t, Changes{BackendsReplaced: []string{"bastion"}}, changes)
	fresh, err := as(t, s, orders)
	require.NoError(t, err)
	require.Contains(t, a.log.String(), "ID new/payments/orders (serial")
	pingPong(t, old)
	pingPong(t, fresh)
}

// Streams carry every byte while backends, routes and bounds change all the time.
func TestReloadsUnderLoad(t *testing.T) {
	one, two := startSSHD(t), startSSHD(t)
	target := echo(t)
	b := one.backend(t)
	b.Warm = 1
	s, _ := newSet(t, b, target, func(c *Config) { c.BackendMetrics = newTelemetry(t) })
	stop := new(atomic.Bool)
	var wg sync.WaitGroup
	var streams atomic.Int32
	for i := range 4 {
		wg.Go(func() {
			for !stop.Load() {
				c, err := s.Dial(context.Background(), Caller{Tenant: fmt.Sprint(i % 2)}, "db")
				if !assert.NoError(t, err) {
					return
				}
				sent := make([]byte, 64<<10)
				_, _ = rand.Read(sent)
				go func() { _, _ = c.Write(sent); _ = c.CloseWrite() }()
				got, err := io.ReadAll(c)
				assert.NoError(t, err)
				assert.True(t, bytes.Equal(sent, got), "%d of %d bytes", len(got), len(sent))
				assert.NoError(t, c.Close())
				streams.Add(1)
			}
		})
	}
	for i := range 12 {
		next := []Backend{b, two.backend(t)}[i%2]
		next.Warm = i % 3
		next.Health = Health{Interval: time.Duration(1+i%2) * time.Hour}
		_, err := s.Apply([]Backend{next}, routesOf(next, target), PoolConfig{Connections: 2 + i%3, MaxAge: time.Duration(1+i%2) * time.Hour})
		require.NoError(t, err)
		before := streams.Load()
		require.Eventually(t, func() bool { return streams.Load() >= before+4 }, 20*time.Second, time.Millisecond)
	}
	stop.Store(true)
	wg.Wait()
	require.Positive(t, len(one.logins()))
	require.Positive(t, len(two.logins()))
}
