package backend

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/require"

	"fairlead/gateway/breaker"
	"fairlead/shared/errs"
)

func healthOf(s *Set) (HealthStats, bool) {
	b := s.Backends()[0]
	return b.Health, b.Checked
}

func TestHealthIsSeenWithoutALogin(t *testing.T) {
	d := startSSHD(t)
	b := Backend{Name: "bastion", Address: d.addr, Health: Health{Interval: 20 * time.Millisecond, Timeout: 10 * time.Second}} // passthrough needs no login
	set := metrics.NewSet()
	br, err := breaker.New(breaker.Config{Failures: 1})
	require.NoError(t, err)
	down := new(atomic.Bool)
	s, log := newSet(t, b, "", func(c *Config) {
		c.Routes = c.Routes[1:]
		c.Metrics, c.Breaker = set, br
		c.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if down.Load() {
				return nil, fmt.Errorf("connection refused")
			}
			return new(net.Dialer).DialContext(ctx, network, addr)
		}
	})
	require.Eventually(t, func() bool { h, ok := healthOf(s); return ok && h.Up }, patience, time.Millisecond)
	h, _ := healthOf(s)
	require.True(t, strings.HasPrefix(h.Version, "SSH-2.0-OpenSSH_"), h.Version)
	require.Positive(t, h.Latency)
	require.NoError(t, h.Err)
	up := set.GetOrCreateGauge(`fairlead_gateway_backend_up{backend="bastion"}`, nil)
	require.EqualValues(t, 1, up.Get())
	require.Eventually(t, func() bool { return strings.Contains(d.log.String(), ":11: health check [preauth]") }, patience, time.Millisecond)
	require.Empty(t, d.logins())

	down.Store(true)
	require.Eventually(t, func() bool { h, _ = healthOf(s); return !h.Up }, patience, time.Millisecond)
	down.Store(false)
	require.ErrorIs(t, h.Err, errs.BackendUnreachable)
	require.Positive(t, h.Latency, "of the last one that went well")
	require.Equal(t, breaker.Closed, br.State("bastion"), "health is shown and nothing else")
	require.Eventually(t, func() bool { h, _ := healthOf(s); return h.Up && up.Get() == 1 }, patience, time.Millisecond)
	require.Equal(t, 1, strings.Count(log.String(), "does not answer its health check"))
	require.Equal(t, 1, strings.Count(log.String(), "answers its health check again"))
	require.Positive(t, set.GetOrCreateCounter(`fairlead_gateway_backend_probes_total{backend="bastion",outcome="ok"}`).Get())
}

func TestHealthNamesWhatIsWrong(t *testing.T) {
	endless := func(c net.Conn) {
		for {
			if _, err := c.Write([]byte(strings.Repeat("x", 100) + "\r\n")); err != nil {
				return
			}
		}
	}
	for name, c := range map[string]struct {
		serve func(net.Conn)
		want  errs.Code
		text  string
	}{
		"silent":  {func(c net.Conn) { _, _ = c.Read(make([]byte, 1)) }, errs.BackendTimeout, "phase: version exchange"},
		"closed":  {func(net.Conn) {}, errs.SSHHandshake, "phase: version exchange"},
		"http":    {func(c net.Conn) { _, _ = fmt.Fprint(c, "HTTP/1.1 400 Bad Request\r\n\r\n") }, errs.SSHHandshake, "HTTP/1.1 400"},
		"ssh 1":   {func(c net.Conn) { _, _ = fmt.Fprint(c, "SSH-1.5-old\r\n") }, errs.SSHHandshake, "SSH-1.5-old"},
		"endless": {endless, errs.SSHHandshake, "does not greet"},
	} {
		b := Backend{Name: "bastion", Address: listen(t, c.serve), Health: Health{Interval: time.Hour, Timeout: 500 * time.Millisecond}}
		s, _ := newSet(t, b, "", func(c *Config) { c.Routes = c.Routes[1:] })
		require.Eventually(t, func() bool { _, ok := healthOf(s); return ok }, patience, time.Millisecond, name)
		h, _ := healthOf(s)
		require.False(t, h.Up, name)
		require.ErrorIs(t, h.Err, c.want, name)
		require.ErrorContains(t, h.Err, c.text, name)
	}
}
