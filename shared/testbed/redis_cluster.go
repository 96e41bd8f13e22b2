package testbed

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
)

const clusterSlots = 16384

// StartRedisCluster starts masters that share the slots evenly, and returns when all say that the cluster is complete. dir
// must exist; each has a folder of its own in it. Whoever calls it stops them. ctx bounds the start only.
func StartRedisCluster(ctx context.Context, dir string, masters int) (nodes []*Redis, err error) {
	defer func() {
		if err != nil {
			for _, node := range nodes {
				node.Kill()
			}
		}
	}()
	var buses []string
	for i := range masters {
		own := filepath.Join(dir, strconv.Itoa(i))
		if err := os.Mkdir(own, 0o700); err != nil {
			return nodes, err
		}
		bus, err := unusedAddr()
		if err != nil {
			return nodes, err
		}
		_, port, err := net.SplitHostPort(bus)
		if err != nil {
			return nodes, err
		}
		node, err := StartRedis(ctx, RedisConfig{Dir: own, Args: []string{"--cluster-enabled", "yes", "--cluster-port", port, "--cluster-node-timeout", "2000"}})
		if err != nil {
			return nodes, err
		}
		nodes, buses = append(nodes, node), append(buses, port)
	}
	for i, node := range nodes {
		if err := node.join(i, masters, nodes[0].addr, buses[0]); err != nil {
			return nodes, err
		}
	}
	for _, node := range nodes {
		known := fmt.Sprintf("cluster_size:%d", masters)
		err := node.waitUntil(ctx, func() error {
			return errors.Join(node.says("cluster_state:ok", "CLUSTER", "INFO"), node.says(known, "CLUSTER", "INFO"))
		})
		if err != nil {
			return nodes, err
		}
	}
	return nodes, nil
}

// join takes the node's part of the slots, and meets the first node.
func (r *Redis) join(i, masters int, first, bus string) error {
	from, to := i*clusterSlots/masters, (i+1)*clusterSlots/masters-1
	if _, err := r.Do("CLUSTER", "SET-CONFIG-EPOCH", strconv.Itoa(i+1)); err != nil {
		return err
	}
	if _, err := r.Do("CLUSTER", "ADDSLOTSRANGE", strconv.Itoa(from), strconv.Itoa(to)); err != nil {
		return err
	}
	if i == 0 {
		return nil
	}
	host, port, err := net.SplitHostPort(first)
	if err != nil {
		return err
	}
	_, err = r.Do("CLUSTER", "MEET", host, port, bus)
	return err
}

// NewRedisCluster starts masters that live until the test ends.
func NewRedisCluster(tb TB, masters int) []*Redis {
	tb.Helper()
	nodes, err := StartRedisCluster(context.Background(), tb.TempDir(), masters)
	must(tb, err)
	tb.Cleanup(func() {
		for _, node := range nodes {
			node.Kill()
		}
	})
	return nodes
}
