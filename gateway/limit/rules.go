package limit

import (
	"net/netip"
	"slices"
	"strings"

	"fairlead/shared/errs"
	"fairlead/shared/glob"
)

// The limits that an Exemption can name.
const (
	Opens           = "opens"           // of a tenant, per minute
	Tunnels         = "tunnels"         // of a tenant, at once
	Streams         = "streams"         // of a tenant, at once
	Bandwidth       = "bandwidth"       // of a tenant
	Shedding        = "shedding"        // of a tenant's opens and tunnels under pressure
	Handshakes      = "handshakes"      // of an address, per minute
	Unauthenticated = "unauthenticated" // of an address: connections at once before a token was verified
)

// Limits are the names of all limits that an Exemption can name.
func Limits() []string {
	return []string{Opens, Tunnels, Streams, Bandwidth, Shedding, Handshakes, Unauthenticated}
}

// Exemption frees the tenants that it names from limits of tenants, and the addresses that it names from limits of
// addresses. Tenants are known only once their token is verified, and addresses are not looked at from then on: one does
// not narrow down the other.
type Exemption struct {
	Tenants   []string       // patterns, see glob.Pattern; "*" alone means all
	Addresses []netip.Prefix // of clients
	Limits    []string       // from which; empty: from all
}

// set is a set of limits, one bit each in the order of Limits.
type set uint8

func setOf(names []string) (set, error) {
	all := Limits()
	if len(names) == 0 {
		return 1<<len(all) - 1, nil
	}
	var s set
	for _, name := range names {
		i := slices.Index(all, name)
		if i < 0 {
			return 0, errs.New(errs.ConfigInvalid, "there is no limit %s to exempt from; allowed are %s", quote(name), strings.Join(all, ", "))
		}
		s |= 1 << i
	}
	return s, nil
}

const (
	ofOpens set = 1 << iota
	ofTunnels
	ofStreams
	ofBandwidth
	ofShedding
	ofHandshakes
	ofUnauthenticated
)

// rules are the tiers and exemptions that are in force. They never change: others take their place.
type rules struct {
	tiers     map[string]Tier
	exempt    []Exemption // as given
	tenants   []exemptTenants
	addresses []exemptAddresses
	share     *rules // what this replica grants by itself of what is shared
}

type exemptTenants struct {
	pattern glob.Pattern
	from    set
}

type exemptAddresses struct {
	network netip.Prefix
	from    set
}

// newRules checks and copies. Errors are errs.ConfigInvalid.
func newRules(tiers map[string]Tier, exempt []Exemption) (*rules, error) {
	if _, ok := tiers[DefaultTier]; !ok {
		return nil, errs.New(errs.ConfigInvalid, "tiers lacks %q, which tenants without a tier have", DefaultTier)
	}
	r := &rules{tiers: make(map[string]Tier, len(tiers)), exempt: slices.Clone(exempt)}
	for name, t := range tiers {
		if t.OpensPerMinute < 0 || t.Burst < 0 || t.Tunnels < 0 || t.Streams < 0 || t.Bandwidth < 0 || t.Memory < 0 {
			return nil, errs.New(errs.ConfigInvalid, "tiers.%s holds a negative limit; 0 means unlimited", name)
		}
		if t.Burst == 0 {
			t.Burst = t.OpensPerMinute
		}
		r.tiers[name] = t
	}
	for i, e := range exempt {
		if err := r.add(e); err != nil {
			return nil, errs.Wrap(errs.ConfigInvalid, err, "exemption %d", i)
		}
	}
	return r, nil
}

func (r *rules) add(e Exemption) error {
	if len(e.Tenants) == 0 && len(e.Addresses) == 0 {
		return errs.New(errs.ConfigInvalid, "it names neither tenants nor addresses")
	}
	from, err := setOf(e.Limits)
	if err != nil {
		return err
	}
	for _, text := range e.Tenants {
		pattern, err := glob.Compile(text)
		if err != nil {
			return err
		}
		r.tenants = append(r.tenants, exemptTenants{pattern, from})
	}
	for _, network := range e.Addresses {
		if !network.IsValid() {
			return errs.New(errs.ConfigInvalid, "it names an invalid network")
		}
		r.addresses = append(r.addresses, exemptAddresses{unmapped(network), from})
	}
	return nil
}

// tier finds a tier, and says under which name: one that is not configured is DefaultTier.
func (r *rules) tier(name string) (string, Tier) {
	if t, ok := r.tiers[name]; ok {
		return name, t
	}
	return DefaultTier, r.tiers[DefaultTier]
}

// tenant is what a tenant is exempt from.
func (r *rules) tenant(name string) (from set) {
	for i := range r.tenants {
		if r.tenants[i].pattern.Match(name) {
			from |= r.tenants[i].from
		}
	}
	return from
}

// address is what an address is exempt from.
func (r *rules) address(addr netip.Addr) (from set) {
	if len(r.addresses) == 0 {
		return 0
	}
	addr = addr.Unmap().WithZone("")
	for i := range r.addresses {
		if r.addresses[i].network.Contains(addr) {
			from |= r.addresses[i].from
		}
	}
	return from
}

// unmapped is a network as addresses are compared with it: ::ffff:10.0.0.0/104 is 10.0.0.0/8.
func unmapped(n netip.Prefix) netip.Prefix {
	if n.Addr().Is4In6() && n.Bits() >= 96 {
		n = netip.PrefixFrom(n.Addr().Unmap(), n.Bits()-96)
	}
	return n.Masked()
}
