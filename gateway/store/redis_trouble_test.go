package store_test

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/gateway/store"
	"fairlead/shared/errs"
	"fairlead/shared/testbed"
	"fairlead/shared/testbed/fault"
)

func TestRedisThatIsAbsentAtFirst(t *testing.T) {
	node := testbed.NewRedis(t)
	before := runtime.NumGoroutine() + 1 // which is waiting, below
	node.Kill()
	p := newPatient(t, store.RedisConfig{Addresses: []string{node.Addr()}})
	require.False(t, p.Health().Up)
	require.Contains(t, p.Health().Error, "connection refused")
	p.falls(t, "connection refused", "unreachable")
	for range 3 {
		p.crowd(t)
		require.Eventually(t, func() bool { return runtime.NumGoroutine() <= before+8 }, patience, often, "calls leave nothing behind")
	}
	require.NoError(t, node.Start(t.Context()))
	p.rises(t, false, true)
	p.crowd(t)
	info, err := node.Do("INFO", "clients")
	require.NoError(t, err)
	_, after, _ := strings.Cut(info, "connected_clients:")
	connected, err := strconv.Atoi(strings.Fields(after)[0])
	require.NoError(t, err)
	require.LessOrEqual(t, connected, 8+1, "however many come at once")
	require.NoError(t, p.Close())
	require.Eventually(t, func() bool { return runtime.NumGoroutine() <= before }, patience, often)
}

func TestRedisThatIsPaused(t *testing.T) {
	node := testbed.NewRedis(t)
	p := newPatient(t, store.RedisConfig{Addresses: []string{node.Addr()}, Timeout: 100 * time.Millisecond, CallTimeout: 2 * time.Second})
	p.rises(t, true)
	seen := watch(t, p)
	watching(t, p, seen)
	require.NoError(t, node.Pause())
	p.falls(t, "does not answer in time", "timeout")
	require.ErrorIs(t, errorOf(p.Find(t.Context(), "00ff")), errs.StoreUnavailable, "is tried")
	require.Positive(t, p.metric(t, `fairlead_gateway_store_errors_total{op="find",kind="timeout"}`))
	require.NoError(t, node.Continue())
	p.rises(t, true, false, true)
	require.Eventually(t, func() bool { return contains(seen(), store.Missed) }, patience, often)
	watching(t, p, seen)
}

// A Redis that answers, but too late for Take, is not used until it is faster.
func TestRedisThatIsSlow(t *testing.T) {
	t.Parallel()
	node := testbed.NewRedis(t)
	way := testbed.NewProxy(t, node.Addr())
	p := newPatient(t, store.RedisConfig{Addresses: []string{way.Addr()}, Timeout: 200 * time.Millisecond, CallTimeout: 5 * time.Second})
	p.rises(t, true)
	way.Shape(fault.Down, fault.Shape{Latency: 300 * time.Millisecond})
	p.falls(t, "does not answer in time", "timeout")
	require.Eventually(t, func() bool { return p.metric(t, `fairlead_gateway_store_errors_total{op="probe",kind="timeout"}`) >= 2 }, patience, often)
	require.Len(t, p.told(), 2, "it does not come and go")
	way.Shape(fault.Down, fault.Shape{})
	p.rises(t, true, false, true)
}

func errorOf(_ store.Tunnel, _ bool, err error) error { return err }

func contains(events []store.Event, kind store.Kind) bool {
	for _, e := range events {
		if e.Kind == kind {
			return true
		}
	}
	return false
}

func TestRedisThatLosesEverything(t *testing.T) {
	node := testbed.NewRedis(t)
	p := newPatient(t, store.RedisConfig{Addresses: []string{node.Addr()}})
	p.rises(t, true)
	seen := watch(t, p)
	watching(t, p, seen)
	first, err := p.Incarnation(t.Context())
	require.NoError(t, err)
	_, version, err := p.Revocations(t.Context(), "")
	require.NoError(t, err)
	require.NoError(t, p.PutRevocations(t.Context(), store.Revocation{ID: "1", Until: now().Add(time.Hour)}))
	_, version, err = p.Revocations(t.Context(), version)
	require.NoError(t, err)
	hold(t, t.Context(), p, tunnelOf("a", 1))

	node.Kill()
	p.falls(t, "connection refused", "unreachable")
	require.NoError(t, node.Start(t.Context()))
	p.rises(t, true, false, true)
	second, err := p.Incarnation(t.Context())
	require.NoError(t, err)
	require.NotEqual(t, first, second)
	_, ok := find(t, t.Context(), p, "00ff")
	require.False(t, ok)
	list, _, err := p.Revocations(t.Context(), version)
	require.NoError(t, err)
	require.NotNil(t, list, "another version: whoever has more puts it there")
	require.Eventually(t, func() bool { return contains(seen(), store.Missed) }, patience, often)

	_, err = node.Do("FLUSHALL")
	require.NoError(t, err)
	third, err := p.Incarnation(t.Context())
	require.NoError(t, err)
	require.NotEqual(t, second, third, "flushed")
	require.True(t, p.Health().Up)
	_, err = node.Do("SCRIPT", "FLUSH")
	require.NoError(t, err)
	require.NoError(t, p.take(t), "scripts are sent again")
}

func TestRedisThatIsFull(t *testing.T) {
	node := testbed.NewRedis(t)
	p := newPatient(t, store.RedisConfig{Addresses: []string{node.Addr()}})
	p.rises(t, true)
	hold(t, t.Context(), p, tunnelOf("a", 1))
	require.NoError(t, node.ConfigSet("maxmemory", "1"))
	p.falls(t, "OOM", "full")
	_, ok := find(t, t.Context(), p, "00ff")
	require.True(t, ok, "it can be read")
	require.NoError(t, node.ConfigSet("maxmemory", "0"))
	p.rises(t, true, false, true)
}

func TestRedisThatIsReadOnly(t *testing.T) {
	node, other := testbed.NewRedis(t), testbed.NewRedis(t)
	p := newPatient(t, store.RedisConfig{Addresses: []string{node.Addr()}})
	p.rises(t, true)
	require.NoError(t, node.ReplicaOf(t.Context(), other))
	p.falls(t, "READONLY", "readonly")
	_, err := p.Replicas(t.Context())
	require.NoError(t, err, "it can be read")
	require.NoError(t, node.ReplicaOf(t.Context(), nil))
	p.rises(t, true, false, true)
}

func TestRedisWithAnotherPassword(t *testing.T) {
	node := testbed.NewRedisWith(t, testbed.RedisConfig{Password: "s3cret"})
	p := newPatient(t, store.RedisConfig{Addresses: []string{node.Addr()}})
	p.falls(t, "NOAUTH", "refused")
	file := secretFile(t, "wrong-s3cret")
	p = newPatient(t, store.RedisConfig{Addresses: []string{node.Addr()}, PasswordFile: file})
	p.falls(t, "WRONGPASS", "refused")
	require.NoError(t, os.WriteFile(file, []byte("s3cret\n"), 0o600))
	p.rises(t, false, true)
	require.NoError(t, os.Remove(file))
	node.Kill()
	require.NoError(t, node.Start(t.Context()))
	p.falls(t, "no such file", "refused")
}

func TestRedisWithTooFewRights(t *testing.T) {
	rights := strings.Replace(acl("fairlead", "s3cret", "test"), "+zadd", "", 1)
	node := testbed.NewRedisWith(t, testbed.RedisConfig{Users: []string{rights}})
	p := newPatient(t, store.RedisConfig{Addresses: []string{node.Addr()}, Username: "fairlead", PasswordFile: secretFile(t, "s3cret")})
	p.falls(t, "NOPERM", "refused")
}

// A server that repeats what it was told gives nothing away.
func TestRedisThatRepeatsThePassword(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var group sync.WaitGroup
	group.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			group.Go(func() {
				defer conn.Close()
				heard := make([]byte, 4096)
				for {
					n, err := conn.Read(heard)
					if err != nil {
						return
					}
					fmt.Fprintf(conn, "-ERR unknown command, with args %q\r\n", heard[:n])
				}
			})
		}
	})
	p := newPatient(t, store.RedisConfig{Addresses: []string{l.Addr().String()}, Username: "fairlead", PasswordFile: secretFile(t, "s3cret")})
	require.False(t, p.Health().Up)
	require.Equal(t, "it answers with an error", p.Health().Error)
	p.fails(t)
	require.NotContains(t, p.lines(), "s3cret")
	require.NoError(t, p.Close())
	require.NoError(t, l.Close())
	group.Wait()
}

// What another version or another hand has put there costs itself, and nothing else.
func TestRedisWithEntriesThatCannotBeRead(t *testing.T) {
	node := testbed.NewRedis(t)
	p := newPatient(t, store.RedisConfig{Addresses: []string{node.Addr()}})
	p.rises(t, true)
	require.NoError(t, p.PutRevocations(t.Context(), store.Revocation{ID: "1", Until: now().Add(time.Hour)}, store.Revocation{ID: "2", Until: now().Add(time.Hour)}))
	require.NoError(t, p.Announce(t.Context(), store.Replica{ID: "a", Name: "a"}, time.Hour))
	require.NoError(t, p.Announce(t.Context(), store.Replica{ID: "b", Name: "b"}, time.Hour))
	for list, id := range map[string]string{"revocations": "1", "replicas": "a"} {
		_, err := node.Do("HSET", "test:{"+list+"}:h", "="+id, "x\n{garbage")
		require.NoError(t, err)
	}
	for range 3 {
		revoked, _, err := p.Revocations(t.Context(), "")
		require.NoError(t, err)
		require.Len(t, revoked, 1)
		require.Equal(t, "2", revoked[0].ID)
		replicas, err := p.Replicas(t.Context())
		require.NoError(t, err)
		require.Len(t, replicas, 1)
		require.Equal(t, "b", replicas[0].ID)
	}
	require.Equal(t, 2, strings.Count(p.log.String(), "cannot be read"), "each list once")

	theirs, spoilt, ours := tunnelOf("b", 1), tunnelOf("a", 1), tunnelOf("a", 1)
	theirs.ID, spoilt.ID, ours.ID = "00", "01", "02"
	hold(t, t.Context(), p, theirs, spoilt)
	_, err := node.Do("SET", "test:{t=01}", "garbage", "PX", "60000")
	require.NoError(t, err)
	theirs.Owner = "a"
	refused := hold(t, t.Context(), p, theirs, spoilt, ours)
	require.Len(t, refused, 1, "the lease that is lost is told in spite of the record before the last")
	require.Equal(t, "b", refused[0].Owner)
	_, ok := find(t, t.Context(), p, "02")
	require.True(t, ok)
	require.Equal(t, 3, strings.Count(p.log.String(), "cannot be read"))
}
