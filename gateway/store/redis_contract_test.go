package store_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"fairlead/gateway/store"
	"fairlead/shared/testbed"
)

// lenient makes timeouts so long that a busy machine does not show.
func lenient(cfg store.RedisConfig) store.RedisConfig {
	cfg.Timeout, cfg.CallTimeout = 10*time.Second, 10*time.Second
	return cfg
}

func newRedis(t *testing.T, cfg store.RedisConfig) *store.Redis {
	t.Helper()
	s, err := store.NewRedis(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

// worlds makes a world of each prefix, and looks at its keys at the end, where nodes are given: all have the prefix, and all
// expire.
func worlds(cfg store.RedisConfig, nodes ...*testbed.Redis) func(*testing.T) *world {
	var made atomic.Int32
	return func(t *testing.T) *world {
		cfg := lenient(cfg)
		cfg.Prefix = fmt.Sprintf("test-%d", made.Add(1))
		t.Cleanup(func() {
			if t.Failed() || t.Skipped() || len(nodes) == 0 {
				return
			}
			keys := 0
			for _, node := range nodes {
				keys += checkKeys(t, node, cfg.Prefix)
			}
			require.Positive(t, keys)
		})
		return &world{brief: cfg.TLS != nil || cfg.Mode != "", open: func() store.Store {
			s := newRedis(t, cfg)
			require.True(t, s.Health().Up, s.Health().Error)
			return s
		}}
	}
}

// checkKeys returns how many keys have the prefix.
func checkKeys(t *testing.T, node *testbed.Redis, prefix string) (n int) {
	c := redis.NewClient(&redis.Options{Network: node.Network(), Addr: node.Addr(), DisableIdentity: true})
	defer c.Close()
	ctx := context.Background()
	all := c.Scan(ctx, 0, "*", 1000).Iterator()
	for all.Next(ctx) {
		key := all.Val()
		require.True(t, strings.HasPrefix(key, "test-"), key)
		require.Less(t, len(key), 120, key)
		require.NotContains(t, key, "\n")
		ttl := c.PTTL(ctx, key).Val()
		require.True(t, ttl > 0 || ttl == -2, "%s has a ttl of %v", key, ttl)
		require.LessOrEqual(t, ttl, 91*24*time.Hour)
		if strings.HasPrefix(key, prefix+":{") {
			n++
		}
	}
	require.NoError(t, all.Err())
	return n
}

func TestRedis(t *testing.T) {
	node := testbed.NewRedis(t)
	contract(t, worlds(store.RedisConfig{Addresses: []string{node.Addr()}}, node))
}
