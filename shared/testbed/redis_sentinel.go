package testbed

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
)

// SentinelConfig says how a Sentinel runs.
type SentinelConfig struct {
	Dir       string // for its configuration, which it writes to, and its log; must exist, and belong to this Sentinel alone
	Name      string // of the master
	Master    *Redis
	DownAfter time.Duration // without an answer, after which the master is replaced; default 500 ms
}

// StartSentinel starts a Sentinel that needs no other one to agree, and returns when it knows as many replicas of the master as are
// given. It is a Redis like any other: it can be paused, killed and asked. ctx bounds the start only.
func StartSentinel(ctx context.Context, cfg SentinelConfig, replicas int) (*Redis, error) {
	if cfg.DownAfter == 0 {
		cfg.DownAfter = 500 * time.Millisecond
	}
	host, port, err := net.SplitHostPort(cfg.Master.addr)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(cfg.Dir, "sentinel.conf")
	text := fmt.Sprintf("sentinel monitor %[1]s %[2]s %[3]s 1\nsentinel down-after-milliseconds %[1]s %[4]d\nsentinel failover-timeout %[1]s 3000\n",
		cfg.Name, host, port, cfg.DownAfter.Milliseconds())
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return nil, err
	}
	s, err := StartRedis(ctx, RedisConfig{Dir: cfg.Dir, sentinel: file})
	if err != nil {
		return nil, err
	}
	known := fmt.Sprintf("num-slaves\n%d\n", replicas)
	if err := s.waitUntil(ctx, func() error { return s.says(known, "SENTINEL", "MASTER", cfg.Name) }); err != nil {
		s.Kill()
		return nil, errors.Join(errors.New("the Sentinel does not find the replicas"), err)
	}
	return s, nil
}

// NewSentinel starts a Sentinel that lives until the test ends. Its log is shown when the test fails.
func NewSentinel(tb TB, cfg SentinelConfig, replicas int) *Redis {
	tb.Helper()
	if cfg.Dir == "" {
		cfg.Dir = tb.TempDir()
	}
	s, err := StartSentinel(context.Background(), cfg, replicas)
	must(tb, err)
	tb.Cleanup(func() {
		s.Kill()
		if tb.Failed() {
			tb.Logf("log of the Sentinel:\n%s", tail(filepath.Join(cfg.Dir, "redis.log")))
		}
	})
	return s
}
