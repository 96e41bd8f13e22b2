package store_test

import (
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"fairlead/gateway/store"
	"fairlead/shared/errs"
	"fairlead/shared/testbed"
)

func benchmark(b *testing.B, run func(b *testing.B, s store.Store)) {
	b.Run("memory", func(b *testing.B) { run(b, store.NewMemory(store.MemoryConfig{})) })
	b.Run("redis", func(b *testing.B) {
		s, err := store.NewRedis(lenient(store.RedisConfig{Addresses: []string{testbed.NewRedis(b).Addr()}}))
		require.NoError(b, err)
		defer s.Close()
		run(b, s)
	})
}

func BenchmarkTake(b *testing.B) {
	benchmark(b, func(b *testing.B, s store.Store) {
		var n atomic.Int64
		b.ReportAllocs()
		b.RunParallel(func(p *testing.PB) {
			for p.Next() {
				i := n.Add(1)
				_, err := s.Take(b.Context(), store.Ask{
					Slot: slot("tenant-"+strconv.FormatInt(i%100, 10), store.StreamSlots, strconv.FormatInt(i, 10)), Limit: 500,
					Rate: store.Rate{Tier: "gold", PerMinute: 6000, Burst: 1000}, Lease: time.Minute,
				})
				if err != nil {
					b.Error(err)
				}
			}
		})
	})
}

func BenchmarkHold1000(b *testing.B) {
	var all []store.Tunnel
	for i := range 1000 {
		one := tunnelOf("gw-1/0123456789abcdef", 1)
		one.ID = name(i)
		all = append(all, one)
	}
	benchmark(b, func(b *testing.B, s store.Store) {
		b.ReportAllocs()
		for b.Loop() {
			if refused, err := s.Hold(b.Context(), time.Minute, all...); err != nil || refused != nil {
				b.Fatal(refused, err)
			}
		}
	})
}

func BenchmarkFind(b *testing.B) {
	benchmark(b, func(b *testing.B, s store.Store) {
		hold(b, b.Context(), s, tunnelOf("a", 1))
		b.ReportAllocs()
		for b.Loop() {
			if _, ok, err := s.Find(b.Context(), "00ff"); err != nil || !ok {
				b.Fatal(ok, err)
			}
		}
	})
}

// FuzzTunnelRecord: whatever the store holds, it is read or refused; what is read is as it says.
func FuzzTunnelRecord(f *testing.F) {
	for _, seed := range []string{
		"", "\n\n", "H 1 =a\n{}", "L 00000000000000000001 =a\n{\"id\":\"00ff\"}\n{\"by\":\"gw\"}", "L 1 =a\n{}", "H 99999999999999999999 =a\n{}",
		"H 1 =a\n{\"epoch\":7}", "H 1\n{}", "H 1 =a\n{\"lost\":{}}", "X 1 =a\n[]",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		one, err := store.ParseTunnel(raw)
		if err != nil {
			require.ErrorIs(t, err, errs.StoreUnavailable)
			return
		}
		require.Equal(t, strings.HasPrefix(raw, "L "), one.Lost != nil)
		require.True(t, utf8.ValidString(one.ID))
	})
}
