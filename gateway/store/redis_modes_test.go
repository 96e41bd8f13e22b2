package store_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"fairlead/gateway/store"
	"fairlead/shared/testbed"
)

// acl is the user of a store with this prefix, with no right that it does not need: SELECT only with another database than
// 0, CLUSTER SLOTS only in a cluster.
func acl(user, password, prefix string) string {
	return "user " + user + " on >" + password + " resetchannels ~" + prefix + ":* &" + prefix + ":events -@all " +
		"+evalsha +eval +time +get +set +del +pttl +pexpire +zadd +zrem +zcard +zcount +zscore +zrangebyscore +zremrangebyscore " +
		"+hget +hmget +hgetall +hset +hdel +publish +subscribe +ping +select +cluster|slots"
}

func secretFile(t *testing.T, content string) string {
	file := filepath.Join(t.TempDir(), "password")
	require.NoError(t, os.WriteFile(file, []byte(content), 0o600))
	return file
}

func TestRedisWithTLSAndACL(t *testing.T) {
	t.Parallel()
	ca, cert := testbed.NewTestCA(t)
	client, err := ca.Issue(testbed.CertificateConfig{Name: "client"})
	require.NoError(t, err)
	node := testbed.NewRedisWith(t, testbed.RedisConfig{
		TLS: &testbed.RedisTLS{CA: ca, Cert: cert, Clients: true}, Users: []string{acl("fairlead", "s3cret", "test-*")},
	})
	create := worlds(store.RedisConfig{
		Addresses: []string{strings.Replace(node.Addr(), "127.0.0.1", "localhost", 1)}, Username: "fairlead", PasswordFile: secretFile(t, "s3cret\n"), Database: 3,
		TLS: &store.RedisTLS{CAFile: ca.CertFile(), CertFile: client.CertFile, KeyFile: client.KeyFile, ServerName: "127.0.0.1"},
	})
	contract(t, create)
}

func TestRedisBehindSentinel(t *testing.T) {
	t.Parallel()
	master := testbed.NewRedis(t)
	sentinel := testbed.NewSentinel(t, testbed.SentinelConfig{Name: "fairlead", Master: master}, 0)
	for _, user := range []string{"fairlead on >s3cret -@all +sentinel|get-master-addr-by-name", "default -@all +ping"} {
		_, err := sentinel.Do(append([]string{"ACL", "SETUSER"}, strings.Fields(user)...)...)
		require.NoError(t, err)
	}
	contract(t, worlds(store.RedisConfig{
		Mode: store.Sentinel, Addresses: []string{"127.0.0.1:1", sentinel.Addr()}, Master: "fairlead",
		SentinelUsername: "fairlead", SentinelPasswordFile: secretFile(t, "s3cret"),
	}, master))
}

func TestRedisCluster(t *testing.T) {
	nodes := testbed.NewRedisCluster(t, 3)
	for i, tag := range store.SlotTags() {
		slot, err := nodes[0].Do("CLUSTER", "KEYSLOT", "p:{"+tag+"}:i")
		require.NoError(t, err)
		n, err := strconv.Atoi(slot)
		require.NoError(t, err)
		require.Equal(t, i, n/1024, "there is one for each 1,024 slots")
	}
	for _, node := range nodes {
		_, err := node.Do(append([]string{"ACL", "SETUSER"}, strings.Fields(acl("fairlead", "s3cret", "test-*"))[1:]...)...)
		require.NoError(t, err)
	}
	contract(t, worlds(store.RedisConfig{
		Mode: store.Cluster, Addresses: []string{nodes[0].Addr()}, Username: "fairlead", PasswordFile: secretFile(t, "s3cret"),
	}, nodes...))
}
