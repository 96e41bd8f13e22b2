package limit

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

// Verifies: R4.10
func TestHandshakesPerAddress(t *testing.T) {
	l, clock := newLimiter(t, Config{Tiers: tiers(Tier{}), HandshakesPerMinute: 30, HandshakeBurst: 2})
	try := func(addr string) error { return l.Handshake(netip.MustParseAddr(addr)) }
	exhaust := func(addr string) {
		t.Helper()
		require.NoError(t, try(addr))
		require.NoError(t, try(addr))
		require.ErrorIs(t, try(addr), errs.HandshakeLimit)
	}
	exhaust("192.0.2.1")
	require.ErrorIs(t, try("::ffff:192.0.2.1"), errs.HandshakeLimit, "the same address, written as IPv6")
	exhaust("192.0.2.2")
	exhaust("2001:db8:0:1::1")
	require.ErrorIs(t, try("2001:db8:0:1:ffff:ffff:ffff:ffff"), errs.HandshakeLimit, "the same /64")
	require.NoError(t, try("2001:db8:0:2::1"))
	exhaust("fe80::1%eth0")
	require.ErrorIs(t, try("fe80::2%eth1"), errs.HandshakeLimit)
	require.NoError(t, l.Handshake(netip.Addr{}))
	require.NoError(t, l.Handshake(netip.Addr{}))
	require.ErrorIs(t, l.Handshake(netip.Addr{}), errs.HandshakeLimit)

	err := try("2001:db8:0:1::9")
	require.Contains(t, err.Error(), "2001:db8:0:1::/64")
	require.InDelta(t, 2000, errs.From(err).RetryAfter.Milliseconds(), 2)
	clock.move(errs.From(err).RetryAfter)
	require.NoError(t, try("2001:db8:0:1::9"))
}

func TestHandshakesAreUnlimitedByDefault(t *testing.T) {
	l, _ := newLimiter(t, Config{Tiers: tiers(Tier{})})
	for range 10_000 {
		require.NoError(t, l.Handshake(netip.MustParseAddr("192.0.2.1")))
	}
}

func TestAddressesAreBounded(t *testing.T) {
	l, _ := newLimiter(t, Config{Tiers: tiers(Tier{}), HandshakesPerMinute: 1, MaxAddresses: 16})
	for i := range uint32(10_000) {
		require.NoError(t, l.Handshake(nth(i)))
		require.ErrorIs(t, l.Handshake(nth(i)), errs.HandshakeLimit)
	}
	tracked := 0
	for i := range l.addresses.shards {
		tracked += l.addresses.shards[i].rates.Len()
	}
	require.Equal(t, 16, tracked)
}

func nth(i uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], i)
	return netip.AddrFrom4(b)
}

func BenchmarkHandshake(b *testing.B) {
	l, err := New(Config{Tiers: tiers(Tier{}), HandshakesPerMinute: 1 << 30, Now: time.Now})
	require.NoError(b, err)
	b.ReportAllocs()
	b.SetParallelism(goroutines / runtime.GOMAXPROCS(0))
	b.RunParallel(func(pb *testing.PB) {
		for i := uint32(0); pb.Next(); i++ {
			_ = l.Handshake(nth(i % 100_000))
		}
	})
}
