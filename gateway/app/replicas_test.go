package app

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/gateway/admin"
	"fairlead/gateway/config"
	"fairlead/gateway/session"
	"fairlead/gateway/store"
	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/testbed"
	"fairlead/shared/ws"
)

// shares lets the site's gateways share a Redis, which the test reaches too.
func (s *site) shares() (*testbed.Redis, store.Store) {
	s.t.Helper()
	redis := testbed.NewRedis(s.t)
	s.cfg.Store.Kind, s.cfg.Store.Address, s.cfg.Store.Timeout = config.StoreRedis, redis.Addr(), time.Second
	secret := filepath.Join(s.t.TempDir(), "peers")
	require.NoError(s.t, os.WriteFile(secret, []byte(strings.Repeat("s", 32)), 0o600))
	s.cfg.Peer.Listen, s.cfg.Peer.SecretFile = "127.0.0.1:0", secret
	seen, err := store.NewRedis(store.RedisConfig{Addresses: []string{redis.Addr()}, Prefix: s.cfg.Store.Prefix, Timeout: time.Second})
	require.NoError(s.t, err)
	s.t.Cleanup(func() { assert.NoError(s.t, seen.Close()) })
	return redis, seen
}

// A replica that stops in order leaves nothing that others would have to wait for: it is out of the directory, and its tenants'
// slots are free.
//
// Verifies: R8.5
func TestAReplicaThatHasStoppedIsGone(t *testing.T) {
	s := newSite(t)
	_, shared := s.shares()
	a, stop := s.run()
	token, err := s.issuer.Valid("dev", time.Hour)
	require.NoError(t, err)
	conn, err := (&ws.Dialer{TLS: s.ca.ClientTLS(), MaxMessage: 1 << 20}).Dial(t.Context(), "wss://"+a.Addr().String()+"/v1/tunnel", http.Header{"Authorization": {"Bearer " + token}}, link.Subprotocol)
	require.NoError(t, err)
	tun, lane, err := link.Connect(t.Context(), conn, link.Config{})
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { ended <- lane.Run() }()
	held := func() int {
		n, _, err := shared.Held(t.Context(), "dev")
		require.NoError(t, err)
		return n
	}
	require.Equal(t, 1, held())
	require.Eventually(t, func() bool {
		list, err := shared.Replicas(t.Context())
		return err == nil && len(list) == 1
	}, 10*time.Second, 10*time.Millisecond)

	require.NoError(t, stop(nil))
	assert.Error(t, <-ended)
	list, err := shared.Replicas(t.Context())
	require.NoError(t, err)
	assert.Empty(t, list)
	assert.Zero(t, held())
	record, found, err := shared.Find(t.Context(), tun.Name())
	require.NoError(t, err)
	require.True(t, found)
	assert.NotNil(t, record.Lost, "why it is over is there to be read")
	tun.Wait()
}

// A gateway that begins while the store's name cannot be resolved can be reached all the same.
func TestTheAddressForOtherReplicas(t *testing.T) {
	all := &net.TCPAddr{IP: net.IPv6unspecified, Port: 8444}
	assert.Equal(t, "192.0.2.1:7", advertised(&net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 7}, "192.0.2.2:6379"))
	assert.Equal(t, "127.0.0.1:8444", advertised(all, " 127.0.0.1:6379,192.0.2.2:6379"), "as it is on the way to the store")

	mine, err := net.InterfaceAddrs()
	require.NoError(t, err)
	reachable := map[string]bool{"": true}
	for _, a := range mine {
		if ip := a.(*net.IPNet).IP; ip.IsGlobalUnicast() {
			reachable[net.JoinHostPort(ip.String(), "8444")] = true
			delete(reachable, "")
		}
	}
	assert.Contains(t, reachable, advertised(all, "redis.invalid:6379"))
}

// The host key that one replica has seen first counts at the others, also when the store was emptied meanwhile.
//
// Verifies: R7.5
func TestReplicasShareHostKeys(t *testing.T) {
	s := newSite(t)
	redis, _ := s.shares()
	sshd := testbed.NewSSHD(t, testbed.SSHDConfig{})
	var b config.Backend
	b.SetDefaults()
	b.Address, b.User, b.KeyFile, b.HostKeys.Mode = sshd.Addr(), sshd.User(), sshd.KeyFile(), config.HostKeysFirstUse
	var r config.Route
	r.SetDefaults()
	r.Backend, r.Mode, r.Target = "db", config.ModeForward, s.back.Addr().String()
	s.cfg.Backends["db"], s.cfg.Routes["db"] = b, r
	s.cfg.Policy[0].Routes = append(s.cfg.Policy[0].Routes, "db")
	keys := func() string {
		found, err := redis.Do("KEYS", "*{k*")
		require.NoError(t, err)
		return found
	}

	first, _ := s.run()
	conn, err := s.dialRoute(first, "db")
	require.NoError(t, err)
	defer conn.Abort()
	require.NotEmpty(t, keys())
	_, err = redis.Do("FLUSHALL")
	require.NoError(t, err)
	require.Eventually(t, func() bool { return keys() != "" }, time.Minute, 10*time.Millisecond)

	sshd.Stop()
	testbed.NewSSHD(t, testbed.SSHDConfig{Listen: sshd.Addr()})
	s.opts.Instance = "gw-2"
	second, _ := s.run()
	_, err = s.dialRoute(second, "db")
	require.ErrorIs(t, err, errs.HostKeyRefused)
}

// Verifies: R8.10
func TestThePhasesOfADrain(t *testing.T) {
	began := time.Now()
	p := session.Progress{Since: began, Deadline: began.Add(30 * time.Second)}
	for after, want := range map[time.Duration]admin.DrainPhase{0: admin.Moving, 9 * time.Second: admin.Moving, 10 * time.Second: admin.Finishing,
		29 * time.Second: admin.Finishing, 30 * time.Second: admin.Ending} {
		assert.Equal(t, want, phase(p, began.Add(after), false), after)
		assert.Equal(t, admin.Stopping, phase(p, began.Add(after), true))
	}

	s := newSite(t)
	s.cfg.Shutdown.Drain = 5 * time.Minute
	a, stop := s.run()
	assert.Equal(t, admin.DrainPhase(""), a.drainProgress().Phase, "there is none")
	c, err := s.dial(a)
	require.NoError(t, err)
	defer c.Abort()
	stopped := make(chan error, 1)
	go func() { stopped <- stop(nil) }()
	require.Eventually(t, func() bool { return a.sessions.Draining() }, time.Minute, time.Millisecond)
	status, body := s.ask(a, "GET", "/api/drain", "")
	assert.Equal(t, 200, status)
	assert.Contains(t, body, `"phase": "moving"`)
	c.Abort()
	require.NoError(t, <-stopped)
	assert.Equal(t, admin.Stopping, a.drainProgress().Phase)
}
