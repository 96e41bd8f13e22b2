package store_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/gateway/store"
	"fairlead/shared/testbed"
)

// A Redis that is set to evict takes any key away, also one of two that belong together: whoever looks learns that something
// is missing, and can put it there again.
func TestRedisThatEvictsOneOfTwoKeys(t *testing.T) {
	node := testbed.NewRedis(t)
	s := newPatient(t, store.RedisConfig{Addresses: []string{node.Addr()}})
	ctx := t.Context()
	one := store.Revocation{ID: "1", Until: time.Now().Add(time.Hour).UTC().Truncate(time.Millisecond), Data: []byte("x")}
	for _, key := range []string{":z", ":h", ":v"} {
		require.NoError(t, s.PutRevocations(ctx, one))
		list, known, err := s.Revocations(ctx, "")
		require.NoError(t, err)
		require.Len(t, list, 1)
		_, err = node.Do("DEL", "test:{revocations}"+key)
		require.NoError(t, err)
		list, version, err := s.Revocations(ctx, known)
		require.NoError(t, err)
		require.NotEqual(t, known, version, "without %s the list is another one", key)
		require.NotNil(t, list)
		require.NoError(t, s.PutRevocations(ctx, one))
		list, _, err = s.Revocations(ctx, "")
		require.NoError(t, err)
		require.Len(t, list, 1, "put there again without %s", key)
	}
	self := store.Replica{ID: "a/1", Name: "a"}
	for _, key := range []string{":z", ":h"} {
		require.NoError(t, s.Announce(ctx, self, time.Minute))
		_, err := node.Do("DEL", "test:{replicas}"+key)
		require.NoError(t, err)
		require.NoError(t, s.Announce(ctx, self, time.Minute))
		list, err := s.Replicas(ctx)
		require.NoError(t, err)
		require.Len(t, list, 1, "without %s", key)
	}
}
