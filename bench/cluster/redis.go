package cluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"fairlead/bench/proc"
	"fairlead/shared/testbed"
)

const sentinelMaster = "fairlead"

// startStore starts Redis, unless the gateways share nothing.
func (s *Site) startStore(ctx context.Context) (err error) {
	if s.cfg.Memory {
		return nil
	}
	if s.Redis, err = s.startRedis(ctx, "redis"); err != nil || !s.cfg.Sentinel {
		return err
	}
	if s.Spare, err = s.startRedis(ctx, "spare"); err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(s.Redis.Addr())
	if err != nil {
		return err
	}
	if err := RedisDo(ctx, s.Spare.Addr(), "REPLICAOF", host, port); err != nil {
		return err
	}
	if err := Until(ctx, readyTimeout, "the spare Redis follows", func() bool {
		info, err := redisAsk(ctx, s.Spare.Addr(), "INFO", "replication")
		return err == nil && strings.Contains(info, "master_link_status:up")
	}); err != nil {
		return err
	}
	if s.sentinel, err = startSentinel(ctx, s.file("sentinel"), at(s.net.replica(100), 26379), s.Redis.Addr()); err != nil {
		return err
	}
	s.defers(func() error { s.sentinel.process.Stop(); return nil })
	return nil
}

func (s *Site) startRedis(ctx context.Context, name string) (*testbed.Redis, error) {
	dir := s.file(name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	r, err := testbed.StartRedis(ctx, testbed.RedisConfig{Dir: dir})
	if err == nil {
		s.defers(func() error {
			_ = r.Continue() // it may be paused, or over
			r.Stop()
			return nil
		})
	}
	return r, err
}

// sentinel watches a Redis and makes its follower the master when it is gone.
type sentinel struct {
	addr    string
	process *proc.Process
}

// startSentinel starts one and returns when it knows the follower.
func startSentinel(ctx context.Context, dir, addr, master string) (*sentinel, error) {
	path, ok := testbed.RedisPath()
	if !ok {
		return nil, errors.New("this machine has no redis-server: install it")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	masterHost, masterPort, err := net.SplitHostPort(master)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "sentinel.conf")
	text := fmt.Sprintf("bind %s\nport %s\ndir %q\nsentinel monitor %[4]s %s %s 1\nsentinel down-after-milliseconds %[4]s 1000\nsentinel failover-timeout %[4]s 5000\n",
		host, port, dir, sentinelMaster, masterHost, masterPort)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return nil, err
	}
	p, err := proc.Start(context.WithoutCancel(ctx), proc.Spec{Path: path, Args: []string{file, "--sentinel"}, LogFile: filepath.Join(dir, "sentinel.log")})
	if err != nil {
		return nil, err
	}
	st := &sentinel{addr: addr, process: p}
	err = Until(ctx, readyTimeout, "the Sentinel knows the spare Redis", func() bool {
		info, err := redisAsk(ctx, addr, "INFO", "sentinel")
		return err == nil && strings.Contains(info, "slaves=1")
	}, p.Err)
	if err != nil {
		p.Stop()
		return nil, err
	}
	return st, nil
}

// RedisDo sends a command to the Redis at addr.
func RedisDo(ctx context.Context, addr string, words ...string) error {
	_, err := redisAsk(ctx, addr, words...)
	return err
}

// redisAsk sends a command whose answer is a string.
func redisAsk(ctx context.Context, addr string, words ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(askTimeout)); err != nil {
		return "", err
	}
	var command strings.Builder
	fmt.Fprintf(&command, "*%d\r\n", len(words))
	for _, word := range words {
		fmt.Fprintf(&command, "$%d\r\n%s\r\n", len(word), word)
	}
	if _, err := io.WriteString(conn, command.String()); err != nil {
		return "", err
	}
	r := bufio.NewReader(conn)
	line, err := r.ReadString('\n')
	if err != nil {
		return "", err
	}
	kind, rest := line[0], strings.TrimRight(line[1:], "\r\n")
	switch kind {
	case '+', ':':
		return rest, nil
	case '$':
		n, err := strconv.Atoi(rest)
		if err != nil || n < 0 {
			return "", err
		}
		text := make([]byte, n)
		_, err = io.ReadFull(r, text)
		return string(text), err
	}
	return "", fmt.Errorf("redis answers %s with %s", words[0], strings.TrimSpace(line))
}
