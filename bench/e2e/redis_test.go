package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	gatewayconfig "fairlead/gateway/config"
	"fairlead/shared/testbed"
)

// redisClient speaks the Redis protocol (RESP2) over any connection.
type redisClient struct {
	t *testing.T
	c halfCloser
	r *bufio.Reader
}

func newRedisClient(t *testing.T, c halfCloser) *redisClient {
	return &redisClient{t: t, c: c, r: bufio.NewReader(c)}
}

// send sends a command and does not wait for its answer.
func (c *redisClient) send(words ...string) {
	c.t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(words))
	for _, word := range words {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(word), word)
	}
	_, err := io.WriteString(c.c, b.String())
	require.NoError(c.t, err)
}

// answer reads one answer: a string, an int64, nil, a []any, or an error of Redis.
func (c *redisClient) answer() any {
	c.t.Helper()
	line, err := c.r.ReadString('\n')
	require.NoError(c.t, err)
	kind, rest := line[0], strings.TrimSuffix(line[1:], "\r\n")
	switch kind {
	case '+':
		return rest
	case '-':
		return errors.New(rest)
	}
	n, err := strconv.ParseInt(rest, 10, 64)
	require.NoError(c.t, err, line)
	switch {
	case kind == ':':
		return n
	case n < 0:
		return nil
	case kind == '$':
		raw := make([]byte, n+2)
		_, err := io.ReadFull(c.r, raw)
		require.NoError(c.t, err)
		return string(raw[:n])
	}
	require.Equal(c.t, byte('*'), kind, line)
	list := make([]any, n)
	for i := range list {
		list[i] = c.answer()
	}
	return list
}

func (c *redisClient) do(words ...string) any {
	c.t.Helper()
	c.send(words...)
	return c.answer()
}

// Verifies: R10.2
func TestRedisBehindASSHServer(t *testing.T) {
	redis := testbed.NewRedis(t)
	w := newWorld(t, withForward("redis", redis.Addr()))
	c := newRedisClient(t, w.dial("redis"))
	assert.Equal(t, "PONG", c.do("PING"))
	large, err := io.ReadAll(contentOf(30, 2<<20))
	require.NoError(t, err)
	assert.Equal(t, "OK", c.do("SET", "large", string(large)))
	assert.True(t, c.do("GET", "large") == string(large), "2 MiB of binary come back")
	assert.Nil(t, c.do("GET", "missing"))
	assert.ErrorContains(t, c.do("HGET", "large", "x").(error), "WRONGTYPE")

	const pipelined = 2000
	for range pipelined {
		c.send("INCR", "count")
	}
	for i := range pipelined {
		require.Equal(t, int64(i+1), c.answer())
	}
	c.do("MULTI")
	c.do("INCR", "count")
	c.do("RPUSH", "list", "a", "b")
	assert.Equal(t, []any{int64(pipelined + 1), int64(2)}, c.do("EXEC"))
	assert.Equal(t, []any{"a", "b"}, c.do("LRANGE", "list", "0", "-1"))

	waiter := newRedisClient(t, w.dial("redis"))
	waiter.send("BLPOP", "queue", "0") // answered when another connection pushes
	subscriber := newRedisClient(t, w.dial("redis"))
	assert.Equal(t, []any{"subscribe", "news", int64(1)}, subscriber.do("SUBSCRIBE", "news"))
	assert.Equal(t, int64(1), c.do("PUBLISH", "news", "hello"))
	assert.Equal(t, []any{"message", "news", "hello"}, subscriber.answer())
	assert.Equal(t, int64(1), c.do("RPUSH", "queue", "pushed"))
	assert.Equal(t, []any{"queue", "pushed"}, waiter.answer())
	assert.Equal(t, 1, w.ssh.Connections(), "three streams share one SSH connection")
}

// Verifies: R4.6
func TestTenantsNeverShareSSHConnections(t *testing.T) {
	tenants := []string{"payments/orders", "payments/ledger", "shop/web"}
	var opts []option
	for _, tenant := range tenants {
		opts = append(opts, withForward(strings.ReplaceAll(tenant, "/", "-"), testbed.NewRedis(t).Addr()))
	}
	w := newWorld(t, append(opts, withoutSidecar(), withGateway(func(c *gatewayconfig.Config) {
		c.Policy = nil
		for _, tenant := range tenants {
			c.Policy = append(c.Policy, gatewayconfig.Rule{Tenants: []string{tenant}, Routes: []string{strings.ReplaceAll(tenant, "/", "-")}})
		}
	}))...)
	all := w.sidecarConfig.Listeners
	for i, tenant := range tenants {
		w.sidecarConfig.Listeners = all[i : i+1]
		w.sidecarConfig.Gateway.TokenFile = filepath.Join(w.dir, fmt.Sprintf("token-%d", i))
		require.NoError(t, testbed.WriteToken(w.sidecarConfig.Gateway.TokenFile, w.token(tenant, w.lifetime)))
		w.startSidecar()
		w.waitReady()
		for n := range 2 {
			c := newRedisClient(t, w.dial(all[i].Name))
			assert.Equal(t, int64(n+1), c.do("INCR", "connections"), tenant)
			assert.Equal(t, "OK", c.do("SET", "whose", tenant))
		}
	}
	ids, list := map[string]string{}, backendsOf(t, w.gateway)
	require.Len(t, list, 1)
	require.Len(t, list[0].Pools, len(tenants))
	for _, pool := range list[0].Pools {
		assert.Contains(t, tenants, pool.Tenant)
		assert.Equal(t, 2, pool.Channels, "both connections of %s", pool.Tenant)
		require.Len(t, pool.Connections, 1)
		assert.NotContains(t, ids, pool.Connections[0].ID)
		ids[pool.Connections[0].ID] = pool.Tenant
	}
	assert.Equal(t, len(tenants), w.ssh.Connections(), "as many as OpenSSH's server counts")
}
