package limit

import (
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"fairlead/shared/errs"
)

func (l *Limiter) strangerEntries() (n int) {
	for i := range l.strangers.shards {
		n += len(l.strangers.shards[i].held)
	}
	return n
}

// Verifies: R4.10
func TestUnauthenticatedConnections(t *testing.T) {
	l, _ := newLimiter(t, Config{Tiers: tiers(Tier{}), Unauthenticated: 5, UnauthenticatedPerAddress: 2})
	admit := func(addr string) (func(), error) { return l.Admit(netip.MustParseAddr(addr)) }
	first, err := admit("2001:db8:0:1::1")
	require.NoError(t, err)
	_, err = admit("2001:db8:0:1:ffff::2")
	require.NoError(t, err)
	release, err := admit("2001:db8:0:1::3")
	require.ErrorIs(t, err, errs.HandshakeLimit, "the same /64")
	require.Nil(t, release)
	require.Contains(t, err.Error(), "2001:db8:0:1::/64")
	require.Equal(t, &errs.Quota{Limit: 2}, errs.From(err).Quota)
	require.Positive(t, errs.From(err).RetryAfter)
	for _, addr := range []string{"2001:db8:0:2::1", "192.0.2.1", "::ffff:192.0.2.1"} {
		_, err = admit(addr)
		require.NoError(t, err, addr)
	}
	_, err = admit("198.51.100.1")
	require.ErrorIs(t, err, errs.Overloaded)
	require.Equal(t, &errs.Quota{Limit: 5}, errs.From(err).Quota)
	first()
	first() // gives back nothing more
	_, err = admit("192.0.2.1")
	require.ErrorIs(t, err, errs.HandshakeLimit, "what was refused holds nothing")
	_, err = admit("198.51.100.1")
	require.NoError(t, err)
	require.Equal(t, 5, l.Strangers())
	require.Equal(t, 4, l.strangerEntries())
}

func TestUnauthenticatedConnectionsAreUnlimitedByDefault(t *testing.T) {
	l, _ := newLimiter(t, Config{Tiers: tiers(Tier{})})
	for range 10_000 {
		_, err := l.Admit(nth(1))
		require.NoError(t, err)
	}
	require.Equal(t, 10_000, l.Strangers())
}

// Whatever comes and goes, what is counted is what is there, never above a limit, and nobody is refused below.
func TestStrangersAreCountedExactly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit, each := rapid.IntRange(1, 12).Draw(t, "limit"), rapid.IntRange(1, 4).Draw(t, "each")
		l, err := New(Config{Tiers: tiers(Tier{}), Unauthenticated: limit, UnauthenticatedPerAddress: each})
		if err != nil {
			t.Fatal(err)
		}
		type conn struct {
			addr    uint32
			release func()
		}
		var there []conn
		held := map[uint32]int{}
		for range rapid.IntRange(0, 100).Draw(t, "steps") {
			if len(there) > 0 && rapid.Bool().Draw(t, "ends") {
				i := rapid.IntRange(0, len(there)-1).Draw(t, "which")
				there[i].release()
				held[there[i].addr]--
				there = append(there[:i], there[i+1:]...)
			} else {
				addr := rapid.Uint32Range(1, 5).Draw(t, "addr")
				release, err := l.Admit(nth(addr))
				if want := len(there) < limit && held[addr] < each; want != (err == nil) {
					t.Fatalf("%v with %d of %d, %d of %d from the address", err, len(there), limit, held[addr], each)
				}
				if err == nil {
					there = append(there, conn{addr, release})
					held[addr]++
				}
			}
			if l.Strangers() != len(there) {
				t.Fatalf("%d counted, %d there", l.Strangers(), len(there))
			}
		}
		for _, c := range there {
			c.release()
		}
		if l.strangerEntries() != 0 {
			t.Fatal("entries of nobody")
		}
	})
}

func TestConcurrentAdmissionsKeepTheLimits(t *testing.T) {
	l, _ := newLimiter(t, Config{Tiers: tiers(Tier{}), Unauthenticated: 10, UnauthenticatedPerAddress: 7})
	var workers sync.WaitGroup
	var now, most, refused atomic.Int64
	for i := range goroutines {
		workers.Go(func() {
			for range 200 {
				release, err := l.Admit(nth(uint32(i % 2)))
				if err != nil {
					refused.Add(1)
					continue
				}
				n := now.Add(1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				runtime.Gosched()
				now.Add(-1)
				release()
			}
		})
	}
	workers.Wait()
	require.LessOrEqual(t, most.Load(), int64(10))
	require.Positive(t, refused.Load())
	require.Zero(t, l.Strangers())
	require.Zero(t, l.strangerEntries())
}

func BenchmarkAdmit(b *testing.B) {
	l, err := New(Config{Tiers: tiers(Tier{}), Unauthenticated: 1 << 20, UnauthenticatedPerAddress: 1 << 20})
	require.NoError(b, err)
	b.ReportAllocs()
	b.SetParallelism(goroutines / runtime.GOMAXPROCS(0))
	b.RunParallel(func(pb *testing.PB) {
		for i := uint32(0); pb.Next(); i++ {
			release, err := l.Admit(nth(i % 1000))
			if err != nil {
				b.Error(err)
				return
			}
			release()
		}
	})
}
