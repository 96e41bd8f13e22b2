package backend

import (
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestAgesDifferSoThatConnectionsDoNotRetireTogether(t *testing.T) {
	seen := map[time.Duration]bool{}
	for range 100 {
		l := newLink(&pool{}, nil, &session{wire: &wire{Conn: addressOnly{}}})
		age := l.lifetime(time.Hour)
		require.Equal(t, age, l.lifetime(time.Hour), "drawn once")
		require.LessOrEqual(t, age, time.Hour)
		require.GreaterOrEqual(t, age, 48*time.Minute)
		seen[age.Round(time.Minute)] = true
		require.EqualValues(t, never, l.lifetime(-1))
	}
	require.Greater(t, len(seen), 5)
}

func TestStreamsOutliveTheAgeOfTheirConnection(t *testing.T) {
	d := startSSHD(t)
	set := metrics.NewSet()
	s, _ := newSet(t, d.backend(t), echo(t), func(c *Config) {
		c.Metrics, c.Pool = set, PoolConfig{MaxAge: 100 * time.Millisecond}
	})
	old := dial(t, s, "a")
	var generations []Conn
	for range 4 {
		pingPong(t, old)
		fresh := dial(t, s, "a")
		pingPong(t, fresh)
		generations = append(generations, fresh)
		require.Eventually(t, func() bool {
			for _, c := range pool1(s).Connections {
				if !c.Retired {
					return false
				}
			}
			return true
		}, patience, time.Millisecond)
	}
	pingPong(t, old)
	retired := set.GetOrCreateGauge(`fairlead_gateway_backend_ssh_connections_retired{backend="bastion"}`, nil)
	require.GreaterOrEqual(t, retired.Get(), 4.0)
	for _, c := range append(generations, old) {
		pingPong(t, c)
		require.NoError(t, c.Close())
	}
	require.Eventually(t, func() bool { return len(s.Stats()) == 0 && retired.Get() == 0 }, patience, time.Millisecond)
	ended := set.GetOrCreateCounter(`fairlead_gateway_backend_ssh_connections_ended_total{backend="bastion",reason="max_age"}`)
	logins := set.GetOrCreateCounter(`fairlead_gateway_backend_logins_total{backend="bastion"}`)
	require.Eventually(t, func() bool { return ended.Get() == logins.Get() }, patience, time.Millisecond)
	opened := set.GetOrCreateCounter(`fairlead_gateway_backend_channels_opened_total{backend="bastion"}`)
	reused := set.GetOrCreateCounter(`fairlead_gateway_backend_reused_total{backend="bastion"}`)
	assert.EqualValues(t, 5, opened.Get())
	assert.Equal(t, opened.Get()-logins.Get(), reused.Get(), "each connection's first channel is not a reuse")
}

func TestAgeAndKeepaliveCanBeSwitchedOff(t *testing.T) {
	d := startSSHD(t)
	s, _ := newSet(t, d.backend(t), echo(t), func(c *Config) { c.Pool = PoolConfig{Keepalive: -1, MaxAge: -1} })
	c := dial(t, s, "a")
	pingPong(t, c)
	_, err := s.Apply([]Backend{d.backend(t)}, routesOf(d.backend(t), echo(t)), PoolConfig{Keepalive: 5 * time.Millisecond, KeepaliveTimeout: 10 * time.Second, MaxAge: -1})
	require.NoError(t, err)
	require.Eventually(t, func() bool { return countOf(d, "keepalive@openssh.com") > 2 }, patience, time.Millisecond, "open connections take new times")
	_, err = s.Apply([]Backend{d.backend(t)}, routesOf(d.backend(t), echo(t)), PoolConfig{Keepalive: -1, MaxAge: time.Nanosecond})
	require.NoError(t, err)
	require.Eventually(t, func() bool { return pool1(s).Connections[0].Retired }, patience, time.Millisecond)
	pingPong(t, c)
}

func TestPhasesOfFailedLoginsAreCounted(t *testing.T) {
	d := startSSHD(t)
	set := metrics.NewSet()
	b := d.backend(t)
	s, _ := newSet(t, b, echo(t), func(c *Config) { c.Metrics = set })
	writeKey(t, b.KeyFile, newKey(t))
	errorOf(t, s, "a")
	_ = d.cmd.Process.Kill()
	require.Eventually(t, func() bool {
		c, err := net.Dial("tcp", d.addr)
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	}, patience, time.Millisecond)
	_, err := s.Dial(context.Background(), Caller{Tenant: "a"}, "db")
	require.Error(t, err)
	for phase, want := range map[string]uint64{phaseLogin: 1, phaseDial: 1, phaseKex: 0, phaseKeys: 0} {
		assert.Equal(t, want, set.GetOrCreateCounter(`fairlead_gateway_backend_login_failures_total{backend="bastion",phase="`+phase+`"}`).Get(), phase)
	}
}

// addressOnly is a connection of which only the address is used.
type addressOnly struct{ net.Conn }

func (addressOnly) LocalAddr() net.Addr { return &net.TCPAddr{} }

func countOf(d *daemon, word string) int { return strings.Count(d.log.String(), word) }

// A stream that has ended is read to its end even when its connection, old or idle, is ended before that.
func TestEndIsReadAfterTheConnectionWasLetGo(t *testing.T) {
	d := startSSHD(t)
	for name, pool := range map[string]PoolConfig{"max_age": {MaxAge: 150 * time.Millisecond}, "idle": {Idle: 20 * time.Millisecond}} {
		s, log := newSet(t, d.backend(t), echo(t), func(c *Config) { c.Pool = pool })
		c := dial(t, s, "a")
		_, err := c.Write([]byte("to the end"))
		require.NoError(t, err)
		if name == "max_age" {
			require.Eventually(t, func() bool { return pool1(s).Connections[0].Retired }, patience, time.Millisecond)
		}
		require.NoError(t, c.CloseWrite()) // the echo ends its side too, and sshd closes the channel
		require.Eventually(t, func() bool { return strings.Contains(log.String(), "reason="+name) }, patience, time.Millisecond)
		got, err := io.ReadAll(c)
		require.NoError(t, err, name)
		require.Equal(t, "to the end", string(got))
	}
}
