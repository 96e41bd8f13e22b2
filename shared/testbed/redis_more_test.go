package testbed_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/testbed"
)

func TestRedisWithTLSAndUsers(t *testing.T) {
	ca, cert := testbed.NewTestCA(t)
	r := testbed.NewRedisWith(t, testbed.RedisConfig{
		TLS:   &testbed.RedisTLS{CA: ca, Cert: cert, Clients: true},
		Users: []string{"user someone on >secret -@all +get"}, Args: []string{"--maxmemory", "7mb"},
	})
	require.NoError(t, r.Ping())
	answer, err := r.Do("CONFIG", "GET", "maxmemory")
	require.NoError(t, err)
	require.Equal(t, "maxmemory\n7340032", answer)
	require.NoError(t, r.ConfigSet("maxmemory", "0"))
	_, err = r.Do("AUTH", "someone", "wrong")
	require.ErrorContains(t, err, "WRONGPASS")
	answer, err = r.Do("AUTH", "someone", "secret")
	require.NoError(t, err)
	require.Equal(t, "OK", answer)
}

func TestSentinelReplacesAMaster(t *testing.T) {
	master, replica := testbed.NewRedis(t), testbed.NewRedis(t)
	_, err := master.Do("SET", "a", "1")
	require.NoError(t, err)
	require.NoError(t, replica.ReplicaOf(t.Context(), master))
	answer, err := replica.Do("GET", "a")
	require.NoError(t, err)
	require.Equal(t, "1", answer)
	_, err = replica.Do("SET", "a", "2")
	require.ErrorContains(t, err, "READONLY")
	s := testbed.NewSentinel(t, testbed.SentinelConfig{Name: "it", Master: master}, 1)
	port := replica.Addr()[strings.LastIndex(replica.Addr(), ":")+1:]
	master.Kill()
	require.Eventually(t, func() bool {
		answer, err := s.Do("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "it")
		return err == nil && answer == "127.0.0.1\n"+port
	}, 20*time.Second, 20*time.Millisecond)
	require.Eventually(t, func() bool { _, err := replica.Do("SET", "a", "2"); return err == nil }, 20*time.Second, 20*time.Millisecond)
}

func TestRedisCluster(t *testing.T) {
	nodes := testbed.NewRedisCluster(t, 3)
	var moved, stored int
	for _, node := range nodes {
		if _, err := node.Do("SET", "a", "1"); err == nil {
			stored++
		} else {
			require.ErrorContains(t, err, "MOVED 15495")
			moved++
		}
	}
	require.Equal(t, [2]int{1, 2}, [2]int{stored, moved})
}
