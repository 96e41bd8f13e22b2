package store_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/gateway/store"
	"fairlead/shared/errs"
	"fairlead/shared/testbed"
)

func TestRedisThatFailsOver(t *testing.T) {
	t.Parallel()
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
	require.Eventually(t, func() bool { // the incarnation came last
		has, err := master.Do("DBSIZE")
		require.NoError(t, err)
		got, err := replica.Do("DBSIZE")
		return err == nil && got == has
	}, patience, often)
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
	t.Parallel()
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
	t.Parallel()
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
