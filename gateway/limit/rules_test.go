package limit

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

func TestExemptions(t *testing.T) {
	tight := Tier{OpensPerMinute: 1, Burst: 1, Tunnels: 1, Streams: 1}
	l, _ := newLimiter(t, Config{Tiers: tiers(tight), HandshakesPerMinute: 1, UnauthenticatedPerAddress: 1, Exempt: []Exemption{
		{Tenants: []string{"ops/*", "root"}},
		{Tenants: []string{"batch"}, Limits: []string{Opens, Tunnels}},
		{Tenants: []string{"batch"}, Limits: []string{Shedding}},
		{Addresses: []netip.Prefix{netip.MustParsePrefix("10.1.2.3/8"), netip.MustParsePrefix("::ffff:192.0.2.0/120")}, Limits: []string{Handshakes}},
		{Addresses: []netip.Prefix{netip.MustParsePrefix("2001:db8::/32")}},
	}})
	tenants := map[string]struct {
		code    errs.Code // of the second open
		tunnels bool
	}{"ops/x": {0, true}, "root": {0, true}, "batch": {errs.StreamLimit, true}, "ops": {errs.StreamLimit, false}, "ops/x/y": {errs.StreamLimit, false}, "other": {errs.StreamLimit, false}}
	for name, want := range tenants {
		_, err := l.Open(name, "")
		require.NoError(t, err)
		_, err = l.Open(name, "")
		require.Equal(t, want.code, errs.CodeOf(err), name)
		_, err = l.Tunnel(name, "")
		require.NoError(t, err)
		_, err = l.Tunnel(name, "")
		require.Equal(t, want.tunnels, err == nil, name)
	}
	_, streams := l.Usage("ops/x")
	require.Equal(t, 2, streams, "the exempt are counted, too")
	require.True(t, l.Exempt(Shedding, "batch"))
	require.False(t, l.Exempt(Bandwidth, "batch"))
	require.False(t, l.Exempt(Shedding, "other"))
	require.False(t, l.Exempt("no such limit", "root"))

	addresses := map[string]struct{ handshakes, connections bool }{
		"10.200.0.1": {true, false}, "::ffff:10.0.0.9": {true, false}, "192.0.2.77": {true, false}, "192.0.3.1": {}, "2001:db8::1": {true, true}, "2001:db9::1": {}, "fe80::1%eth0": {},
	}
	for text, want := range addresses {
		addr := netip.MustParseAddr(text)
		require.NoError(t, l.Handshake(addr))
		require.Equal(t, want.handshakes, l.Handshake(addr) == nil, text)
		_, err := l.Admit(addr)
		require.NoError(t, err)
		_, err = l.Admit(addr)
		require.Equal(t, want.connections, err == nil, text)
	}
	require.Equal(t, 8, l.Strangers())
}

func TestRulesApplyWholeOrNotAtAll(t *testing.T) {
	l, _ := newLimiter(t, Config{Tiers: tiers(Tier{Tunnels: 1}), Exempt: []Exemption{{Tenants: []string{"a"}}}})
	free := func(name string) bool {
		for range 2 {
			if _, err := l.Tunnel(name, ""); err != nil {
				return false
			}
		}
		return true
	}
	require.True(t, free("a"))
	require.False(t, free("b"))
	loose := tiers(Tier{Tunnels: 100})
	for _, bad := range []struct {
		tiers  map[string]Tier
		exempt []Exemption
	}{
		{loose, []Exemption{{Tenants: []string{"b"}}, {}}},
		{loose, []Exemption{{Tenants: []string{"b", "[x"}}}},
		{loose, []Exemption{{Tenants: []string{"b"}, Limits: []string{"speed"}}}},
		{loose, []Exemption{{Addresses: []netip.Prefix{{}}}}},
		{tiers(Tier{Bandwidth: -1}), nil},
		{tiers(Tier{Memory: -1}), nil},
		{nil, []Exemption{{Tenants: []string{"b"}}}},
	} {
		err := l.Apply(bad.tiers, bad.exempt)
		require.ErrorIs(t, err, errs.ConfigInvalid)
		require.True(t, free("a"))
		require.False(t, free("b"))
	}
	require.NoError(t, l.SetTiers(tiers(Tier{Tunnels: 1})))
	require.True(t, free("a"), "tiers change without the exemptions")
	exempt := []Exemption{{Tenants: []string{"b"}}}
	require.NoError(t, l.Apply(tiers(Tier{Tunnels: 1}), exempt))
	require.False(t, free("a"))
	require.True(t, free("b"))
	err := l.Apply(loose, []Exemption{{Tenants: []string{"b"}, Limits: []string{"speed"}}})
	require.ErrorContains(t, err, "opens, tunnels, streams, bandwidth, shedding, handshakes, unauthenticated")
}

// The bits and the names of the limits are in the same order.
func TestNamesOfLimits(t *testing.T) {
	for name, bit := range map[string]set{Opens: ofOpens, Tunnels: ofTunnels, Streams: ofStreams, Bandwidth: ofBandwidth, Shedding: ofShedding,
		Handshakes: ofHandshakes, Unauthenticated: ofUnauthenticated} {
		s, err := setOf([]string{name})
		require.NoError(t, err)
		require.Equal(t, bit, s, name)
	}
	all, err := setOf(nil)
	require.NoError(t, err)
	require.Equal(t, ofUnauthenticated<<1-1, all)
}
